"""CogVideoXTrainingClips as ComfyUI runs it: lists for core's training and for the pack's own."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host import folders
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nano import world
from cogvideox.nodes import training_clips as nodes
from cogvideox.nodes.image import CogVideoXImageToVideo
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests import core_trainer
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.support import validated
from cogvideox.training.clips import find_clips

Node = nodes.CogVideoXTrainingClips
SETTINGS: dict[str, Any] = {
    "frames": 9,
    "width": 64,
    "height": 64,
    "fps": 8.0,
    "buckets": "fixed",
    "shorter": "skip",
    "image_to_video": False,
    "image_variants": 2,
}


@pytest.fixture(scope="module")
def models(tiny_pipelines: dict[str, Path]) -> tuple[CogVideoXVAE, comfy.sd.CLIP]:
    """vae and clip."""
    folder = tiny_pipelines["5b-I2V"]
    vae = load_vae(folder, "fp32")
    return vae, load_text_encoder(folder, "fp32")


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node shows on itself."""
    lines = []
    monkeypatch.setattr(nodes, "show_on_node", lambda text, node_id: lines.append(text))
    return lines


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two clips and a short one in input/clips."""
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    clips = tmp_path / "clips"
    clips.mkdir()
    scene = world.Scene("square", "green", "large", "up", ("white",))
    for name, frames in (("a", 9), ("b", 9), ("short", 3)):
        pictures = world.render(scene, np.random.default_rng(len(name) + frames), frames)
        write_video(clips / f"{name}.mp4", pictures, fps=world.FPS)
        (clips / f"{name}.txt").write_text(f"{name}: a green square goes up")
    return clips


@pytest.mark.parametrize("name", ["clips", "full path"])
def test_lists_for_training(
    models: tuple[CogVideoXVAE, comfy.sd.CLIP], folder: Path, shown: list[str], name: str
) -> None:
    """Both trainers take one LATENT and one CONDITIONING a clip; the user reads what was left out on the node."""
    with torch.inference_mode():
        latents, positive, report = Node.execute(
            models[0], models[1], str(folder) if name == "full path" else name, **SETTINGS
        ).args
    assert len(latents) == len(positive) == 2
    for latent, conditioning in zip(latents, positive):
        assert latent["samples"].shape == latent["cogvideox_std"].shape == (1, 16, 3, 8, 8)
        assert latent["cogvideox_empty_text"].shape == conditioning[0][0].shape == (1, 226, 32)
        assert not latent["samples"].is_inference() and "concat_latent_image" not in conditioning[0][1]
    assert latents[0]["cogvideox_dataset"] == latents[1]["cogvideox_dataset"]
    assert "short.mp4: it has 3 frames" in report and shown == [report]


def test_first_frames_as_image_to_video_gives_them(models: tuple[CogVideoXVAE, comfy.sd.CLIP], folder: Path) -> None:
    """Core's trainer must see the picture where the sampler will see it."""
    latents, positive, _ = Node.execute(models[0], models[1], "clips", **{**SETTINGS, "image_to_video": True}).args
    from cogvideox.training import segments

    image = CogVideoXImageToVideo
    taken = segments.read_segment(folder / "a.mp4", segments.Segment((0,), 64, 64, (0.5, 0.5)))
    theirs = image.execute(positive[0], positive[0], models[0], 64, 64, 9, 1, start_image=taken).args[0][0][1]
    ours = positive[0][0][1]
    assert latents[0]["cogvideox_images"].shape == (3, 16, 1, 8, 8)
    # The picture for 2b-img2vid, which is not trained, is encoded only when a run on it begins.
    assert ours.keys() == theirs.keys() - {"cogvideox_repeated"}
    for key, value in ours.items():
        assert torch.equal(theirs[key], value) if isinstance(value, torch.Tensor) else theirs[key] == value


def test_core_trains_on_the_lists(
    models: tuple[CogVideoXVAE, comfy.sd.CLIP], folder: Path, tiny_pipelines: dict[str, Path]
) -> None:
    """ComfyUI's own Train LoRA runs on what the node gives, image to video model and all."""
    model = load_model(tiny_pipelines["5b-I2V"], "fp32")
    settings = SETTINGS | {"image_to_video": True, "width": 96}  # the size of the tiny model's learned positions
    with torch.inference_mode():
        latents, positive, _ = Node.execute(models[0], models[1], "clips", **settings).args
    lora, losses = core_trainer.train(model, latents, positive, steps=2, learning_rate=1e-3, rank=2)
    assert len(losses) == 2 and all(0 < loss < float("inf") for loss in losses)
    assert any(tensor.any() for name, tensor in lora.items() if "up" in name), "nothing was learnt"


