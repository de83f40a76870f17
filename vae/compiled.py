"""modulated_silu as torch.compile makes it."""

import functools
import time
from collections.abc import Callable

import torch

from ..host.messages import show_on_running_node
from .activation import Activation, modulated_silu
from .layout import empty_frame, empty_frames, memory_format
from .norms import Modulation

SAMPLE = 32, 12, 20  # channels, height and width, none of them 1: what is compiled for it holds for all sizes
SAMPLE_ZOOM = 2


@functools.cache
def compiled_modulated_silu(device: torch.device, dtype: torch.dtype) -> Activation:
    """modulated_silu, compiled for frames of `dtype` on `device`; how long that took stands on the node that runs.

    Where torch.compile does not work it says so there, and this is modulated_silu itself.
    """
    start = time.perf_counter()
    activation = functools.partial(_modulated_silu, torch.compile(_modulate, dynamic=True))
    try:
        _try_out(activation, device, dtype)
    except Exception as error:  # it depends on compilers, drivers and versions of Python, and each fails in its own way
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        show_on_running_node(
            f"torch.compile does not work here ({reason}): the VAE goes on without it, with the same result. It needs "
            "a C++ compiler for the CPU (on Windows that of Visual Studio) and Triton for a card."
        )
        return modulated_silu
    show_on_running_node(
        f"Compiled the VAE's activation for {device} and {dtype} in {time.perf_counter() - start:.1f} s, for as long "
        "as ComfyUI runs."
    )
    return activation


def _modulated_silu(
    modulate: Callable[..., None], x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor
) -> None:
    """See activation.modulated_silu. modulate: _modulate, compiled."""
    rows = torch.arange(top, top + x.shape[2], device=x.device) // modulation.zoom_y
    columns = None
    if x.stride(1) == 1:  # with channels first there is a value for each pixel, see Modulation.laid_out
        columns = torch.arange(x.shape[3], device=x.device) // modulation.zoom_x
    modulate(x, modulation.scale, modulation.shift, rows, columns, out)


def _modulate(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = SiLU(x * scale + shift). rows [r], columns [W]: where in scale and shift [1, C, n, m] a pixel's are."""
    scale, shift = scale[:, :, rows], shift[:, :, rows]
    if columns is not None:
        scale, shift = scale[..., columns], shift[..., columns]
    value = x.float() * scale + shift
    out.copy_(value * torch.sigmoid(value))


def _try_out(activation: Activation, device: torch.device, dtype: torch.dtype) -> None:
    """Compile by calling; sizes are left open."""
    channels, height, width = SAMPLE
    layout = memory_format(device, dtype)
    x = empty_frame(*SAMPLE, dtype, device, layout).zero_()
    patches = empty_frame(channels, height // SAMPLE_ZOOM, width // SAMPLE_ZOOM, torch.float32, device, layout).zero_()
    slots = empty_frames(3, channels, height + 2, width, dtype, device, layout)
    modulation = Modulation(patches, patches.clone(), SAMPLE_ZOOM, SAMPLE_ZOOM).laid_out(layout)
    with torch.no_grad():
        activation(x, modulation, 0, slots[:, 1, :, 1:-1])
