"""The positions of tokens: RoPE tables and sincos embeddings, computed once for each video size."""

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

Function = TypeVar("Function", bound=Callable)
# Sizes whose tables are kept at a time. CUDA graphs that a training has captured go on reading those of all its sizes.
MOST_SIZES = 64


def _one_operation(schema: str, shape: Callable[..., tuple[int, ...]]) -> Callable[[Function], Function]:
    """Decorates a cached table [`shape`(arguments)], fp32, whose arguments and result are `schema`: in torch.compile's
    graphs a call of it is one operation, which is not traced. Traced, it would leave out the cache and compute the
    table again at every step."""

    def decorate(cached: Function) -> Function:
        def compute(*args: Any, **kwargs: Any) -> torch.Tensor:
            # A copy, for a graph writes over the result of an operation once nothing reads it any longer.
            return cached(*(tuple(x) if isinstance(x, list) else x for x in args), **kwargs).clone()

        def describe(*args: Any, **kwargs: Any) -> torch.Tensor:
            device = next(x for x in args if isinstance(x, torch.device))
            return torch.empty(shape(*args, **kwargs), dtype=torch.float32, device=device)

        operation: Any = torch.library.custom_op(
            f"cogvideox::{cached.__name__}", compute, mutates_args=(), schema=schema
        )
        operation.register_fake(describe)

        @wraps(cached)
        def table(*args: Any, **kwargs: Any) -> torch.Tensor:
            return operation(*args, **kwargs) if torch.compiler.is_compiling() else cached(*args, **kwargs)

        decorated: Any = table
        return decorated

    return decorate


