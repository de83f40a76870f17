"""Where the toy's training computes in bf16: on cards, and on CPUs that multiply it quickly."""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are faster than in fp32 on `device`. On a CPU, oneDNN makes them where there is AVX-512
    or AMX (or bf16 on ARM); elsewhere torch has a loop that took 17 to 48 ms for what fp32 does in 1.2 (AVX2, torch
    2.14)."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast_bf16(device: torch.device) -> torch.autocast:
    """Autocast to bf16 on `device`; in fp32 where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bf16(device))
