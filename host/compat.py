"""How ComfyUI's versions and the devices differ: no other module asks for either."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.context_windows
import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.cli_args import args
from comfy.ldm.flux.math import apply_rope1

from ..errors import UserError
from .attention_kernels import attention_by_choice
from .cpu_attention import attention_by_heads

try:
    from comfy import model_prefetch
except ImportError:  # ComfyUI before dynamic VRAM
    model_prefetch = None


def comfyui_version() -> str:
    """ComfyUI's version, or "unknown" where it does not say."""
    try:
        return str(importlib.import_module("comfyui_version").__version__)
    except (ImportError, AttributeError):
        return "unknown"


def attention_for(device: torch.device) -> Callable[..., torch.Tensor]:
    """ComfyUI's attention function for `device`, called as f(q, k, v, heads, skip_reshape=True, ...).

    On the CPU ComfyUI falls back to its sub-quadratic attention, which was made for cards with little memory. torch's
    fused kernel is faster there, and its memory does not grow with the square of the tokens either. Where ComfyUI uses
    torch's attention on a card, the kernel that was chosen for the size comes first (attention_kernels.py). All call
    an attention override where there is one.
    """
    if device.type == "cpu":
        return attention_by_heads
    chosen: Callable[..., torch.Tensor] = comfy_attention.optimized_attention
    return attention_by_choice if chosen is comfy_attention.attention_pytorch else chosen


