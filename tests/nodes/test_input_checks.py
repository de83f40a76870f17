"""One declaration of checks, run by ComfyUI when a prompt is queued and by the node before it works."""

import asyncio
import contextlib
import inspect
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import execution
import pytest
import torch
from comfy_api.internal import first_real_override
from comfy_api.latest import io

from cogvideox.errors import UserError
from cogvideox.host import patches
from cogvideox.host.queue_errors import is_link
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.nodes import NODES, input_checks
from cogvideox.nodes.input_checks import checked

NAN = float("nan")
ran: list[str] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    ran.clear()


def check_even(width: int) -> None:
    ran.append("even")
    if width % 2:
        raise UserError(f"width {width} is odd. Use an even one.")


def check_sum(width: int, height: int = 8) -> None:
    ran.append("sum")
    if width + height > 60:
        raise UserError(f"{width} and {height} are too much together. Use less.")


def check_model(model: object) -> None:
    ran.append("model")
    if model == "bad":
        raise UserError("The model is bad. Use a good one.")


_MODEL = io.Custom("CHECKED_MODEL")  # of no type that socket_checks knows


def inputs() -> list[io.Input]:
    return [
        _MODEL.Input("model"),
        io.Int.Input("width", default=8, min=4, max=40),
        io.Int.Input("height", default=8, min=4, max=40, optional=True),
        io.Float.Input("share", default=0.5, min=0.25, max=1.0),
        io.Combo.Input("fit", options=["crop", "pad", "none"], default="crop"),
        io.Boolean.Input("loop", default=False, optional=True),
        io.String.Input("text", default="", optional=True),
        io.Combo.Input("file", options=["there"]),
    ]


@checked(check_even, check_sum, check_model)
class Node(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CheckedNode", inputs=inputs(), outputs=[io.Int.Output()], hidden=[io.Hidden.unique_id]
        )

    @classmethod
    def execute(
        cls,
        model: object,
        width: int,
        share: float,
        fit: str,
        file: str,
        height: int = 8,
        loop: bool = False,
        text: str = "",
    ) -> io.NodeOutput:
        ran.append(f"body of {cls.hidden.unique_id}")
        return io.NodeOutput(width)


@checked(check_even, check_model)
class ListNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="CheckedListNode", inputs=inputs(), outputs=[io.Int.Output()], is_input_list=True)

    @classmethod
    def execute(cls, model: list, **widgets: list) -> io.NodeOutput:
        ran.append("body")
        return io.NodeOutput(widgets["width"][0])


