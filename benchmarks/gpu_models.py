"""Transformers of the official sizes with random weights, made where they are used, and shared by all who compute."""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from torch.nn.attention import SDPBackend

from cogvideox.benchmarks.gpu_rows import Bench
from cogvideox.devtools.embedded_checkpoint import transformer_config

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_FIVE = {"num_attention_heads": 48, "num_layers": 42, "attention_head_dim": 64, "text_embed_dim": 4096}
_OLD = {"time_embed_dim": 512, "sample_width": 90, "sample_height": 60, "sample_frames": 49}
_NEW = {"time_embed_dim": 512, "sample_width": 300, "sample_height": 300, "sample_frames": 81}
# The official configs, where they differ from diffusers' defaults or from the tiny ones of devtools.
OFFICIAL: dict[str, dict[str, int]] = {
    "2b": {**_FIVE, **_OLD, "num_attention_heads": 30, "num_layers": 30},
    "5b": {**_FIVE, **_OLD},
    "1.5-5B": {**_FIVE, **_NEW},
}
# Latent (T, H, W): 49 frames of 720 x 480; 81 frames of 1360 x 768, whose 21 latents get one in front.
LATENTS = {"2b": (13, 60, 90), "5b": (13, 60, 90), "1.5-5B": (22, 96, 170)}
SMOKE = {"num_attention_heads": 2, "num_layers": 2, "text_embed_dim": 32, "time_embed_dim": 32}
BACKENDS = {
    "FLASH": SDPBackend.FLASH_ATTENTION,
    "CUDNN": SDPBackend.CUDNN_ATTENTION,
    "EFFICIENT": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Inputs:
    """Of one forward. latents [B, 16, T, H, W], text [B, 226, width], timestep [B]; rotary as diffusers takes it."""

    latents: torch.Tensor
    text: torch.Tensor
    timestep: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor] | None


