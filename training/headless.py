"""The driver from the command line: a recipe trained in one process, or in many under accelerate."""

import json
import math
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch
from accelerate import PartialState

from ..errors import UserError
from ..host.training_mode import explained_out_of_memory, training_mode
from ..model_loaders.checkpoints import check_component
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.load_model import load_model
from ..model_loaders.load_text_encoder import check_text_encoder, load_text_encoder
from ..model_loaders.load_vae import load_vae
from ..samplers.checks import check_size
from ..system.complete_file import complete_file, explained_writing, write_complete_text
from .adapters import save_lora
from .batches import check_micro_batch
from .checkpoint import only_training, steps_done
from .curve import draw_losses
from .dataset import Dataset, build_dataset
from .loop import Callbacks, read_losses
from .objective import objective_for
from .parallelize import create_accelerator, describe_processes, end_processes, on_main_process, start_processes
from .recipe import Recipe, load_recipe
from .trainer import Trainer, compute_dtype, objective_dtype

Log = Callable[[str], object]
_LOG_EVERY_S = 10.0
_OUT_OF_MEMORY = (
    "Switch gradient_checkpointing on, lower micro_batch_size, train with fewer frames or smaller clips, or set "
    "weight_dtype to int8."
)


def train_recipe(path: Path, log: Log) -> int:
    """Train as the recipe at `path` says, going on where it was stopped; returns the program's exit status.

    Everything goes to the recipe's output folder: checkpoints (step-000500), log.csv, loss.png, and for each checkpoint
    and at the end what was trained. Ctrl-C or SIGTERM ends it with a checkpoint of the steps that are complete.
    log: what the main process has to say, line by line.

    Raises UserError for what cannot be trained, before any step.
    """
    recipe = load_recipe(path)
    config = recipe.training
    state = start_processes(on_cpu=mm.get_torch_device().type == "cpu")
    log = log if state.is_main_process else _silent
    config.gradient_accumulation_steps(state.num_processes)  # for its UserError, before anything is loaded or encoded
    size = f"{config.max_steps} steps of {config.global_batch_size}"
    log(f"Recipe {path}: {recipe.mode}, {size}, {describe_processes(state)}")
    with (
        training_mode(),
        explained_out_of_memory(_OUT_OF_MEMORY),
        _only_training(recipe.run_folder, state),
    ):
        model = _load_transformer(recipe)
        dtype = compute_dtype(model, config.precision, recipe.mode)
        objective = objective_for(model, config, objective_dtype(dtype, recipe.mode))
        accelerator = create_accelerator(dtype, recipe.mode, recipe.model.weight_dtype)
        # The model comes first, for it tells whether first frames are needed. It moves to the card only in trainer.run:
        # until then the card's memory is for the VAE and T5.
        dataset = _dataset(recipe, objective.image_scale is not None, state, log)
        # A size that the model has no positions for is refused before the first step: 5b-I2V's learned table fits one.
        for shape in {sample.latent_shape for sample in dataset.samples}:
            check_size(model.model, shape[1:], {})
            check_micro_batch(shape, config.micro_batch_size, "micro_batch_size")
        trainer = Trainer(model, dataset, config, objective, recipe.mode)
        counted = trainer.attach()
        log(f"Training {counted:,} parameters; everything goes to {recipe.run_folder}")
        progress = ProgressLog(config.max_steps, config.global_batch_size, log)
        with _stop_request() as request:

            def on_save(step: int, weights: dict[str, torch.Tensor]) -> None:
                save_artifacts(recipe, trainer, dtype, step, weights)
                log(f"Step {step}: checkpoint, loss.png{' and the LoRA' if recipe.mode == 'lora' else ''} written")

            trainer.run(accelerator, recipe.run_folder, Callbacks(progress.on_step, request.is_set, on_save))
    log(f"Stopped at step {steps_done(recipe.run_folder)}: run it again to go on." if request.is_set() else "Done.")
    log(f"The results are in {recipe.run_folder}")
    end_processes(state)
    return 130 if request.is_set() else 0  # 128 + SIGINT, as a shell reports a program that Ctrl-C has ended


@contextmanager
def _only_training(folder: Path, state: PartialState) -> Iterator[None]:
    """only_training for a training in several processes, of which the main one writes. All raise its UserError."""
    with ExitStack() as stack:

        def lock() -> str:
            try:
                stack.enter_context(only_training(folder))
            except UserError as error:
                return str(error)
            return ""

        if refused := on_main_process(state, lock):
            raise UserError(refused)
        yield


