"""modulated_silu as torch.compile makes it."""

import functools
from collections.abc import Callable

import torch

from ..host.compiling import compile_by_calling
from ..host.messages import Notify
from .activation import Activation, modulated_silu
from .layout import empty_frame, empty_frames, memory_format
from .modulation import Modulation

# Channels, height and width of what it is compiled with. None of them is 1: torch.compile would take a 1 for a constant
# and compile again for every other size.
SAMPLE = 32, 12, 20
SAMPLE_ZOOM = 2


# By device and type. Where compiling has failed, modulated_silu itself, so that no later decode tries again.
_COMPILED: dict[tuple[torch.device, torch.dtype], Activation] = {}


def compiled_modulated_silu(device: torch.device, dtype: torch.dtype, notify: Notify) -> Activation:
    """modulated_silu, compiled once for frames of `dtype` on `device`.

    Where torch.compile does not work, this is modulated_silu itself. notify: told how long compiling took, or why it
    did not work; not called again for the same device and type.
    """
    key = device, dtype
    if key not in _COMPILED:
        _COMPILED[key], message = _compile(device, dtype)
        notify(message)
    return _COMPILED[key]


def _compile(device: torch.device, dtype: torch.dtype) -> tuple[Activation, str]:
    """The activation to use, and what the user should know about it."""
    activation = functools.partial(_modulated_silu, torch.compile(_modulate, dynamic=True))
    seconds, reason = compile_by_calling(lambda: _call_once(activation, device, dtype))
    if reason:
        return modulated_silu, (
            f"torch.compile does not work here ({reason}): the VAE goes on without it, with the same result. It needs "
            "a C++ compiler for the CPU (on Windows that of Visual Studio) and Triton for a card."
        )
    return activation, (
        f"Compiled the VAE's activation for {device} and {dtype} in {seconds:.1f} s. It stays compiled for as long as "
        "ComfyUI runs."
    )


def _modulated_silu(
    modulate: Callable[..., None], x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor
) -> None:
    """See activation.modulated_silu. modulate: _modulate, compiled."""
    # Scale and shift are looked up by row and column, so that one compiled function serves every size, zoom and band.
    # activation._modulate_span reshapes x instead, for which the rows have to divide evenly among the patches.
    rows = torch.arange(top, top + x.shape[2], device=x.device) // modulation.zoom_y
    columns = None
    # With channels first there is a value for each pixel already: see Modulation.in_layout.
    if x.stride(1) == 1:
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
    """out = SiLU(x * scale + shift). rows [r], columns [W]: the indices into scale and shift [1, C, n, m]."""
    scale, shift = scale[:, :, rows], shift[:, :, rows]
    if columns is not None:
        scale, shift = scale[..., columns], shift[..., columns]
    # In fp32, and rounded once by copy_.
    value = x.float() * scale + shift
    out.copy_(value * torch.sigmoid(value))


def _call_once(activation: Activation, device: torch.device, dtype: torch.dtype) -> None:
    """Call it, which is what compiles it; sizes are left open.

    The tensors have the strides of a pass: x is a frame, out a slot of causal.py's ring without the ring's outer rows.
    """
    channels, height, width = SAMPLE
    layout = memory_format(device, dtype)
    x = empty_frame(*SAMPLE, dtype, device, layout).zero_()
    patches = empty_frame(channels, height // SAMPLE_ZOOM, width // SAMPLE_ZOOM, torch.float32, device, layout).zero_()
    slots = empty_frames(3, channels, height + 2, width, dtype, device, layout)
    modulation = Modulation(patches, patches.clone(), SAMPLE_ZOOM, SAMPLE_ZOOM).in_layout(layout)
    with torch.no_grad():
        activation(x, modulation, 0, slots[:, 1, :, 1:-1])