def test_edits_run_the_node_again(folder: Path) -> None:
    """ComfyUI keeps a node's results: a new clip or caption must be seen, what the node itself writes must not."""
    before = Node.fingerprint_inputs(folder="clips", frames=9)
    (folder / ".cogvideox_cache").mkdir()
    (folder / ".cogvideox_cache" / "text.safetensors").write_bytes(b"1")
    assert Node.fingerprint_inputs(folder="clips", frames=9) == before
    (folder / "a.txt").write_text("another caption")
    assert Node.fingerprint_inputs(folder="clips", frames=9) != before


STATES: dict[str, Callable[[Path, Path], object]] = {
    "contents of the same size and time": lambda clips, disk: replace(clips / "a.mp4", in_place=True),
    "a file moved over it": lambda clips, disk: replace(clips / "a.mp4"),
    "what a link leads to": lambda clips, disk: replace(disk / "linked.mp4"),
    "what a link leads to, in place": lambda clips, disk: replace(disk / "linked.mp4", in_place=True),
    "where a link leads": lambda clips, disk: relink(clips / "c.mp4", disk / "other.mp4"),
    "a clip in a linked folder": lambda clips, disk: replace(disk / "more" / "d.mp4", in_place=True),
    "a caption in a linked folder": lambda clips, disk: (disk / "more" / "d.txt").write_text("new"),
    "a clip added to a linked folder": lambda clips, disk: (disk / "more" / "e.mp4").write_bytes(b"1"),
    "a clip in a hidden folder": lambda clips, disk: replace(clips / ".hidden" / "h.mp4", in_place=True),
}


def replace(path: Path, in_place: bool = False) -> None:
    """Other bytes, as many as before, under the old time, as cp -p and rsync write them."""
    status, data = path.stat(), path.read_bytes()
    time.sleep(0.02)  # a file system's clock may have steps of ten milliseconds
    new = path if in_place else path.with_name("new")
    new.write_bytes(bytes(255 - byte for byte in data))
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == len(data)


