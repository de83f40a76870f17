"""The model folders of a ComfyUI that was just installed."""

from pathlib import Path

import folder_paths
import pytest

from cogvideox.host import folders


def empty_model_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have ComfyUI look for models in folders of `root`, which are there and empty. Returns the folder models."""
    for category in folders.CATEGORIES:
        (root / "models" / category).mkdir(parents=True)
        where = ([str(root / "models" / category)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, where)
    return root / "models"
