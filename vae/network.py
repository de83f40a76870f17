"""diffusers' CogVideoX VAE as ComfyUI's VAE socket calls it."""

from collections.abc import Iterator

import comfy.utils
import torch
from diffusers import AutoencoderKLCogVideoX

from .geometry import TEMPORAL, check_latent_channels, video_frames

LATENTS_AT_ONCE = 2  # diffusers' chunk: GroupNorm statistics depend on it
FRAMES_AT_ONCE = 8


class CogVideoXAutoencoder(AutoencoderKLCogVideoX):
    """encode(x) -> posterior mean, decode(z) -> frames: what comfy.sd.VAE expects of its network.

    Frames pass in the reference's own chunks, linked by the causal convolutions' caches, so that every number is the
    one that diffusers computes.
    """

    # ModelMixin's is a read-only property; ModelPatcher assigns it.
    device = None
    # set while an encode shall take a sample of the posterior (model_loaders/autoencoder.py)
    posterior_generator: torch.Generator | None = None

    def decode(self, z: torch.Tensor, memory: str = "fast") -> torch.Tensor:
        """Latents to frames.

        z: [B, 16, n, h, w], unscaled. memory: "fast" keeps caches and frames on z's device, "low" in host memory
        between chunks; the numbers are the same.
        Returns [B, 3, 4 n - 3, 8 h, 8 w], about -1 .. 1. Raises GeometryError for another model's latent.
        """
        check_latent_channels(z)
        frames = video_frames(z.shape[2])
        return torch.cat(list(self._decode_chunks(z, memory == "low")), dim=2)[:, :, :frames]

    def _decode_chunks(self, z: torch.Tensor, on_host: bool) -> Iterator[torch.Tensor]:
        """Decoded chunks in order. The first holds three latents (or one), the others two.

        An even number of latents has no such split, and diffusers decodes it to 4 n frames, the first of which stands
        still; here the last latent is repeated, and the caller drops what that adds.
        """
        if z.shape[2] > 1 and z.shape[2] % 2 == 0:
            z = torch.cat([z, z[:, :, -1:]], dim=2)
        cache = None
        for chunk in split_chunks(z, LATENTS_AT_ONCE):
            if self.post_quant_conv is not None:
                chunk = self.post_quant_conv(chunk)
            frames, cache = self.decoder(chunk, conv_cache=_move(cache, z.device))
            if on_host:
                frames, cache = frames.cpu(), _move(cache, torch.device("cpu"))
            yield frames

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Frames to latents: the mode of the posterior, or a sample of it with `posterior_generator`.

        x: [B, 3, t, H, W], -1 .. 1; trailing frames beyond 4 k + 1 are left out.
        Returns [B, 16, (t - 1) // 4 + 1, H / 8, W / 8], unscaled.
        """
        x = x[:, :, : (x.shape[2] - 1) // TEMPORAL * TEMPORAL + 1]
        cache, moments = None, []
        for chunk in split_chunks(x, FRAMES_AT_ONCE):
            out, cache = self.encoder(chunk, conv_cache=cache)
            moments.append(self.quant_conv(out) if self.quant_conv is not None else out)
        mean, log_variance = torch.cat(moments, dim=2).chunk(2, dim=1)
        if self.posterior_generator is None:
            return mean
        # diffusers vae.py, DiagonalGaussianDistribution
        noise = torch.randn(mean.shape, generator=self.posterior_generator).to(mean)
        return mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise

    def decode_tiled(
        self, z: torch.Tensor, tile_x: int = 32, tile_y: int = 32, overlap: int = 8, **_: object
    ) -> torch.Tensor:
        """Decode spatial tiles of `tile_x` by `tile_y` latents over all frames and blend them. Time is never cut, so
        the causal cache runs through; GroupNorm sees one tile, so the result is close to `decode`, not equal."""
        check_latent_channels(z)
        overlap = min(overlap, tile_x // 2, tile_y // 2)
        return comfy.utils.tiled_scale_multidim(
            z,
            self.decode,
            tile=(z.shape[2], tile_y, tile_x),
            overlap=(0, overlap, overlap),
            upscale_amount=(video_frames, 8, 8),
            out_channels=3,
            index_formulas=(4, 8, 8),
            output_device="cpu",
        ).to(z.dtype)

    def encode_tiled(
        self, x: torch.Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64, **_: object
    ) -> torch.Tensor:
        """Encode spatial tiles over all frames and blend them; see decode_tiled."""
        overlap = min(overlap, tile_x // 2, tile_y // 2)
        return comfy.utils.tiled_scale_multidim(
            x,
            self.encode,
            tile=(x.shape[2], tile_y, tile_x),
            overlap=(0, overlap, overlap),
            upscale_amount=(lambda t: (t - 1) // TEMPORAL + 1, 8, 8),
            out_channels=16,
            downscale=True,
            index_formulas=(4, 8, 8),
            output_device="cpu",
        ).to(x.dtype)


def split_chunks(x: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Cut [B, C, T, H, W] in time as diffusers does: chunks of `size`, the remainder joined to the first.

    Source: diffusers autoencoder_kl_cogvideox.py, _decode and _encode.
    """
    start, end = 0, x.shape[2] % size + (size if x.shape[2] >= size else 0)
    while start < x.shape[2]:
        yield x[:, :, start:end]
        start, end = end, end + size


def _move(cache: dict | torch.Tensor | None, device: torch.device) -> dict | torch.Tensor | None:
    if isinstance(cache, dict):
        return {key: _move(value, device) for key, value in cache.items()}
    return cache if cache is None else cache.to(device)
