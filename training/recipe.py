"""A training written down: a TOML file, checked whole before anything is loaded."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import GeometryError, TrainingError
from ..model_loaders.precision import FAST_MODES, PRECISIONS
from .clips import BUCKETS, CROPS, SHORTER, DatasetSpec, check_spec
from .loop import SCHEDULES, Plan
from .lora import ALL_TARGETS, TARGETS
from .objective import TIMESTEP_SAMPLINGS

MODES = ("lora", "full")
MIXED_PRECISIONS = ("no", "bf16", "fp16")
_TYPES = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list"}


def _of(default: object = dataclasses.MISSING, **limits: object) -> object:
    """A field; limits: choices, least, most, above (a number), each (the choices of a list's items)."""
    return field(default=default, metadata=limits)


@dataclass(frozen=True)
class ModelPart:
    """path: a pipeline's folder in diffusers' layout, or one transformer. vae, text_encoder: where they lie if not in
    that folder."""

    path: Path = _of()
    weight_dtype: str = _of("default", choices=tuple(name for name in PRECISIONS if name not in FAST_MODES))
    vae: Path | None = _of(None)
    text_encoder: Path | None = _of(None)


@dataclass(frozen=True)
class DatasetPart:
    """See clips.DatasetSpec. cache: where what is encoded is kept, default `folder`/.cogvideox_cache."""

    folder: Path = _of()
    frames: int = _of(49, least=1)
    width: int = _of(720, least=16)
    height: int = _of(480, least=16)
    fps: float = _of(8.0, least=0)
    buckets: str = _of("fixed", choices=BUCKETS)
    shorter: str = _of("skip", choices=SHORTER)
    crop: str = _of("center", choices=CROPS)
    segments: int = _of(1, least=1)
    image_variants: int = _of(4, least=0)
    cache: Path | None = _of(None)


@dataclass(frozen=True)
class LoraPart:
    rank: int = _of(64, least=1)
    alpha: float = _of(64.0, above=0)
    targets: tuple[str, ...] = _of(TARGETS["attention"], each=ALL_TARGETS)


@dataclass(frozen=True)
class TrainingPart:
    """batch_size: of all processes together. precision: what is computed in; what is trained stays in fp32."""

    steps: int = _of(least=1)
    batch_size: int = _of(1, least=1)
    accumulate: int = _of(1, least=1)
    learning_rate: float = _of(1e-4, above=0)
    warmup_steps: int = _of(0, least=0)
    schedule: str = _of("cosine", choices=SCHEDULES)
    seed: int = _of(0, least=0)
    timesteps: str = _of("uniform", choices=TIMESTEP_SAMPLINGS)
    caption_dropout: float = _of(0.0, least=0, most=1)
    image_dropout: float = _of(0.05, least=0, most=1)
    precision: str = _of("bf16", choices=MIXED_PRECISIONS)
    gradient_checkpointing: bool = _of(True)
    save_every: int = _of(250, least=1)


@dataclass(frozen=True)
class OutputPart:
    """What is made goes to `folder`/`name`."""

    folder: Path = _of()
    name: str = _of("cogvideox_lora")


@dataclass(frozen=True)
class Recipe:
    """mode: "lora", or "full" for every weight of the transformer."""

    model: ModelPart
    dataset: DatasetPart
    training: TrainingPart
    output: OutputPart
    lora: LoraPart = LoraPart()
    mode: str = _of("lora", choices=MODES)

    @property
    def run_folder(self) -> Path:
        return self.output.folder / self.output.name

    def plan(self) -> Plan:
        t = self.training
        return Plan(
            steps=t.steps,
            batch_size=t.batch_size,
            learning_rate=t.learning_rate,
            seed=t.seed,
            warmup_steps=t.warmup_steps,
            accumulate=t.accumulate,
            save_every=t.save_every,
            schedule=t.schedule,
        )

    def dataset_spec(self, image_to_video: bool) -> DatasetSpec:
        values = {f.name: getattr(self.dataset, f.name) for f in dataclasses.fields(DatasetPart)}
        del values["folder"], values["cache"]
        return DatasetSpec(**values, image_to_video=image_to_video, seed=self.training.seed)

    def settings(self) -> dict[str, object]:
        """What decides the result beside the plan and the dataset."""
        t = self.training
        chosen = {
            "model": self.model.path.name,
            "weight_dtype": self.model.weight_dtype,
            "mode": self.mode,
            "timesteps": t.timesteps,
            "caption_dropout": t.caption_dropout,
            "image_dropout": t.image_dropout,
            "precision": t.precision,
        }
        lora = {f"lora_{key}": value for key, value in dataclasses.asdict(self.lora).items()}
        return chosen | (lora if self.mode == "lora" else {})


def load_recipe(path: Path) -> Recipe:
    """The recipe in a .toml file, or the same in a .json file. Paths in it start from the folder that it lies in.

    Raises TrainingError naming the first key that is unknown, missing, of another type or out of range, or whose path
    is not there; GeometryError for a size that no video has.
    """
    recipe = _build(Recipe, _parse(path), "", path)
    for key in ("model.path", "model.vae", "model.text_encoder", "dataset.folder"):
        part, name = key.split(".")
        found = getattr(getattr(recipe, part), name)
        if found is not None and not found.exists():
            raise TrainingError(f"{path}: {key} is {found}, and there is nothing. Name what is there.")
    if not recipe.output.name or Path(recipe.output.name).name != recipe.output.name:
        raise TrainingError(f"{path}: output.name is {recipe.output.name!r}; expected is a name without folders.")
    if recipe.mode == "full" and recipe.model.weight_dtype not in ("default", "fp32"):
        raise TrainingError(
            f"{path}: model.weight_dtype is {recipe.model.weight_dtype!r} with mode full, which trains in fp32. "
            "Leave it out."
        )
    try:
        check_spec(recipe.dataset_spec(False))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error
    return recipe


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"The recipe {path} cannot be read: {error}") from error
    try:
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            values = _toml().loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise TrainingError(f"{path} is no {kind}: {error}. training/example.toml shows a whole recipe.") from error
    if not isinstance(values, dict):
        raise TrainingError(f"{path} holds no table of sections. training/example.toml shows a whole recipe.")
    return values


