"""CogVideoX-nano's VAE: diffusers' AutoencoderKLCogVideoX with tiny blocks, and how it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX, CogVideoXSpatialNorm3D
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from .world import draw_scene, render

CONFIG = {
    "block_out_channels": (16, 32, 40, 40),  # four blocks: 2^3 = 8 times in space, 4 times in time
    "layers_per_block": 1,
    "latent_channels": 16,
    "norm_num_groups": 8,
    "sample_height": 64,
    "sample_width": 64,
}
SCALING_FACTOR = 0.7
STEPS, BATCH = 5000, 8
DECODER_STEPS, DECODER_BATCH = 700, 4
_GRID = 4.0  # pixels; finer than the transformers' world, for the VAE to know a shape anywhere


@dataclass(frozen=True)
class CurriculumStage:
    """until: the share of the steps done when it ends. crop: pixels of a side. kl_weight: of the posterior's divergence
    from unit noise; the more, the smoother are latents, and the easier a transformer learns them."""

    until: float
    crop: int
    frames: int
    kl_weight: float


# first sharp, then smooth; crops are seen four times as fast as whole pictures
_CURRICULUM = (CurriculumStage(0.5, 32, 9, 1e-4), CurriculumStage(0.94, 32, 9, 8e-3), CurriculumStage(1.0, 64, 9, 8e-3))


def posterior_of(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor) -> DiagonalGaussianDistribution:
    """Of pixels [B, 3, F, H, W] in -1 .. 1."""
    return cast(AutoencoderKLOutput, vae.encode(pixels)).latent_dist


def decoded(vae: AutoencoderKLCogVideoX, latents: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, F, H, W] in about -1 .. 1, fp32."""
    return cast(DecoderOutput, vae.decode(latents)).sample.float()


class TrainedVAE(torch.nn.Module):
    """The VAE with its training loss as forward."""

    def __init__(self):
        super().__init__()
        self.vae = AutoencoderKLCogVideoX(**CONFIG)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> torch.Tensor:
        """pixels: [B, 3, F, H, W] in -1 .. 1; noise: [B, 16, T, h, w] for the posterior. Returns the loss."""
        posterior = posterior_of(self.vae, pixels)
        painted = decoded(self.vae, posterior.mean + posterior.std * noise)
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return F.l1_loss(painted, pixels) + 4 * F.mse_loss(painted, pixels) + kl_weight * divergence


class TrainedDecoder(torch.nn.Module):
    """The decoder alone with its training loss as forward; the latents that transformers have learned stay as they
    are."""

    def __init__(self, vae: AutoencoderKLCogVideoX):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, F, H, W] in -1 .. 1. Returns the loss."""
        with torch.no_grad():
            latents = posterior_of(self.vae, pixels).mode()
        painted = decoded(self.vae, latents)
        return F.l1_loss(painted, pixels) + 4 * F.mse_loss(painted, pixels)


def clips(seed: int, indices: Sequence[int], frames: int, width: int = 64, height: int = 64) -> torch.Tensor:
    """Clips of the training world: [B, 3, frames, height, width] in -1 .. 1."""
    drawn = []
    for index in indices:
        rng = np.random.default_rng([seed, index])
        drawn.append(render(draw_scene(rng), rng, frames, width, height, _GRID))
    return to_pixels(np.stack(drawn))


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """[B, F, H, W, 3] in 0 .. 255 -> [B, 3, F, H, W] in -1 .. 1."""
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def loss_of(seed: int) -> Callable[[torch.nn.Module, Sequence[int]], torch.Tensor]:
    """The loss of samples by their indices, as training.loop asks for it."""

    def loss(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        done = indices[0] / (STEPS * BATCH)
        stage = next(stage for stage in _CURRICULUM if done < stage.until)
        pixels = clips(seed, indices, stage.frames)
        generator = torch.Generator().manual_seed(seed + indices[0])
        if stage.crop < pixels.shape[-1]:
            pixels = torch.stack([_highest_variance_crop(clip, stage.crop, generator) for clip in pixels])
        side = stage.crop // 8
        noise = torch.randn(len(indices), 16, (stage.frames - 1) // 4 + 1, side, side, generator=generator)
        return model(pixels, noise, stage.kl_weight)

    return loss


def _highest_variance_crop(clip: torch.Tensor, size: int, generator: torch.Generator, tries: int = 4) -> torch.Tensor:
    """Of some random crops of `clip` [3, F, H, W] the one with most to see: most of a clip is plain background."""
    corners = torch.randint(0, clip.shape[-1] - size + 1, (tries, 2), generator=generator).tolist()
    crops = [clip[..., top : top + size, left : left + size] for top, left in corners]
    return max(crops, key=lambda crop: float(crop.std(dim=(1, 2, 3)).sum()))


@torch.no_grad()
def standardize(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor) -> None:
    """Shift and scale each latent channel so that SCALING_FACTOR brings it to a mean of 0 and a standard deviation of
    1, and everything that reads latents the other way: what is painted stays the same, but for the picture's edge,
    where the decoder pads with zeros; its own training mends that."""
    latents = posterior_of(vae, pixels).mode()
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    factor = 1 / (SCALING_FACTOR * std)
    conv: Any = vae.encoder.conv_out.conv
    means, log_variances = slice(0, len(std)), slice(len(std), None)
    conv.weight[means] *= factor.view(-1, 1, 1, 1, 1)
    conv.bias[means] = (conv.bias[means] - mean) * factor
    conv.bias[log_variances] += 2 * factor.log()
    readers: list[Any] = [vae.decoder.conv_in]
    for module in vae.decoder.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            readers += [module.conv_y, module.conv_b]
    for reader in readers:
        reader.conv.bias += torch.einsum("oithw,i->o", reader.conv.weight, mean)
        reader.conv.weight /= factor.view(1, -1, 1, 1, 1)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


@torch.inference_mode()
def psnr_db(vae: AutoencoderKLCogVideoX, pixels: torch.Tensor) -> float:
    """Peak signal to noise of encode and decode at the posterior's mode, in dB; pixels [B, 3, F, H, W] in -1 .. 1."""
    painted = decoded(vae, posterior_of(vae, pixels).mode()).clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(painted, pixels)))
