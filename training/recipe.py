"""Recipes: TOML files that describe a training, checked completely before anything is loaded.

Its keys are fields of dataclasses: [training] is TrainConfig, [dataset] is DatasetSpec with two paths.
"""

import dataclasses
import difflib
import importlib.util
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError, quoted
from ..host.optional_packages import import_package
from ..model_loaders.precision import FAST_MODES, PRECISIONS
from ..system.file_names import find_problem
from ..system.small_files import read_small_text
from .clips import DatasetSpec, check_spec
from .config import MODES, TrainConfig
from .fields import check_setting, kind_of, setting, settings_of

T = TypeVar("T")
# Keys of older recipes, and the sentence that says which key has taken their place.
_RENAMED = {
    "training.steps": "It is called max_steps now.",
    "training.batch_size": "It is called global_batch_size now.",
    "training.accumulate": "Set micro_batch_size instead: the clips that a process computes at once.",
    "lora": "Its keys rank, alpha and targets belong into [training] now.",
}
_MOST_BYTES = 1 << 20
_EXAMPLE = "training/example.toml shows a complete recipe."


@dataclass(frozen=True)
class ModelPart:
    """Where the model is."""

    path: Path = setting(
        help="A pipeline's folder in diffusers' layout, or one transformer.",
        example="CogVideoX-5b",
    )
    weight_dtype: str = setting(
        "default",
        "How the frozen weights are stored.",
        choices=tuple(name for name in PRECISIONS if name not in FAST_MODES),
    )
    vae: Path | None = setting(None, "Where the VAE is, if not in that folder.", example="CogVideoX-5b/vae")
    text_encoder: Path | None = setting(
        None, "Where the text encoder is, if not in that folder.", example="t5xxl.safetensors"
    )


@dataclass(frozen=True, kw_only=True)
class DatasetPart(DatasetSpec):
    """Where the clips are, and what becomes of them."""

    folder: Path = setting(
        help="Clips and their captions: clip.mp4 and clip.txt, or a metadata.csv (file_name,text).", example="clips"
    )
    cache: Path | None = setting(
        None,
        "Where encoded clips and captions are kept, by default in the folder of the clips.",
        example="clips/.cogvideox_cache",
    )


@dataclass(frozen=True)
class OutputPart:
    """Everything that is made goes to `folder`/`name`."""

    folder: Path = setting(help="Where trainings are kept.", example="trained")
    name: str = setting("cogvideox_lora", "This one's folder in there, and the LoRA's name.")


@dataclass(frozen=True)
class Recipe:
    """The sections of a recipe."""

    model: ModelPart
    dataset: DatasetPart
    output: OutputPart
    training: TrainConfig = TrainConfig()
    mode: str = setting("lora", "What is trained: a LoRA, or every weight of the transformer (full).", choices=MODES)

    @property
    def run_folder(self) -> Path:
        return self.output.folder / self.output.name

    def dataset_spec(self, image_to_video: bool) -> DatasetSpec:
        """The dataset for a model that does or does not take first frames."""
        return dataclasses.replace(self.dataset, image_to_video=image_to_video)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a .toml file, or the same in a .json file. Paths in it start from the folder that it is in.

    Raises UserError naming the first key that is unknown, missing, of another type or out of range, or whose path does
    not exist, or the size that no video has.
    """
    recipe = _build(Recipe, _parse(path), "", path)
    paths = {
        "model.path": recipe.model.path,
        "model.vae": recipe.model.vae,
        "model.text_encoder": recipe.model.text_encoder,
        "dataset.folder": recipe.dataset.folder,
    }
    for key, named in paths.items():
        if named is not None and not os.path.exists(named):  # False for a name that no file can have, too
            shown = quoted(str(named))
            raise UserError(f"{path}: {key} is {shown}, which does not exist. Give the path of an existing one.")
    if {"/", "\\"} & set(recipe.output.name) or find_problem(recipe.output.name):
        raise UserError(f"{path}: output.name is {quoted(recipe.output.name)!r}: use a name without folders.")
    if recipe.mode == "full" and recipe.model.weight_dtype not in ("default", "fp32"):
        raise UserError(
            f"{path}: model.weight_dtype is {recipe.model.weight_dtype!r} with mode full, which trains in fp32. "
            "Leave it out."
        )
    try:
        check_spec(recipe.dataset)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return recipe


def _parse(path: Path) -> dict:
    try:
        text = read_small_text(path, _MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe {path} cannot be read: {error}") from error
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        values = json.loads(text) if kind == "JSON" else read_toml(text)
    except (ValueError, RecursionError) as error:
        why = "it nests too deeply" if isinstance(error, RecursionError) else quoted(str(error))
        raise UserError(f"{path} is not valid {kind}: {why}. {_EXAMPLE}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not contain sections. {_EXAMPLE}")
    return values


def read_toml(text: str) -> dict[str, Any]:
    """Raises ValueError for what is not TOML, UserError where Python 3.10 lacks the package that reads it."""
    # By name: a type checker that is set to Python 3.10 would report an import of a module that 3.10 does not have.
    if importlib.util.find_spec("tomllib") is not None:
        return importlib.import_module("tomllib").loads(text)
    return import_package("tomli", "Reading a TOML recipe with Python 3.10").loads(text)


def _build(part: type[T], values: object, section: str, path: Path) -> T:
    """A dataclass from a table of the recipe."""
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: {section} is {quoted(repr(values))}: use a section [{section}].")
    prefix = f"{section}." if section else ""
    known = keys_of(part)
    for name in values:
        if name not in known:
            raise UserError(f"{path}: there is no key {quoted(prefix + name)}. {_hint(prefix + name, known)}")
    built: dict[str, Any] = {}
    for name, field in known.items():
        key = prefix + name
        if dataclasses.is_dataclass(field.type):
            # A required section that is missing is built from nothing: the message then names its first required key.
            if name in values or field.default is dataclasses.MISSING:
                built[name] = _build(typing.cast(type, field.type), values.get(name, {}), key, path)
        elif name in values:
            built[name] = _value(field, values[name], key, path)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{path}: {key} is missing. {_EXAMPLE}")
    return part(**built)


def keys_of(part: type) -> dict[str, dataclasses.Field]:
    """What a recipe's section may hold: settings, and sections of the recipe itself."""
    settings = settings_of(part)
    sections = {f.name: f for f in dataclasses.fields(part) if dataclasses.is_dataclass(f.type)}
    return {**sections, **{name: field for name, field in settings.items() if field.metadata["from_recipe"]}}


def _hint(key: str, known: Mapping[str, object]) -> str:
    if key in _RENAMED:
        return _RENAMED[key]
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, 1)
    return f"{f'Did you mean {close[0]}? ' if close else ''}The keys are {', '.join(known)}."


def _value(field: dataclasses.Field, value: Any, key: str, path: Path) -> Any:
    kind = kind_of(field)
    if kind is Path and isinstance(value, str) and value.strip():
        try:
            value = (path.parent / Path(value).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, a ~ of nobody
            raise UserError(f"{path}: {key} is {quoted(value)!r}, which cannot be a path. Give another one.") from error
    elif kind is tuple:
        preset = field.metadata["presets"].get(value) if isinstance(value, str) else None
        value = preset or (tuple(value) if isinstance(value, list) else value)
    elif kind is float and type(value) is int and abs(value) < 1 << 64:  # a larger one is refused below
        value = float(value)
    check_setting(field, value, f"{path}: {key}")
    return value
