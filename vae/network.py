"""diffusers' CogVideoX VAE with the pack's own pass through it. Importing this module imports diffusers."""

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from .plan import FAST
from .streaming import decode_stream, encode_stream


class CogVideoXAutoencoder(AutoencoderKLCogVideoX):
    """encode(x) -> posterior mean, decode(z) -> frames: what ComfyUI expects of a VAE's network.

    The modules, their names and their configuration are diffusers', so that published weights fit without conversion.
    """

    # ComfyUI's ModelPatcher assigns the attribute `device`, which in diffusers' ModelMixin is a read-only property: an
    # ordinary attribute takes its place.
    device = None  # type: ignore[assignment]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [B, 16, n, h, w], unscaled, to frames [B, 3, 4 n - 3, 8 h, 8 w], about -1 .. 1."""
        videos = [torch.cat(list(decode_stream(self, one, FAST, z.device, z.dtype)), dim=2) for one in z.split(1)]
        return torch.cat(videos)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Frames [B, 3, t, H, W], -1 .. 1, to the mode of their posterior [B, 16, (t - 1) // 4 + 1, H / 8, W / 8]."""
        moments = [torch.cat(list(encode_stream(self, one, FAST, x.device, x.dtype)), dim=2) for one in x.split(1)]
        return torch.cat(moments).chunk(2, dim=1)[0]