class Source(io.ComfyNode):
    """Something to link."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [_MODEL.Output(), io.Int.Output(), io.Float.Output(), io.Combo.Output()]
        return io.Schema(node_id="CheckedSource", inputs=[], outputs=outputs)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput("good", 8, 0.5, "crop")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict]]:
    """queue(node, inputs): what ComfyUI finds wrong with a prompt of that node when it is queued."""
    for node in (Node, ListNode, Source):
        monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)

    def check(node: type[io.ComfyNode] = Node, **given: Any) -> list[dict]:
        typed = {"model": ["1", 0], "width": 8, "share": 0.5, "fit": "crop", "file": "there"} | given
        prompt = {
            "1": {"class_type": "CheckedSource", "inputs": {}},
            "2": {"class_type": node.GET_SCHEMA().node_id, "inputs": typed},
        }
        return asyncio.run(execution.validate_inputs("id", prompt, "2", {}))[1]

    return check


def run(node: type[io.ComfyNode] = Node, **given: Any) -> Any:
    """Run a node as ComfyUI does: in a locked clone of its class, with hidden inputs."""
    values = {"model": "good", "width": 8, "share": 0.5, "fit": "crop", "file": "there"} | given
    data = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    v3_data: Any = {"hidden_inputs": {io.Hidden.unique_id: "7"}}
    call = execution._async_map_node_over_list("id", "7", node, data, "EXECUTE_NORMALIZED", v3_data=v3_data)
    (output,) = asyncio.run(call)
    return output.args[0]


def test_what_comfyui_reads() -> None:
    """ComfyUI passes what getfullargspec names, and compares everything else with its limits itself."""
    validate = first_real_override(Node, "validate_inputs")
    assert inspect.getfullargspec(validate).args == ["cls", "width", "height"]
    assert inspect.getfullargspec(validate).varkw is None
    assert inspect.getfullargspec(first_real_override(ListNode, "validate_inputs")).args == ["cls", "width"]


def test_typed_values_when_a_prompt_is_queued(queue: Callable[..., list[dict]]) -> None:
    """A mistake must be known before an hour of sampling, in the same words as at execution."""
    assert queue() == [] and ran == ["even", "sum"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"width": 9}, "width 9 is odd. Use an even one."),
        ({"width": 40, "height": 40}, "40 and 40 are too much together. Use less."),
        ({"width": 200}, "width is 200: use 4 to 40."),
        ({"width": 3, "height": 41}, "width is 3: use 4 to 40. height is 41: use 4 to 40."),
    ]
    for given, words in cases:
        told = {error["details"].partition(" - ")[2] for error in queue(**given)}
        assert {message.removeprefix("width: ") for message in told} == {words}  # host.queue_errors takes the name off
        with pytest.raises(UserError) as error:
            run(**given)
        assert str(error.value) == words
    assert not any(step.startswith("body") for step in ran)


@pytest.mark.parametrize("value", (8.5, 8.0, True, "8", None))
def test_linked_numbers_that_are_not_whole(value: Any) -> None:
    """Any-type links of other packs carry anything: a half video would fail somewhere in torch."""
    with pytest.raises(UserError, match="width is .*: use 4 to 40"):
        run(width=value)


def test_one_message_for_one_mistake(queue: Callable[..., list[dict]], monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI repeats what validate_inputs says for each input that it names: once is enough, at the input that the
    message is about. Nodes of others keep what ComfyUI reports for them."""
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)  # restored afterwards
    if hasattr(execution.validate_inputs, patches._MARK):
        monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"height": 41}, "height"),
        ({"width": 3, "height": 8}, "width"),
        ({"width": 40, "height": 40}, "width"),  # names neither: the first
        ({"height": 41, "share": 2.0}, "height share"),  # the second is ComfyUI's own
    ]
    assert [len(queue(**given)) for given, _ in mistakes] == [2, 2, 2, 3]
    patches.wrap_validation({"CogVideoXSample"})
    assert len(queue(height=41)) == 2
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    patches.wrap_validation({"CheckedNode"})
    for given, names in mistakes:
        errors = queue(**given)
        assert sorted(error["extra_info"]["input_name"] for error in errors) == names.split(), given
    assert [error["type"] for error in queue(share=2.0)] == ["value_bigger_than_max"]


def test_inputs_that_no_check_names_when_a_prompt_is_queued(queue: Callable[..., list[dict]]) -> None:
    """ComfyUI marks the one input that is wrong; named in validate_inputs, all of them would show the message."""
    assert [(e["type"], e["extra_info"]["input_name"]) for e in queue(share=2.0)] == [
        ("value_bigger_than_max", "share")
    ]
    assert [(e["type"], e["extra_info"]["input_name"]) for e in queue(fit="x")] == [("value_not_in_list", "fit")]


