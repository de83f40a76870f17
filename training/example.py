"""The recipe that users copy, made of the same fields as the settings: python -m cogvideox.training.example

It writes training/example.toml; COMFYUI_PATH names ComfyUI's checkout.
"""

import dataclasses
import json
import textwrap
from pathlib import Path

from ..host.standalone import use_comfyui
from .fields import kind_of

PATH = Path(__file__).with_name("example.toml")
_COLUMNS = 116
_HEAD = """\
# A complete recipe; what is commented out is the default.
#     python3 dev.py train my_recipe.toml
# Paths start from the folder that this file is in.
"""
# Keys that the example sets although they have a default.
_CHOSEN = {"training.max_steps": 1000, "output.name": "my_lora"}


def example_recipe() -> str:
    """Every key of every section with its help and its default."""
    from .recipe import Recipe, keys_of

    lines = [_HEAD]
    keys = keys_of(Recipe)
    for name, field in keys.items():
        if not dataclasses.is_dataclass(field.type):
            lines += [*_lines(name, field), ""]
    for section, part in keys.items():
        if isinstance(part.type, type) and dataclasses.is_dataclass(part.type):
            lines.append(f"[{section}]")
            required_first = sorted(
                keys_of(part.type).items(), key=lambda item: item[1].default is not dataclasses.MISSING
            )
            for name, field in required_first:
                lines += _lines(f"{section}.{name}", field)
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _lines(key: str, field: dataclasses.Field) -> list[str]:
    """The help as a comment, and the key with its default as another, or with a value where one has to be given."""
    limits, name = field.metadata, key.rsplit(".", 1)[-1]
    told = limits["help"]
    if limits["choices"]:
        told += f" One of {', '.join(json.dumps(choice) for choice in limits['choices'])}."
    if kind_of(field) is tuple:
        told = told.replace(" One of ", " A list of ")
        told += "".join(
            f" {json.dumps(preset)} is short for {_toml(names)}." for preset, names in limits["presets"].items()
        )
    comment = [f"# {line}" for line in textwrap.wrap(told, _COLUMNS, break_on_hyphens=False)]
    if key in _CHOSEN:
        return [*comment, f"{name} = {_toml(_CHOSEN[key])}"]
    if field.default is dataclasses.MISSING:
        return [*comment, f"{name} = {_toml(limits['example'])}"]
    value = limits["example"] if field.default is None else field.default
    return [*comment, f"# {name} = {_toml(value)}"]


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


if __name__ == "__main__":
    use_comfyui()
    PATH.write_text(example_recipe(), encoding="utf-8")
