"""ComfyUI's model folders: what the loaders offer, and names that lead out of them."""

from pathlib import Path

import folder_paths
import pytest

from cogvideox.errors import UserError
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


@pytest.mark.parametrize("name", ("../secret", "/etc", "a/../../b", "", "C:\\windows", "\\secret", "//server/share"))
def test_names_stay_in_the_model_folders(name: str) -> None:
    """A shared workflow must not reach files outside the models folder."""
    with pytest.raises(UserError, match="is not the name of a model"):
        folders.find(name, "diffusers")


@pytest.mark.parametrize("name", ("", " ", "../a", "/etc/a", "a/", "C:/a", "a\0b", "a/../b"))
def test_new_names_stay_in_the_model_folder(name: str) -> None:
    """A shared workflow must not write elsewhere."""
    with pytest.raises(UserError, match="is not a valid file name"):
        folders.new_file(name, "diffusion_models", ".safetensors")
