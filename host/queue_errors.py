"""What ComfyUI reports about a prompt that cannot be queued."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Result = tuple[
    bool, list[dict[str, Any]], str
]  # whether the prompt may run, errors, node: of ComfyUI's validate_inputs

_CUSTOM = "custom_validation_failed"  # execution.validate_inputs: the type of what a node's validate_inputs returns


def reported_once(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ComfyUI's errors of one node, each message of the node's own checks once.

    ComfyUI repeats such a message for every input that validate_inputs takes, "width - frames is 50: ...". Of these the
    one stays whose input the message begins with, or else the first.
    """
    kept: dict[object, dict[str, Any]] = {}
    for index, error in enumerate(errors):
        name, message = _input_and_message(error)
        key = index if message is None else message
        if message is not None and message.startswith(f"{name}: "):
            kept[key] = {**error, "details": f"{name} - {message.removeprefix(f'{name}: ')}"}
        elif key not in kept or (message or "").startswith(f"{name} "):
            kept[key] = error
    return list(kept.values())


def naming_input(message: str, name: str, names: Sequence[str]) -> str:
    """`message`, so that reported_once finds the input `name`, one of the `names` that validate_inputs takes.

    Without that function, in a ComfyUI of another version, the name tells a reader which input is meant.
    """
    is_clear = len(names) < 2 or any(message.startswith(f"{known} ") for known in names)
    return message if is_clear else f"{name}: {message}"


def is_link(value: Any, prompt: Mapping[str, Any], classes: Mapping[str, Any]) -> bool:
    """Whether `value` of a node's input in a prompt is a link, [node, number of its output], to an output that is
    there. ComfyUI takes each list for one, and fails on others with the text of Python's error alone.

    classes: ComfyUI's node classes by their ids.
    """
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int):
        return False
    node = classes.get(prompt[value[0]]["class_type"]) if value[0] in prompt else None
    if node is None or value[1] < 0:
        return False
    try:
        node.RETURN_TYPES[value[1]]  # as ComfyUI asks: other packs' tuples have any number of outputs
    except (IndexError, TypeError):
        return False
    return True


def refused(result: Result, messages: Mapping[str, str]) -> Result:
    """ComfyUI's result of a node's validation, with the `messages` about its inputs, by their names, as of the node's
    own checks, in the place of what ComfyUI says of the same inputs."""
    if not messages:
        return result
    others = [error for error in result[1] if _input_and_message(error)[0] not in messages]
    errors = [
        {
            "type": _CUSTOM,
            "message": "Custom validation failed for node",
            "details": f"{name} - {message}",
            "extra_info": {"input_name": name},
        }
        for name, message in messages.items()
    ]
    return False, [*others, *errors], result[2]


def own_messages(errors: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(input, what the node's own checks say of it) in `errors`, without ComfyUI's name of the input in front."""
    return [(name, message) for name, message in map(_input_and_message, errors) if message is not None]


def in_words(errors: list[dict[str, Any]], translate: Callable[[str], str]) -> list[dict[str, Any]]:
    """ComfyUI's errors of one node, the messages of its own checks translated: "width - " and the message."""
    shown = []
    for error in errors:
        name, message = _input_and_message(error)
        shown.append(error if message is None else {**error, "details": f"{name} - {translate(message)}"})
    return shown


def _input_and_message(error: dict[str, Any]) -> tuple[str, str | None]:
    """The input that `error` is reported for, and the message of the node's own check, None for any other error."""
    name = str(error.get("extra_info", {}).get("input_name", ""))
    start, details = f"{name} - ", str(error.get("details", ""))
    is_custom = error.get("type") == _CUSTOM and details.startswith(start)
    return name, details.removeprefix(start) if is_custom else None
