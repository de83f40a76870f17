"""ComfyUI's EasyCache under ComfyUI's context windows and on several cards: one cache for each window and card."""

from collections.abc import Callable
from typing import Any

import torch

from ..host.protocols import ContextWindow
from ..keys import SHARED_STEP
from .shared_step import SharedStep

_OWN = "cogvideox_own"  # an attribute of a run's cache: (window, card, whether it decides) -> one of the same settings


def cached_apart(
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    ofs: torch.Tensor | None = None,
    transformer_options: dict[str, Any] = {},
    control: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """DIFFUSION_MODEL wrapper around EasyCache's own, which is put on the MODEL later: hand it the cache of the window
    and of the card.

    EasyCache compares a call's input with the last one's and adds what it has kept for the same prompt. Under context
    windows the last call was another window's, of other frames and sometimes of another number of them.

    Arguments and result are those of CogVideoXDiT._forward. Source of the attributes: ComfyUI's nodes_easycache.py.
    """
    cache: Any = transformer_options.get("easycache")
    window: ContextWindow | None = transformer_options.get("context_window")
    step: SharedStep | None = transformer_options.get(SHARED_STEP)
    # LazyCache, which uses the same entry and keeps one whole prediction, has none of these.
    if (window is None and step is None) or not hasattr(cache, "uuid_cache_diffs"):
        return executor(x, timestep, context, ofs, transformer_options, control=control, **kwargs)
    frames = () if window is None else tuple(window.index_list)
    own = _own_cache(cache, frames, step, transformer_options)
    options = {**transformer_options, "easycache": own}
    try:
        out = executor(x, timestep, context, ofs, options, control=control, **kwargs)
    finally:
        if step is None:
            cache.skip_current_step = own.skip_current_step
        elif step.decides(transformer_options["multigpu_thread_device"]):
            step.decide(own.skip_current_step)
    _count_skipped(cache)
    return out


def _own_cache(
    cache: Any, frames: tuple[int, ...], step: SharedStep | None, transformer_options: dict[str, Any]
) -> Any:
    """The cache of the window of these latent frames, on one card. It lives as long as `cache`, which EasyCache makes
    for each run, and knows whether the step is skipped already."""
    device: Any = None if step is None else transformer_options["multigpu_thread_device"]
    decides = step is None or step.decides(device)
    if not hasattr(cache, _OWN):
        setattr(cache, _OWN, {})
    caches = getattr(cache, _OWN)
    if (frames, device, decides) not in caches:
        own = cache.clone()  # settings only
        own.start_t, own.end_t = cache.start_t, cache.end_t
        own.initial_step = decides  # or no prompt of its would become the one that decides
        # What it logs at the end of the run.
        own.output_change_rates = cache.output_change_rates
        own.approx_output_change_rates = cache.approx_output_change_rates
        caches[frames, device, decides] = own
    own = caches[frames, device, decides]
    # The first call of a step decides whether the step is skipped, and the calls for the other prompts follow it.
    # EasyCache's CALC_COND_BATCH wrapper, which knows of one cache only, takes the decision back before each window.
    own.skip_current_step = cache.skip_current_step if step is None else step.is_skipped(device)
    return own


def _count_skipped(cache: Any) -> None:
    """For EasyCache's line in the log, which counts each step once."""
    # Copied at once: another card may add its cache.
    deciding = [own for (_, _, decides), own in list(getattr(cache, _OWN).items()) if decides]
    if deciding:
        cache.total_steps_skipped = sum(own.total_steps_skipped for own in deciding) // len(deciding)