def test_linked_values_wait_until_they_are_known(queue: Callable[..., list[dict]]) -> None:
    """A link carries None when a prompt is queued: no check may fail on it, nor wait where a default stands in."""
    assert queue(width=["1", 1]) == [] and ran == []  # both need the width
    assert queue(width=8, height=["1", 1]) == [] and ran == ["even", "sum"]
    assert "odd" in queue(width=9, height=["1", 1])[0]["details"]
    assert (
        Node.validate_inputs() is True and Node.validate_inputs(width=None, height=41) == "height is 41: use 4 to 40."
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"width": 9}, "width 9 is odd"),
        ({"width": 41}, "width is 41: use 4 to 40."),
        ({"width": None}, "width is None: use 4 to 40."),
        ({"height": 3}, "height is 3: use 4 to 40."),
        ({"share": 0.2}, "share is 0.2: use 0.25 to 1."),
        ({"share": NAN}, "share is nan: use 0.25 to 1."),
        ({"share": "much"}, "share is much: use 0.25 to 1."),
        ({"fit": "stretch"}, "fit is 'stretch': use crop, pad or none."),
        ({"model": "bad"}, "The model is bad"),
        *(({"loop": value}, f"loop is {value}: use true or false.") for value in (None, 0, 1, NAN, "false", {}, 2**70)),
        *(({"text": value}, f"text is {value}: use a text.") for value in (None, 5, True, NAN, {})),
        *(({"share": value}, "use 0.25 to 1.") for value in (True, 10**5000, torch.ones(2), torch.ones(()))),
        *(({"width": value}, "use 4 to 40.") for value in (10**5000, torch.ones(2), {})),
        ({"fit": 10**5000}, "fit is a int: use crop, pad or none."),
    ],
)
def test_linked_values_when_the_node_runs(given: dict[str, Any], words: str) -> None:
    """Nothing but this holds what another node gives to the limits of the widget."""
    with pytest.raises(UserError) as error:
        run(**given)
    assert words in str(error.value) and not any(step.startswith("body") for step in ran)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(({"loop": value}, "use true or false.") for value in ("false", "", None, NAN, {}, 0, 1, -(2**70))),
        *(({"width": value}, "width is .*: use 4 to 40.") for value in (8.5, True)),
        *(({"share": value}, "share is .*: use 0.25 to 1.") for value in (True, NAN, "nan")),
        *(({"text": value}, "text is .*: use a text.") for value in (None, True, {}, {"__value__": ["a"]})),
    ],
)
def test_typed_values_that_comfyui_would_convert(
    given: dict[str, Any], words: str, queue: Callable[..., list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script's "dynamic_cfg": "false" switched it on, 49.9 frames were 49, and a prompt of null read "None"."""
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)  # restored afterwards
    if hasattr(execution.validate_inputs, patches._MARK):
        monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    patches.wrap_validation({"CheckedNode"}, partial(input_checks.converted_problems, {"CheckedNode": Node}))
    (error,) = queue(**given)
    assert error["extra_info"] == {"input_name": next(iter(given))}
    assert re.search(words, error["details"]), error
    # In the prompt's result as well: else ComfyUI runs it all the same.
    typed = {"model": ["1", 0], "width": 8, "share": 0.5, "fit": "crop", "file": "there", **given}
    prompt = {
        "1": {"class_type": "CheckedSource", "inputs": {}},
        "2": {"class_type": "CheckedNode", "inputs": typed},
    }
    validated: dict[str, tuple] = {}
    for _ in range(2):  # for each output that needs the node
        found = asyncio.run(execution.validate_inputs("id", prompt, "2", validated))
        assert not found[0] and len(found[1]) == 1 and validated["2"] == found


def test_typed_values_that_are_what_they_seem(
    queue: Callable[..., list[dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts send numbers as texts, 1 for 1.0 and 8.0 for 8; a wrapped value is the value."""
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)  # restored afterwards
    if hasattr(execution.validate_inputs, patches._MARK):
        monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    patches.wrap_validation({"CheckedNode"}, partial(input_checks.converted_problems, {"CheckedNode": Node}))
    for given in ({"loop": True}, {"loop": {"__value__": False}}, {"loop": ["1", 1], "text": 5}, {"width": 8.0}):
        assert not [error for error in queue(**given) if error["type"] == "custom_validation_failed"], given
    assert queue(width="8", share=1, text="a") == []


def test_order() -> None:
    """Limits first, so that a check need not fear a size of 0; then the checks as declared; then the body."""
    assert run(file="another") == 8  # a list of files is for the check that finds the file
    assert ran == ["even", "sum", "model", "body of 7"]


def test_lists(queue: Callable[..., list[dict]]) -> None:
    """The training nodes get each widget as a list of one and sockets as lists of many."""
    assert queue(ListNode) == [] and queue(ListNode, width=["1", 1]) == [] and ran == ["even"]
    assert "odd" in queue(ListNode, width=9)[0]["details"]
    ran.clear()
    assert run(ListNode, model=["good", "better"]) == 8 and ran == ["even", "model", "body"]
    for given, words in (({"width": 9}, "odd"), ({"width": 41}, "use 4 to 40"), ({"share": NAN}, "share is nan")):
        with pytest.raises(UserError, match=words):
            run(ListNode, **given)


def test_other_errors_are_not_swallowed() -> None:
    """A bug that shows as a remark on the user's input would never be reported."""

    def check_width(width: int) -> None:
        raise OSError("disk")

    @checked(check_width)
    class Broken(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> io.Schema:
            return Node.define_schema()

        @classmethod
        def execute(cls, width: int) -> io.NodeOutput:
            return io.NodeOutput()

    with pytest.raises(OSError, match="disk"):
        Broken.validate_inputs(width=8)
    with pytest.raises(OSError, match="disk"):
        Broken.execute(8)


def test_a_check_that_could_never_run() -> None:
    """A misspelt input would be a check that nobody misses until it was needed."""

    def check_depth(depth: int) -> None: ...

    def check_untyped(width) -> None: ...  # noqa: ANN001

    for check, words in ((check_depth, "depth is not an input"), (check_untyped, "width has no annotation")):
        with pytest.raises(TypeError, match=words):

            @checked(check)
            class _Never(io.ComfyNode):
                @classmethod
                def execute(cls, width: int) -> io.NodeOutput:
                    return io.NodeOutput()


OURS = NODES
LIMITED = [
    pytest.param(node, entry, id=f"{node.__name__}-{entry.id}")
    for node in OURS
    for entry in node.GET_SCHEMA().inputs
    if isinstance(entry, (io.Boolean.Input, io.Int.Input, io.Float.Input, io.String.Input))
    or (isinstance(entry, io.Combo.Input) and entry.default)
]


@pytest.mark.parametrize("node", OURS)
def test_every_node_is_checked(node: Any) -> None:
    """A node that is added without the decorator would take linked values without limits, and keep old texts on it."""
    is_checked = hasattr(node.__dict__["execute"].__func__, "__wrapped__")
    assert is_checked, f"add @checked(...) of nodes/input_checks.py to {node.__name__}"


@pytest.mark.parametrize(("node", "entry"), LIMITED)
def test_every_limit_holds_when_the_node_runs(node: type[io.ComfyNode], entry: Any) -> None:
    """A linked million of frames takes the server down; a linked NaN makes a black video after an hour."""
    given = {other.id: getattr(other, "default", None) for other in node.GET_SCHEMA().inputs}
    given |= {other.id: "" for other in node.GET_SCHEMA().inputs if isinstance(other, io.String.Input)}
    is_list = node.GET_SCHEMA().is_input_list
    wrong: list[object] = [None, NAN, 2**70, {}]
    if isinstance(entry, (io.Int.Input, io.Float.Input)):
        wrong += [entry.min - 1, entry.max + 1, True]
    elif not isinstance(entry, io.String.Input):
        wrong += ["nothing of the kind"]
    for value in wrong:
        with pytest.raises(UserError, match=f"^{entry.id} is .*: use "):
            values = given | {entry.id: value}
            node.execute(**{name: [each] for name, each in values.items()} if is_list else values)


class AnySource(io.ComfyNode):
    """An output that may be linked to every input."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="AnySource", inputs=[], outputs=[io.AnyType.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(None)


def first_value(entry: Any) -> object:
    """What an input has in a new graph, or a link to AnySource."""
    if not isinstance(entry, input_checks._WIDGETS):
        return ["1", 0]
    return entry.options[0] if isinstance(entry, io.Combo.Input) and entry.default is None else entry.default


NO_LINKS = (
    [],
    [1],
    ["a", "b", "c"],
    ["9", 0],
    [None, None],
    [[], 0],
    ["1", 9],
    ["1", -1],
    ["1", True],
    ["1", "x"],
    [1, 0],
)
NO_VALUES = ({}, {"a": 1}, {"__value__": None}, {"__value__": []}, {"__value__": {}}, NAN, math.inf)
EVERY_INPUT = [
    pytest.param(node, entry, id=f"{node.__name__}-{entry.id}") for node in OURS for entry in node.GET_SCHEMA().inputs
]


@pytest.mark.parametrize(("node", "entry"), EVERY_INPUT)
def test_what_no_input_takes_is_refused_when_a_prompt_is_queued(
    node: type[io.ComfyNode], entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A "preset" of null was refused when the checkpoint had been loaded, and a link to nowhere in Python's words."""
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)  # restored afterwards
    if hasattr(execution.validate_inputs, patches._MARK):
        monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    by_id = {each.__name__: each for each in OURS}
    patches.wrap_validation(by_id, partial(input_checks.converted_problems, by_id))
    for each in (AnySource, node):
        monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, each.__name__, each)
    first = {each.id: first_value(each) for each in node.GET_SCHEMA().inputs}

    def told(value: object) -> dict[str, str]:
        inputs = {**first, entry.id: value}
        prompt = {"1": {"class_type": "AnySource", "inputs": {}}, "2": {"class_type": node.__name__, "inputs": inputs}}
        is_fine, errors, _ = loop.run_until_complete(execution.validate_inputs("id", prompt, "2", {}))
        assert is_fine == (not errors) and inputs.keys() == first.keys()
        found = {error["extra_info"]["input_name"]: error["details"] for error in errors}
        assert len(found) == len(errors), errors
        return found

    wrong: list[object] = [*NO_LINKS, *NO_VALUES]
    is_widget = isinstance(entry, input_checks._WIDGETS)
    if is_widget or not entry.optional:  # null for an optional input is as if it were not there
        wrong.append(None)
    if not isinstance(entry, io.Boolean.Input):
        wrong.append(True)
    if not isinstance(entry, io.String.Input):
        wrong.append("nan")
    with contextlib.closing(asyncio.new_event_loop()) as loop:  # one for all: asyncio.run would make one for each value
        others = {name: words for name, words in told(first[entry.id]).items() if name != entry.id}
        for value in wrong:
            found = told(value)
            assert entry.id in found.pop(entry.id), value
            assert found == others, (value, found)
        if not is_widget and entry.optional:
            assert told(None) == others


@pytest.mark.parametrize("node", OURS, ids=lambda node: node.__name__)
def test_files_are_found_when_a_prompt_is_queued(node: type[io.ComfyNode]) -> None:
    """A Combo of files has no fixed options: without a check that finds the file, nothing holds its value."""
    files = {e.id for e in node.GET_SCHEMA().inputs if isinstance(e, io.Combo.Input) and e.default is None}
    validate = first_real_override(node, "validate_inputs")
    assert files <= set(inspect.getfullargspec(validate).args if validate else ())


@pytest.mark.parametrize("node", OURS, ids=lambda node: node.__name__)
def test_defaults_agree(node: type[io.ComfyNode]) -> None:
    """An input that an old workflow leaves out is checked as its schema's default, and runs as execute's."""
    parameters = inspect.signature(node.execute).parameters
    for entry in node.GET_SCHEMA().inputs:
        if entry.id not in parameters:  # the trainer takes its settings by **, with the schema's own defaults
            assert any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            continue
        default = parameters[entry.id].default
        assert entry.optional == (default is not inspect.Parameter.empty), entry.id
        assert not entry.optional or default == getattr(entry, "default", None), entry.id


def test_shared_checks() -> None:
    """Their words, with one side known or both."""
    with pytest.raises(UserError, match="width 100 .* use 96 or 112; frames 10 .* use 9 or 17"):
        input_checks.check_video_size(width=100, frames=10)
    input_checks.check_own_size(0, 0)
    with pytest.raises(UserError, match="height 72"):
        input_checks.check_own_size(height=72)
    with pytest.raises(UserError, match="start_percent 0.5 is not below end_percent 0.5: no step"):
        input_checks.check_percent_range(0.5, 0.5)


def test_a_node_of_another_pack_may_have_any_number_of_outputs() -> None:
    """Many packs give their nodes a tuple that has each index; its length says nothing. Their links were refused."""

    class AnyOutput(tuple):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(min(index, 0))

    prompt = {"1": {"class_type": "Switch", "inputs": {}}}
    anything = {"Switch": type("Switch", (), {"RETURN_TYPES": AnyOutput(("*",))})}
    two = {"Switch": type("Switch", (), {"RETURN_TYPES": ("INT", "INT")})}
    assert is_link(["1", 3], prompt, anything)
    assert is_link(["1", 1], prompt, two) and not is_link(["1", 2], prompt, two) and not is_link(["1", -1], prompt, two)
    assert not is_link(["2", 0], prompt, two) and not is_link(["1", True], prompt, two)
