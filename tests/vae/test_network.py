"""Decode and encode against diffusers' AutoencoderKLCogVideoX."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.decode import CogVideoXDecode
from cogvideox.tests.support import VAE_TOLERANCE, check_parity, relative_error
from cogvideox.tests.tiers import long_after, long_but_one_in


@pytest.fixture(scope="module", params=("2b", "1.5-5B"))
def vaes(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> tuple:
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    folder = tiny_pipelines[request.param]
    theirs = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    return load_vae(folder, "fp32"), theirs


def latents(count: int, height: int = 4, width: int = 6, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, count, height, width, generator=torch.Generator().manual_seed(count))


def to_image(sample: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W], -1 .. 1 -> ComfyUI's [B, T, H, W, C], 0 .. 1."""
    return ((sample + 1) / 2).clamp(0, 1).movedim(1, -1)


@cache
def decoded_by_diffusers(theirs: Any, count: int) -> torch.Tensor:
    """Once for all modes of ours."""
    with torch.inference_mode():
        return to_image(theirs.decode(latents(count)).sample)


@pytest.mark.parametrize(("count", "memory"), long_but_one_in(2, (1, 3, 5, 13), ("fast", "low")))
def test_decode_equals_diffusers(vaes: tuple, count: int, memory: str) -> None:
    """GroupNorm and the causal caches depend on the chunks: other chunks than diffusers' shift colours and motion."""
    ours, theirs = vaes
    z = latents(count)
    with torch.inference_mode():
        got = ours.decode(z, vae_options={"memory": memory})
    want = decoded_by_diffusers(theirs, count)
    assert got.shape == (1, 4 * count - 3, 32, 48, 3)
    check_parity(f"VAE decode, memory {memory}", got, want, VAE_TOLERANCE)


def test_decode_of_an_even_count(vaes: tuple) -> None:
    """diffusers decodes 4 latents to 16 frames, of which the first is repeated; ComfyUI's contract is 13, the frames
    that the latents have with the last one repeated."""
    ours, theirs = vaes
    z = latents(4)
    with torch.inference_mode():
        got = ours.decode(z)
        want = to_image(theirs.decode(torch.cat([z, z[:, :, -1:]], dim=2)).sample)[:, :13]
    assert relative_error(got, want) <= VAE_TOLERANCE


def test_decode_node_lays_a_batch_end_to_end(vaes: tuple) -> None:
    """SaveVideo takes one row of frames; a batch must come out video after video."""
    ours, _ = vaes
    z = latents(3, batch=2)
    with torch.inference_mode():
        got = CogVideoXDecode.execute(ours, {"samples": z}, "auto").args[0]
        second = ours.decode(z[1:])
    assert got.shape == (18, 32, 48, 3) and 0 <= got.min() and got.max() <= 1
    assert relative_error(got[9:], second[0]) <= 1e-6


@pytest.mark.parametrize("frames", (1, 5, 9, 17))
def test_encode_equals_diffusers(vaes: tuple, frames: int) -> None:
    """Latents of a clip must be the posterior's mode that diffusers finds, or the start of every edit is off."""
    ours, theirs = vaes
    pixels = torch.rand(frames, 64, 96, 3, generator=torch.Generator().manual_seed(frames))
    with torch.inference_mode():
        got = ours.encode(pixels)
        want = theirs.encode((pixels * 2 - 1).movedim(-1, 0)[None]).latent_dist.mode()
    check_parity("VAE encode", got, want, VAE_TOLERANCE)


@pytest.mark.parametrize("memory", ("fast", "low"))
def test_bf16_error_is_diffusers_own(tiny_pipelines: dict[str, Path], memory: str) -> None:
    """In bf16 the decode may not lose more than the reference does."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    folder = tiny_pipelines["5b"]
    exact: Any = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    rounded: Any = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16).eval()
    ours = load_vae(folder, "bf16")
    z = latents(5, height=2, width=3)
    with torch.inference_mode():
        want = to_image(exact.decode(z).sample)
        theirs = relative_error(to_image(rounded.decode(z.bfloat16()).sample.float()), want)
        assert relative_error(ours.decode(z, vae_options={"memory": memory}).float(), want) <= theirs * 1.02


TILES = ((5, 4), (1, 1), (64, 64), (3, 200))


@pytest.mark.parametrize("tile", long_after(1, TILES), ids=str)
def test_tiled_decode_is_the_decode(vaes: tuple, tile: tuple[int, int]) -> None:
    """Tiles that do not see each other have their own GroupNorm and show as seams; diffusers' even return wrong sizes
    for tiles they were not made for. Time must never be cut."""
    ours, theirs = vaes
    z = latents(3, height=10, width=14)
    with torch.inference_mode():
        got = ours.decode_tiled(z, tile_x=tile[0], tile_y=tile[1], overlap=3, tile_t=2, overlap_t=1)
        check_parity("VAE decode, tiled", got, to_image(theirs.decode(z).sample), VAE_TOLERANCE)


@pytest.mark.parametrize(("tile_x", "tile_y"), ((48, 40), (512, 512), (16, 16)))
def test_tiled_encode_is_the_encode(vaes: tuple, tile_x: int, tile_y: int) -> None:
    """The same on the way in."""
    ours, theirs = vaes
    pixels = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        got = ours.encode_tiled(pixels, tile_x=tile_x, tile_y=tile_y, overlap=16, tile_t=8, overlap_t=4)
        want = theirs.encode((pixels * 2 - 1).movedim(-1, 0)[None]).latent_dist.mode()
    check_parity("VAE encode, tiled", got, want, VAE_TOLERANCE)


def test_latent_of_another_model_is_refused(vaes: tuple) -> None:
    """A 4-channel latent must be called by its name, not fail inside a convolution."""
    with pytest.raises(UserError, match=r"\[1, 4, 3, 8, 12\].*16"):
        CogVideoXDecode.execute(vaes[0], {"samples": torch.ones(1, 4, 3, 8, 12)}, "auto")
