"""A training step of 5b on a card: a LoRA of rank 64, 49 frames of 720 x 480, gradient checkpointing."""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.gpu_models import LATENTS, make_ours, make_transformer
from cogvideox.benchmarks.gpu_parity_train import Clips, train_model
from cogvideox.benchmarks.gpu_rows import Bench, gib

STEPS = 4


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    bench.attempt("5b LoRA", lambda: lora(bench))


def lora(bench: Bench) -> None:
    from cogvideox.training import loop, trainer
    from cogvideox.training.config import TrainConfig

    model = make_transformer(bench, "5b")
    patcher = make_ours(model)
    patcher.cached_patcher_init = (make_ours, (model, "bf16"))
    size = (3, 8, 12) if bench.smoke else LATENTS["5b"]
    clips = Clips(1, size, model.config.text_embed_dim)
    config = TrainConfig(max_steps=STEPS, precision="bf16", gradient_checkpointing=True)
    ends: list[float] = []
    write = loop._Log.write

    def written(self: loop._Log, *arguments: Any) -> None:
        ends.append(time.monotonic())
        write(self, *arguments)

    if bench.on_card:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(loop._Log, "write", written):
        # The hash of 11 GB of weights, which names a checkpoint's model, would take most of the time.
        with mock.patch.object(trainer.cache, "weights_hash", lambda *_: "random weights"):
            _, losses = train_model(patcher, clips, config, Path(scratch))
    each = [after - before for before, after in pairwise(ends)]
    peak = torch.cuda.max_memory_allocated() if bench.on_card else 0
    listed = ", ".join(f"{loss:.3f}" for loss in losses)
    bench.row(
        "5b LoRA, rank 64, one clip of 49 frames, bf16, gradient checkpointing",
        f"{median(each):.2f} s a step, peak {gib(peak)} with weights, losses {listed}",
        predicted="3.0 to 3.6 s, 16 to 20 GiB",
        seconds=each,
        peak_bytes=peak,
        losses=losses,
    )
