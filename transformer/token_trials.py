"""The first launch of the transformer's kernels on a device, for each type and width: on a few random tokens, against
fp64.

Importing this module imports Triton, which not every system has.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..host.trials import Draw, require_exact
from .token_kernels import Affine, run_head_kernel, run_token_kernel

# Videos, and tokens of each, of which neither kind fills its last program.
_BATCH, _TEXT, _VIDEO = 2, 5, 9
_EPS = 0.5  # large enough to be missed


class _Tokens(NamedTuple):
    """text [B, _TEXT, D], video [B, _VIDEO, D], a sublayer's output, two modulations [B, 6 * D], a norm's weights."""

    text: torch.Tensor
    video: torch.Tensor
    output: torch.Tensor
    gates: torch.Tensor
    modulation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def try_token_kernel(like: torch.Tensor, adds: bool, norms: bool) -> None:
    """like: tokens [B, N, D]. adds, norms: what the kernel does of `added` and `modulated_norm`.

    Raises RuntimeError where the kernel is wrong.
    """
    of, width = _random_tokens(like), like.shape[2]
    to = torch.empty_like(of.text), torch.empty_like(of.video)
    joint = of.text.new_empty(_BATCH, _TEXT + _VIDEO, width)
    run_token_kernel(
        (of.text, of.video),
        (of.output, of.gates, to) if adds else None,
        (Affine(of.weight, of.bias, _EPS), of.modulation, joint) if norms else None,
    )
    tokens, normed = _exact_tokens(_Tokens(*(value.double() for value in of)), adds)
    found = [(torch.cat(to, dim=1), tokens)] if adds else []
    require_exact(found + ([(joint, normed)] if norms else []))


def try_head_kernel(like: torch.Tensor, rotates: bool) -> None:
    """like: queries [B, N, heads, D]. Raises RuntimeError where the kernel is wrong."""
    heads, width, draw = like.shape[2], like.shape[3], Draw(like.device, like.dtype)
    query, key = draw(_BATCH, _VIDEO, heads, width) + 1, draw(_BATCH, _VIDEO, heads, width)
    of_query, of_key = (Affine(draw(width), draw(width), _EPS) for _ in range(2))
    angles = draw(1, _VIDEO, 1, width // 2).float()
    parts = angles.cos(), -angles.sin(), angles.sin(), angles.cos()
    rotary = torch.stack(parts, dim=-1).unflatten(-1, (2, 2)).contiguous() if rotates else None

    def exact(x: torch.Tensor, of: Affine) -> torch.Tensor:
        normed = F.layer_norm(x.double(), (width,), of.weight.double(), of.bias.double(), _EPS)
        if rotary is None:
            return normed
        return (rotary.double() @ normed.unflatten(-1, (-1, 2, 1))).flatten(-3)

    wanted = exact(query, of_query), exact(key, of_key)
    run_head_kernel(query, key, of_query, of_key, rotary)
    require_exact([(query, wanted[0]), (key, wanted[1])])


def _random_tokens(like: torch.Tensor) -> _Tokens:
    width, draw = like.shape[2], Draw(like.device, like.dtype)
    return _Tokens(
        draw(_BATCH, _TEXT, width),
        draw(_BATCH, _VIDEO, width) + 1,
        draw(_BATCH, _TEXT + _VIDEO, width),
        draw(_BATCH, 6 * width),
        draw(_BATCH, 6 * width),
        draw(width),
        draw(width),
    )


def _exact_tokens(of: _Tokens, adds: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Text and video as one sequence after the sublayer was added, if it is; and that, normed and modulated."""

    def each(video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.cat([text[:, None].expand(-1, _TEXT, -1), video[:, None].expand(-1, _VIDEO, -1)], dim=1)

    tokens: Any = torch.cat([of.text, of.video], dim=1)
    if adds:
        _, _, gate, _, _, text_gate = of.gates.chunk(6, dim=1)
        tokens = tokens + each(gate, text_gate) * of.output
    shift, scale, _, text_shift, text_scale, _ = of.modulation.chunk(6, dim=1)
    normed = F.layer_norm(tokens, (tokens.shape[2],), of.weight, of.bias, _EPS)
    return tokens, normed * (1 + each(scale, text_scale)) + each(shift, text_shift)
