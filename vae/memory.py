"""What decoding and encoding hold at their peak, so that ComfyUI frees no more and no less."""

import torch

from .plan import FAST, Plan


def decode_bytes(shape: torch.Size, dtype: torch.dtype, plan: Plan = FAST) -> int:
    return 1


encode_bytes = decode_bytes
