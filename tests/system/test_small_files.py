"""Small text files of a model or a dataset."""

import os
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.host.folders import list_control_nets
from cogvideox.model_loaders import weight_files
from cogvideox.model_loaders.downloads.manifest import MANIFEST, read_manifest
from cogvideox.model_loaders.files.headers import json_object
from cogvideox.system.small_files import read_small_text
from cogvideox.training.cache import read_index


def test_text_without_its_mark(tmp_path: Path) -> None:
    """The mark that editors on Windows write would become part of the first key or caption."""
    (tmp_path / "a.json").write_text("\ufeff{}", "utf-8")
    assert read_small_text(tmp_path / "a.json", 10) == "{}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO, and links only for administrators")
@pytest.mark.parametrize("kind", ["large", "device", "pipe", "folder"])
def test_what_is_not_a_small_file(tmp_path: Path, kind: str) -> None:
    """Gigabytes would fill the memory, and neither a device nor a pipe has an end."""
    path = tmp_path / "config.json"
    if kind == "large":
        with path.open("wb") as file:
            file.truncate(101)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UserError, match="more than 100 bytes" if kind == "large" else "not a regular file"):
        read_small_text(path, 100)


@pytest.mark.parametrize(
    "content", ["huge", "[" * 100_000, '{"a": ' * 100_000, "\0", "1" * 10_000], ids=lambda c: c[:5]
)
def test_every_reader_of_json(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that is too large or too deep is refused in one sentence, or taken for none: no reader may crash."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", MANIFEST, "clips.json"):
        if content == "huge":
            with (folder / name).open("wb") as file:
                file.truncate((1 << 26) + 1)  # more than any of them may have
        else:
            (folder / name).write_text(content)
    with pytest.raises(UserError):
        weight_files.read_json(folder / "config.json")
    assert read_manifest(folder) is None and read_index(folder) == {} and json_object(content) is None
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(tmp_path)], set()))
    assert folder.name not in list_control_nets()
