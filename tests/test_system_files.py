"""What macOS, Windows and git leave in folders is no model, config, picture or clip, wherever a folder is listed."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cogvideox.host import folders, toy
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.file_stamps import stamp_of
from cogvideox.model_loaders.weight_files import file_sets
from cogvideox.nodes.training_clips import listing_hash
from cogvideox.system.file_names import is_system_file
from cogvideox.system.published_files import SUMS, sums_of
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.model_folders import empty_model_folders
from cogvideox.training import clips

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # how such a file begins
NAMES = (".DS_Store", "Thumbs.db", "desktop.ini", ".gitattributes", ".gitkeep", ".gitignore")


def leave_system_files(folder: Path) -> None:
    """What a share or an unpacked archive has after macOS, Windows and git: in `folder` and in all folders below, of
    each file too."""
    for path in [folder, *folder.rglob("*")]:
        if path != folder:
            path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
        if path.is_dir():
            for name in NAMES:
                (path / name).write_bytes(APPLE_DOUBLE)


@pytest.mark.parametrize("name", [*NAMES, "._config.json", "._model.safetensors", "THUMBS.DB", "Desktop.ini"])
def test_names_of_system_files(name: str) -> None:
    assert is_system_file(name)


@pytest.mark.parametrize(
    "name", ["config.json", "_model.safetensors", "a._b.gguf", ".hidden.pt", "git.bin", "thumbs.png"]
)
def test_names_of_other_files(name: str) -> None:
    """A model of the user's own would not be listed, whatever it is called."""
    assert not is_system_file(name)


def test_no_list_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever copies models from a Mac had each of them twice in every list, and the second one cannot be loaded."""
    models = empty_model_folders(tmp_path, monkeypatch)
    for category in folders.CATEGORIES:
        (models / category / "sub").mkdir()
        (models / category / "sub" / "mine.safetensors").touch()
        (models / category / "mine.gguf").touch()
    (models / "diffusers" / "5b" / "transformer").mkdir(parents=True)
    (models / "diffusers" / "5b" / "model_index.json").touch()
    (models / "vae" / "only_notes").mkdir()

    def lists() -> list[list[str]]:
        components = [folders.list_components(part, category) for category, part in folders._OWN_COMPONENTS.items()]
        return [folders.list_pipelines(), *components, *map(folders.list_files, folders.CATEGORIES)]

    before = lists()
    assert all(before) and ["mine.gguf", "sub/mine.safetensors"] in before
    leave_system_files(models)
    (models / "vae" / "only_notes" / "._vae.safetensors").write_bytes(APPLE_DOUBLE)
    assert lists() == before


def test_a_checkpoint_in_the_official_layout(tiny_pipelines: Mapping[str, Path], tmp_path: Path) -> None:
    """Each part was refused for the files that are no weights, or said to be there twice."""
    pipeline = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "5b"))
    before = {part: checkpoints.check_component(pipeline, part) for part in folders.COMPONENTS}
    leave_system_files(pipeline)
    for part, files in before.items():
        assert file_sets(pipeline / part)[1] == []
        assert checkpoints.check_component(pipeline, part) == files
        assert checkpoints.check_component(pipeline / part, part) == files
        assert checkpoints.open_component(pipeline, part).config is not None


def test_an_index_of_macos_is_none(tmp_path: Path) -> None:
    """What is called ._model.safetensors.index.json ends as an index does; a folder with nothing else has no model."""
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("._model.safetensors.index.json", "._model-00001-of-00002.safetensors", "._config.json"):
        (folder / name).write_bytes(APPLE_DOUBLE)
    assert file_sets(folder) == ([], [])


def test_a_model_stays_the_one_that_was_loaded(tiny_pipelines: Mapping[str, Path], tmp_path: Path) -> None:
    """A look at the folder in the Finder would load a model again, and end a training that loads it a second time."""
    pipeline = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "5b"))
    places = pipeline, pipeline / "transformer", next((pipeline / "transformer").glob("*.safetensors"))
    before = [stamp_of(path) for path in places]
    leave_system_files(pipeline)
    assert [stamp_of(path) for path in places] == before


def test_a_dataset(tmp_path: Path) -> None:
    """Clips, numbered pictures and captions of a Mac: none of them twice, and none that cannot be read."""
    pictures = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", pictures)
    (tmp_path / "shots").mkdir()
    for number in (1, 2):
        Image.fromarray(pictures[0]).save(tmp_path / "shots" / f"{number}.png")
    for name in ("a.txt", "shots.txt"):
        (tmp_path / name).write_text("a red ball", "utf-8")
    (tmp_path / "notes").mkdir()
    before, state = clips.find_clips(tmp_path), listing_hash(tmp_path)
    assert [clip.name for clip in before[0]] == ["a.mp4", "shots"] and before[1] == []
    leave_system_files(tmp_path)
    (tmp_path / "notes" / "._1.png").write_bytes(APPLE_DOUBLE)
    assert clips.find_clips(tmp_path) == before
    assert [path.name for path in clips.pictures_in(tmp_path / "shots")] == ["1.png", "2.png"]
    assert listing_hash(tmp_path) == state


def test_the_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone on a share that was looked at from a Mac refused every template as damaged."""
    empty_model_folders(tmp_path, monkeypatch)
    copy = Path(shutil.copytree(toy.WEIGHTS.parent / "weights", tmp_path / "nano" / "weights"))
    examples = Path(shutil.copytree(toy.EXAMPLES, tmp_path / "nano" / "examples"))
    for name, path in (("WEIGHTS", copy), ("EXAMPLES", examples), ("CLIPS_FOLDER", examples / "clips")):
        monkeypatch.setattr(toy, name, path)
    leave_system_files(tmp_path / "nano")
    for kind, names in toy.LISTED.items():
        for name in names:
            assert toy.find_toy(name, kind) is not None
    for model in toy.MODELS:
        for part in folders.COMPONENTS:
            assert checkpoints.check_component(copy / model, part)
    toy.check_clips()
    assert (copy / SUMS).read_text("utf-8") == sums_of(copy, toy.published_files(copy))
