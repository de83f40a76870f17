"""The example inputs: what is committed is what the code draws, and can be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.devtools.run_workflow import Video, inspect_video
from cogvideox.errors import UserError
from cogvideox.host import toy
from cogvideox.media import example_frames
from cogvideox.nano import draw_examples as examples
from cogvideox.nano.world import render
from cogvideox.system.published_files import SUMS, sums_of


def test_frames_are_the_worlds_own() -> None:
    """Lossless: how well a first frame is kept is measured against it."""
    for name, scene, chosen in (
        ("picture", examples.PICTURE_SCENE, slice(0, 1)),
        ("last picture", examples.PICTURE_SCENE, slice(-1, None)),
        ("video", examples.VIDEO_SCENE, slice(None)),
    ):
        drawn = render(scene, np.random.default_rng(examples.SEED), examples.FRAMES)[chosen]
        frames, mask = example_frames.read_example(name)
        assert torch.equal((frames * 255).round().to(torch.uint8), torch.from_numpy(drawn))
        assert mask.shape == (1, 64, 64) and set(mask.unique().tolist()) == {0.0, 1.0}
        # outside of the mask nothing moves, and it leaves room to see that
        outside = frames[:, mask[0] == 0]
        assert 0.2 < mask.mean() < 0.8 if len(frames) > 1 else mask.mean() < 0.8
        assert torch.equal(outside, outside[:1].expand_as(outside))


def test_what_is_committed_is_what_is_drawn(tmp_path: Path) -> None:
    """Whoever changes the world and not the files would ship pictures that nobody can make again."""
    examples.write_examples(tmp_path / "examples")
    written = {path.relative_to(tmp_path / "examples") for path in (tmp_path / "examples").rglob("*")}
    assert written == {path.relative_to(toy.EXAMPLES) for path in toy.EXAMPLES.rglob("*")}
    for path in written:
        if path.suffix == ".png":
            pictures = [Image.open(folder / path) for folder in (tmp_path / "examples", toy.EXAMPLES)]
            assert pictures[0].tobytes() == pictures[1].tobytes(), path
        elif path.suffix == ".txt":
            assert (tmp_path / "examples" / path).read_text("utf-8") == (toy.EXAMPLES / path).read_text("utf-8")


def test_clips_to_train_with_have_captions() -> None:
    """A clip without its caption would be left out of the training that the template shows."""
    clips = sorted(toy.CLIPS_FOLDER.glob("*.mp4"))
    assert len(clips) == 16
    for clip in clips:
        assert inspect_video(clip) == Video(17, 64, 64, toy.INPUT_FPS)
        assert "pink" in clip.with_suffix(".txt").read_text("utf-8")


@pytest.mark.parametrize("name", ["video.png", "video_mask.png"])
def test_a_changed_picture_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that an antivirus or half a copy has left, or another picture: what is made of it would be taken for a
    result of the example."""
    copy = Path(shutil.copytree(toy.EXAMPLES, tmp_path / "examples"))
    monkeypatch.setattr(example_frames, "EXAMPLES", copy)
    published = (copy / name).read_bytes()
    example_frames.read_example("video")
    for content in (b"", b"no picture", published[:-1], (copy / "picture.png").read_bytes(), published + b"0" * 99):
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} has been changed: .* Install the pack again.* nano/examples"):
            example_frames.read_example("video")


def test_every_example_has_its_hash() -> None:
    """One without could be changed unseen."""
    files = {file for file in toy.EXAMPLES.rglob("*") if file.is_file() and file.name != SUMS}
    assert (toy.EXAMPLES / SUMS).read_text("utf-8") == sums_of(toy.EXAMPLES, files)
