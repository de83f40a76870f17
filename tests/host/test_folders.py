"""What the loaders offer."""

from pathlib import Path

import folder_paths
import pytest

from cogvideox.host import folders


def test_files_of_every_kind_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI itself lists no .gguf; a file that was just added must appear without a restart."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([str(tmp_path)], {".safetensors", ".pt"}))
    (tmp_path / "sub").mkdir()
    for name in ("a.safetensors", "sub/b.gguf", "notes.txt", "c.pt"):
        (tmp_path / name).touch()
    assert folders.list_files("vae") == ["a.safetensors", "c.pt", "sub/b.gguf"]
    (tmp_path / "sub" / "later.gguf").touch()
    (tmp_path / "a.safetensors").unlink()
    assert folders.list_files("vae") == ["c.pt", "sub/b.gguf", "sub/later.gguf"]
