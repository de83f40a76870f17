"""CogVideoX-nano's VAE: diffusers' AutoencoderKLCogVideoX with tiny blocks, and how it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D

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
DECODER_STEPS, DECODER_BATCH = 5000, 4
# (frames, width, height) of the decoder's training, in turn: most of them short, whose steps take the least time.
DECODER_SHAPES = ((9, 64, 64), (9, 64, 64), (17, 64, 64), (9, 64, 96), (9, 96, 64), (33, 64, 64), (9, 96, 96))
_GRID = 4.0  # pixels; finer than for the transformers, so that the VAE learns shapes at every position


@dataclass(frozen=True)
class CurriculumStage:
    """One stage of the VAE's training.

    until: the share of all steps that are done when it ends. crop: the side of the crops in pixels. kl_weight: the
    weight of the posterior's KL divergence from N(0, 1); the larger it is, the smoother are the latents, and the easier
    it is for a transformer to learn them.
    """

    until: float
    crop: int
    frames: int
    kl_weight: float


# First sharp, then smooth. Most of it on crops of a quarter of the picture, whose steps take a quarter of the time.
_CURRICULUM = (CurriculumStage(0.5, 32, 9, 1e-4), CurriculumStage(0.94, 32, 9, 8e-3), CurriculumStage(1.0, 64, 9, 8e-3))


class TrainedVAE(torch.nn.Module):
    """The VAE with its training loss as forward."""

    def __init__(self):
        super().__init__()
        self.vae: Any = AutoencoderKLCogVideoX(**CONFIG)

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor, kl_weight: float) -> torch.Tensor:
        """pixels: [B, 3, F, H, W] in -1 .. 1; noise: [B, 16, T, h, w] for the posterior. Returns the loss."""
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return F.l1_loss(decoded, pixels) + 4 * F.mse_loss(decoded, pixels) + kl_weight * divergence


class TrainedDecoder(torch.nn.Module):
    """The decoder with its training loss as forward. The encoder is frozen: transformers are trained on its latents."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels: [B, 3, F, H, W] in -1 .. 1. Returns the loss."""
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mode()
        decoded = self.vae.decode(latents).sample.float()
        return F.l1_loss(decoded, pixels) + 4 * F.mse_loss(decoded, pixels)


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
    """Of `tries` random crops of `clip` [3, F, H, W] the one with the highest variance: most of a clip is plain
    background, from which the VAE would learn little."""
    corners = torch.randint(0, clip.shape[-1] - size + 1, (tries, 2), generator=generator).tolist()
    crops = [clip[..., top : top + size, left : left + size] for top, left in corners]
    return max(crops, key=lambda crop: float(crop.std(dim=(1, 2, 3)).sum()))


@torch.no_grad()
def standardize(vae: Any, pixels: torch.Tensor) -> None:
    """Shift and scale each latent channel so that SCALING_FACTOR brings it to mean 0 and standard deviation 1.

    Every layer that reads latents is changed inversely, so that the decoded video stays the same, except at the edges,
    where the decoder pads latents with zeros; training the decoder afterwards corrects that. vae: an
    AutoencoderKLCogVideoX. pixels: what the statistics are taken from, [B, 3, F, H, W] in -1 .. 1.
    """
    latents = vae.encode(pixels).latent_dist.mode()
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    factor = 1 / (SCALING_FACTOR * std)
    conv = vae.encoder.conv_out.conv
    means, log_variances = slice(0, len(std)), slice(len(std), None)
    conv.weight[means] *= factor.view(-1, 1, 1, 1, 1)
    conv.bias[means] = (conv.bias[means] - mean) * factor
    conv.bias[log_variances] += 2 * factor.log()
    readers = [vae.decoder.conv_in]
    for module in vae.decoder.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            readers += [module.conv_y, module.conv_b]
    for reader in readers:
        reader.conv.bias += torch.einsum("oithw,i->o", reader.conv.weight, mean)
        reader.conv.weight /= factor.view(1, -1, 1, 1, 1)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


@torch.inference_mode()
def psnr_db(vae: Any, pixels: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of encode and decode at the posterior's mode, in dB.

    vae: an AutoencoderKLCogVideoX. pixels: [B, 3, F, H, W] in -1 .. 1.
    """
    pixels = pixels.to(vae.device)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / F.mse_loss(decoded, pixels)))
