"""What a block does to its tokens between two matrix products: norms, modulation, gates, residuals, gelu.

diffusers' operations for these read and write all tokens about four times as often as is needed, which is a fifth of a
step on a card. Each function here is one kernel where Triton works (token_kernels.py), and torch's operations, in the
order of the reference, where it does not, where a gradient is asked for, where there are few tokens, and where
torch.compile makes kernels of its own. In fp32 both are equal within rounding; in a half precision the kernels round
less often.
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention

from ..host.compat import is_out_of_memory, rotate_pairs, throw_if_interrupted
from ..host.cpu_products import linear
from ..host.ops import is_hooked, is_plain_layer, is_product, weights_held, weights_on
from ..host.trials import can_wait
from .memory_modes import DEFAULT, Mode

if TYPE_CHECKING:
    from .token_kernels import Affine

Pair = tuple[torch.Tensor, torch.Tensor]  # tokens of text [B, L, D] and of video [B, N, D]
# Names of the kernels, for the log.
NORM, RESIDUAL, RESIDUAL_NORM = "adaptive norm", "residual", "residual and adaptive norm"
ROTATION, GELU_PRODUCT = "norm and rotation of heads", "product with gelu"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_MOST_WIDTH = 8192  # values of a token that one program holds
# Values of all tokens below which a step waits for the host and not for the card: Triton takes about 0.1 ms for a
# launch, as long as torch for all the operations that the kernel replaces.
LEAST_VALUES = 1 << 22
# (kernel, device, type) that have failed, or whose result is not exact enough: they are not tried again.
_WITHOUT: set[tuple[str, torch.device, torch.dtype]] = set()
# Those whose result has been compared: for the widths that they are compiled for, and with or without a rotation.
_EXACT: set[tuple[str, torch.device, torch.dtype, torch.Size, bool]] = set()
_LEAST_EXACT = 1.05  # times the error of torch's operations


def use_kernels(x: torch.Tensor) -> bool:
    """Whether x, whose values somebody may need for a gradient, or torch.compile may fuse by itself, is for kernels."""
    return x.is_cuda and x.numel() >= LEAST_VALUES and may_overwrite()


def expects_kernels(blocks: Iterable[Any], device: torch.device, dtype: torch.dtype, values: int) -> bool:
    """Whether the kernels will work on the tokens of a forward, as far as can be told before it: what torch.compile, or
    a patch of another node, will make of it is not known.

    blocks: of a transformer. values: of the video's tokens.
    """
    names = (NORM, RESIDUAL, RESIDUAL_NORM, ROTATION)
    failed = any((name, device, dtype) in _WITHOUT for name in names)
    possible = device.type == "cuda" and dtype in _FLOATS and values >= LEAST_VALUES and _has_triton() and not failed
    return possible and all(map(_suits_kernels, blocks))


def _suits_kernels(block: Any) -> bool:
    """Whether a block's layers are those that the kernels stand for."""
    attn, norms = block.attn1, (block.norm1.norm, block.norm2.norm, block.attn1.norm_q, block.attn1.norm_k)
    dim, width = block.norm1.norm.normalized_shape[0], attn.norm_q.normalized_shape[0]
    return all(map(_has_affine, norms)) and dim <= _MOST_WIDTH and _is_head_width(width) and _has_tanh_gelu(block.ff)


def _is_head_width(width: int) -> bool:
    return width >= 16 and not width & (width - 1)


