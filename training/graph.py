"""A LoRA trained inside ComfyUI, on a copy of the MODEL that a graph gives."""

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import comfy.model_patcher
import torch

from ..errors import TrainingError
from ..host.training_mode import (
    InterruptProcessingException,
    differentiable_options,
    explained_out_of_memory,
    fresh_copy,
    is_interrupted,
    load_whole,
    training_mode,
)
from ..sockets.model import require_cogvideox_model
from .lora import TARGETS, attach_lora, detach_lora, export_lora
from .objective import TIMESTEP_SAMPLINGS, denoising_loss, draw_batch, objective_for
from .samples import Samples, batch_samples, read_samples, require_empty_text

PRECISIONS = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_MIXED = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}  # accelerate's names
_OUT_OF_MEMORY = (
    "Switch gradient_checkpointing on, lower batch_size (and raise accumulate instead), train with fewer frames or "
    "smaller clips, or load the model with weight_dtype int8."
)


@dataclass(frozen=True)
class LoraSettings:
    """What a user sets. batch_size: clips at once; a step takes batch_size * accumulate of them."""

    steps: int
    batch_size: int
    learning_rate: float
    rank: int
    alpha: float
    seed: int
    targets: str = "attention"
    timesteps: str = "uniform"
    caption_dropout: float = 0.0
    image_dropout: float = 0.05
    warmup_steps: int = 0
    gradient_checkpointing: bool = False
    save_every: int = 250
    accumulate: int = 1
    precision: str = "default"


class TrainedLora(dict):
    """A LoRA's tensors by name, as ComfyUI's LORA_MODEL holds them; metadata: what it was trained with, as text."""

    metadata: Mapping[str, str] = {}


@dataclass(frozen=True)
class Trained:
    """losses: of every step, those before a restart too. done_before: steps that a checkpoint had already.

    stopped: the user has cancelled it; a checkpoint of all that was done is on disk.
    """

    lora: TrainedLora
    losses: list[float]
    done_before: int
    stopped: bool


def train_lora(
    model: comfy.model_patcher.ModelPatcher,
    latents: list[dict],
    positive: list[list],
    settings: LoraSettings,
    folder: Path,
    name: str = "",
    on_step: Callable[[int, list[float]], object] = lambda step, losses: None,
) -> Trained:
    """Train a LoRA for `model`, which stays as it is; LoRAs that it carries are part of what is trained on.

    latents, positive: see samples.read_samples. folder: where checkpoints of all trainings lie; name: of this one's
    folder, by default a hash of everything that decides the result, so that the same training goes on where it was.
    on_step(steps done, losses) may raise ComfyUI's InterruptProcessingException, which stops as a cancelled run does.

    Raises TrainingError, GeometryError or ConditioningError before any work for what cannot be trained.
    """
    _require_packages()
    require_cogvideox_model(model)
    check_settings(settings)
    # they need accelerate
    from .checkpoint import steps_done
    from .loop import read_log

    samples = read_samples(model, latents, positive)
    empty_text = require_empty_text(samples, settings.caption_dropout)
    dtype = _compute_dtype(model, settings.precision)
    described = _describe(model, samples, settings)
    folder = folder / (name or _hash_of(described))
    done_before = steps_done(folder)
    losses = [float(row[1]) for row in read_log(folder / "log.csv")[:done_before]]
    watch = _Watch(on_step, losses)
    with training_mode(), explained_out_of_memory(_OUT_OF_MEMORY):
        patcher = fresh_copy(model)
        if dtype != model.model.get_dtype_inference():
            patcher.set_model_compute_dtype(dtype)
        tensors = _run(patcher, samples, empty_text, settings, dtype, folder, described, watch)
        del patcher
    lora = TrainedLora(tensors)
    lora.metadata = {"cogvideox_training": json.dumps(described, sort_keys=True)}
    return Trained(lora, losses, done_before, watch.stopped)


def check_settings(settings: LoraSettings) -> None:
    """Raises TrainingError for a number that no training can have; ComfyUI does not hold linked values to limits."""
    for name in ("steps", "batch_size", "rank", "accumulate", "save_every"):
        _require(name, getattr(settings, name), 1, math.inf)
    _require("warmup_steps", settings.warmup_steps, 0, math.inf)
    for name in ("caption_dropout", "image_dropout"):
        _require(name, getattr(settings, name), 0, 1)
    for name in ("learning_rate", "alpha"):
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise TrainingError(f"{name} is {value}: use a number above 0.")
    for name, known in (("targets", TARGETS), ("precision", PRECISIONS), ("timesteps", TIMESTEP_SAMPLINGS)):
        if getattr(settings, name) not in known:
            raise TrainingError(f"{name} is {getattr(settings, name)!r}: use {' or '.join(known)}.")


