"""A training of CogVideoX's transformer: all that decides its result, whichever driver runs it.

Two drivers use it, graph.py inside ComfyUI and headless.py from the command line. They bring a loaded MODEL, clips,
a TrainConfig and accelerate, and watch the steps. Nothing else may differ between them: a training that one driver has
begun can be resumed in the other, and ends in the same bits.
"""

import hashlib
import json
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import comfy.model_patcher
import comfy.ops
import torch
from accelerate import Accelerator

from ..errors import UserError
from ..host.exact_attention import with_exact_attention
from ..host.training_mode import settle_attention
from ..model_loaders.precision import choose_dtypes
from ..transformer.positions import forget_tables
from . import cache
from .adapters import attach_lora, detach_lora, export_lora
from .batches import batch_samples
from .block_calls import before_blocks, call_blocks
from .config import MAY_DIFFER_ON_RESUME, TrainConfig
from .loop import Callbacks, LossFunction, StepDropped, train
from .objective import Objective, Sample, cogvideox_inside, denoising_loss, draw_batch

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class ClipSource(Protocol):
    """Clips and captions: dataset.Dataset reads them when they are needed, samples.Samples holds them in memory."""

    @property
    def empty_text(self) -> torch.Tensor: ...

    @property
    def hash(self) -> str: ...

    def shapes(self) -> tuple[Hashable, ...]: ...

    def load(self, index: int) -> Sample: ...


class Trainer:
    """Trains a LoRA on `model`, or all of its weights, in place.

    model: a MODEL that nothing else uses, freshly loaded, in training_mode; not yet on its device. mode: one of
    config.MODES. settings: all that decides the result, which is kept with checkpoints and in a LoRA's header.
    """

    def __init__(
        self,
        model: comfy.model_patcher.ModelPatcher,
        clips: ClipSource,
        config: TrainConfig,
        objective: Objective,
        mode: str = "lora",
    ):
        self.model, self._clips, self._config, self._objective = model, clips, config, objective
        self._mode = mode
        self.dit: torch.nn.Module = cogvideox_inside(model).diffusion_model
        self.settings = self._describe()

    def _describe(self) -> dict[str, object]:
        # (load_model, (path, weight_dtype, notify, family)), set by model_loaders.load_model.
        loaded_with: Any = self.model.cached_patcher_init
        empty_text = cache.digest_of({"text": self._clips.empty_text}) if self._config.caption_dropout else ""
        family = cogvideox_inside(self.model).model_config.family
        return {
            **self._config.recorded(self._mode),
            "mode": self._mode,
            # By its weights and the LoRAs on them: on another machine the same model has another path.
            "model": f"{family.name} {cache.weights_hash(self.dit, self.model)[:12]}",
            "weight_dtype": loaded_with[1][1],
            "image_scale": self._objective.image_scale,
            "dataset": cache.key_of(self._clips.hash, empty_text),
        }

    def folder_name(self) -> str:
        """A folder's name for all that decides the result."""
        decides = {name: value for name, value in self.settings.items() if name not in MAY_DIFFER_ON_RESUME}
        return "lora-" + hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def attach(self) -> int:
        """Prepare the transformer, which is on its device already or is brought there later; returns the number of
        trained parameters.

        LoRAs that the MODEL carries have to be in its weights by then: patches go by a layer's name, which a new LoRA
        changes (to_q.weight becomes to_q.base_layer.weight).
        """
        for leaf in self.dit.modules():
            if isinstance(leaf, comfy.ops.CastWeightBiasOp):
                # Each layer casts its weights to the type of its input (objective.dtype), whatever they are stored in.
                leaf.comfy_cast_weights = True
        if self._mode == "full":
            self.dit.requires_grad_(True)
        else:
            attach_lora(self.dit, self._config)
        call_blocks(self.dit, self._config.gradient_checkpointing)
        self.dit.train()
        return sum(p.numel() for p in self.dit.parameters() if p.requires_grad)

    def detach(self) -> None:
        """Take a LoRA off again, so that nothing keeps the model alive."""
        detach_lora(self.dit)

    def run(self, accelerator: Accelerator, folder: Path, callbacks: Callbacks) -> dict[str, torch.Tensor]:
        """Train to the end, or until a callback stops it; see loop.train. `attach` comes first.

        Returns the trained parameters by name.
        """

        def drop_step_when_stopped() -> None:
            if callbacks.should_stop():
                raise StepDropped

        # Several processes have to decide together, which the loop does between micro batches.
        is_alone = accelerator.num_processes == 1

        try:
            settle_attention(accelerator.device)
            with before_blocks(self.dit, drop_step_when_stopped) if is_alone else nullcontext():
                return train(accelerator, self.dit, self._loss(), self._config, folder, self.settings, callbacks)
        finally:
            forget_tables()

    def lora(self, weights: dict[str, torch.Tensor], step: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """What `run` returned after `step` as a LoRA in diffusers' layout, and strings for its file's header."""
        note = {"cogvideox_training": json.dumps({**self.settings, "step": step}, sort_keys=True)}
        return export_lora(self.dit, weights), note

    def _loss(self) -> LossFunction:
        clips, config, objective = self._clips, self._config, self._objective
        shapes, empty_text, device = clips.shapes(), clips.empty_text, self.model.load_device
        # ComfyUI may have been started with an attention that has no gradients, such as SageAttention.
        options = with_exact_attention(self.model.model_options.get("transformer_options", {}))

        def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
            # A step's clips are chosen as a whole, so that all of them are of one shape however many micro batches and
            # processes share them; this micro batch takes its part.
            step, first = divmod(indices[0], config.global_batch_size)
            chosen = batch_samples(shapes, step, config.global_batch_size, config.seed)[first : first + len(indices)]
            samples = [clips.load(index) for index in chosen]
            batch = draw_batch(samples, indices, config.seed, objective, empty_text).to(device)
            forward: Any = partial(model, transformer_options=options)
            return denoising_loss(forward, batch, objective)

        return loss_of


def compute_dtype(model: comfy.model_patcher.ModelPatcher, precision: str, mode: str = "lora") -> torch.dtype:
    """What a training of `model` computes in. precision: one of config.PRECISIONS. mode: one of config.MODES.

    Raises UserError where the device cannot train in it.
    """
    base = cogvideox_inside(model)
    if precision != "default":
        dtype = _DTYPES[precision]
    elif mode == "lora":
        dtype = base.get_dtype_inference()
    else:
        # All weights are loaded in fp32, which says nothing about the dtype to compute in: take the one that this
        # device gets for weights in the dtype that the checkpoint was trained in.
        count, trained = sum(p.numel() for p in base.parameters()), base.model_config.family.trained_dtype
        storage, compute = choose_dtypes("default", trained, trained, count, model.load_device)
        dtype = compute or storage
    if dtype == torch.float16 and model.load_device.type == "cpu":
        raise UserError(
            "The CPU cannot train in fp16: gradients would vanish. Set precision to bf16 or fp32, or load the model "
            "with weight_dtype bf16 or fp32."
        )
    return dtype


def objective_dtype(dtype: torch.dtype, mode: str) -> torch.dtype:
    """The dtype of the model's input: fp32 under autocast, which chooses one for each operation by itself."""
    return torch.float32 if mode == "full" else dtype
