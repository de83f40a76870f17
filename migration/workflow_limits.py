"""How large a workflow may be that is read. It comes from anybody: without bounds, one file could take all memory, or
minutes. The largest that people share have some hundreds of nodes."""

from typing import Any

from ..errors import UserError

MAX_BYTES = 32 * 2**20
MAX_VALUES = 1_000_000  # of JSON: each takes up to 100 bytes of memory, whatever it takes in the file
MAX_DEPTH = 100  # Python repeats, compares and writes nested values by recursion, which has an end
MAX_DIGITS = 309  # JavaScript has no longer numbers, and Python needs a time with the square of the digits
MAX_NODES = 5_000
MAX_SLOTS = 1_000  # inputs, or outputs, of one node
MAX_WRITTEN_NODES = 4 * MAX_NODES


class TooLargeError(UserError):
    """A workflow that is not read or written for its size: nothing of it is."""


def check_values(text: str) -> None:
    """Refuse JSON of too many values before it is parsed. Raises TooLargeError."""
    # Before each value there is one of these; those inside of texts are counted as well.
    if sum(text.count(mark) for mark in "[{,") > MAX_VALUES:
        raise TooLargeError(
            f"The file has more than {MAX_VALUES} values, and no workflow has as many. Choose another file, or split "
            "the workflow."
        )


def read_integer(digits: str) -> int:
    """An integer of JSON. Raises TooLargeError."""
    count = len(digits.lstrip("-"))
    if count > MAX_DIGITS:
        raise TooLargeError(f"The file has a number of {count} digits, which no workflow has. Choose another file.")
    return int(digits)


def refuse_depth() -> TooLargeError:
    return TooLargeError(
        f"The file is nested too deeply for a workflow, more than {MAX_DEPTH} lists and objects in each other. Save "
        "the workflow with ComfyUI again."
    )


def check_depth(document: Any) -> None:
    """Raises TooLargeError for lists and objects in each other beyond MAX_DEPTH."""
    level = [document]
    for _ in range(MAX_DEPTH):
        containers = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in containers for value in values if isinstance(value, (dict, list))]
        if not level:
            return
    raise refuse_depth()


def check_nodes(count: int) -> None:
    """Raises TooLargeError for more nodes than are read."""
    if count > MAX_NODES:
        raise TooLargeError(f"The workflow has {count} nodes; at most {MAX_NODES} are read. Split it.")


def check_slots(label: str, count: int, kind: str) -> None:
    """kind: "inputs" or "outputs". Raises TooLargeError for more of them than are read of one node."""
    if count > MAX_SLOTS:
        raise TooLargeError(f"{label} has {count} {kind}; at most {MAX_SLOTS} are read. Choose another file.")