def rotate_pairs(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Rotate every pair of neighbours in x [..., D] by `matrices` [..., D / 2, 2, 2].

    Returns x's shape and type; x itself may be overwritten where no gradient is asked for.

    ComfyUI's kernels are for cards. On the CPU it falls back to several passes over every second element; one complex
    multiplication gives the same result 8 to 16 times faster. torch.compile makes one pass of the products themselves,
    and none of complex numbers.
    """
    if torch.compiler.is_compiling():
        pairs = x.to(matrices.dtype).unflatten(-1, (-1, 1, 2))
        return (matrices[..., 0] * pairs[..., 0] + matrices[..., 1] * pairs[..., 1]).flatten(-2).to(x.dtype)
    if x.device.type != "cpu":
        return apply_rope1(x, matrices)
    # A rotation matrix [[cos, -sin], [sin, cos]] is the complex number cos + i sin.
    rotations = torch.complex(matrices[..., 0, 0], matrices[..., 1, 0])
    pairs = torch.view_as_complex(x.to(matrices.dtype).unflatten(-1, (-1, 2)))
    # In place this makes no copy of all queries or keys, but autograd may need them as they were.
    rotated = pairs * rotations if torch.is_grad_enabled() and x.requires_grad else pairs.mul_(rotations)
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def model_patcher_class(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """ComfyUI's patcher class.

    It is looked up at each call: ComfyUI's main.py assigns CoreModelPatcher once it knows whether dynamic VRAM works,
    and a name that was imported before would go on meaning the other class.
    """
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def is_dynamic(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether `patcher` loads weights on demand. ComfyUI before dynamic VRAM has no such method."""
    return bool(getattr(patcher, "is_dynamic", lambda: False)())


def available_memory(patcher: comfy.model_patcher.ModelPatcher) -> int:
    """Bytes that ComfyUI can have free on the device of `patcher`, whose own weights stay where they are: what is free
    now, and the weights of every other model there, which comfy.model_management.free_memory unloads, or takes away
    piece by piece under dynamic VRAM, as far as they are in the way of what load_models_gpu is asked for.

    Source: comfy.model_management.free_memory and LoadedModel.model_unload.
    """
    return freeable_memory(patcher.load_device, patcher)


def freeable_memory(device: torch.device, kept: comfy.model_patcher.ModelPatcher | None = None) -> int:
    """available_memory of a device, with every model unloaded but `kept`."""
    available: Any = mm.get_free_memory(device)  # a pair only where it is asked for one
    if mm.vram_state == mm.VRAMState.SHARED:  # a Mac's: unloaded weights lie in the same memory
        return available
    for loaded in mm.current_loaded_models:
        other = loaded.model  # None: it has been forgotten, and its weights are about to be
        # With --highvram and --gpu-only a model that is unloaded stays on the card: its offload device is the card too.
        if other is None or loaded.device != device or other.offload_device == device:
            continue
        if kept is None or not kept.is_clone(other):
            available += other.loaded_size()
    return available


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device` now, with those of weights that dynamic VRAM gives up where others need them."""
    ask: Any = comfy.model_patcher.ModelPatcher.get_free_memory
    return ask(None, device)  # no version of ComfyUI reads anything of the patcher there


def prefetched(blocks: torch.nn.ModuleList, device: torch.device, transformer_options: dict[str, Any]) -> Iterator[Any]:
    """The blocks in order. Under dynamic VRAM ComfyUI copies the weights of a block to `device` while the device still
    computes the one before."""
    if model_prefetch is None:
        yield from blocks
        return
    queue = model_prefetch.make_prefetch_queue(list(blocks), device, transformer_options)
    for block in blocks:
        model_prefetch.prefetch_queue_pop(queue, device, block)
        yield block
    # Once more than there are blocks: each call releases the weights of the block before, here those of the last one.
    model_prefetch.prefetch_queue_pop(queue, device, None)


def patch_context_windows(
    model: comfy.model_patcher.ModelPatcher, schedule: str, fuse_method: str, freenoise: bool, **options: Any
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that is run on a long video window by window, with ComfyUI's own context windows.

    options: of comfy.context_windows.IndexListContextHandler, which older versions of ComfyUI do not know all of. An
    unknown option is left out where it is switched off. So is causal_window_fix, which puts one more frame in front of
    every window but the first, where it is switched on: windows work without it.

    Raises UserError for any other option that is switched on and unknown.
    """
    windows = comfy.context_windows
    known = inspect.signature(windows.IndexListContextHandler.__init__).parameters
    unknown = [name for name, value in options.items() if value and name not in known and name != "causal_window_fix"]
    if unknown:
        raise UserError(
            f"This ComfyUI's context windows have no {', '.join(unknown)} yet. Update ComfyUI, or do without.",
            advice="use plain windows",
        )
    patched = model.clone()
    model_options: dict[str, Any] = patched.model_options
    model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method(fuse_method),
        freenoise=freenoise,
        **{name: value for name, value in options.items() if name in known},
    )
    windows.create_prepare_sampling_wrapper(patched)  # has ComfyUI reserve memory for one window, not for the video
    if freenoise:
        windows.create_sampler_sample_wrapper(patched)
    return patched


def throw_if_interrupted() -> None:
    """Raises InterruptProcessingException where the user has cancelled the run."""
    mm.throw_exception_if_processing_interrupted()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device has no memory left.

    torch has a class for the error of a card. On the CPU it raises a RuntimeError with the allocator's name in its
    text. Errors of other accelerators are known to newer versions of ComfyUI only, in is_oom.
    """
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error):
        return True
    # Where torch has no such class, ComfyUI sets OOM_EXCEPTION to Exception, and is_oom would say yes to every error.
    return hasattr(mm, "is_oom") and mm.OOM_EXCEPTION is not Exception and mm.is_oom(error)


class NoMemoryLeftError(UserError, torch.OutOfMemoryError):
    """The device has no memory left, and the message says what needs less. ComfyUI unloads all models at an out of
    memory error, so that the next run finds more."""

    def __init__(self, message: str):
        super().__init__(message, advice="forecast the memory")


def free_after_out_of_memory() -> None:
    """Give the memory that torch's allocator holds without using it back to the device, and forget the weights that
    were being copied there.

    Only for after an out of memory error: the allocator would go on holding the memory in parts that are too small for
    the next, leaner try. Anywhere else the allocator would have used it again, and getting it back takes time.
    """
    if model_prefetch is not None:
        model_prefetch.cleanup_prefetch_queues()
    mm.soft_empty_cache()


def take_off_device(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Move the weights of `patcher` to where they are kept, and nobody else's."""
    others = [loaded for loaded in mm.current_loaded_models if loaded.model is not patcher]
    mm.free_memory(1e30, patcher.load_device, keep_loaded=others)


def empty_on_host(
    shape: Sequence[int], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> torch.Tensor:
    """An uninitialised tensor in host memory, pinned where that makes copies to and from `device` faster.

    layout: its memory format.
    """
    if device.type == "cuda" and torch.cuda.is_available() and not getattr(args, "disable_pinned_memory", False):
        try:
            return torch.empty(shape, dtype=dtype, memory_format=layout, pin_memory=True)
        except RuntimeError:  # the driver or the system limits pinned memory; ordinary memory is only slower
            pass
    return torch.empty(shape, dtype=dtype, memory_format=layout)
