"""Which of the transformer's weights may be stored in fewer bits."""

import torch


def parameter_dtype(name: str, ndim: int, storage: torch.dtype, compute: torch.dtype | None) -> torch.dtype:
    """The type one parameter of a plain model is stored in: fp8 holds only the blocks' matrices."""
    if storage == torch.float8_e4m3fn and not (ndim == 2 and is_block_matrix(name)):
        return compute or torch.float32
    return storage


def is_block_matrix(name: str) -> bool:
    """Whether the weight `name` is one of a block's attention and feed-forward matrices.

    They are most of the memory. Norms, biases, embeddings, the time path and the output layer lose too much in eight
    bits and weigh little.
    """
    return name.endswith(".weight") and ((".attn1.to_" in name) or ".ff.net." in name)