def make_transformer(bench: Bench, variant: str, layers: int | None = None, dtype: torch.dtype = torch.bfloat16) -> Any:
    """diffusers' transformer of an official size, seeded weights, on the device. layers: fewer than the official.

    Annotated as Any, because diffusers' own annotations do not allow for what its config holds.
    """
    config = dict(OFFICIAL[variant])
    if bench.smoke:
        config |= {**SMOKE, "sample_width": 12, "sample_height": 8, "sample_frames": 9}
    elif layers is not None:
        config["num_layers"] = layers
    with torch.device("meta"):
        model: Any = CogVideoXTransformer3DModel(**transformer_config(variant, **config))
    torch.nn.Module.to(model, dtype)
    model.to_empty(device=bench.device).eval().requires_grad_(False)
    generator = torch.Generator(bench.device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            # A vector stays near its default: 1 for the weight of a norm, 0 for all else.
            norm = name.endswith("weight") and "norm" in name
            parameter.data.normal_(0, 0.02, generator=generator).add_(float(norm))
    if not model.config.use_rotary_positional_embeddings:
        embed: Any = model.patch_embed  # whose table to_empty has left without values
        table = embed._get_positional_embeddings(embed.sample_height, embed.sample_width, embed.sample_frames)
        embed.pos_embedding = table.to(bench.device, dtype)
    return model


def make_inputs(bench: Bench, model: Any, variant: str, batch: int = 2, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Seeded inputs of one forward at the official size."""
    frames, height, width = (4 if "1.5" in variant else 3, 8, 12) if bench.smoke else LATENTS[variant]
    generator = torch.Generator(bench.device).manual_seed(1)
    where: dict[str, Any] = {"device": bench.device, "generator": generator}
    latents = torch.randn(batch, 16, frames, height, width, **where).to(dtype)
    text = torch.randn(batch, 226, model.config.text_embed_dim, **where).to(dtype)
    timestep = torch.full((batch,), 500, device=bench.device)
    return Inputs(latents, text, timestep, rotary_of(model, (frames, height, width), bench.device))


def rotary_of(model: Any, size: tuple[int, int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What diffusers' pipeline hands its transformer once a run. size: of the latents, (T, H, W)."""
    if not model.config.use_rotary_positional_embeddings:
        return None
    frames, height, width = size
    pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
    prepare: Any = CogVideoXPipeline._prepare_rotary_positional_embeddings
    return prepare(pipeline, height * 8, width * 8, frames, device)


def forward_theirs(model: Any, inputs: Inputs, ofs: torch.Tensor | None = None) -> torch.Tensor:
    """diffusers' transformer as its pipeline calls it; [B, C, T, H, W]."""
    with torch.inference_mode():
        dtype = model.dtype
        out = model(
            inputs.latents.transpose(1, 2).to(dtype),
            inputs.text.to(dtype),
            inputs.timestep,
            ofs=None if ofs is None else ofs.to(dtype),
            image_rotary_emb=inputs.rotary,
            return_dict=False,
        )
    return out[0].transpose(1, 2)


def forward_ours(
    patcher: "ModelPatcher", inputs: Inputs, ofs: torch.Tensor | None = None, options: dict[str, Any] | None = None
) -> torch.Tensor:
    """A diffusion model as ComfyUI's BaseModel calls it; [B, C, T, H, W]. options: transformer_options."""
    dtype = patcher.model.get_dtype_inference()
    more = {} if ofs is None else {"ofs": ofs.to(dtype)}
    with torch.inference_mode():
        return patcher.model.diffusion_model(
            inputs.latents.to(dtype),
            inputs.timestep.float(),  # as BaseModel does: 999 is 1000 in bf16
            context=inputs.text.to(dtype),
            transformer_options=options or {},
            **more,
        )


def make_ours(
    model: Any, weight_dtype: str = "bf16", on: str | None = None, disable_dynamic: bool = True
) -> "ModelPatcher":
    """The pack's MODEL over the storage of diffusers' `model`, not loaded yet, with what the loader adds for runs.

    on: move the weights there first.
    """
    from cogvideox.model_loaders import load_model as loader
    from cogvideox.model_loaders.checkpoints import Weights
    from cogvideox.model_loaders.variants import DETECT

    config = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
    state_dict = {name: parameter.data if on is None else parameter.data.to(on) for name, parameter in _tensors(model)}
    # Not load_model, which starts from files: 11 GB would be written and read for the sake of them.
    weights = Weights(Path("random weights"), state_dict, config)
    patcher = loader._build_patcher(weights, weight_dtype, print, DETECT, disable_dynamic)
    loader._add_checks(patcher, print)
    return patcher


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    if model.config.use_learned_positional_embeddings:
        yield from model.named_buffers()


def loaded(patcher: "ModelPatcher") -> "ModelPatcher":
    """`patcher` with all weights on its device, as ComfyUI loads it for a run."""
    import comfy.model_management as mm

    mm.load_models_gpu([patcher])
    return patcher


def make_native(model: Any) -> "ModelPatcher":
    """ComfyUI's own class for CogVideoX on the same weights, loaded."""
    import re

    import comfy.sd

    from cogvideox.benchmarks.implementations import NATIVE_NAMES

    def native_name(name: str) -> str:
        for pattern, replacement in NATIVE_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    weights = {native_name(name): parameter.data for name, parameter in model.named_parameters()}
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": model.dtype})
    assert patcher is not None, "ComfyUI no longer recognises CogVideoX under its own names."
    return loaded(patcher)


@contextmanager
def attention_by(backend: str) -> Iterator[None]:
    """Let ComfyUI's attention try one of BACKENDS first. ComfyUI sets an order of its own at every call (comfy.ops),
    which torch's sdpa_kernel around it does not change."""
    import comfy.ops

    order: list[SDPBackend] | None = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    if order is None:  # without a card there is no order
        yield
        return
    before, first = list(order), BACKENDS[backend]
    order[:] = [first, *(other for other in before if other != first)]
    try:
        yield
    finally:
        order[:] = before


def with_attention(backend: str, call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`call` with ComfyUI's attention by `backend`."""

    def run() -> torch.Tensor:
        with attention_by(backend):
            return call()

    return run


def without_kernels(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`call` with torch's operations in the place of the transformer's Triton kernels."""
    from cogvideox.transformer import token_passes

    def run() -> torch.Tensor:
        with mock.patch.object(token_passes, "use_kernels", lambda x: False):
            return call()

    return run


@contextmanager
def counted_launches() -> Iterator[Counter]:
    """Yields how often each of the transformer's Triton kernels has been launched."""
    from cogvideox.transformer import token_passes

    launches: Counter = Counter()
    launched = token_passes._launched

    def count(name: str, *arguments: Any, **options: Any) -> bool:
        done = launched(name, *arguments, **options)
        launches[name] += done
        return done

    with mock.patch.object(token_passes, "_launched", count):
        yield launches


@contextmanager
def kernels_at_every_size() -> Iterator[Counter]:
    """The transformer's Triton kernels for few tokens too; yields how often each has been launched."""
    from cogvideox.transformer import token_passes

    with mock.patch.object(token_passes, "LEAST_VALUES", 0), counted_launches() as launches:
        yield launches


Call = Callable[[], torch.Tensor]


def choice_of_kernel(patcher: "ModelPatcher", inputs: Inputs) -> tuple[str, Callable[[Call], Call]]:
    """What the choice of a kernel for a forward has found, with what it has measured; and what gives a call that
    kernel, as in a run.

    Outside of such a call there is no choice, so that other calls beside it have theirs.
    """
    from cogvideox.host import attention_kernels as kernels

    c = patcher.model.diffusion_model.config
    tokens = count_tokens(c, inputs)
    size = kernels.AttentionSize(
        inputs.latents.device, patcher.model.get_dtype_inference(), tokens, c.attention_head_dim
    )
    with mock.patch.object(kernels.logging, "info") as said:
        sentence = kernels.choose_attention(size, c.num_attention_heads, {}) or "ComfyUI's own order."
    sentence += "".join(f" {call.args[0]}" for call in said.call_args_list)
    chosen = kernels._CHOSEN.pop(size, None)

    def with_choice(call: Call) -> Call:
        def run() -> torch.Tensor:
            kernels._CHOSEN[size] = chosen
            try:
                return call()
            finally:
                del kernels._CHOSEN[size]

        return run

    return sentence, with_choice


def count_tokens(config: Any, inputs: Inputs) -> int:
    """Tokens of video and text."""
    _, _, frames, height, width = inputs.latents.shape
    return frames // (config.patch_size_t or 1) * (height // 2) * (width // 2) + inputs.text.shape[1]


def attention_flops(batch: int, heads: int, tokens: int, head_width: int = 64) -> float:
    return 4.0 * batch * heads * tokens**2 * head_width


def step_flops(model: Any, inputs: Inputs) -> tuple[float, float]:
    """(matrix products, attention) of one forward."""
    c = model.config
    batch, tokens = inputs.latents.shape[0], count_tokens(c, inputs)
    dim = c.num_attention_heads * c.attention_head_dim
    products = 2.0 * batch * tokens * 12 * dim * dim * c.num_layers
    return products, c.num_layers * attention_flops(batch, c.num_attention_heads, tokens, c.attention_head_dim)


def precision_obstacle(bench: Bench, weight_dtype: str) -> str:
    """Why this device cannot run a precision; "" where it can."""
    from cogvideox.errors import UserError
    from cogvideox.model_loaders.precision import check_precision

    try:
        check_precision(weight_dtype, bench.device)
    except UserError as error:
        return str(error)
    return ""


def free() -> None:
    """What the last part has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
