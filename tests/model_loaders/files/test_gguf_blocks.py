"""GGUF blocks against the numpy code of the `gguf` package."""

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from cogvideox.benchmarks.common import stored_bytes
from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.model_loaders.files.gguf_blocks import GGUF_TYPES, gguf_tensor


def random_blocks(qtype: str, rows: int = 6, blocks: int = 3, seed: int = 0) -> tuple[np.ndarray, int]:
    """Rows of blocks of random bits, and the number of weights in a row; no scale is NaN or Inf."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[qtype]]
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks * size), dtype=np.uint8)
    for start in range(size - 1):
        # any two bytes may be a half: none of them may be infinite or NaN
        exponent = data[:, start + 1 :: size]
        exponent[(exponent & 0x7C) == 0x7C] &= 0x3F
    return data, weights * blocks


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("qtype", sorted(GGUF_TYPES))
def test_unpacked_weights_equal_the_gguf_package(qtype: str, dtype: torch.dtype) -> None:
    """One wrong bit shift turns every layer of a GGUF model to noise."""
    data, columns = random_blocks(qtype)
    want = quants.dequantize(data, gguf.GGMLQuantizationType[qtype])
    assert np.isfinite(want).all() and len(np.unique(want)) > 16
    tensor = gguf_tensor(torch.from_numpy(data), qtype, (6, columns), dtype)
    assert tensor.shape == (6, columns)
    assert stored_bytes(tensor) == data.nbytes
    assert torch.equal(quantized.dequantized(tensor, torch.float32), torch.from_numpy(want))
    assert torch.equal(quantized.dequantized(tensor, dtype), torch.from_numpy(want).to(dtype))
    if qtype != "BF16":
        assert tensor.dtype == dtype and torch.equal(tensor.dequantize(), torch.from_numpy(want).to(dtype))


def test_every_type_of_the_usual_files_is_unpacked_in_torch() -> None:
    """A type that is missing would be unpacked at load, at several times its memory."""
    usual = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "BF16"}
    assert usual <= GGUF_TYPES


def test_blocks_of_another_size_are_refused() -> None:
    """A damaged file must be named, not fail in a reshape in the middle of a run."""

    for shape, size in (((4, 64), 34), ((4, 48), 51), ((4, 4, 64), 68), ((5, 64), 68)):
        with pytest.raises(UserError, match="do not make a matrix.*damaged"):
            gguf_tensor(torch.zeros(4, size, dtype=torch.uint8), "Q8_0", shape, torch.float32)
