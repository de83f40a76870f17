"""Where CogVideoX-nano's trained weights lie, and whole pipelines in diffusers' layout made of them."""

import shutil
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")
VARIANTS = ("5b", "5b-I2V", "1.5-5B")


def write_pipeline(folder: Path, variant: str) -> Path:
    """A whole pipeline of `variant`, copied to `folder`."""
    shutil.copytree(WEIGHTS / variant, folder)
    for part in SHARED:
        shutil.copytree(WEIGHTS / part, folder / part)
    return folder