def _toml() -> types.ModuleType:
    try:
        import tomllib
    except ModuleNotFoundError as error:  # Python 3.10
        raise TrainingError(
            "Python 3.11 or newer is needed to read TOML. Use one, or write the recipe as JSON with the same sections."
        ) from error
    return tomllib


def _build(part: type, values: object, section: str, path: Path) -> object:
    """A dataclass from a table of the recipe."""
    if not isinstance(values, Mapping):
        raise TrainingError(f"{path}: {section} is {values!r}; expected is a section [{section}].")
    kinds = typing.get_type_hints(part)
    fields = {f.name: f for f in dataclasses.fields(part)}
    prefix = f"{section}." if section else ""
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"Is it {close[0]}? " if close else ""
            raise TrainingError(f"{path}: there is no key {prefix}{name}. {hint}Known are {', '.join(fields)}.")
    built = {}
    for name, one in fields.items():
        key = prefix + name
        if dataclasses.is_dataclass(kinds[name]):
            if name in values or one.default is dataclasses.MISSING:
                built[name] = _build(kinds[name], values.get(name, {}), key, path)
        elif name in values:
            built[name] = _value(values[name], kinds[name], one.metadata, key, path)
        elif one.default is dataclasses.MISSING:
            raise TrainingError(f"{path}: {key} is missing. training/example.toml says what it is.")
    return part(**built)


def _value(value: object, kind: object, limits: Mapping, key: str, path: Path) -> object:
    kind = (typing.get_args(kind) or (kind,))[0] if isinstance(kind, types.UnionType) else kind
    kind = typing.get_origin(kind) or kind
    expected = _expected(kind, limits)
    problem = TrainingError(f"{path}: {key} is {json.dumps(value, default=str)}; expected is {expected}.")
    if kind is Path:
        if not isinstance(value, str) or not value.strip():
            raise problem
        return (path.parent / Path(value).expanduser()).resolve()
    if kind is tuple:
        if not isinstance(value, list) or not value or any(item not in limits["each"] for item in value):
            raise problem
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise problem
    is_number = kind in (int, float)
    if (is_number and not _is_within(value, limits)) or ("choices" in limits and value not in limits["choices"]):
        raise problem
    return value


def _is_within(value: float, limits: Mapping) -> bool:
    low, high = limits.get("least", -math.inf), limits.get("most", math.inf)
    return math.isfinite(value) and low <= value <= high and value > limits.get("above", -math.inf)


def _expected(kind: type, limits: Mapping) -> str:
    if "choices" in limits:
        return " or ".join(json.dumps(choice) for choice in limits["choices"])
    if "each" in limits:
        return f"a list of {', '.join(json.dumps(choice) for choice in limits['each'])}"
    said = "a path in quotes" if kind is Path else _TYPES[kind]
    bounds = [f"{limits['least']} or more"] if "least" in limits else []
    bounds += [f"{limits['most']} or less"] if "most" in limits else []
    bounds += [f"above {limits['above']}"] if "above" in limits else []
    return f"{said}{', ' if bounds else ''}{' and '.join(bounds)}"
