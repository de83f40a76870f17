"""The one place that knows how ComfyUI versions and devices differ."""

import inspect
from collections.abc import Callable, Iterator, Sequence

import comfy.context_windows
import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.cli_args import args
from comfy.ldm.flux.math import apply_rope1

from ..errors import UserError

try:
    from comfy import model_prefetch
except ImportError:  # hosts before dynamic VRAM
    model_prefetch = None


def attention_for(device: torch.device) -> Callable:
    """ComfyUI's attention function for `device`, called as f(q, k, v, heads, skip_reshape=True, ...).

    On the CPU ComfyUI falls back to its sub-quadratic attention, made for cards with little memory; torch's fused
    kernel is faster there and keeps memory flat as well.
    """
    if device.type == "cpu":
        return comfy_attention.attention_pytorch
    return comfy_attention.optimized_attention


def rotate_pairs(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Rotate every pair of neighbours in x [..., D] by `matrices` [..., D / 2, 2, 2]; x may be overwritten where no
    gradient is asked for.

    ComfyUI's kernels are for cards. On the CPU it falls back to strided passes; one complex multiplication gives the
    same numbers 8 to 16 times faster.
    """
    if x.device.type != "cpu":
        return apply_rope1(x, matrices)
    turns = torch.complex(matrices[..., 0, 0], matrices[..., 1, 0])
    pairs = torch.view_as_complex(x.to(matrices.dtype).unflatten(-1, (-1, 2)))
    turned = pairs * turns if torch.is_grad_enabled() and x.requires_grad else pairs.mul_(turns)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def model_patcher_class(disable_dynamic: bool) -> type:
    """ComfyUI's patcher class, looked up now: ComfyUI rebinds the name when it starts with dynamic VRAM."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def is_dynamic(patcher: object) -> bool:
    """Whether `patcher` loads weights on demand (hosts before dynamic VRAM have no such method)."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def prefetched(
    blocks: Sequence[torch.nn.Module], device: torch.device, transformer_options: dict
) -> Iterator[torch.nn.Module]:
    """The blocks in order; where the host can, the next one's weights travel to `device` while one computes."""
    if model_prefetch is None:
        yield from blocks
        return
    queue = model_prefetch.make_prefetch_queue(list(blocks), device, transformer_options)
    for block in blocks:
        model_prefetch.prefetch_queue_pop(queue, device, block)
        yield block
    model_prefetch.prefetch_queue_pop(queue, device, None)


def patch_context_windows(
    model: comfy.model_patcher.ModelPatcher, schedule: str, fuse_method: str, freenoise: bool, **options: object
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that sees a long video window by window, by ComfyUI's own context windows.

    options: of comfy.context_windows.IndexListContextHandler; causal_window_fix is left out where this host has none.

    Raises UserError for another option that is switched on and that this host does not know.
    """
    windows = comfy.context_windows
    known = inspect.signature(windows.IndexListContextHandler.__init__).parameters
    unknown = [name for name, value in options.items() if value and name not in known and name != "causal_window_fix"]
    if unknown:
        raise UserError(
            f"This ComfyUI's context windows have no {', '.join(unknown)} yet. Update ComfyUI, or switch off what "
            "needs it (retain_start_image, split_prompts)."
        )
    patched = model.clone()
    patched.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method(fuse_method),
        freenoise=freenoise,
        **{name: value for name, value in options.items() if name in known},
    )
    windows.create_prepare_sampling_wrapper(patched)  # so that memory is counted for one window
    if freenoise:
        windows.create_sampler_sample_wrapper(patched)
    return patched


def throw_if_interrupted() -> None:
    """Raises InterruptProcessingException where the user has cancelled the run."""
    mm.throw_exception_if_processing_interrupted()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device has no memory left (hosts differ in what they know of it)."""
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error):
        return True
    return hasattr(mm, "is_oom") and mm.OOM_EXCEPTION is not Exception and mm.is_oom(error)


def free_after_out_of_memory() -> None:
    """Give back what the allocator holds in pieces too small; for after an out of memory error only."""
    mm.soft_empty_cache()


def empty_on_host(
    shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> torch.Tensor:
    """Room in host memory, pinned where that makes copies to and from `device` quick and the system grants it."""
    if device.type == "cuda" and torch.cuda.is_available() and not getattr(args, "disable_pinned_memory", False):
        try:
            return torch.empty(shape, dtype=dtype, memory_format=layout, pin_memory=True)
        except RuntimeError:  # a limit of the driver or the system; ordinary memory is slower and as good
            pass
    return torch.empty(shape, dtype=dtype, memory_format=layout)
