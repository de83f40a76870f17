"""What the stages of CogVideoX-nano's training have in common: the seed, the device, the log."""

import torch
from accelerate import Accelerator, AutocastKwargs

from .half_precision import multiplies_bf16

SEED = 20261121


def accelerator(precision: str, on_cpu: bool = False, caches_casts: bool = True) -> Accelerator:
    """accelerate, on a card where there is one and `on_cpu` is not set. precision: as accelerate calls it.

    caches_casts: whether autocast keeps the weights that it has cast. A weight that is used once a step gains nothing
    by it, and CUDA graphs must not meet the cache.
    """
    autocast = AutocastKwargs(cache_enabled=caches_casts)
    cpu = on_cpu or not torch.cuda.is_available()
    if not multiplies_bf16(torch.device("cpu" if cpu else "cuda")):
        precision = "no"  # bf16 would take forty times as long
    return Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[autocast])


def log(step: int, loss: float) -> None:
    if step % 50 == 0:
        print(step, f"{loss:.4f}", flush=True)