def relink(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


@pytest.fixture
def disk(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for datasets that the clips are linked from, with links back."""
    disk = tmp_path_factory.mktemp("disk")
    monkeypatch.setenv(folders.DATASETS_VARIABLE, str(disk))
    for name in (folder / ".hidden", disk / "more"):
        name.mkdir()
    for path in (disk / "linked.mp4", disk / "other.mp4", disk / "more" / "d.mp4", folder / ".hidden" / "h.mp4"):
        path.write_bytes(b"clip")
    for path in (folder / "c.txt", disk / "more" / "d.txt"):
        path.write_text("a caption")
    (folder / "c.mp4").symlink_to(disk / "linked.mp4")
    (folder / "more").symlink_to(disk / "more")
    (disk / "more" / "back").symlink_to(folder)
    (disk / "more" / "again").symlink_to(disk / "more")
    return disk


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links only for administrators")
@pytest.mark.parametrize("has_change_time", [True, False], ids=["", "windows"])
@pytest.mark.parametrize("what", STATES)
def test_all_that_is_read_is_looked_at(
    folder: Path, disk: Path, what: str, has_change_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a training goes on with the clips of before, and nothing says so."""
    monkeypatch.setattr(nodes, "HAS_CHANGE_TIME", has_change_time)
    if not has_change_time:  # neither has an inode on every file system there
        true = Path.stat
        hidden = {"st_ctime_ns": 0, "st_ino": 0}
        monkeypatch.setattr(Path, "stat", lambda path, **options: WithoutChange(true(path, **options), hidden))
    before = Node.fingerprint_inputs(folder="clips")
    assert Node.fingerprint_inputs(folder="clips") == before
    STATES[what](folder, disk)
    assert Node.fingerprint_inputs(folder="clips") != before


class WithoutChange:
    """A status without what Windows lacks."""

    def __init__(self, status: os.stat_result, hidden: dict[str, int]):
        self._status, self._hidden = status, hidden

    def __getattr__(self, name: str) -> int:
        return self._hidden[name] if name in self._hidden else getattr(self._status, name)


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links only for administrators")
def test_linked_folders_hold_clips(folder: Path, disk: Path, tmp_path: Path) -> None:
    """Each once, whatever leads in a circle; one that leads out is named and not entered."""
    private = tmp_path.parent / f"{tmp_path.name} private"
    private.mkdir()
    (private / "p.mp4").write_bytes(b"clip")
    (private / "p.txt").write_text("SECRET")
    (folder / "out").symlink_to(private)
    found, problems = find_clips(folder)
    assert [clip.name for clip in found] == ["a.mp4", "b.mp4", "c.mp4", "more/d.mp4", "short.mp4"]
    assert len(problems) == 1 and problems[0].startswith("out: it leads out of the folder")
    before = Node.fingerprint_inputs(folder="clips")
    (private / "q.mp4").write_bytes(b"1")
    assert Node.fingerprint_inputs(folder="clips") == before


def test_edits_under_a_linked_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI does not know a linked folder when it looks for changes: the results of before were taken for ever."""
    other = tmp_path / "elsewhere" / "more"
    other.mkdir(parents=True)
    monkeypatch.setenv(folders.DATASETS_VARIABLE, str(other.parent))
    before = Node.fingerprint_inputs(folder=None, frames=9)
    assert Node.fingerprint_inputs(frames=9) == before
    (tmp_path / "uploaded.png").write_bytes(b"1")  # beside the folders for datasets
    (folder / ".cogvideox_cache").mkdir()
    (folder / ".cogvideox_cache" / "text.safetensors").write_bytes(b"1")
    assert Node.fingerprint_inputs(folder=None, frames=9) == before
    (folder / "a.txt").write_text("another caption")
    edited = Node.fingerprint_inputs(folder=None, frames=9)
    (other / "clip.mp4").write_bytes(b"1")
    assert len({before, edited, Node.fingerprint_inputs(folder=None, frames=9)}) == 3


@pytest.mark.parametrize("name", ["nowhere", "", " ", ".", "clips/a.mp4", "/no/such/folder", "x" * 5000, "a\0b"])
def test_no_folder_is_refused(folder: Path, name: str) -> None:
    """The queue says at once that there is no such folder, before models are loaded."""
    assert "There is no folder" in str(validated(Node, folder=name, width=64, height=64, frames=9))
    with pytest.raises(UserError, match="There is no folder"):
        folders.find_dataset(name)


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is not below ComfyUI's input folder."""
    made = tmp_path_factory.mktemp("elsewhere") / "private"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    "name", ["//server/share/clips", "\\\\server\\share", "C:/Users/me", "C:private", "\\Users\\me"]
)
def test_names_of_windows_are_not_looked_up(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask whether //server/share exists hands that server the user's credentials."""
    touched: list[str] = []
    for look in ("is_dir", "exists", "resolve"):
        true = getattr(Path, look)
        monkeypatch.setattr(Path, look, lambda path, *rest, true=true: touched.append(str(path)) or true(path, *rest))
    with pytest.raises(UserError, match="There is no folder"):
        folders.find_dataset(name)
    assert not [path for path in touched if "server" in path.split("/")[1:2]]


@pytest.mark.parametrize("spelled", ["absolute", "relative", "quoted", "windows", "through a folder"])
def test_folders_elsewhere_are_not_read(folder: Path, elsewhere: Path, spelled: str) -> None:
    """A stranger's workflow could read the videos of a disk, write a cache next to them, or find out what exists."""
    relative = os.path.relpath(elsewhere, folder.parent)
    name = {
        "absolute": str(elsewhere),
        "relative": relative,
        "quoted": f'"{elsewhere}"',
        "windows": relative.replace("/", "\\"),
        "through a folder": f"clips/../{relative}",
    }[spelled]
    message = str(validated(Node, folder=name, width=64, height=64, frames=9))
    elsewhere.rmdir()
    assert message == str(validated(Node, folder=name, width=64, height=64, frames=9)), "it tells what exists"
    assert "There is no folder" in message and folders.DATASETS_VARIABLE in message


@pytest.mark.parametrize("how", ["variable", "yaml"])
def test_folders_that_the_user_has_named(
    folder: Path, elsewhere: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasets are large and lie on disks of their own."""
    if how == "variable":
        monkeypatch.setenv(folders.DATASETS_VARIABLE, os.pathsep.join(["", "relative", str(elsewhere.parent)]))
    else:
        listed = {folders.DATASETS: ([str(elsewhere.parent)], set())}
        monkeypatch.setattr(folder_paths, "folder_names_and_paths", folder_paths.folder_names_and_paths | listed)
    for name in ("private", str(elsewhere)):
        assert folders.find_dataset(name) == elsewhere
    (folder / "link").symlink_to("/", target_is_directory=True)
    for name in (str(elsewhere.parent.parent), str(elsewhere.parent), f"{folder}/link", "clips/link"):
        with pytest.raises(UserError, match="There is no folder"):
            folders.find_dataset(name)


def test_listing_a_folder_ends_when_the_run_is_cancelled(folder: Path) -> None:
    """A folder with millions of files would hold up the queue; the interrupt flag stays set for ComfyUI to see."""
    whole = nodes.listing_hash(folder)
    mm.interrupt_current_processing(True)
    try:
        assert nodes.listing_hash(folder) != whole and mm.processing_interrupted()
    finally:
        mm.interrupt_current_processing(False)


def test_valid_inputs_pass(folder: Path) -> None:
    """Linked values are not known yet; sizes are checked as everywhere."""
    assert validated(Node, folder="clips", width=64, height=64, frames=9) is True
    assert validated(Node, folder=None, width=None, height=None, frames=None) is True
    assert "use 9 or 17" in str(validated(Node, folder="clips", width=64, height=64, frames=10))
