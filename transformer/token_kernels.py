"""What a block does to its tokens between two matrix products, as Triton kernels that read and write each value once.

Importing this module imports Triton, which not every system has. token_passes.py says what each function computes, and
computes it without Triton.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

# Launch settings, measured on an H100. A program works on ROWS tokens one after the other, with the modulation and the
# norm's weights in its registers. WIDE_WARPS: for tokens of more than 2048 values.
ROWS, WARPS, WIDE_WARPS = 4, 4, 8
# Heads of one token that a program normalises and rotates at a time.
HEADS, HEAD_WARPS = 16, 4


class Affine(NamedTuple):
    """The weights of a LayerNorm, [D] each."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


def run_token_kernel(
    source: tuple[torch.Tensor, torch.Tensor],
    added: tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]] | None,
    normed: tuple[Affine, torch.Tensor, torch.Tensor] | None,
) -> None:
    """Add a gated sublayer to text and video, and write their modulated LayerNorm to one joint sequence: one or both.

    source: text [B, L, D] and video [B, N, D]. added: the sublayer's output [B, L + N, D]; the modulation [B, 6 * D]
    whose gates are taken; where text and video go, which may be `source` itself. normed: the norm; the modulation
    [B, 6 * D] whose shifts and scales are taken; the joint sequence [B, L + N, D] to write.

    All are contiguous and of one type. The six parts of a modulation are in the order of diffusers'
    CogVideoXLayerNormZero: shift, scale, gate, text's shift, text's scale, text's gate.
    """
    text, video = source
    batch, text_tokens, width = text.shape
    # What a flag leaves out is never read: any pointer of the right type stands for it.
    output, gates, (to_text, to_video) = added or (video, video, source)
    affine, modulation, joint = normed or (Affine(video, video, 0.0), video, video)
    block = triton.next_power_of_2(width)
    grid = triton.cdiv(text_tokens, ROWS) + triton.cdiv(video.shape[1], ROWS), batch
    # Triton launches on the current device, which need not be the one that the tokens are on.
    kernel: Any = _token_kernel
    with torch.cuda.device_of(video):
        kernel[grid](
            *(text, video, output, gates, to_text, to_video),
            *(affine.weight, affine.bias, modulation, joint),
            *(text_tokens, video.shape[1], affine.eps),
            ADD=added is not None,
            NORM=normed is not None,
            # In fp32 the folded product would round where the unfolded one does not; in a half precision both are far
            # more precise than what is stored, and folding halves the registers.
            FOLD=video.dtype != torch.float32,
            WIDTH=width,
            BLOCK=block,
            ROWS=ROWS,
            num_warps=WIDE_WARPS if block > 2048 else WARPS,
        )


