"""Our transformer forward against diffusers' on the same tiny weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.support import ALL_VARIANTS, check_parity, reference_transformer, write_fp32

# Latent (T, H, W); 5b-I2V's learned table fits one size a checkpoint, so its second size is another checkpoint's.
SIZES = {"native": (3, 8, 12), "other": (5, 12, 6)}
NATIVE = ("2b", "5b-I2V", "1.5-5B")  # at both sizes in every run
LEARNED_OVERRIDES = {"native": {}, "other": {"sample_frames": 17, "sample_height": 12, "sample_width": 6}}


def reference_rotary(model: Any, latent_size: tuple[int, int, int]) -> tuple | None:
    """What diffusers' pipeline hands its transformer as rotary embedding."""
    from diffusers import CogVideoXPipeline

    if not model.config.use_rotary_positional_embeddings:
        return None
    frames, height, width = latent_size
    pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=model)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )


def stretch_positions(model: Any, grid: tuple[int, int, int]) -> None:
    """Give diffusers' model the positions that CogVideoX-Fun gives its fine-tunes of 2b: sincos of their own size,
    stretched over the picture."""
    c, frames = model.config, grid[0]
    embed = model.patch_embed
    own = embed._get_positional_embeddings(c.sample_height, c.sample_width, 4 * frames - 3)[0, c.max_text_seq_length :]
    volume = own.T.reshape(1, -1, frames, c.sample_height // 2, c.sample_width // 2)
    stretched = torch.nn.functional.interpolate(volume, grid, mode="trilinear", align_corners=False)
    table = torch.cat([torch.zeros(c.max_text_seq_length, own.shape[1]), stretched.flatten(2)[0].T])
    embed._get_positional_embeddings = lambda *_, **__: table[None]
    embed.pos_embedding = table[None]


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        *((variant, "other") for variant in ALL_VARIANTS),
        *(
            pytest.param(variant, "native", marks=() if variant in NATIVE else pytest.mark.long)
            for variant in ALL_VARIANTS
        ),
    ],
)
def test_forward_equals_diffusers(variant: str, size: str, tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A wrong position, patch order or modulation would turn every official checkpoint's video into noise."""
    overrides = LEARNED_OVERRIDES[size] if variant == "5b-I2V" else {}
    folder = write_fp32(tmp_path / "pipeline", variant, **overrides) if overrides else tiny_pipelines[variant]
    theirs = reference_transformer(folder)
    ours = load_model(folder, "fp32").model.diffusion_model
    frames, height, width = SIZES[size]
    frames += frames % (theirs.config.patch_size_t or 1)  # 1.5 takes pairs
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, theirs.config.in_channels, frames, height, width, generator=generator)
    context = torch.randn(2, 226, theirs.config.text_embed_dim, generator=generator)
    timestep = torch.tensor([999, 500])
    ofs = torch.full((1,), 2.0) if theirs.config.ofs_embed_dim else None
    if variant.startswith("Fun-2b"):
        stretch_positions(theirs, (frames, height // 2, width // 2))
    with torch.inference_mode():
        want = theirs(
            latents.transpose(1, 2),
            context,
            timestep,
            ofs=ofs,
            image_rotary_emb=reference_rotary(theirs, (frames, height, width)),
            return_dict=False,
        )[0].transpose(1, 2)
        got = ours(latents, timestep, context=context, ofs=ofs)
    check_parity(f"transformer forward, {variant}", got, want, 2e-6)
