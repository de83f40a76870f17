"""The wrapper around every sampling run on a CogVideoX model, whichever sampler node started it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch

from ..host.attention_kernels import AttentionSize, choose_attention
from ..host.memory_rules import options_known
from ..host.messages import Notify, clear_running_node
from ..host.protocols import BaseModel, Guider, GuiderExecutor, StepCallback
from ..host.several_cards import on_card, patchers_by_card
from .checks import check_conditioning, check_finite, check_latent, check_mask, check_merge, check_sampler, check_size
from .comfy_sampler import with_stream
from .conditioning import with_repeated_images
from .finite import FiniteWatch, watch_predictions
from .front import join_front, lacks_frame, prepend, prepend_noise, split_front
from .noise import adds_noise, read_stream
from .shared_step import share_easycache
from .stock_nodes import check_stock_nodes
from .stock_samplers import check_cfg, check_sigmas, with_first_order_steps

_FRONT_IS_MISSING = (
    "This run adds no noise, and its latent does not hold the frame in front with which CogVideoX 1.5 samples an odd "
    "number of latent frames: it was changed after the first part of the run, or was made by something else. Its first "
    "frame is repeated, so the video differs from that of one run. Connect the first part's latent directly, or make "
    "the number of latent frames even, as that of 77 or 85 frames is."
)


def sample_checked(
    notify: Notify,
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

    samplers.front says why, and how the frame in front stays with the result where a run stops before the end.

    notify: shows a sentence on the running node; it is bound when the loader puts the wrapper on the MODEL. The other
    arguments are those of comfy.samplers.CFGGuider.outer_sample: noise [B, 16, T, H, W] of unit variance, latent_image
    of the same shape, unscaled. Returns the samples, unscaled.

    Raises UserError.
    """
    clear_running_node()
    guider = executor.class_obj
    model: BaseModel = guider.model_patcher.model
    check_stock_nodes(guider, notify)  # first: such a node may have replaced the latent format as well
    check_latent(model, latent_image)
    check_sampler(sampler)
    stream = read_stream(noise)
    front, latent_image = split_front(latent_image)
    start = noise.shape[2] - latent_image.shape[2]  # noise and mask were made for the latent as it came
    noise, denoise_mask = noise[:, :, start:], None if denoise_mask is None else denoise_mask[:, :, start:]
    is_new = adds_noise(noise)
    _check_numbers(guider, sigmas, noise, latent_image, denoise_mask, is_new)
    check_mask(denoise_mask, goes_on=front is not None or not is_new)
    _check_nodes(guider, sampler, sigmas, noise, latent_image, notify)

    extra = int(lacks_frame(latent_image.shape[2], model.diffusion_model.config.patch_size_t))
    _, _, frames, height, width = latent_image.shape
    _choose_attention_later(guider, check_size(model, (frames + extra, height, width), guider.model_options), notify)
    guider.conds = with_repeated_images(model, guider.conds, frames)  # work, therefore after all checks
    if extra:
        if front is None and not is_new and sigmas[0] > sigmas[-1]:
            notify(_FRONT_IS_MISSING)
        # A run with noise of its own begins like any other, whatever an earlier part has left.
        latent_image = prepend(latent_image, None if is_new else front)
        noise = prepend_noise(noise, stream)
        denoise_mask = None if denoise_mask is None else prepend(denoise_mask)
    if "latent_shapes" in kwargs:  # some versions of ComfyUI hand the shape down a second time, to process_conds
        kwargs["latent_shapes"] = [latent_image.shape]
    sampler = with_first_order_steps(with_stream(sampler, stream), sigmas)
    share_easycache(guider)
    # The next wrapper, or CFGGuider.outer_sample itself, which loads the model and runs the sampler. The sigmas are a
    # copy: ComfyUI's uni_pc writes 0.001 over the 0 at their end.
    with options_known(guider.model_patcher), _watched(guider, notify) as watch:
        report = partial(_report_without, extra, callback, watch)
        out = executor(noise, latent_image, sampler, sigmas.clone(), denoise_mask, report, disable_pbar, seed, **kwargs)
    return _finish(out, latent_image, denoise_mask, bool(sigmas[-1] == 0), extra)


