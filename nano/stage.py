"""What the stages of CogVideoX-nano's training have in common: the seed, the device, the log."""

import torch
from accelerate import Accelerator

SEED = 20261121


def accelerator(precision: str) -> Accelerator:
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)


def log(step: int, loss: float) -> None:
    if step % 50 == 0:
        print(step, f"{loss:.4f}", flush=True)
