"""Processes that hold a file or a folder, say so, and go on when the other end of their connection is closed."""

from multiprocessing.connection import Connection
from pathlib import Path

from cogvideox.system.complete_file import complete_file


def hold(folder: Path, connection: Connection) -> None:
    """Write a file."""
    with complete_file(folder / "model.safetensors") as file:
        file.part.write_bytes(b"half")
        connection.send("holds")
        connection.poll(None)


def train_here(folder: Path, connection: Connection) -> None:
    """Hold a training's folder."""
    from cogvideox.training import checkpoint

    with checkpoint.only_training(folder):
        connection.send("holds")
        connection.poll(None)
