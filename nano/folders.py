"""Where CogVideoX-nano's trained weights lie, and whole pipelines in diffusers' layout made of them."""

import shutil
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")
# variant -> the pipeline of diffusers that it is for
PIPELINES = {"5b": "CogVideoXPipeline", "5b-I2V": "CogVideoXImageToVideoPipeline", "1.5-5B": "CogVideoXPipeline"}


def write_pipeline(folder: Path, variant: str) -> Path:
    """A whole pipeline of `variant`, copied to `folder`."""
    shutil.copytree(WEIGHTS / variant, folder)
    for part in SHARED:
        shutil.copytree(WEIGHTS / part, folder / part)
    return folder
