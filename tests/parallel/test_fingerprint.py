"""Whether two machines have the same weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from cogvideox.parallel import fingerprint as module
from cogvideox.parallel import source_hash as source_module
from cogvideox.parallel.fingerprint import fingerprint
from cogvideox.parallel.source_hash import note_imported, source_hash


def test_copies_have_the_same(tiny_pipelines: Mapping[str, Path], tmp_path: Path) -> None:
    """Machines keep the same checkpoint in different folders."""
    copy = shutil.copytree(tiny_pipelines["5b"], tmp_path / "elsewhere")
    assert fingerprint(copy, "transformer") == fingerprint(tiny_pipelines["5b"], "transformer")


@pytest.mark.parametrize("blocks", [1, 64])
def test_a_fine_tune_has_another(
    tiny_pipelines: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """Half of a video by one model and half by the other is noise. Large files are compared by their parts."""
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 14 if blocks == 1 else 64)
    copy = shutil.copytree(tiny_pipelines["5b"], tmp_path / "tuned")
    before = fingerprint(copy, "transformer")
    for file in (copy / "transformer").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = bytes(255 - byte for byte in content[len(content) // 2 :])
        file.write_bytes(content)
    assert fingerprint(copy, "transformer") != before


def test_the_code_has_one() -> None:
    """Two installations of one version may differ."""
    assert len(source_hash()) == 12 and source_hash() == source_hash()


def test_an_update_without_a_restart_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks import the new files, and the graph's process goes on with the old ones."""
    (tmp_path / "vae").mkdir()
    file = tmp_path / "vae" / "plan.py"
    file.write_text("FAST = 1\n")
    monkeypatch.setattr(source_module, "_ROOT", tmp_path)
    monkeypatch.setattr(source_module, "_imported", [])
    note_imported()
    before = source_hash()
    file.write_text("FAST = 22\n")
    assert source_hash() == "the one before an update" != before
    note_imported()  # as a rank that is started now
    assert source_hash() not in (before, "the one before an update")
