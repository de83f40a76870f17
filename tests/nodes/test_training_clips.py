"""CogVideoXTrainingClips as ComfyUI runs it: lists for core's training and for the pack's own."""

import os
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
    monkeypatch.setattr(Node, "hidden", type("Hidden", (), {"unique_id": "1"}), raising=False)
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
    assert "There is no folder" in str(Node.validate_inputs(folder=name, width=64, height=64, frames=9))
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
    message = str(Node.validate_inputs(folder=name, width=64, height=64, frames=9))
    elsewhere.rmdir()
    assert message == str(Node.validate_inputs(folder=name, width=64, height=64, frames=9)), "it tells what exists"
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
    assert Node.validate_inputs(folder="clips", width=64, height=64, frames=9) is True
    assert Node.validate_inputs(folder=None, width=None, height=None, frames=None) is True
    assert "use 9 or 13" in str(Node.validate_inputs(folder="clips", width=64, height=64, frames=10))
