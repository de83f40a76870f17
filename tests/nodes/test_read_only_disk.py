"""Disks that take no file: every node that writes says so in a sentence."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.keys import Latent
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes import train
from cogvideox.tests.nodes.test_saved_names import NAME, SAVES


def train_lora(pipeline: Path) -> object:
    model = load_model(pipeline, "fp32")
    latents: list[Latent] = [{"samples": torch.zeros(1, 16, 3, 8, 12)}]
    positive = [[[torch.zeros(1, 226, 32), {"pooled_output": None}]]]
    widgets = {"steps": 1, "batch_size": 1, "learning_rate": 1e-4, "rank": 1, "alpha": 1.0, "seed": 0}
    dropout = {"caption_dropout": 0.0}
    listed = {name: [value] for name, value in (widgets | dropout).items()}
    return train.CogVideoXTrainLora.execute([model], latents, positive, **listed)


WRITERS: dict[str, Callable[[Path], object]] = {**SAVES, "CogVideoXTrainLora": train_lora}


@pytest.mark.parametrize("how", ["no folder can be made", "no file can be made"])
@pytest.mark.parametrize("node", WRITERS)
def test_a_disk_that_takes_nothing(
    node: str, how: str, tmp_path: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that has gone, a card that is write-protected, a folder of another user."""
    pipeline, root = tiny_pipelines["5b"], tmp_path / "root"
    (root / "my").mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(root))
    for category in ("diffusion_models", "loras"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(root)], {".safetensors"}))
    if how == "no folder can be made":
        (root / "my").rmdir()
    refuse_writing(root, monkeypatch)
    with pytest.raises(UserError, match="Read-only file system.*(Check|Free|permissions)") as caught:
        WRITERS[node](pipeline)
    assert len(str(caught.value)) < 600 and str(root) in str(caught.value) and NAME not in str(caught.value)
    assert not [path for path in root.rglob("*") if path.is_file()]


def refuse_writing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system does that is mounted read-only: root may write wherever permissions forbid it."""
    true_mkdir, true_open, true_os_open = os.mkdir, open, os.open

    def assert_refused(path: Any) -> None:
        if isinstance(path, (str, os.PathLike)) and str(root) in os.path.abspath(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if not os.path.isdir(path):
            assert_refused(path)
        true_mkdir(path, *args, **kwargs)

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            assert_refused(path)
        return true_open(path, mode, *args, **kwargs)

    def os_opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            assert_refused(path)
        return true_os_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", os_opened)
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("io.open", opened)  # what pathlib calls
