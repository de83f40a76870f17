"""The driver inside ComfyUI: a LoRA trained on a copy of the MODEL that a graph gives."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_patcher

from ..errors import UserError
from ..host.training_mode import (
    InterruptProcessingException,
    fresh_copy,
    is_interrupted,
    load_fully,
    training_mode,
)
from ..sockets.model import require_cogvideox_model
from .config import TrainConfig


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
    config: TrainConfig,
    folder: Path,
    name: str = "",
    on_step: Callable[[int, list[float]], object] = lambda step, losses: None,
) -> Trained:
    """Train a LoRA for `model`, which stays as it is; LoRAs that it carries are part of what is trained on.

    latents, positive: see samples.read_samples. folder: of the checkpoints of all trainings; name: of this one's
    folder in it, by default a hash of everything that decides the result, so that the same training goes on where it
    was. on_step(steps done, losses) may raise ComfyUI's InterruptProcessingException, which stops as a cancelled run
    does.

    Raises UserError before any work for what cannot be trained.
    """
    _require_packages()
    require_cogvideox_model(model)
    # they need accelerate
    from .checkpoint import steps_done
    from .loop import Callbacks, read_losses
    from .objective import objective_for
    from .parallelize import single_process
    from .samples import read_samples
    from .trainer import Trainer, compute_dtype

    dtype = compute_dtype(model, config.precision)
    objective = objective_for(model, config, dtype)
    samples = read_samples(model, latents, positive, config.caption_dropout)
    objective = replace(objective, image_scale=samples.image_scale)  # of the CONDITIONING, which may say another
    with training_mode():
        trainer = Trainer(fresh_copy(model), samples, config, objective)
        folder = folder / (name or trainer.folder_name())
        done_before = steps_done(folder)
        progress = ProgressCallback(on_step, read_losses(folder)[:done_before])
        callbacks = Callbacks(progress.on_step, progress.should_stop)
        try:
            load_fully(trainer.model)
            trainer.attach()
            with single_process(dtype, model.load_device.type == "cpu") as accelerator:
                weights = trainer.run(accelerator, folder, callbacks)
            tensors, metadata = trainer.lora(weights, len(progress.losses))
        finally:
            trainer.detach()
            del trainer  # or the copy of the model would outlive training_mode, which frees it
    lora = TrainedLora(tensors)
    lora.metadata = metadata
    return Trained(lora, progress.losses, done_before, progress.stopped)


class ProgressCallback:
    """Collects the losses, reports each step, and knows when the user has cancelled."""

    def __init__(self, report: Callable[[int, list[float]], object], losses: list[float]):
        self._report, self.losses, self.stopped = report, losses, False

    def on_step(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        try:
            self._report(step, self.losses)
        except InterruptProcessingException:  # from a progress bar; the checkpoint comes first
            self.stopped = True

    def should_stop(self) -> bool:
        self.stopped = self.stopped or is_interrupted()
        return self.stopped


def _require_packages() -> None:
    missing = [name for name in ("accelerate", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        packages = f"package{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise UserError(
            f"Training needs the Python {packages}, which ComfyUI's Python does not have. Install what is missing into "
            f"ComfyUI's Python: python -m pip install {' '.join(missing)}"
        )
