"""The block formats of GGUF files, unpacked in torch on the device that holds the blocks.

Source of the layouts: ggml's ggml-common.h and ggml-quants.c (ggml-org/llama.cpp). The operations are in the
order of the `gguf` package's numpy code (gguf/quants.py), so that the results are bit-equal to its own. That code
itself runs on the CPU only, and the blocks are unpacked at every forward.

Each function takes blocks, uint8 [n, bytes per block], and returns their weights in order, fp32 [n, weights] or
[n, groups, weights per group]. The names are ggml's: d is the scale of a block (a half), m its minimum (a half), q are
the codes. A K format has a quantised scale for each group of 16 or 32 weights as well, and Q2_K, Q4_K and Q5_K a
quantised minimum, of which d_min is the scale.
"""

import torch

from ...host.quantized import BlockFormat, block_tensor

K = 256  # weights in a block of the K formats
_SCALES_4K = 12  # bytes that hold eight 6-bit scales and eight 6-bit minima
# ggml's kvalues_iq4nl: the 16 values that a 4-bit code of the IQ4 formats stands for
_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


# Parts of `sizes` bytes of every block, and last what is left.
def _split(blocks: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    return blocks.split([*sizes, blocks.shape[1] - sum(sizes)], dim=1)


def _half(data: torch.Tensor) -> torch.Tensor:
    """[n, 2] bytes of a half -> fp32 [n, 1]. A view as another dtype needs the bytes to be contiguous."""
    return data.contiguous().view(torch.float16).float()


def _codes(data: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Codes of `bits` bits each, uint8 [n, bytes] -> uint8 [n, bytes * 8 / bits].

    Each group of `run` bytes holds `run` codes in its lowest bits, the following `run` codes in the next higher bits,
    and so on: with bits = 4 and run = 16, byte i holds the codes i and i + 16.
    """
    # [n, groups, 1, run] >> [8 / bits, 1] -> [n, groups, 8 / bits, run], which flattens to the order of the codes.
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device).view(-1, 1)
    codes = data.reshape(data.shape[0], -1, 1, run) >> shifts
    return (codes & (2**bits - 1)).reshape(data.shape[0], -1)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    d, q = _split(blocks, 2)
    return _half(d) * q.contiguous().view(torch.int8).float()


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    d, q = _split(blocks, 2)
    return _half(d) * (_codes(q, 4, 16).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    d, m, q = _split(blocks, 2, 2)
    return _half(d) * _codes(q, 4, 16).float() + _half(m)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    d, high, low = _split(blocks, 2, 4)
    # The fifth bits of the 32 codes are the bits of four bytes in order: run 1.
    return _half(d) * ((_codes(low, 4, 16) | _codes(high, 1, 1) << 4).float() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    d, m, high, low = _split(blocks, 2, 2, 4)
    return _half(d) * (_codes(low, 4, 16) | _codes(high, 1, 1) << 4).float() + _half(m)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, q, d, d_min = _split(blocks, K // 16, K // 4, 2)
    # A byte for each group of 16 weights: its scale in the low, its minimum in the high nibble.
    scale, minimum = _half(d) * (scales & 15).float(), _half(d_min) * (scales >> 4).float()
    q = _codes(q, 2, 32).reshape(-1, K // 16, 16).float()
    return scale.unsqueeze(-1) * q - minimum.unsqueeze(-1)


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    high, low, scales, d = _split(blocks, K // 8, K // 4, 12)
    # Sixteen scales of 6 bits, low four bits and high two bits apart, with an offset of 32.
    scales_low, scales_high = _split(scales, 8)
    scale = (_codes(scales_low, 4, 8) | _codes(scales_high, 2, 4) << 4).float() - 32
    # A set bit of the mask means that 4 is NOT subtracted.
    q = _codes(low, 2, 32).float() - ((_codes(high, 1, 32) ^ 1) << 2).float()
    return (_half(d) * scale).unsqueeze(-1) * q.reshape(-1, K // 16, 16)


def _scales_and_minima(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 6-bit scales and minima of Q4_K and Q5_K, uint8 [n, 12] -> fp32 [n, 8] each.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3, in their low six bits. Bytes 8-11 hold the low four bits of
    scales 4-7 (low nibble) and minima 4-7 (high nibble); their two high bits are the top bits of bytes 0-3 and 4-7.
    """
    scale, minimum, low = data.split(4, dim=1)
    scales = torch.cat([scale & 63, low & 15 | scale >> 2 & 48], dim=1)
    minima = torch.cat([minimum & 63, low >> 4 | minimum >> 2 & 48], dim=1)
    return scales.float(), minima.float()


def _scaled_4k(d: torch.Tensor, d_min: torch.Tensor, packed: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(packed)
    scale, minimum = _half(d) * scales, _half(d_min) * minima
    return scale.unsqueeze(-1) * q.reshape(-1, 8, 32).float() - minimum.unsqueeze(-1)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    d, d_min, packed, q = _split(blocks, 2, 2, _SCALES_4K)
    return _scaled_4k(d, d_min, packed, _codes(q, 4, 32))


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    d, d_min, packed, high, low = _split(blocks, 2, 2, _SCALES_4K, K // 8)
    return _scaled_4k(d, d_min, packed, _codes(low, 4, 32) | _codes(high, 1, 32) << 4)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low, high, scales, d = _split(blocks, K // 2, K // 4, K // 16)
    q = (_codes(low, 4, 64) | _codes(high, 2, 32) << 4).float() - 32
    scale = _half(d) * scales.contiguous().view(torch.int8).float()
    return scale.unsqueeze(-1) * q.reshape(-1, K // 16, 16)


def _iq4_values(codes: torch.Tensor) -> torch.Tensor:
    return torch.tensor(_IQ4_VALUES, dtype=torch.float32, device=codes.device)[codes.int()]


def _iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    d, q = _split(blocks, 2)
    return _half(d) * _iq4_values(_codes(q, 4, 16))


def _iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    # Eight scales of 6 bits with an offset of 32, each for 32 weights: two codes in a byte, high bits apart.
    d, scales_high, scales_low, q = _split(blocks, 2, 2, K // 64)
    scale = (_codes(scales_low, 4, 1) | _codes(scales_high, 2, 1) << 4).float() - 32
    return (_half(d) * scale).unsqueeze(-1) * _iq4_values(_codes(q, 4, 16)).reshape(-1, K // 32, 32)


# The numbers are bytes per block (gguf.constants.GGML_QUANT_SIZES). Blocks have 256 weights in the formats whose names
# end in _K or _XS, and 32 in the others.
BLOCK_FORMATS = {
    name: BlockFormat(name, K if name.endswith(("_K", "_XS")) else 32, block_bytes, unpack)
    for name, block_bytes, unpack in (
        ("Q8_0", 34, _q8_0),
        ("Q4_0", 18, _q4_0),
        ("Q4_1", 20, _q4_1),
        ("Q5_0", 22, _q5_0),
        ("Q5_1", 24, _q5_1),
        ("Q2_K", 84, _q2_k),
        ("Q3_K", 110, _q3_k),
        ("Q4_K", 144, _q4_k),
        ("Q5_K", 176, _q5_k),
        ("Q6_K", 210, _q6_k),
        ("IQ4_NL", 18, _iq4_nl),
        ("IQ4_XS", 136, _iq4_xs),
    )
}
GGUF_TYPES = frozenset(BLOCK_FORMATS) | {"BF16"}


def gguf_tensor(blocks: torch.Tensor, qtype: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A matrix of `shape` from GGUF blocks, uint8 [rows, bytes per row] of type `qtype` (one of GGUF_TYPES).

    BF16 needs no unpacking: these blocks are viewed as a plain tensor.

    Raises UserError where the blocks do not fill the shape, or this ComfyUI has no quantised tensors.
    """
    if qtype == "BF16":
        return blocks.view(torch.bfloat16).reshape(shape)
    return block_tensor(blocks, BLOCK_FORMATS[qtype], shape, dtype)
