"""A recipe trained from the command line, in one process or in many under accelerate."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
from accelerate import Accelerator, AutocastKwargs, DistributedType, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from ..errors import TrainingError
from ..host.training_mode import differentiable_options, training_mode
from ..model_loaders.checkpoints import check_component
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.load_model import load_model
from ..model_loaders.load_text_encoder import load_text_encoder
from ..model_loaders.load_vae import load_vae
from ..samplers.checks import check_size
from .blocks import call_blocks
from .curve import draw_losses
from .dataset import Dataset, build_dataset
from .loop import check_plan, read_log, train
from .lora import attach_lora, export_lora, save_lora
from .objective import Objective, denoising_loss, draw_batch, objective_for
from .recipe import Recipe, load_recipe
from .samples import batch_samples

_COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WAIT = timedelta(days=2)  # other processes wait while one encodes the dataset
_TELL_EVERY_S = 10.0


def train_recipe(path: Path) -> int:
    """Train as the recipe at `path` says, going on where it was stopped; returns the program's exit status.

    Everything goes to the recipe's output folder: checkpoints (step-000500), log.csv, loss.png, and for each checkpoint
    and at the end what was trained. Ctrl-C or SIGTERM ends it after the step under way, with a checkpoint.

    Raises TrainingError, CheckpointError or GeometryError for what cannot be trained, before any step.
    """
    recipe = load_recipe(path)
    accelerator = _accelerator(recipe)
    tell = partial(print, flush=True) if accelerator.is_main_process else lambda *_: None
    plan = recipe.plan()
    check_plan(plan, accelerator.num_processes)
    tell(f"Recipe {path}: {recipe.mode}, {plan.steps} steps of {plan.batch_size}, {_machines(accelerator)}")
    with training_mode():
        model = _load_transformer(recipe)
        objective = _objective(recipe, model)
        dataset = _dataset(recipe, objective, accelerator, tell)
        for shape in {sample.latent_shape for sample in dataset.samples}:
            check_size(model.model, shape[1:], {})
        dit = _trainable(recipe, model)
        counted = sum(p.numel() for p in dit.parameters() if p.requires_grad)
        tell(f"Training {counted:,} parameters; everything goes to {recipe.run_folder}")
        settings = {**recipe.settings(), "dataset": dataset.hash}
        keep = partial(_keep, recipe, dit, settings, tell)
        progress = _Progress(plan.steps, plan.batch_size, tell)
        with _asked_to_stop() as asked:
            loss_of = _loss(dataset, objective, plan.batch_size, plan.seed, accelerator.device)
            train(accelerator, dit, loss_of, plan, recipe.run_folder, settings, progress.step, asked.is_set, keep)
    tell(f"Stopped at step {progress.done}: run it again to go on." if asked.is_set() else "Done.")
    tell(f"It is in {recipe.run_folder}")
    if accelerator.num_processes > 1:
        torch.distributed.destroy_process_group()
    return 130 if asked.is_set() else 0


def _accelerator(recipe: Recipe) -> Accelerator:
    """Raises TrainingError for what this trainer does not run under."""
    is_full = recipe.mode == "full"
    # Frozen weights lie in the type that is computed in, and their layers cast by themselves: autocast would keep a
    # second copy of each. A whole model in fp32 needs it.
    handlers = [AutocastKwargs(enabled=is_full), InitProcessGroupKwargs(timeout=_WAIT)]
    on_cpu = mm.get_torch_device().type == "cpu"  # accelerate must be told, or its processes do not find each other
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=recipe.training.precision, kwargs_handlers=handlers)
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise TrainingError(
            f"{os.environ['WORLD_SIZE']} processes were started and accelerate joins {accelerator.num_processes}: they "
            "would write over each other. Start them with accelerate launch, as training/launch.py shows."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        if getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
            raise TrainingError("FSDP's first version is not supported. Add --fsdp_version 2 to accelerate launch.")
        if recipe.model.weight_dtype in ("fp8_e4m3fn", "int8"):
            raise TrainingError(
                f"model.weight_dtype is {recipe.model.weight_dtype}, which FSDP cannot spread. Use bf16, or train "
                "without FSDP: every process then holds the whole model."
            )
        # the transformer calls parts of its patch embedding, which accelerate would wrap whole
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = ["CogVideoXBlock"]
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False  # every process maps the same file
    elif accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise TrainingError(f"{accelerator.distributed_type} is not supported. Use --multi_gpu, or FSDP.")
    if recipe.training.precision != "no":
        torch.set_float32_matmul_precision("high")  # the LoRA's own products are in fp32
    return accelerator


def _machines(accelerator: Accelerator) -> str:
    count = accelerator.num_processes
    return f"{count} process{'es' if count > 1 else ''} on {accelerator.device.type}"


def _load_transformer(recipe: Recipe) -> comfy.model_patcher.ModelPatcher:
    for component, path in (("vae", recipe.model.vae), ("text_encoder", recipe.model.text_encoder)):
        check_component(path or recipe.model.path, component)
    weight_dtype = "fp32" if recipe.mode == "full" else recipe.model.weight_dtype
    return load_model(recipe.model.path, weight_dtype, disable_dynamic=True)


def _objective(recipe: Recipe, model: comfy.model_patcher.ModelPatcher) -> Objective:
    t = recipe.training
    return objective_for(
        model,
        timesteps=t.timesteps,
        batch_size=t.batch_size,
        caption_dropout=t.caption_dropout,
        image_dropout=t.image_dropout,
        # where autocast chooses for each operation, it starts from fp32
        dtype=torch.float32 if recipe.mode == "full" else _COMPUTE[t.precision],
    )


def _dataset(recipe: Recipe, objective: Objective, accelerator: Accelerator, tell: Callable) -> Dataset:
    """Built by the main process; the others are told. VAE and text encoder are gone again when it is back."""
    built = [None]
    if accelerator.is_main_process:
        with torch.no_grad():
            vae = load_vae(recipe.model.vae or recipe.model.path)
            clip = load_text_encoder(recipe.model.text_encoder or recipe.model.path)
            progress = _Ticker(tell, "Encoding the dataset")
            spec = recipe.dataset_spec(objective.image_scale is not None)
            built = [build_dataset(recipe.dataset.folder, spec, vae, clip, tell, progress, recipe.dataset.cache)]
        del vae, clip
        mm.unload_all_models()
        mm.soft_empty_cache()
    return broadcast_object_list(built)[0]


def _trainable(recipe: Recipe, model: comfy.model_patcher.ModelPatcher) -> torch.nn.Module:
    """The transformer, with gradients where the recipe wants them."""
    dit = model.model.diffusion_model
    for leaf in dit.modules():
        if isinstance(leaf, comfy.ops.CastWeightBiasOp):
            leaf.comfy_cast_weights = True  # to the type of what comes in, which the recipe chooses
    if recipe.mode == "full":
        dit.requires_grad_(True)
    else:
        attach_lora(dit, recipe.lora.rank, recipe.lora.alpha, recipe.lora.targets, recipe.training.seed)
    call_blocks(dit, recipe.training.gradient_checkpointing)
    return dit.train()


def _loss(dataset: Dataset, objective: Objective, batch_size: int, seed: int, device: torch.device) -> Callable:
    """What the loop calls: (model, numbers of draws) -> the mean loss."""
    shapes = tuple(sample.latent_shape for sample in dataset.samples)
    empty_text, options = dataset.empty_text, differentiable_options({})

    def loss_of(model: torch.nn.Module, indices: range) -> torch.Tensor:
        # a whole step's batch is of one shape, however many processes share it
        chosen = [batch_samples(shapes, i // batch_size, batch_size, seed)[i % batch_size] for i in indices]
        batch = draw_batch([dataset.load(s) for s in chosen], indices, seed, objective, empty_text).to(device)
        return denoising_loss(partial(model, transformer_options=options), batch, objective)

    return loss_of


def _keep(
    recipe: Recipe, dit: torch.nn.Module, settings: dict, tell: Callable, step: int, weights: dict[str, torch.Tensor]
) -> None:
    """Beside a checkpoint: what was trained, in diffusers' layout, and the loss as a picture."""
    folder, name, is_last = recipe.run_folder, recipe.output.name, step == recipe.training.steps
    if recipe.mode == "lora":
        note = {"cogvideox_training": json.dumps({**settings, **asdict(recipe.plan()), "step": step}, sort_keys=True)}
        tensors = export_lora(dit, weights)
        save_lora(folder / f"{name}-{step:06d}.safetensors", tensors, note, overwrite=True)
        if is_last:
            save_lora(folder / f"{name}.safetensors", tensors, note, overwrite=True)
    elif is_last:
        _save_transformer(folder / "transformer", dit, weights, _COMPUTE[recipe.training.precision])
    losses = [float(row[1]) for row in read_log(folder / "log.csv")]
    part = folder / ".loss.part.png"
    draw_losses(losses, recipe.training.steps).save(part)
    os.replace(part, folder / "loss.png")
    tell(f"Step {step}: checkpoint, loss.png{' and the LoRA' if recipe.mode == 'lora' else ''} written")