def _has_tanh_gelu(ff: FeedForward) -> bool:
    """Whether nothing but the modules' own classes says what calling `ff` does, and its activation is the tanh gelu."""
    first: Any = ff.net[0]
    return type(first) is GELU and first.approximate == "tanh" and not is_hooked(ff, first)


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def may_overwrite() -> bool:
    """Whether tokens that nobody else holds may be overwritten: autograd may need them, and torch.compile plans the
    memory by itself."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def modulated_norm(norm: torch.nn.LayerNorm, modulation: torch.Tensor, tokens: Pair) -> torch.Tensor:
    """LayerNorm of text and video, each with its own scale and shift, as one sequence [B, L + N, D], text first.

    modulation: [B, 6 * D], what diffusers' CogVideoXLayerNormZero makes of the time embedding.
    """
    text, video = tokens
    if _fits(NORM, norm, modulation, text, video):
        joint = _empty_joint(tokens)

        def launch(affine: "Affine") -> None:
            from .token_kernels import run_token_kernel

            run_token_kernel((text.contiguous(), video.contiguous()), None, (affine, modulation, joint))

        if _launched(NORM, video, [norm], launch):
            return joint
    shift, scale, _, text_shift, text_scale, _ = modulation.chunk(6, dim=1)
    # Text comes first in the joint sequence: the rotary table and the slices of a sublayer's output rely on it.
    parts = modulate(norm(text), text_scale, text_shift), modulate(norm(video), scale, shift)
    return torch.cat(parts, dim=1)


def added(modulation: torch.Tensor, tokens: Pair, output: torch.Tensor, in_place: bool, mode: Mode = DEFAULT) -> Pair:
    """tokens + gate * output, text and video each with its gate in `modulation`.

    output: [B, L + N, D], of a sublayer. in_place: `tokens` may be overwritten, because nobody else holds them.
    """
    text, video = tokens
    if _fits(RESIDUAL, None, modulation, text, video, output):
        source = text.contiguous(), video.contiguous()
        target = source if in_place else (torch.empty_like(source[0]), torch.empty_like(source[1]))

        def launch() -> None:
            from .token_kernels import run_token_kernel

            run_token_kernel(source, (output, modulation, target), None)

        if _launched(RESIDUAL, video, [], launch):
            return target
    _, _, gate, _, _, text_gate = modulation.chunk(6, dim=1)
    parts = output[:, : text.shape[1]], output[:, text.shape[1] :]
    if in_place and mode.in_place:
        return text.addcmul_(text_gate[:, None], parts[0]), video.addcmul_(gate[:, None], parts[1])
    return torch.addcmul(text, text_gate[:, None], parts[0]), torch.addcmul(video, gate[:, None], parts[1])


def added_and_normed(
    modulation: torch.Tensor,
    tokens: Pair,
    output: torch.Tensor,
    next_norm: torch.nn.LayerNorm,
    next_modulation: torch.Tensor,
    in_place: bool,
    mode: Mode = DEFAULT,
) -> tuple[Pair, torch.Tensor]:
    """`added`, and the `modulated_norm` of its result for the next sublayer: (tokens, joint sequence)."""
    text, video = tokens
    if _fits(RESIDUAL_NORM, next_norm, next_modulation, text, video, output, modulation):
        source = text.contiguous(), video.contiguous()
        target = source if in_place else (torch.empty_like(source[0]), torch.empty_like(source[1]))
        joint = _empty_joint(tokens)

        def launch(affine: "Affine") -> None:
            from .token_kernels import run_token_kernel

            run_token_kernel(source, (output, modulation, target), (affine, next_modulation, joint))

        if _launched(RESIDUAL_NORM, video, [next_norm], launch):
            return target, joint
    tokens = added(modulation, tokens, output, in_place, mode)
    return tokens, modulated_norm(next_norm, next_modulation, tokens)


def normed_heads(attn: Attention, query: torch.Tensor, key: torch.Tensor, rotary: torch.Tensor | None) -> Pair:
    """Queries and keys [B, N, heads, D], each head normalised, then rotated by `rotary` (positions.rotary_table, or
    None). They may be overwritten: they are the fresh outputs of two linear layers."""
    if _heads_by_kernel(attn, query, key, rotary):
        return query, key
    return _heads_by_torch(attn, query, key, rotary)


def norm_heads_in_place(
    attn: Attention, query: torch.Tensor, key: torch.Tensor, rotary: torch.Tensor | None, span_tokens: int
) -> None:
    """`normed_heads` written over queries and keys. torch's operations, which need several times the memory of their
    result, take `span_tokens` of a video at a time."""
    if _heads_by_kernel(attn, query, key, rotary):
        return
    for video, tokens in spans(query, span_tokens):
        rows = video, tokens
        query[rows], key[rows] = _heads_by_torch(
            attn, query[rows], key[rows], None if rotary is None else rotary[:, tokens]
        )


def _heads_by_kernel(attn: Attention, query: torch.Tensor, key: torch.Tensor, rotary: torch.Tensor | None) -> bool:
    """Whether a kernel has done it, in place."""
    if not _heads_fit(attn.norm_q, attn.norm_k, query, key, rotary):
        return False

    def launch(of_query: "Affine", of_key: "Affine") -> None:
        from .token_kernels import run_head_kernel

        run_head_kernel(query, key, of_query, of_key, rotary)

    return _launched(ROTATION, query, [attn.norm_q, attn.norm_k], launch, rotates=rotary is not None)


def _heads_by_torch(attn: Any, query: torch.Tensor, key: torch.Tensor, rotary: torch.Tensor | None) -> Pair:
    query, key = attn.norm_q(query), attn.norm_k(key)
    return (query, key) if rotary is None else (rotate_pairs(query, rotary), rotate_pairs(key, rotary))


def feed_forward(ff: FeedForward, tokens: torch.Tensor, mode: Mode = DEFAULT) -> torch.Tensor:
    """`ff` of tokens [B, N, D], with the gelu where the product's kernel has the value in its registers, or else in
    place: there are four times as many values as in the tokens.

    mode: one that takes spans writes the result over `tokens`, span by span, so that they alone have the fourfold
    width.
    """
    first: Any = ff.net[0]
    if mode.span_values is not None:
        return _feed_forward_in_place(ff, tokens, mode.span_tokens(tokens.shape[2]))
    if not use_kernels(tokens) or not _has_tanh_gelu(ff):
        return ff(tokens)
    hidden = _projected_with_gelu(first.proj, tokens)
    if hidden is None:
        hidden = torch.ops.aten.gelu_(first.proj(tokens), approximate="tanh")
    for layer in list(ff.net)[1:]:
        hidden = layer(hidden)
    return hidden


def _feed_forward_in_place(ff: FeedForward, tokens: torch.Tensor, span_tokens: int) -> torch.Tensor:
    """`ff` of a block that suits_spans, written over `tokens`."""
    layers = products_of(ff)
    with weights_held(layers, tokens.device, tokens.dtype) as (up, down):
        for rows in spans(tokens, span_tokens):
            throw_if_interrupted()  # as ComfyUI's layers do in each call, which these products are not
            # Nested, because no name may hold the wide tensor of one span while that of the next is made.
            tokens[rows] = linear(_gelu_of_product(tokens[rows], *up), *down)
    return tokens


def _gelu_of_product(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    hidden = None if bias is None else _gelu_by_kernel(tokens, weight, bias)
    return torch.ops.aten.gelu_(linear(tokens, weight, bias), approximate="tanh") if hidden is None else hidden


def products_of(ff: FeedForward) -> tuple[Any, Any]:
    """The two linear layers of a feed-forward that _has_tanh_gelu. What is between and after them is a dropout of
    probability 0."""
    first: Any = ff.net[0]
    return first.proj, ff.net[2]


def suits_spans(block: Any) -> bool:
    """Whether a block may be computed by groups of heads and spans of tokens, by its layers' weights alone."""
    attn = block.attn1
    if not _has_tanh_gelu(block.ff) or is_hooked(attn):
        return False
    return all(map(is_product, (attn.to_q, attn.to_k, attn.to_v, *products_of(block.ff))))


