"""The wrapper around every sampling run on a CogVideoX model, whichever sampler node started it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.samplers
import torch

from ..host.messages import clear_running_node
from ..host.protocols import BaseModel, GuiderExecutor, StepCallback
from .checks import check_conditioning, check_latent, check_sampler, check_size
from .noise import seeded_noise
from .stock_nodes import check_stock_nodes


def sample_checked(
    notify: Callable[[str], object],
    executor: GuiderExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    denoise_mask: torch.Tensor | None = None,
    callback: StepCallback | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: refuse what does not fit before any work, and give CogVideoX 1.5 complete pairs of frames.

    CogVideoX 1.5 makes one token of two latent frames. As in diffusers' pipelines an odd count gets one more frame of
    noise in front, which takes part in sampling and is dropped afterwards. The simpler way, to repeat a frame inside
    the model, was tried: the last latent frame comes out wrong (0.82, RMS of the difference over that of diffusers').

    notify: for check_conditioning; it is bound when the loader puts the wrapper on the MODEL. The other arguments are
    those of comfy.samplers.CFGGuider.outer_sample: noise [B, 16, T, H, W] of unit variance, latent_image of the same
    shape, unscaled. Returns the samples, unscaled.

    Raises UserError.
    """
    clear_running_node()
    guider = executor.class_obj
    model: BaseModel = guider.model_patcher.model
    check_stock_nodes(guider, notify)  # first: such a node may have replaced the latent format as well
    check_latent(model, latent_image)
    check_sampler(sampler)
    check_conditioning(model, guider.conds, latent_image.shape, notify)

    patch_size_t = model.diffusion_model.config.patch_size_t or 1
    extra = -latent_image.shape[2] % patch_size_t
    _, _, frames, height, width = latent_image.shape
    check_size(model, (frames + extra, height, width), guider.model_options)
    if extra:
        # The samplers of build_sampler know how much of the seed's stream is used up; stock samplers lack the option.
        offset = getattr(sampler, "extra_options", {}).get("rng_offset", 0)
        noise = prepend_noise(noise, latent_image.shape, extra, seed or 0, offset)
        latent_image = prepend_first(latent_image, extra)
        denoise_mask = None if denoise_mask is None else prepend_first(denoise_mask, extra)
        # Some versions of ComfyUI hand the shape down a second time, to process_conds.
        if "latent_shapes" in kwargs:
            kwargs["latent_shapes"] = [latent_image.shape]
    report = None if callback is None else partial(_report_without, extra, callback)
    # The next OUTER_SAMPLE wrapper, or CFGGuider.outer_sample itself, which loads the model and runs the sampler.
    try:
        out = executor(noise, latent_image, sampler, sigmas, denoise_mask, report, disable_pbar, seed, **kwargs)
    finally:
        model.diffusion_model.forget_tables()
    if denoise_mask is not None and sigmas[-1] == 0:
        # A schedule whose length does not divide 1000 leaves a trace of noise in its last sample (next_timesteps). What
        # the mask keeps has to come out exactly as it went in.
        out = torch.where(denoise_mask.to(out) == 0, latent_image.to(out), out)
    return out[:, :, extra:]


def _report_without(
    extra: int, callback: StepCallback, step: int, x0: torch.Tensor, x: torch.Tensor, total_steps: int
) -> None:
    """`callback` without the first `extra` frames: a preview shows the video that the user gets."""
    callback(step, x0[:, :, extra:], x[:, :, extra:], total_steps)


def prepend_first(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B, C, T, H, W] -> [B, C, count + T, H, W], the first frame repeated."""
    return torch.cat([x[:, :, :1].expand(-1, -1, count, -1, -1), x], dim=2)


def prepend_noise(noise: torch.Tensor, shape: torch.Size, count: int, seed: int, rng_offset: int = 0) -> torch.Tensor:
    """`noise` [B, C, T, H, W] of a run on latents of `shape`, with `count` more frames in front.

    Where it is what this pack draws for the seed, the result is what diffusers draws for the longer video: frame by
    frame, so that the frame in front gets the numbers that were the first frame's. Any other noise stays as it is, and
    the frames in front are the next numbers of its seed's stream. Zeros, the noise of a run that adds none, get zeros
    in front.
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