@triton.jit(do_not_specialize=["text_tokens", "video_tokens"])  # else it is compiled again for each size of a video
def _token_kernel(
    text,
    video,
    output,
    gates,
    to_text,
    to_video,
    weight,
    bias,
    modulation,
    joint,
    text_tokens,
    video_tokens,
    eps,
    ADD: tl.constexpr,
    NORM: tl.constexpr,
    FOLD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    # int64, because a large batch has more than 2^31 values
    batch = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(0)
    text_chunks = (text_tokens + ROWS - 1) // ROWS
    is_text = chunk < text_chunks
    first = tl.where(is_text, chunk, chunk - text_chunks) * ROWS
    count = tl.where(is_text, text_tokens, video_tokens)
    # A token's row in its own tensor, and in the joint sequence, where text comes first.
    own_row = batch * count + first
    joint_row = batch * (text_tokens + video_tokens) + first + tl.where(is_text, 0, text_tokens)
    if is_text:
        source = text
        target = to_text
    else:
        source = video
        target = to_video
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    part = batch * 6 * WIDTH + tl.where(is_text, 3 * WIDTH, 0) + column
    if ADD:
        gate = tl.load(gates + part + 2 * WIDTH, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        factor, term, shift, scale = _affine(weight + column, bias + column, modulation + part, inside, FOLD, WIDTH)
    for index in range(ROWS):
        here = inside & (first + index < count)
        own = (own_row + index) * WIDTH + column
        together = (joint_row + index) * WIDTH + column
        value = tl.load(source + own, mask=here, other=0.0).to(tl.float32)
        if ADD:
            # Rounded as it is stored: the norm sees what the next residual sees.
            value += gate * tl.load(output + together, mask=here, other=0.0).to(tl.float32)
            stored = value.to(target.dtype.element_ty)
            tl.store(target + own, stored, mask=here)
            value = stored.to(tl.float32)
        if NORM:
            normed = _standardised(value, inside, eps, WIDTH) * factor + term
            if not FOLD:
                normed = normed * scale + shift
            tl.store(joint + together, normed.to(joint.dtype.element_ty), mask=here)


@triton.jit
def _affine(weight, bias, shifts, inside, FOLD: tl.constexpr, WIDTH: tl.constexpr):
    """Factor and term of the norm, shift and scale of the modulation, in fp32; FOLD: all in factor and term."""
    factor = tl.load(weight, mask=inside, other=0.0).to(tl.float32)
    term = tl.load(bias, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shifts, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(shifts + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if FOLD:
        factor = factor * scale
        term = term * scale + shift
    return factor, term, shift, scale


@triton.jit
def _standardised(value, inside, eps, WIDTH: tl.constexpr):
    """The `inside` values of one token, less their mean and over their deviation."""
    mean = tl.sum(value, 0) / WIDTH
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    return centred * (1.0 / tl.sqrt_rn(variance + eps))


def run_head_kernel(
    query: torch.Tensor, key: torch.Tensor, of_query: Affine, of_key: Affine, rotary: torch.Tensor | None
) -> None:
    """LayerNorm of each head of queries and keys, then the rotation of every pair of neighbours, in place.

    query, key: [B, N, heads, D], contiguous, D a power of two. rotary: matrices [1, N, 1, D / 2, 2, 2] in fp32,
    contiguous, or None for no rotation.
    """
    batch, tokens, heads, width = query.shape
    at_once = min(HEADS, triton.next_power_of_2(heads))
    grid = batch * tokens, triton.cdiv(heads, at_once)
    kernel: Any = _head_kernel
    with torch.cuda.device_of(query):
        kernel[grid](
            *(query, key, of_query.weight, of_query.bias, of_key.weight, of_key.bias),
            *(query if rotary is None else rotary, tokens, of_query.eps, of_key.eps),
            ROTATE=rotary is not None,
            HEADS=heads,
            WIDTH=width,
            AT_ONCE=at_once,
            num_warps=HEAD_WARPS,
        )


@triton.jit(do_not_specialize=["tokens"])
def _head_kernel(
    query,
    key,
    query_weight,
    query_bias,
    key_weight,
    key_bias,
    rotary,
    tokens,
    query_eps,
    key_eps,
    ROTATE: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    column = tl.arange(0, WIDTH)
    offset = row * HEADS * WIDTH + head[:, None] * WIDTH + column[None, :]
    inside = (head < HEADS)[:, None] & (column < WIDTH)[None, :]
    pair = tl.arange(0, WIDTH // 2)
    cos = pair.to(tl.float32)
    sin = cos
    if ROTATE:
        # A matrix is [[cos, -sin], [sin, cos]].
        matrix = rotary + (row % tokens) * 2 * WIDTH + 4 * pair
        cos = tl.load(matrix)
        sin = tl.load(matrix + 2)
    _turn(query, offset, inside, query_weight, query_bias, query_eps, cos, sin, ROTATE, WIDTH, AT_ONCE)
    _turn(key, offset, inside, key_weight, key_bias, key_eps, cos, sin, ROTATE, WIDTH, AT_ONCE)


@triton.jit
def _turn(
    x,
    offset,
    inside,
    weight,
    bias,
    eps,
    cos,
    sin,
    ROTATE: tl.constexpr,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    column = tl.arange(0, WIDTH)
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / WIDTH
    centred = value - mean[:, None]
    variance = tl.sum(centred * centred, 1) / WIDTH
    factor = tl.load(weight + column).to(tl.float32)
    term = tl.load(bias + column).to(tl.float32)
    value = centred * (1.0 / tl.sqrt_rn(variance + eps))[:, None] * factor[None, :] + term[None, :]
    if ROTATE:
        even, odd = tl.split(tl.reshape(value, (AT_ONCE, WIDTH // 2, 2)))
        turned = tl.join(even * cos[None, :] - odd * sin[None, :], even * sin[None, :] + odd * cos[None, :])
        value = tl.reshape(turned, (AT_ONCE, WIDTH))
    tl.store(x + offset, value.to(x.dtype.element_ty), mask=inside)
