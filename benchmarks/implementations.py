"""The same random transformer in each implementation: ours, diffusers' pipeline and ComfyUI's native class."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

from cogvideox.devtools.embedded_checkpoint import build_transformer, scheduler_config

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

# Latent (T, H, W); each gives 1320 video tokens, and 226 text tokens come before them.
SIZES = {"2b": (4, 30, 44), "5b": (4, 30, 44), "1.5-5B": (8, 30, 44)}
NATIVE_NAMES = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.to_([qkv])\.", r".\1."),
    (r"\.attn1\.norm_([qk])\.", r".norm_\1."),
    (r"\.attn1\.to_out\.0\.", ".attn_out."),
    (r"\.ff\.net\.0\.proj\.", ".ff_proj."),
    (r"\.ff\.net\.2\.", ".ff_out."),
    (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
)
SEED, CFG = 5, 6.0
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents [1, 16, T, H, W], text [1, 226, width], timestep [1]


@dataclass(frozen=True)
class Models:
    """The same weights in each implementation. native: ComfyUI's own class."""

    ours: "ModelPatcher"
    diffusers: CogVideoXPipeline
    native: "ModelPatcher"


def write_checkpoint(folder: Path, variant: str, layers: int, heads: int) -> None:
    """Write the transformer of a pipeline in fp32, `heads` x 64 wide; its text is 512 wide."""
    frames, height, width = SIZES[variant]
    sample = {"sample_frames": 4 * frames - 3, "sample_height": height, "sample_width": width}
    if variant.startswith("1.5"):
        sample = {"sample_frames": 81, "sample_height": 300, "sample_width": 300}
    wide = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 64}
    wide |= {"text_embed_dim": 512, "time_embed_dim": 512}
    generator = torch.Generator().manual_seed(0)
    build_transformer(variant, generator, **wide, **sample).save_pretrained(folder / "transformer")


def make_inputs(variant: str, config: Any) -> Inputs:
    """Seeded inputs of one forward. config: of diffusers' transformer."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(1, config.in_channels, *SIZES[variant], generator=generator)
    return latents, torch.randn(1, 226, config.text_embed_dim, generator=generator), torch.tensor([700])


def load_all(folder: Path, variant: str, precision: str) -> Models:
    """Load the transformer in `folder` with each implementation. precision: "fp32" or "bf16"."""
    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    ours, native = load_model(folder, precision), load_native(folder, precision)
    mm.load_models_gpu([ours, native])
    return Models(ours, load_diffusers(folder, variant, precision), native)


def load_diffusers(folder: Path, variant: str, precision: str) -> CogVideoXPipeline:
    """diffusers' pipeline of the transformer in `folder` alone, without text encoder and VAE."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype).eval()
    scheduler = CogVideoXDDIMScheduler(**scheduler_config(variant))
    absent: Any = None  # text encoder and VAE: runs are given embeddings and return latents
    pipeline = CogVideoXPipeline(absent, absent, absent, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_native(folder: Path, precision: str) -> "ModelPatcher":
    """ComfyUI's own loader on the same weights under the names it knows."""
    import comfy.sd
    import comfy.utils

    def native_name(name: str) -> str:
        for pattern, replacement in NATIVE_NAMES:
            name = re.sub(pattern, replacement, name)
        return name

    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    stored: Any = comfy.utils.load_torch_file(str(file))
    weights = {native_name(name): weight.to(dtype) for name, weight in stored.items()}
    patcher = comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": dtype})
    assert patcher is not None, "ComfyUI no longer recognises CogVideoX under its own names."
    return patcher


def forward_diffusers(
    pipeline: CogVideoXPipeline, latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """diffusers' transformer as its pipeline calls it; returns [B, C, T, H, W] in fp32."""
    model = pipeline.transformer
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        _, _, frames, height, width = latents.shape
        with_geometry: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
        rotary = type(pipeline)._prepare_rotary_positional_embeddings(
            with_geometry, height * 8, width * 8, frames, latents.device
        )
    dtype = model.dtype
    with torch.inference_mode():
        call = {"image_rotary_emb": rotary, "return_dict": False}
        return model(latents.transpose(1, 2).to(dtype), text.to(dtype), timestep, **call)[0].transpose(1, 2).float()


def forward_comfy(
    patcher: "ModelPatcher", latents: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """A diffusion model as ComfyUI's BaseModel calls it; returns [B, C, T, H, W] in fp32."""
    dtype = patcher.model.get_dtype_inference()
    with torch.inference_mode():
        return patcher.model.diffusion_model(
            latents.to(dtype), timestep.to(dtype), context=text.to(dtype), transformer_options={}
        ).float()


def with_sdpa(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """`call` while ComfyUI's native class uses torch's scaled_dot_product_attention."""
    import comfy.ldm.cogvideo.model
    import comfy.ldm.modules.attention as attention

    def run() -> torch.Tensor:
        with mock.patch.object(comfy.ldm.cogvideo.model, "optimized_attention", attention.attention_pytorch):
            return call()

    return run


def run_diffusers(pipeline: CogVideoXPipeline, latents: torch.Tensor, text: torch.Tensor, steps: int) -> torch.Tensor:
    """diffusers' pipeline from SEED, for latents of this shape; returns its final latents, [B, C, T, H, W] in fp32."""
    _, _, frames, height, width = latents.shape
    dtype = pipeline.transformer.dtype
    run: Any = pipeline  # diffusers annotates FloatTensor where it takes any Tensor
    with torch.inference_mode():
        out = run(
            prompt_embeds=text.to(dtype),
            negative_prompt_embeds=-text.to(dtype),
            height=height * 8,
            width=width * 8,
            num_frames=4 * frames - 3,
            num_inference_steps=steps,
            guidance_scale=CFG,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        )
    return out.frames.transpose(1, 2).float()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