@contextmanager
def _watched(guider: Guider, notify: Notify) -> Iterator[FiniteWatch]:
    """A run whose predictions are watched to its end, and after which nothing of it is left in the model."""
    watch = watch_predictions(guider, notify)
    try:
        yield watch
        watch.end_run()
    finally:
        for patcher in patchers_by_card(guider.model_patcher).values():
            patcher.model.diffusion_model.forget_run()


def _finish(
    out: torch.Tensor, latent_image: torch.Tensor, denoise_mask: torch.Tensor | None, is_clean: bool, extra: int
) -> torch.Tensor:
    """What a run gives out: without its `extra` frames in front, and with what the mask keeps exactly as it went in."""
    if denoise_mask is not None and is_clean:
        # A schedule whose length does not divide 1000 leaves a trace of noise in its last sample (next_timesteps).
        out = torch.where(denoise_mask.to(out) == 0, latent_image.to(out), out)
    video = out[:, :, extra:]
    # A run that stops before the end goes on somewhere else, and needs the frame there.
    return join_front(out[:, :, :extra], video) if extra and not is_clean else video


def _check_numbers(
    guider: Guider,
    sigmas: torch.Tensor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    denoise_mask: torch.Tensor | None,
    is_new: bool,
) -> None:
    """Raises UserError for NaN or Inf in what the run looks at: one from pure noise does not look at its latent."""
    highest = float(guider.model_patcher.get_model_object("model_sampling").sigma_max)
    if not is_new or denoise_mask is not None or (len(sigmas) and float(sigmas[0]) < highest * (1 - 1e-5)):
        check_finite(latent_image, noise, denoise_mask)


def _check_nodes(
    guider: Guider,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    notify: Notify,
) -> None:
    """Raises UserError where what other nodes have made does not suit the model: sigmas, guidance, merge, prompts."""
    check_sigmas(sampler, sigmas, noise, latent_image)
    check_cfg(sampler, getattr(guider, "cfg", None))
    check_merge(guider.model_patcher, notify)
    check_conditioning(guider.model_patcher.model, guider.conds, latent_image.shape, notify)


def _choose_attention_later(guider: Guider, video_tokens: set[int], notify: Notify) -> None:
    """_choose_attention as soon as the run's model is loaded, before its first step.

    Now other models may fill the card, and there would be no room to measure in. When ComfyUI loads the model, it makes
    room for its activations, of which those of the measurement are a part.
    """

    def sample(executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        _choose_attention(guider, video_tokens, notify)
        return executor(*args, **kwargs)

    # The options are a copy of this run's own (CFGGuider.sample).
    kind, options = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, guider.model_options
    comfy.patcher_extension.add_wrapper_with_key(kind, "cogvideox", sample, options, is_model_options=True)


def _choose_attention(guider: Guider, video_tokens: set[int], notify: Notify) -> None:
    """Have each card's fastest attention kernel found for each size, and say where it is not the one of ComfyUI."""
    model: BaseModel = guider.model_patcher.model
    if not model.diffusion_model.has_weights:  # other processes compute, each on a card of its own
        return
    config, options = model.diffusion_model.config, guider.model_options.get("transformer_options", {})
    sentences = set[str]()
    for device, patcher in patchers_by_card(guider.model_patcher).items():
        dtype = patcher.model.get_dtype_inference()
        with on_card(device):
            sentences |= {
                choose_attention(
                    AttentionSize(device, dtype, count + config.max_text_seq_length, config.attention_head_dim),
                    config.num_attention_heads,
                    options,
                )
                for count in sorted(video_tokens)
            }
    for sentence in sorted(sentences - {""}):
        notify(sentence)


def _report_without(
    extra: int,
    callback: StepCallback | None,
    watch: FiniteWatch,
    step: int,
    x0: torch.Tensor,
    x: torch.Tensor,
    total_steps: int,
) -> None:
    """`callback` without the first `extra` frames: a preview shows the video that the user gets. Raises UserError where
    a prediction contained NaN or Inf."""
    watch.check()
    if callback is not None:
        callback(step, x0[:, :, extra:], x[:, :, extra:], total_steps)
    # After a preview, for which the host has waited for the card.
    watch.end_step()