def _require(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN neither
        raise TrainingError(f"{name} is {value}: use {least} {'or more' if most == math.inf else f'to {most}'}.")


def _require_packages() -> None:
    missing = [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"Training needs the Python package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}, which are "
            f"not installed. Run: python -m pip install {' '.join(missing)} - with ComfyUI's own Python."
        )


def _compute_dtype(model: comfy.model_patcher.ModelPatcher, precision: str) -> torch.dtype:
    dtype = PRECISIONS[precision] or model.model.get_dtype_inference()
    if dtype == torch.float16 and model.load_device.type == "cpu":
        raise TrainingError(
            "The CPU cannot train in fp16: gradients would vanish. Set precision to bf16 or fp32, or load the model "
            "with weight_dtype bf16 or fp32."
        )
    return dtype


def _describe(model: comfy.model_patcher.ModelPatcher, samples: Samples, settings: LoraSettings) -> dict:
    """All that decides the result and is not in the loop's plan: kept beside checkpoints, and in the LoRA's header."""
    path, weight_dtype, *_ = model.cached_patcher_init[1] if model.cached_patcher_init else ("", "")
    described = {
        "model": "/".join(Path(path).parts[-2:]),  # no more: it is told to whoever gets the LoRA
        "weight_dtype": weight_dtype,
        "loras": _patches_hash(model.patches),
        "dataset": samples.hash,
    }
    return described | asdict(settings)


def _patches_hash(patches: Mapping[str, list[tuple]]) -> str:
    """Of the LoRAs on a MODEL; "" where there are none."""
    digest = hashlib.sha256()
    for key, stack in sorted(patches.items(), key=lambda item: str(item[0])):
        for strength, patch, *_ in stack:
            weights = getattr(patch, "weights", patch)
            numbers = [float(w.double().abs().sum()) if isinstance(w, torch.Tensor) else repr(w) for w in weights]
            digest.update(f"{key} {strength} {numbers}".encode())
    return digest.hexdigest()[:16] if patches else ""


def _hash_of(described: dict) -> str:
    """A folder's name for all that decides the result."""
    decides = {name: value for name, value in described.items() if name != "save_every"}
    return "lora-" + hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


class _Watch:
    """Keeps the losses, tells the user, and knows when to stop."""

    def __init__(self, on_step: Callable[[int, list[float]], object], losses: list[float]):
        self._on_step, self._losses, self.stopped = on_step, losses, False

    def note(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        try:
            self._on_step(step, self._losses)
        except InterruptProcessingException:  # the progress bar's; first the checkpoint
            self.stopped = True

    def wants_stop(self) -> bool:
        self.stopped = self.stopped or is_interrupted()
        return self.stopped


def _run(
    patcher: comfy.model_patcher.ModelPatcher,
    samples: Samples,
    empty_text: torch.Tensor,
    settings: LoraSettings,
    dtype: torch.dtype,
    folder: Path,
    described: dict,
    watch: _Watch,
) -> dict[str, torch.Tensor]:
    """The trained LoRA in diffusers' dialect, on the CPU; nothing of the training is left when it is back."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from .blocks import call_blocks
    from .loop import train

    on_cpu = patcher.load_device.type == "cpu"
    dit = patcher.model.diffusion_model
    AcceleratorState._reset_state(reset_partial_state=True)  # its precision is the process's, not an Accelerator's
    try:
        load_whole(patcher)
        attach_lora(dit, settings.rank, settings.alpha, TARGETS[settings.targets], settings.seed)
        # ComfyUI has put everything where it belongs
        accelerator = Accelerator(cpu=on_cpu, device_placement=False, mixed_precision=_MIXED[dtype])
        loss_of = _loss(patcher, samples, empty_text, settings, dtype)
        plan = _plan(settings)
        if settings.gradient_checkpointing:
            call_blocks(dit, recompute=True)
        weights = train(accelerator, dit, loss_of, plan, folder, described, watch.note, stop=watch.wants_stop)
        return export_lora(dit, weights)
    finally:
        detach_lora(dit)
        AcceleratorState._reset_state(reset_partial_state=True)


def _plan(settings: LoraSettings) -> object:
    from .loop import Plan

    return Plan(
        steps=settings.steps,
        batch_size=settings.batch_size * settings.accumulate,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        warmup_steps=settings.warmup_steps,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
    )


def _loss(
    patcher: comfy.model_patcher.ModelPatcher,
    samples: Samples,
    empty_text: torch.Tensor,
    settings: LoraSettings,
    dtype: torch.dtype,
) -> Callable[[torch.nn.Module, Sequence[int]], torch.Tensor]:
    """What the loop calls: (model, numbers of draws) -> the mean loss."""

    options = differentiable_options(patcher.model_options.get("transformer_options", {}))
    shapes = samples.shapes()
    choices = {name: getattr(settings, name) for name in ("timesteps", "caption_dropout", "image_dropout")}
    objective = objective_for(patcher, **choices, batch_size=settings.batch_size * settings.accumulate, dtype=dtype)
    objective = replace(objective, image_scale=samples.image_scale)  # of the CONDITIONING, which may say another

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        number, count = indices[0] // len(indices), len(indices)
        entries = [samples.entries[index] for index in batch_samples(shapes, number, count, settings.seed)]
        batch = draw_batch(entries, indices, settings.seed, objective, empty_text).to(patcher.load_device)
        return denoising_loss(partial(model, transformer_options=options), batch, objective)

    return loss_of
