"""Pipelines of CogVideoX-nano in diffusers' layout, as copies; which there are, host/toy.py says."""

import shutil
from pathlib import Path

from cogvideox.host.toy import MODELS as VARIANTS
from cogvideox.host.toy import SHARED, WEIGHTS


def write_pipeline(folder: Path, variant: str) -> Path:
    """Copy a complete pipeline of `variant`, one of VARIANTS, to `folder`, which must not exist; returns it.

    For diffusers, and for tests that change files. The pack's own loaders read the toy where it lies.
    """
    assert variant in VARIANTS, variant
    for part in SHARED:
        shutil.copytree(WEIGHTS / part, folder / part)
    shutil.copytree(WEIGHTS / variant, folder, dirs_exist_ok=True)
    return folder
