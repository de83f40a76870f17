"""Widgets of settings: dataclass fields that carry their default, limits and help (training/fields.py)."""

from typing import Any

from comfy_api.latest import io

from ..training.fields import kind_of, settings_of


def widget(owner: type, setting: str, name: str = "", **options: Any) -> io.Input:
    """The input of one of `owner`'s settings. name: where the input was published under another one.

    options: of the widget alone, such as optional and advanced.
    """
    field = settings_of(owner)[setting]
    name, kind, limits = name or setting, kind_of(field), field.metadata
    options = {"tooltip": limits["help"], "default": field.default, **options}
    if kind is bool:
        return io.Boolean.Input(name, **options)
    if kind is str:
        return io.Combo.Input(name, options=list(limits["choices"]), **options)
    if kind is tuple:  # a combo of the lists that have a name: no widget holds a list
        presets = limits["presets"]
        options["default"] = next(preset for preset, names in presets.items() if names == field.default)
        return io.Combo.Input(name, options=list(presets), **options)
    options |= {"min": limits["least"], "max": limits["most"]}
    if limits["step"] is not None:
        options["step"] = limits["step"]
    return io.Int.Input(name, **options) if kind is int else io.Float.Input(name, **options)
