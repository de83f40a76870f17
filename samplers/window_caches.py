"""ComfyUI's EasyCache under ComfyUI's context windows: one cache for each window."""

from collections.abc import Callable
from typing import Any

import torch

_WINDOWS = "cogvideox_windows"  # an attribute of a run's cache: window -> a cache of the same settings


def cached_by_window(
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    ofs: torch.Tensor | None = None,
    transformer_options: dict[str, Any] = {},
    control: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """DIFFUSION_MODEL wrapper around EasyCache's own, which is put on the MODEL later: hand it the window's cache.

    EasyCache compares a call's input with the last one's and adds what it has kept for the same prompt. Under context
    windows the last call was another window's, of other frames and sometimes of another number of them.

    Arguments and result are those of CogVideoXDiT._forward. Source of the attributes: ComfyUI's nodes_easycache.py.
    """
    cache: Any = transformer_options.get("easycache")
    window = transformer_options.get("context_window")
    # LazyCache, which uses the same entry and keeps one whole prediction, has none of these.
    if window is None or not hasattr(cache, "uuid_cache_diffs"):
        return executor(x, timestep, context, ofs, transformer_options, control=control, **kwargs)
    own = _cache_of_window(cache, tuple(window.index_list))
    # The first call of a step decides whether the step is skipped, and the calls for the other prompts follow it.
    # EasyCache's CALC_COND_BATCH wrapper, which knows of one cache only, takes the decision back before each window.
    own.skip_current_step = cache.skip_current_step
    options = {**transformer_options, "easycache": own}
    out = executor(x, timestep, context, ofs, options, control=control, **kwargs)
    cache.skip_current_step = own.skip_current_step
    windows = getattr(cache, _WINDOWS).values()
    cache.total_steps_skipped = sum(each.total_steps_skipped for each in windows) // len(windows)  # for its log line
    return out


def _cache_of_window(cache: Any, frames: tuple[int, ...]) -> Any:
    """The cache of the window of these latent frames. It lives as long as `cache`, which EasyCache makes for each
    run."""
    if not hasattr(cache, _WINDOWS):
        setattr(cache, _WINDOWS, {})
    windows = getattr(cache, _WINDOWS)
    if frames not in windows:
        own = cache.clone()  # settings only
        own.start_t, own.end_t = cache.start_t, cache.end_t
        # What it logs at the end of the run.
        own.output_change_rates = cache.output_change_rates
        own.approx_output_change_rates = cache.approx_output_change_rates
        windows[frames] = own
    return windows[frames]
