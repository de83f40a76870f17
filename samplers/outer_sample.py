"""What every sampling run on a CogVideoX model passes through, whichever sampler node started it."""

from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import torch

from ..host.protocols import BaseModel, Guider
from .checks import check_conditioning, check_latent, check_sampler, check_size
from .noise import seeded_noise


def sample_checked(
    notify: Callable[[str], object],
    executor: comfy.patcher_extension.WrapperExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: object,
    sigmas: torch.Tensor,
    denoise_mask: torch.Tensor | None = None,
    callback: Callable | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: refuse what does not fit before any work, and give CogVideoX 1.5 complete pairs of frames.

    CogVideoX 1.5 patches two latent frames together. As in diffusers' pipelines an odd count gets real noise frames
    in front, which take part in sampling and are dropped afterwards; repeating a frame inside the model instead
    leaves the last latent wrong.

    notify: see check_conditioning; bound when the wrapper is put on the MODEL. The other arguments are ComfyUI's.

    Raises UserError.
    """
    guider: Guider = executor.class_obj
    model: BaseModel = guider.model_patcher.model
    check_latent(model, latent_image)
    check_sampler(sampler)
    check_conditioning(model, guider.conds, latent_image.shape, notify)

    patch_size_t = model.diffusion_model.config.patch_size_t or 1
    extra = -latent_image.shape[2] % patch_size_t
    _, _, frames, height, width = latent_image.shape
    check_size(model, (frames + extra, height, width), guider.model_options)
    if extra:
        offset = getattr(sampler, "extra_options", {}).get("rng_offset", 0)
        noise = prepend_noise(noise, latent_image.shape, extra, seed or 0, offset)
        latent_image = prepend_first(latent_image, extra)
        denoise_mask = None if denoise_mask is None else prepend_first(denoise_mask, extra)
        if "latent_shapes" in kwargs:
            kwargs["latent_shapes"] = [latent_image.shape]
    without_extra = callback
    if extra and callback is not None:

        def without_extra(step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int) -> None:
            callback(step, x0[:, :, extra:], x[:, :, extra:], total_steps)

    out = executor(noise, latent_image, sampler, sigmas, denoise_mask, without_extra, disable_pbar, seed, **kwargs)
    if denoise_mask is not None and sigmas[-1] == 0:
        # A schedule whose length does not divide 1000 ends a trace of noise short of the clean sample: what the mask
        # keeps must come out exactly as it went in.
        out = torch.where(denoise_mask.to(out) == 0, latent_image.to(out), out)
    return out[:, :, extra:]


def prepend_first(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, C, T, H, W] -> [B, C, count + T, H, W], the first frame repeated."""
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


def prepend_noise(noise: torch.Tensor, shape: torch.Size, count: int, seed: int, rng_offset: int = 0) -> torch.Tensor:
    """`count` more frames of noise in front of `noise` [B, C, T, H, W].

    Noise of this pack's own order becomes what diffusers draws for the longer video. Any other noise stays as it is and
    its seed's stream goes on; where a run adds no noise at all, none is added in front.
    """
    longer = (shape[0], shape[1], shape[2] + count, *shape[3:])
    if torch.equal(noise.cpu().float(), seeded_noise(shape, seed, rng_offset=rng_offset)):
        return seeded_noise(longer, seed, rng_offset=rng_offset).to(noise)
    if torch.count_nonzero(noise) == 0:
        return noise.new_zeros(longer)
    generator = torch.Generator().manual_seed(seed)
    torch.randn(noise.shape, generator=generator)
    front = torch.randn((*shape[:2], count, *shape[3:]), generator=generator)
    return torch.cat([front.to(noise), noise], dim=2)
