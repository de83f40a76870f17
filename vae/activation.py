"""SiLU(x * scale + shift), where a norm has become one scale and shift for each patch of pixels.

diffusers computes norm, modulation and SiLU one after the other: each reads and writes whole frames and, in a half
precision, rounds. Here it is one pass that rounds once.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from .kernels import try_kernel
from .modulation import Modulation

# modulated_silu or a function with the same result: (x, modulation, first row of x in its frame, where to write)
Activation = Callable[[torch.Tensor, Modulation, int, torch.Tensor], None]
# How many bytes of fp32 values torch holds before it rounds them to a shorter type. A whole frame would be simpler, and
# takes twice its own size in bf16 for as long.
SPAN_BYTES = {"cpu": 1 << 21, "other": 1 << 26}


def modulated_silu(x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor) -> None:
    """out = SiLU(x * scale + shift), computed in fp32 and rounded once.

    x, out: [1, C, r, W], rows `top` to `top` + r of a frame. out may be a view, such as a slot of causal.py's ring.
    """
    if x.is_cuda and _fused(x, modulation, top, out):
        return
    # In fp32 the result goes straight into `out`, with nothing in between to hold: one span suffices.
    step = rows_at_once(x) if out.dtype != torch.float32 else x.shape[2]
    for start, stop in _spans(top, top + x.shape[2], modulation.zoom_y, step):
        rows = slice(start - top, stop - top)
        _modulate_span(x[:, :, rows], modulation, start, out[:, :, rows])


def rows_at_once(x: torch.Tensor) -> int:
    """How many rows of x [1, C, r, W] modulated_silu computes in fp32 before it rounds them to a shorter type."""
    span_bytes = SPAN_BYTES.get(x.device.type, SPAN_BYTES["other"])
    return max(1, span_bytes // (4 * x.shape[1] * x.shape[3]))


def _fused(x: torch.Tensor, modulation: Modulation, top: int, out: torch.Tensor) -> bool:
    """modulated_silu in one pass over memory; False, with nothing done, where that is not possible."""
    if x.stride(1) != 1 or out.stride(1) != 1:
        return False
    size = x.shape[1], 0
    return bool(try_kernel(x, "fused_modulated_silu", size, lambda run: run(x, modulation, top, out) or True))


def _modulate_span(x: torch.Tensor, modulation: Modulation, start: int, out: torch.Tensor) -> None:
    """modulated_silu for rows within one row of the modulation, or for all rows of several.

    Only then do the rows divide evenly among the modulation's, and broadcasting takes the place of enlarging scale and
    shift to the frame's size.
    """
    first = start // modulation.zoom_y
    count = (start + x.shape[2] - 1) // modulation.zoom_y - first + 1
    # [1, C, n, m] -> [1, C, n, 1, m, 1]
    scale, shift = (
        values[:, :, first : first + count, None, :, None] for values in (modulation.scale, modulation.shift)
    )
    # [1, C, r, W] -> [1, C, n, r / n, m, W / m]: views, so that writing to `out` writes to the ring's slot
    x, out = (rows.unflatten(3, (-1, modulation.zoom_x)).unflatten(2, (count, -1)) for rows in (x, out))
    if out.dtype == torch.float32:
        torch.addcmul(shift, x, scale, out=out)
        F.silu(out, inplace=True)
    else:
        out.copy_(F.silu(torch.addcmul(shift, x, scale), inplace=True))


def _spans(start: int, stop: int, zoom: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut rows start .. stop into spans of about `step` rows, as _modulate_span needs them.

    zoom: how many rows one row of the modulation covers. A span covers several of these completely, or one of them
    completely or in part.
    """
    while start < stop:
        # The end of the modulation's current row. Where it begins here and at least one more complete one follows, take
        # as many complete ones as fit into `step`, or one. Else take what there is of this one, at most `step` rows.
        end = min(stop, start - start % zoom + zoom)
        if start % zoom == 0 and end + zoom <= stop:
            end = start + min(max(step // zoom, 1), (stop - start) // zoom) * zoom
        elif zoom > step:
            end = min(end, start + step)
        yield start, end
        start = end
