"""What a user can set: dataclass fields that carry their limits and their help.

Nodes make widgets of such fields, recipes make keys of them, and both check values with them, so that a setting has one
default, one range and one explanation wherever it is met.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, quoted

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    bool: "true or false",
    Path: "a path in quotes",
}


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    step: float | None = None,
    choices: Sequence[str] = (),
    presets: Mapping[str, tuple[str, ...]] = {},
    example: str = "",
    from_recipe: bool = True,
) -> Any:
    """A dataclass field that a user sets. The return type is Any, which a type checker lets be assigned to any field.

    help: one or two sentences, shown as a widget's tooltip and as a recipe's comment.
    least, most: limits, both allowed. step: of the widget's arrows.
    choices: the allowed values of a text, or of the items of a list. presets: names that stand for lists.
    example: what example.toml shows where there is no default, or None. from_recipe: whether a recipe has this key.
    """
    metadata = {
        "help": help,
        "least": least,
        "most": most,
        "step": step,
        "choices": tuple(choices),
        "presets": dict(presets),
        "example": example,
        "from_recipe": from_recipe,
    }
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(owner: type) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass that were made by `setting`, by name and in order."""
    return {field.name: field for field in dataclasses.fields(owner) if "help" in field.metadata}


def kind_of(field: dataclasses.Field) -> type:
    """int, float, str, bool, Path or tuple: the type of a field's values, without None and without type arguments."""
    # A type and not its name: no module with settings may have `from __future__ import annotations`.
    kind: Any = field.type
    if isinstance(kind, types.UnionType):
        kind = next(argument for argument in typing.get_args(kind) if argument is not types.NoneType)
    return typing.get_origin(kind) or kind


def check_settings(config: Any) -> None:
    """Raises UserError for the first setting of a dataclass whose value is of another type or outside its limits."""
    for name, field in settings_of(type(config)).items():
        check_setting(field, getattr(config, name), name)


def check_setting(field: dataclasses.Field, value: object, name: str) -> None:
    """Raises UserError where a field cannot have `value`. name: what the user knows the field by."""
    if value is None and field.default is None:
        return
    if not _is_allowed(field, value):
        raise UserError(f"{name} is {_shown(value)}: use {_expected(field)}.")


def _is_allowed(field: dataclasses.Field, value: Any) -> bool:
    kind, limits = kind_of(field), field.metadata
    if kind is tuple:
        return isinstance(value, tuple) and bool(value) and all(item in limits["choices"] for item in value)
    if kind is Path:
        return isinstance(value, Path)
    is_whole_for_fraction = kind is float and type(value) is int
    # Not isinstance, for which True is an int.
    if type(value) is not kind and not is_whole_for_fraction:
        return False
    if kind is str:
        return not limits["choices"] or value in limits["choices"]
    if kind is bool:
        return True
    least, most = (limits[name] for name in ("least", "most"))
    # NaN fails every comparison; math.isfinite fails on an integer of hundreds of digits.
    is_finite = isinstance(value, int) or math.isfinite(value)
    return is_finite and (least is None or least <= value) and (most is None or value <= most)


def _expected(field: dataclasses.Field) -> str:
    kind, limits = kind_of(field), field.metadata
    choices = [json.dumps(choice) for choice in limits["choices"]]
    if kind is tuple:
        names = "".join(f"{json.dumps(preset)}, or " for preset in limits["presets"])
        return f"{names}a list of {', '.join(choices)}"
    if choices:
        return " or ".join(choices)
    least, most = limits["least"], limits["most"]
    if least is not None and most is not None:
        return f"{_KINDS[kind]} from {least} to {most}"
    return _KINDS[kind] + (f", {least} or more" if least is not None else "")


def _shown(value: object) -> str:
    """A value as it is written in TOML, where TOML has such values."""
    if isinstance(value, float):
        return repr(value)  # nan and inf, where JSON says NaN and Infinity
    return quoted(json.dumps(list(value) if isinstance(value, tuple) else value, default=str, ensure_ascii=False))
