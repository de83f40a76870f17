"""The folders of CogVideoX-nano's trained weights, and pipelines in diffusers' layout assembled from them."""

import shutil
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")
VARIANTS = ("5b", "5b-I2V", "1.5-5B")


def write_pipeline(folder: Path, variant: str) -> Path:
    """Copy a complete pipeline of `variant` to `folder`, which must not exist; returns it."""
    shutil.copytree(WEIGHTS / variant, folder)
    for part in SHARED:
        shutil.copytree(WEIGHTS / part, folder / part)
    return folder