def spans(x: torch.Tensor, span_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Indices of x [B, N, ...] for `span_tokens` tokens of one video at a time, so that each part is contiguous."""
    for video in range(x.shape[0]):
        for start in range(0, x.shape[1], span_tokens):
            yield slice(video, video + 1), slice(start, start + span_tokens)


def modulate(normed: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """normed * (1 + scale) + shift; normed [B, N, D], scale and shift [B, D].

    addcmul reads and writes the tokens once; a multiplication and an addition would do so twice, and with tensors this
    large the time goes into memory traffic.
    """
    return torch.addcmul(shift[:, None], normed, (1 + scale)[:, None])


def _empty_joint(tokens: Pair) -> torch.Tensor:
    text, video = tokens
    return video.new_empty(video.shape[0], text.shape[1] + video.shape[1], video.shape[2])


def _fits(name: str, norm: torch.nn.LayerNorm | None, *tensors: torch.Tensor) -> bool:
    """Whether the token kernel `name` can take these: the modulation, text, video, and others in the joint order."""
    modulation, text, video, *others = tensors
    if not _is_open(name, video) or (norm is not None and not _has_affine(norm)):
        return False
    dtype, device = video.dtype, video.device
    if dtype not in _FLOATS or any(x.dtype != dtype or x.device != device for x in tensors):
        return False
    contiguous = all(x.is_contiguous() for x in (modulation, *others))
    fits = modulation.shape == (video.shape[0], 6 * video.shape[2]) and text.shape[1] and video.shape[1]
    return contiguous and bool(fits) and text.shape[0] == video.shape[0] and video.shape[2] <= _MOST_WIDTH


def _heads_fit(norm_q: Any, norm_k: Any, query: torch.Tensor, key: torch.Tensor, rotary: torch.Tensor | None) -> bool:
    width = query.shape[3]
    if not _is_open(ROTATION, query) or not all(_has_affine(norm) for norm in (norm_q, norm_k)):
        return False
    if query.dtype not in _FLOATS or key.dtype != query.dtype or key.shape != query.shape:
        return False
    if not _is_head_width(width) or not (query.is_contiguous() and key.is_contiguous()):
        return False
    if rotary is None:
        return True
    matrices = (1, query.shape[1], 1, width // 2, 2, 2)
    same_place = rotary.device == query.device and rotary.dtype == torch.float32
    return rotary.shape == matrices and same_place and rotary.is_contiguous()


def _has_affine(norm: torch.nn.LayerNorm) -> bool:
    return is_plain_layer(norm) and norm.weight is not None and norm.bias is not None


def _launched(name: str, x: torch.Tensor, norms: list[Any], launch: Callable[..., None], rotates: bool = False) -> bool:
    """Whether the kernel `name` has been launched, on weights of `norms` as ComfyUI has patched and placed them. x:
    tokens [B, N, D], or queries [B, N, heads, D], which the kernel rotates or not."""
    try:
        if not _is_exact(name, x, rotates):
            return False
        _with_affine(x, norms, launch)
    # A compiler, a driver or a half installed package may raise anything.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _give_up(name, x, error)
        return False
    return True


def _is_exact(name: str, x: torch.Tensor, rotates: bool) -> bool:
    """Whether a trial has shown that the kernel is right. While a CUDA graph is captured there can be none, because it
    waits for the card. Raises whatever a kernel that does not work raises."""
    key = name, x.device, x.dtype, x.shape[2:], rotates
    if key in _EXACT:
        return True
    if not can_wait(x.device):
        return False
    # Imported here, because Triton has no package for some systems.
    trials = importlib.import_module(".token_trials", __package__)
    if name == ROTATION:
        trials.try_head_kernel(x, rotates)
    else:
        trials.try_token_kernel(x, adds=name != NORM, norms=name != RESIDUAL)
    _EXACT.add(key)
    return True


def _with_affine(x: torch.Tensor, norms: list[Any], launch: Callable[..., None]) -> None:
    if not norms:
        return launch()
    from .token_kernels import Affine

    # Held, since one launch reads them all: streamed one after the other they would overwrite each other.
    with weights_held(norms, x.device, x.dtype) as held:
        affines = []
        for norm, (weight, bias) in zip(norms, held):
            assert bias is not None  # _has_affine
            affines.append(Affine(weight, bias, norm.eps))
        launch(*affines)


def _is_open(name: str, x: torch.Tensor) -> bool:
    return use_kernels(x) and (name, x.device, x.dtype) not in _WITHOUT


def _give_up(name: str, x: torch.Tensor, error: Exception) -> None:
    """Go on without the kernel `name`, with a line in the log."""
    _WITHOUT.add((name, x.device, x.dtype))
    # A system without Triton is an ordinary one; a Triton that does not work is worth a line of log.
    if not isinstance(error, ModuleNotFoundError):
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        logging.warning(
            f"CogVideoX's kernel for {name} does not work on {x.device} in {x.dtype} ({reason}): the transformer goes "
            "on without it, somewhat slower and with the same result."
        )


def _projected_with_gelu(layer: Any, tokens: torch.Tensor) -> torch.Tensor | None:
    """gelu(layer(tokens)) by one kernel; None, with nothing done, where that cannot be."""
    if not _gelu_fits(tokens) or not is_plain_layer(layer) or layer.bias is None:
        return None
    with weights_on(layer, tokens.device, tokens.dtype) as (weight, bias):
        assert bias is not None
        return _gelu_by_kernel(tokens, weight, bias)


def _gelu_fits(tokens: torch.Tensor) -> bool:
    """Whether cuBLASLt's product with gelu in its tanh form may serve.

    In fp32 its tanh is an approximation of the card's, and on other devices than NVIDIA's the same function of torch
    may mean the erf form.
    """
    half = tokens.dtype in (torch.bfloat16, torch.float16)
    if not half or torch.version.cuda is None or not _is_open(GELU_PRODUCT, tokens):
        return False
    # The first product is compared, and a comparison waits for the card.
    return _gelu_key(tokens) in _EXACT or can_wait(tokens.device)


def _gelu_key(tokens: torch.Tensor) -> tuple[str, torch.device, torch.dtype, torch.Size, bool]:
    """In _EXACT: cuBLASLt may choose another kernel for another width."""
    return GELU_PRODUCT, tokens.device, tokens.dtype, tokens.shape[-1:], False


def _gelu_by_kernel(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor | None:
    """gelu(tokens @ weight.T + bias) by one kernel of cuBLASLt; None, with nothing done, where that cannot be."""
    if not _gelu_fits(tokens):
        return None
    key, rows = _gelu_key(tokens), tokens.flatten(0, -2)
    try:
        product: Any = torch._addmm_activation
        hidden = product(bias, rows, weight.T, use_gelu=True)
        if key not in _EXACT:
            _require_exact_gelu(hidden, rows, weight, bias)
            _EXACT.add(key)
    except Exception as error:  # cuBLASLt may lack a shape or a type
        if is_out_of_memory(error):
            raise
        _give_up(GELU_PRODUCT, tokens, error)
        return None
    return hidden.unflatten(0, tokens.shape[:-1])


def _require_exact_gelu(hidden: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Raises RuntimeError where `hidden` is further from fp64 than torch's two operations, in its first corner."""
    corner = rows[:64], weight[:256], bias[:256]
    two_steps = torch.nn.functional.gelu(torch.nn.functional.linear(*corner), approximate="tanh").double()
    product = torch.nn.functional.linear(*(x.double() for x in corner))
    exact = torch.nn.functional.gelu(product, approximate="tanh")
    found, most = ((x - exact).norm() for x in (hidden[:64, :256].double(), two_steps))
    if not found <= _LEAST_EXACT * most:
        raise RuntimeError(f"its error is {float(found / most):.2f} of that of torch's operations")