def _save_transformer(folder: Path, dit: torch.nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """A component's folder as diffusers has it; buffers (a learned table) are the model's own."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in dit.config.items() if not key.startswith("_")}
    config["_class_name"] = "CogVideoXTransformer3DModel"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = {name: weights.get(name, tensor).to("cpu", dtype) for name, tensor in dit.state_dict().items()}
    write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"}, overwrite=True)


class _Ticker:
    """Says from time to time how far something is."""

    def __init__(self, tell: Callable[[str], object], what: str):
        self._tell, self._what, self._next = tell, what, time.monotonic() + _TELL_EVERY_S

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _TELL_EVERY_S
            self._tell(f"{self._what}: {done} of {total}")


class _Progress:
    """Says step, loss and speed: the first steps, then from time to time."""

    def __init__(self, steps: int, batch_size: int, tell: Callable[[str], object]):
        self._steps, self._batch_size, self._tell = steps, batch_size, tell
        self._since: tuple[int, float] | None = None  # steps done and the time when it last spoke
        self._losses: list[float] = []
        self.done = 0

    def step(self, step: int, loss: float) -> None:
        now = time.monotonic()
        self.done = step
        self._losses.append(loss)
        if self._since is not None and now - self._since[1] < _TELL_EVERY_S and step != self._steps:
            return
        mean = math.fsum(self._losses) / len(self._losses)
        speed = ""
        if self._since is not None and now > self._since[1]:
            speed = f", {(step - self._since[0]) * self._batch_size / (now - self._since[1]):.3g} samples/s"
        self._tell(f"Step {step} of {self._steps}: loss {mean:.4f}{speed}")
        self._since, self._losses = (step, now), []


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C ends the program at once."""
    asked, before = threading.Event(), {}

    def note(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
