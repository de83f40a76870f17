"""Checks of a node's inputs: declared once on its class, run when a prompt is queued and again when the node runs.

ComfyUI leaves gaps at both times. When a prompt is queued, the value of a linked input is not known yet; ComfyUI hands
None to validate_inputs for it. It compares typed values with the limits in the schema, but not the inputs that
validate_inputs names, and NaN passes each comparison. When a node runs, ComfyUI checks nothing at all: a linked
million of frames would take the memory of the whole machine.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

from comfy_api.latest import io

from ..errors import UserError, quoted
from ..host.messages import clear_running_node, note_error
from ..host.queue_errors import naming_input
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import SIZE_STEP, check_size
from ..video_limits import check_latent_amount
from .socket_checks import check_sockets

Node = TypeVar("Node", bound=type[io.ComfyNode])
Inputs = Mapping[str, io.Input]
_TYPED = (bool, int, float, str)  # what a widget holds; everything else comes through a link
_WIDGETS = (io.Boolean.Input, io.Int.Input, io.Float.Input, io.Combo.Input, io.String.Input)


def checked(*checks: Callable[..., object]) -> Callable[[Node], Node]:
    """Decorate a node class: compare its inputs with the limits in its schema, then run `checks` in this order.

    A check is a function whose annotated parameters are named as inputs of the node, and which raises UserError. It
    runs when the prompt is queued as soon as all of its inputs are known, and always before the body of `execute`. A
    parameter with a default does not keep the check from running: the default stands in for a value that is not known
    yet. A check of anything but bool, int, float and str (a VAE, say) runs only before `execute`.

    The limits need no declaration: min and max of every Int and Float input, where NaN is refused, true or false for a
    Boolean, a text for a String, and the options of every Combo that has a default. (A Combo without one lists files,
    which may have been added since: declare the check that finds the file.) When a prompt is queued, ComfyUI itself
    compares the inputs that no check names with their limits, after it has converted them: converted_problems finds
    what would become another value. ComfyUI shows the message of validate_inputs once for each input that
    validate_inputs names: it names no more inputs than the checks need, and says which of them is wrong, for
    host.queue_errors. That is the first input of the check, or the `input_name` of its error.

    With is_input_list, a check gets the first element of each widget's list, and the whole list of a socket.
    """

    def decorate(node: Node) -> Node:
        # The plain function: ComfyUI calls execute on a clone of the class, and only the clone has cls.hidden. A method
        # that is bound to `node` would not see it.
        execute: Callable[..., Any] = node.__dict__["execute"].__func__
        signature = inspect.signature(execute)
        declared = [_read_check(check, execute, signature) for check in checks]
        methods = {"execute": _checked_execute(node, execute, signature, declared)}
        if typed := [check for check in declared if check.is_typed]:
            methods["validate_inputs"] = _validate_inputs(node, signature, typed)
        for name, method in methods.items():
            setattr(node, name, classmethod(method))
        return node

    return decorate


class _Check(NamedTuple):
    run: Callable[..., object]
    parameters: Mapping[str, inspect.Parameter]

    @property
    def is_typed(self) -> bool:
        """Whether all of its inputs can be known when a prompt is queued."""
        return all(parameter.annotation in _TYPED for parameter in self.parameters.values())

    def __call__(self, known: Mapping[str, Any]) -> None:
        """Run with the values in `known`, unless one without a stand-in is missing."""
        needed = {name for name, parameter in self.parameters.items() if parameter.default is parameter.empty}
        if needed <= known.keys():
            self.run(**{name: known[name] for name in self.parameters if name in known})


def _read_check(check: Callable[..., object], execute: Callable[..., Any], signature: inspect.Signature) -> _Check:
    """Raises TypeError, when the pack is imported, for a check that could never run as declared."""
    parameters, taken = _parameters(check), signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name, parameter in parameters.items():
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{check.__name__}: {name} has no annotation")
        if name not in taken and not takes_any:
            raise TypeError(f"{check.__name__}: {name} is not an input of {execute.__qualname__}")
    return _Check(check, parameters)


@functools.cache
def _parameters(check: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Read once for all nodes that declare the check: ComfyUI waits for it at its start."""
    return inspect.signature(check, eval_str=True).parameters