@_one_operation(
    "(SymInt head_dim, SymInt[] grid, SymInt[]? base_grid, SymInt text_tokens, Device device, bool riflex=False)"
    " -> Tensor",
    lambda head_dim, grid, _, text_tokens, *__, **___: (1, text_tokens + math.prod(grid), 1, head_dim // 2, 2, 2),
)
@lru_cache(maxsize=MOST_SIZES)
def rotary_table(
    head_dim: int,
    grid: tuple[int, int, int],
    base_grid: tuple[int, int] | None,
    text_tokens: int,
    device: torch.device,
    riflex: bool = False,
) -> torch.Tensor:
    """Rotations for one head of every token, text first: [1, text + T * H * W, 1, head_dim / 2, 2, 2], fp32.

    Text tokens are not rotated: their matrices are the identity, so that text and video are rotated in one call instead
    of slicing the video out and putting it back. The last two axes are the matrix that ComfyUI's apply_rope1 expects.

    grid: tokens in (time, height, width).
    base_grid: (height, width) in tokens. CogVideoX 1.0 stretches and crops the positions to this, its own size. None
        counts them 0, 1, 2, ... as CogVideoX 1.5 does.
    riflex: apply slow_repetition.

    Source: diffusers pipeline_cogvideox.py, _prepare_rotary_positional_embeddings. CogVideoX 1.5's table is cut from
    a larger one there, which raises for grids beyond sample_size // 2; counting from 0 gives the same numbers.
    """
    frames, height, width = grid
    # Outside inference mode, because a training may take a table from the cache that was made while sampling, and
    # autograd refuses tensors that were made in inference mode. On the CPU, because sine and cosine differ between
    # devices in the last bits.
    with torch.inference_mode(False), torch.device("cpu"):
        if base_grid is None:
            cos, sin = get_3d_rotary_pos_embed(
                head_dim, None, (height, width), frames, grid_type="slice", max_size=(height, width)
            )
        else:
            # Its arguments are (height, width) of the source, then width, then height of the target.
            crop = get_resize_crop_region_for_grid((height, width), base_grid[1], base_grid[0])
            cos, sin = get_3d_rotary_pos_embed(head_dim, crop, (height, width), frames)
        # diffusers repeats each angle for both numbers of a pair; one of the two is enough for a matrix.
        # [T * H * W, D] -> [T * H * W, D / 2]
        cos, sin = cos[:, ::2], sin[:, ::2]
        if riflex:
            slow_repetition(cos, sin, head_dim, grid)
        cos = torch.cat([torch.ones(text_tokens, head_dim // 2), cos])
        sin = torch.cat([torch.zeros(text_tokens, head_dim // 2), sin])
        table = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
        return table[None, :, None].to(device)


@_one_operation(
    "(SymInt dim, SymInt[] grid, float spatial_scale, float temporal_scale, Device device) -> Tensor",
    lambda dim, grid, *_: (math.prod(grid), dim),
)
@lru_cache(maxsize=MOST_SIZES)
def sincos_table(
    dim: int, grid: tuple[int, int, int], spatial_scale: float, temporal_scale: float, device: torch.device
) -> torch.Tensor:
    """Absolute positions of CogVideoX-2b's video tokens: [T * H * W, dim], fp32.

    Source: diffusers embeddings.py, CogVideoXPatchEmbed._get_positional_embeddings (text tokens get zeros there).
    """
    frames, height, width = grid
    with torch.inference_mode(False), torch.device("cpu"):  # for the reasons given in rotary_table
        # diffusers takes (width, height) here, not (height, width), and computes in float64, which Apple's GPUs lack:
        # the table is cast on its way to the device.
        table = get_3d_sincos_pos_embed(dim, (width, height), frames, spatial_scale, temporal_scale, output_type="pt")
        return table.flatten(0, 1).to(device, torch.float32)


def forget_tables() -> None:
    """Release the cached tables, after a run. Those of a long video take up to 1 GB, which ComfyUI could not free
    on a card. Computing them again takes a fraction of a step."""
    for function in (rotary_table, sincos_table):
        cached: Any = function
        cached.__wrapped__.cache_clear()  # of lru_cache, behind _one_operation


# Latent frames after which CogVideoX-5b's videos begin to repeat themselves. Source: thu-ml/RIFLEx, cogvideox.py.
REPETITION_FRAMES = 20


def slow_repetition(cos: torch.Tensor, sin: torch.Tensor, head_dim: int, grid: tuple[int, int, int]) -> None:
    """RIFLEx: a video that is longer than the period of one of the time frequencies repeats itself. Slow this frequency
    down, in place, so that all of the video lies within 0.9 of a period. Shorter videos stay as they are.

    cos, sin: [T * H * W, head_dim / 2], the pairs that turn with time first. grid: tokens in (time, height, width).

    Source: Zhao et al. 2025 (RIFLEx), eq. 7 and 8; the period and the factor 0.9 from its repository thu-ml/RIFLEx
    (cogvideox.py, riflex_utils.py).
    """
    frames, height, width = grid
    # diffusers' get_3d_rotary_pos_embed gives a quarter of a head's width to time and the rest to height and width.
    time_dim = head_dim // 4
    periods = [2 * math.pi * 10000 ** (2 * i / time_dim) for i in range(time_dim // 2)]
    pair = min(range(len(periods)), key=lambda i: abs(periods[i] - REPETITION_FRAMES))
    if frames <= round(periods[pair]):
        return
    # Tokens are ordered by frame, then row, then column: each frame's angle holds for height * width of them.
    angle = torch.arange(frames).repeat_interleave(height * width) * (0.9 * 2 * math.pi / frames)
    cos[:, pair], sin[:, pair] = angle.cos(), angle.sin()


def resampled_table(table: torch.Tensor, native: tuple[int, int, int], grid: tuple[int, int, int]) -> torch.Tensor:
    """A table of positions [T * H * W, dim] for `native` tokens, stretched to `grid` by trilinear interpolation.

    native, grid: tokens in (time, height, width).
    """
    if native == grid:
        return table
    volume = table.float().T.unflatten(1, native)[None]  # [1, dim, T, H, W]
    return F.interpolate(volume, grid, mode="trilinear").flatten(2)[0].T.to(table.dtype)
