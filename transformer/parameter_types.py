"""Which of the transformer's weights may be stored in fewer bits."""

import torch


def parameter_dtype(name: str, ndim: int, storage: torch.dtype, compute: torch.dtype | None) -> torch.dtype:
    """The type that the parameter `name` with `ndim` dimensions is stored in, in a model without quantised tensors.

    storage: the type asked for. With fp8 only the blocks' matrices are stored in it; everything else is stored in
    `compute`, the type that the model computes in (None: fp32).
    """
    if storage == torch.float8_e4m3fn and not (ndim == 2 and is_block_matrix(name)):
        return compute or torch.float32
    return storage


def is_block_matrix(name: str) -> bool:
    """Whether the weight `name` is one of a block's attention and feed-forward matrices.

    They are most of the memory. Norms, biases, embeddings, the time embedding and the output layer are small, and lose
    too much precision in eight bits.
    """
    return name.endswith(".weight") and ((".attn1.to_" in name) or ".ff.net." in name)