def _checked_execute(
    node: type[io.ComfyNode], execute: Callable[..., Any], signature: inspect.Signature, checks: list[_Check]
) -> Callable[..., Any]:
    """`execute` of `node`, after its limits and checks."""

    @functools.wraps(execute)
    def execute_checked(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        clear_running_node()
        bound = signature.bind(cls, *args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            given |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        inputs, is_input_list = _limits(node)
        values = _values(inputs, given, inputs, is_input_list)
        _check_limits(inputs, values)
        check_sockets(inputs, values, is_input_list)
        for check in checks:
            check(values)
        return execute(cls, *args, **kwargs)

    return execute_checked


def _validate_inputs(
    node: type[io.ComfyNode], executed: inspect.Signature, checks: list[_Check]
) -> Callable[..., bool | str]:
    """A validate_inputs for `node` that names the inputs of `checks` and no others.

    ComfyUI reads the names by inspect.getfullargspec, which goes by __signature__.
    """
    order = [*executed.parameters]
    named = {name for check in checks for name in check.parameters}
    names = [name for name in order if name in named] + sorted(named.difference(order))

    def validate_inputs(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> bool | str:
        given = signature.bind(cls, *args, **kwargs).arguments
        inputs, is_input_list = _limits(node)
        values = _values(inputs, given, names, is_input_list)
        known = {name: value for name, value in values.items() if value is not None}  # None: linked, not known yet
        wrong = names[0]
        try:
            _check_limits(inputs, known)
            for check in checks:
                wrong = next(iter(check.parameters), wrong)
                check(known)
        except UserError as error:
            note_error(error)
            return naming_input(str(error), error.input_name or wrong, names)
        return True

    # With defaults, for ComfyUI leaves out the optional inputs that a prompt does not have.
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in names]
    signature = inspect.Signature([inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters])
    queued: Any = validate_inputs
    queued.__signature__ = signature
    return queued


@functools.cache
def _limits(node: type[io.ComfyNode]) -> tuple[Inputs, bool]:
    """A node's inputs with their limits, and is_input_list.

    Kept from the first call on: only the lists of files change, which are no limits, and to make them again takes as
    long as the disk does.

    Not in the decorator: a schema may be built by functions that stand below the class in its module.
    """
    schema = node.define_schema()
    return {entry.id: entry for entry in schema.inputs}, schema.is_input_list


def _values(inputs: Inputs, given: Mapping[str, Any], names: Iterable[str], is_input_list: bool) -> dict[str, Any]:
    """The values of the inputs `names`: those given, and the defaults of optional widgets that a prompt leaves out."""
    values = {}
    for name in names:
        entry = inputs[name]
        is_widget = isinstance(entry, _WIDGETS)
        if name in given:
            value = given[name]
            # With is_input_list ComfyUI gives a list for each input, and (None,) for one whose value is not known yet.
            values[name] = next(iter(value), None) if is_input_list and is_widget else value
        elif entry.optional and is_widget:
            values[name] = entry.default
    return values


def _check_limits(inputs: Inputs, values: Mapping[str, Any]) -> None:
    """Raises UserError that names each value outside of its input's limits."""
    problems = [_limit_problem(inputs[name], value) for name, value in values.items()]
    if any(problems):
        raise UserError(" ".join(filter(None, problems)))


def converted_problems(
    nodes: Mapping[str, type[io.ComfyNode]], node_id: str, given: Any, is_link: Callable[[Any], bool]
) -> dict[str, str]:
    """What is wrong with values of a prompt that are not of their input's kind, by input: ComfyUI would turn some of
    them into others without a word, take null for a value that is not known yet, or say what only a programmer
    understands.

    bool("false") is true, int(49.9) is 49 and str(null) is "None"; float("nan") is within all limits. A text that holds
    a number, and a number for a text, are what they seem to be. nodes: by their ids. given: the node's inputs. is_link:
    whether one of them is a link to another node's output.
    """
    if not isinstance(given, Mapping):
        return {}
    inputs, _ = _limits(nodes[node_id])
    typed = {name: given[name] for name in inputs if name in given and not is_link(given[name])}
    found = {name: _typed_problem(inputs[name], value) for name, value in typed.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def _typed_problem(entry: io.Input, value: Any) -> str | None:
    if not isinstance(entry, _WIDGETS):
        # A script may send null for an optional input that is not connected.
        is_absent = value is None and entry.optional
        return None if is_absent else f"{entry.id} is {_shown(value)}: connect an output to it."
    if isinstance(value, dict) and "__value__" in value:  # as ComfyUI wraps a value that is a list
        value = value["__value__"]
    if isinstance(entry, io.Combo.Input):
        if entry.default is None and not isinstance(value, str):  # a list of files
            return f"{entry.id} is {_shown(value)}: choose one from the list."
        is_wrong = not isinstance(value, str)  # that another text is not in the list is said elsewhere
    elif isinstance(entry, io.Boolean.Input):
        is_wrong = True
    elif isinstance(entry, io.String.Input):
        is_wrong = type(value) not in (str, int, float) or value in (math.inf, -math.inf) or value != value
    elif isinstance(entry, io.Int.Input):
        is_wrong = isinstance(value, bool) or _number(int, value) is None
        is_wrong = is_wrong or (isinstance(value, float) and not value.is_integer())
    else:
        is_wrong = isinstance(value, bool) or _number(float, value) is None
    return _limit_problem(entry, value) if is_wrong else None


def _number(convert: Callable[[Any], float], value: Any) -> float | None:
    """`value` as ComfyUI converts it; None for NaN, and for what is no number of that kind."""
    try:
        number = convert(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number != number else number


def _limit_problem(entry: io.Input, value: Any) -> str | None:
    """What is wrong with a value, in a sentence, or None."""
    if isinstance(entry, (io.Int.Input, io.Float.Input)):
        kind: Any = Integral if isinstance(entry, io.Int.Input) else Real
        # Python takes true for 1, and 1.5 for a whole number would fail somewhere further on. NaN is not inside.
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        low, high = (f"{limit:g}" if isinstance(limit, float) else limit for limit in (entry.min, entry.max))
        is_inside = is_number and entry.min <= value <= entry.max
        return None if is_inside else f"{entry.id} is {_shown(value)}: use {low} to {high}."
    if isinstance(entry, io.Boolean.Input):
        return None if isinstance(value, bool) else f"{entry.id} is {_shown(value)}: use true or false."
    if isinstance(entry, io.String.Input) and not isinstance(value, str):
        return f"{entry.id} is {_shown(value)}: use a text."
    if isinstance(entry, io.Combo.Input) and entry.default is not None and value not in entry.options:
        *others, last = map(str, entry.options)
        return f"{entry.id} is {_shown(value, repr)}: use {', '.join(others)} or {last}."
    return None


def _shown(value: Any, write: Callable[[Any], str] = str) -> str:
    """The beginning of a value as a message repeats it. A link carries anything: Python does not write a number of more
    than 4300 digits."""
    try:
        return quoted(write(value))
    except Exception:  # of the str of any class
        return f"a {type(value).__name__}"


def check_video_size(width: int = SIZE_STEP, height: int = SIZE_STEP, frames: int = 1) -> None:
    """Raises UserError where width, height or frames do not fit the models: see vae.geometry.check_size."""
    check_size(width, height, frames)


def check_all_sizes(width: int = SIZE_STEP, height: int = SIZE_STEP, frames: int = 1, batch_size: int = 1) -> None:
    """Raises UserError as check_video_size does, and where all videos of the batch together are too large."""
    check_size(width, height, frames, batch_size)


def check_own_size(width: int = 0, height: int = 0) -> None:
    """Raises UserError as check_video_size does; a width or height of 0 stands for that of the images."""
    check_size(width or SIZE_STEP, height or SIZE_STEP, 1)


def check_latent_image(latent_image: dict) -> None:
    """Raises UserError for a LATENT of more videos than can be made, before anything of it is looked at."""
    if latent_image["samples"].ndim == 5:
        check_latent_amount(latent_image["samples"].shape)


def check_percent_range(start_percent: float, end_percent: float) -> None:
    """Raises UserError where no step lies between the two shares of a run."""
    if not start_percent < end_percent:
        raise UserError(
            f"start_percent {start_percent} is not below end_percent {end_percent}: no step of the run lies between "
            "them. Use 0 and 1 for the whole run."
        )


def check_vae(vae: CogVideoXVAE) -> None:
    """Raises UserError for a VAE that this pack's loaders did not make."""
    if not isinstance(vae, CogVideoXVAE):
        raise UserError(
            f"The VAE is a {type(vae).__name__} from another loader; ComfyUI's own CogVideoX code gives other numbers. "
            "Connect the VAE of Load CogVideoX VAE or Load CogVideoX Pipeline, or use ComfyUI's own VAE nodes for it."
        )


def check_vae_if_any(vae: CogVideoXVAE | None = None) -> None:
    """check_vae, of a VAE that need not be there."""
    if vae is not None:
        check_vae(vae)
