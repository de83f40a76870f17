"""Processes that hold a file or a folder. They import little: their tests wait for it."""

import sys
from pathlib import Path

from cogvideox.complete_file import complete_file


def hold(folder: str) -> None:
    """Write a file and say so; end when the standard input does."""
    with complete_file(Path(folder) / "model.safetensors") as file:
        file.part.write_bytes(b"half")
        print("writing", flush=True)
        sys.stdin.read()


def train_here(folder: str) -> None:
    """Hold a training's folder and say so; end when the standard input does."""
    from cogvideox.training import checkpoint

    with checkpoint.only_training(Path(folder)):
        print("training", flush=True)
        sys.stdin.read()
