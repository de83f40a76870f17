"""The driver inside ComfyUI: a LoRA trained on a copy of the MODEL that a graph gives."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_patcher

from ..errors import UserError
from ..host.optional_packages import import_package, is_installed
from ..host.training_mode import (
    InterruptProcessingException,
    fresh_copy,
    is_interrupted,
    load_fully,
    training_mode,
)
from ..keys import Latent
from ..sockets.model import require_cogvideox_model
from .config import TrainConfig

_PACKAGES = ("accelerate", "peft")


class TrainedLora(dict):
    """A LoRA's tensors by name, as ComfyUI's LORA_MODEL holds them, so that ComfyUI's own nodes take it.

    metadata: the settings that it was trained with, as text for a file's header. A plain dict has no place for it.
    """

    metadata: Mapping[str, str] = {}


@dataclass(frozen=True)
class Trained:
    """losses: of every step, including those before a restart. done_before: how many steps the checkpoint had done that
    this run began with.

    stopped: the user has cancelled the run; a checkpoint of all its steps is on disk.
    """

    lora: TrainedLora
    losses: list[float]
    done_before: int
    stopped: bool


def train_lora(
    model: comfy.model_patcher.ModelPatcher,
    latents: list[Latent],
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
    # These import accelerate: only after the check, whose message says how to install it.
    from .checkpoint import only_training, steps_done
    from .loop import Callbacks, read_losses
    from .objective import objective_for
    from .parallelize import single_process
    from .samples import read_samples
    from .trainer import Trainer, compute_dtype

    dtype = compute_dtype(model, config.precision)
    objective = objective_for(model, config, dtype)
    samples = read_samples(model, latents, positive, config.caption_dropout, config.micro_batch_size)
    # CogVideoX Image to Video lets a user choose the scale (image_scale), and the CONDITIONING carries the choice.
    objective = replace(objective, image_scale=samples.image_scale)
    with training_mode(), ExitStack() as locks:
        if name:  # before the model is read a second time
            locks.enter_context(only_training(folder / name))
        trainer = Trainer(fresh_copy(model), samples, config, objective)
        folder = folder / (name or trainer.folder_name())
        try:
            if not name:
                locks.enter_context(only_training(folder))
            done_before = steps_done(folder)
            # The log may have steps beyond the checkpoint: these are run again.
            progress = ProgressCallback(on_step, read_losses(folder)[:done_before])
            callbacks = Callbacks(progress.on_step, progress.should_stop)
            load_fully(trainer.model)  # before attach: it merges the LoRAs that the MODEL carries into the weights
            trainer.attach()
            with single_process(dtype, model.load_device.type == "cpu") as accelerator:
                weights = trainer.run(accelerator, folder, callbacks)
            tensors, metadata = trainer.lora(weights, len(progress.losses))
        finally:
            trainer.detach()
            # training_mode frees the copy of the model when it ends, unless this variable still refers to it.
            del trainer
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
        except InterruptProcessingException:
            # ComfyUI's progress bar raises it, and has cleared the interrupt flag by then. In the loop it would end the
            # training without a checkpoint. Kept here, it makes should_stop, which the loop asks next, return True, and
            # the loop writes one.
            self.stopped = True

    def should_stop(self) -> bool:
        self.stopped = self.stopped or is_interrupted()
        return self.stopped


def _require_packages() -> None:
    """Raises UserError where accelerate or peft, which only trainings import, are missing or cannot be imported."""
    missing = [name for name in _PACKAGES if not is_installed(name)]
    if missing:
        packages = f"package{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        raise UserError(
            f"Training needs the Python {packages}, which ComfyUI's Python does not have. Install what is missing into "
            f"ComfyUI's Python: python -m pip install {' '.join(missing)}"
        )
    for name in _PACKAGES:
        import_package(name, "Training")