def _silent(_: str) -> None:
    """The log of every process but the main one."""


def _load_transformer(recipe: Recipe) -> comfy.model_patcher.ModelPatcher:
    # What is missing is told before the transformer is read.
    check_component(recipe.model.vae or recipe.model.path, "vae")
    check_text_encoder(recipe.model.text_encoder or recipe.model.path)
    weight_dtype = "fp32" if recipe.mode == "full" else recipe.model.weight_dtype
    # Under dynamic VRAM ComfyUI loads weights on demand; accelerate needs all of them in the module.
    return load_model(recipe.model.path, weight_dtype, disable_dynamic=True)


def _dataset(recipe: Recipe, image_to_video: bool, state: PartialState, log: Log) -> Dataset:
    """Built by the main process and sent to the others. VAE and text encoder are unloaded again when it returns."""

    def build() -> Dataset:
        with torch.no_grad():
            vae = load_vae(recipe.model.vae or recipe.model.path)
            clip = load_text_encoder(recipe.model.text_encoder or recipe.model.path)
            progress = _EncodingProgress(log)
            spec = recipe.dataset_spec(image_to_video)
            built = build_dataset(recipe.dataset.folder, spec, vae, clip, log, progress, recipe.dataset.cache)
        # Unloading alone would move the models to main memory, where these names would keep them until the end.
        del vae, clip
        mm.unload_all_models()
        mm.soft_empty_cache()
        return built

    return on_main_process(state, build)


def save_artifacts(
    recipe: Recipe, trainer: Trainer, dtype: torch.dtype, step: int, weights: dict[str, torch.Tensor]
) -> None:
    """Next to a checkpoint: what was trained, in diffusers' layout, and the loss as a picture."""
    folder, name, last = recipe.run_folder, recipe.output.name, recipe.training.max_steps
    if recipe.mode == "lora":
        tensors, note = trainer.lora(weights, step)
        save_lora(folder / f"{name}-{step:06d}.safetensors", tensors, note, overwrite=True)
        if step == last:
            save_lora(folder / f"{name}.safetensors", tensors, note, overwrite=True)
    elif step == last:
        _save_transformer(folder / "transformer", trainer.dit, weights, dtype)
    with complete_file(folder / "loss.png", replaces=True) as file:
        draw_losses(read_losses(folder), last).save(file.part, "PNG")


def _save_transformer(folder: Path, dit: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """A component's folder in diffusers' layout: `weights`, and the buffers of the model's state dict, which are not
    trained (5b-I2V's position table)."""
    with explained_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    config_of: Any = dit
    # Keys with an underscore are diffusers' own notes. The class gets its name in diffusers, which has no CogVideoXDiT.
    config = {key: value for key, value in dict(config_of.config).items() if not key.startswith("_")}
    config["_class_name"] = "CogVideoXTransformer3DModel"
    write_complete_text(folder / "config.json", json.dumps(config, indent=2))
    tensors = {name: tensor.to("cpu", dtype) for name, tensor in {**dit.state_dict(), **weights}.items()}
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"}, overwrite=True)


class _EncodingProgress:
    """Logs from time to time how much of a dataset is encoded."""

    def __init__(self, log: Log):
        self._log, self._next = log, time.monotonic() + _LOG_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_EVERY_S
            self._log(f"Encoding the dataset: {done} of {total}")


class ProgressLog:
    """Logs step, loss and speed: the first steps, then from time to time."""

    def __init__(self, steps: int, batch_size: int, log: Log):
        self._steps, self._batch_size, self._log = steps, batch_size, log
        self._since: tuple[int, float] | None = None  # steps done and the time of the last line
        self._losses: list[float] = []
        self.done = 0

    def on_step(self, step: int, loss: float) -> None:
        now = time.monotonic()
        self.done = step
        self._losses.append(loss)
        if self._since is not None and now - self._since[1] < _LOG_EVERY_S and step != self._steps:
            return
        mean = math.fsum(self._losses) / len(self._losses)
        speed = ""
        if self._since is not None and now > self._since[1]:
            speed = f", {(step - self._since[0]) * self._batch_size / (now - self._since[1]):.3g} samples/s"
        self._log(f"Step {step} of {self._steps}: loss {mean:.4f}{speed}")
        self._since, self._losses = (step, now), []


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C ends the program at once."""
    request, before = threading.Event(), {}

    def note(number: int, frame: types.FrameType | None) -> None:
        if request.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.set()

    if threading.current_thread() is threading.main_thread():  # Python sets signal handlers in no other thread
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
