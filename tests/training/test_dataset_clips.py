"""What a dataset's folder holds, which frames are taken of a clip, and what they look like."""

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.errors import UserError
from cogvideox.tests.clip_files import write_video
from cogvideox.training import clips, segments

Spec = clips.DatasetSpec
CENTRE = (0.5, 0.5)


def pixels(count: int, width: int = 64, height: int = 64, seed: int = 0) -> np.ndarray:
    """[count, height, width, 3], 0 .. 255; no two frames alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write_clip(path: Path, pictures: np.ndarray, fps: int = 8) -> Path:
    """Lossless, whatever the suffix; the container is the suffix's."""
    return write_video(path, pictures, "ffv1", "bgr0", fps, container="matroska")


def take(path: Path, **settings: Any) -> torch.Tensor:
    """The first segment of a clip as a spec asks for it."""
    chosen: dict[str, Any] = {"width": 64, "height": 64, "frames": 9, **settings}
    spec = Spec(**chosen)
    return segments.read_segment(path, segments.cut_segments(spec, segments.probe_clip(path), CENTRE)[0])


def test_captions_beside_the_clips(tmp_path: Path) -> None:
    """clip.txt, a folder of pictures with its own text, subfolders and the official videos/labels are all found."""
    write_clip(tmp_path / "a.MKV", pixels(1))
    (tmp_path / "a.txt").write_text("\ufeffa red ball\n", "utf-8")
    (tmp_path / "shots").mkdir()
    Image.fromarray(pixels(1)[0]).save(tmp_path / "shots" / "1.png")
    (tmp_path / "shots.txt").write_text("a blue ball")
    for name in ("videos", "labels", ".hidden"):
        (tmp_path / name).mkdir()
    write_clip(tmp_path / "videos" / "b.mkv", pixels(1))
    write_clip(tmp_path / ".hidden" / "c.mkv", pixels(1))
    (tmp_path / "labels" / "b.txt").write_text("a green ball")
    write_clip(tmp_path / "d.mkv", pixels(1))
    found, problems = clips.find_clips(tmp_path)
    expected = {"a.MKV": "a red ball", "shots": "a blue ball", "videos/b.mkv": "a green ball"}
    assert {clip.name: clip.caption for clip in found} == expected
    assert len(problems) == 1 and problems[0].startswith("d.mkv: it has no caption") and "d.txt" in problems[0]


@pytest.mark.parametrize("form", ["jsonl", "csv", "official"])
def test_lists_of_captions(tmp_path: Path, form: str) -> None:
    """The three lists that other trainers use; what they name wrongly is said, and does not stop the rest."""
    write_clip(tmp_path / "a.mkv", pixels(1))
    write_clip(tmp_path / "b.mkv", pixels(1))
    rows = [("a.mkv", 'a ball, "red"'), ("b.mkv", " "), ("gone.mkv", "nothing")]
    if form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    elif form == "csv":
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])
    else:
        (tmp_path / "videos.txt").write_text("\n".join(name for name, _ in rows) + "\n")
        (tmp_path / "prompts.txt").write_text("\n".join(text for _, text in rows) + "\n")
    found, problems = clips.find_clips(tmp_path)
    assert [(clip.name, clip.caption) for clip in found] == [rows[0]]
    assert [problem.split(":")[0] for problem in problems] == ["b.mkv", "gone.mkv"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no clip in"),
        ({"metadata.csv": "name,caption\na,b\n"}, "no column file_name and no column text"),
        ({"metadata.jsonl": '{"file_name": "a.mp4"}'}, "line 1"),
        ({"metadata.jsonl": "not json"}, "line 1"),
        ({"prompts.txt": "a\nb\n", "videos.txt": "a.mp4\n"}, "has 2 lines and videos.txt 1"),
    ],
)
def test_unreadable_datasets_are_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    """A list that means something else must not become a training without captions."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        clips.find_clips(tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        clips.find_clips(tmp_path / "nowhere")


def test_frames_come_unchanged(tmp_path: Path) -> None:
    """At their own rate and size frames are what the file holds, in order."""
    shown = pixels(12)
    taken = take(write_clip(tmp_path / "a.mkv", shown))
    assert torch.equal(taken, torch.from_numpy(shown[:9]).float() / 255)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animated_pictures(tmp_path: Path, suffix: str) -> None:
    """Animations have times of their own: 10 frames a second are every second of twenty."""
    flat = [Image.new("RGB", (64, 64), (20 * i, 255 - 20 * i, 60)) for i in range(12)]
    flat[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=flat[1:], duration=50, lossless=True)
    taken = take(tmp_path / f"a{suffix}", fps=10.0, frames=5)
    expected = torch.stack([torch.from_numpy(np.array(flat[2 * i])) for i in range(5)]) / 255
    assert (taken - expected).abs().max() < 0.04  # gif has 256 colours


def test_numbered_pictures(tmp_path: Path) -> None:
    """2.png comes before 10.png, and no rate is asked of pictures."""
    shown = pixels(11)
    for number, picture in enumerate(shown):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    assert torch.equal(take(tmp_path), torch.from_numpy(shown[:9]).float() / 255)


@pytest.mark.parametrize(
    ("source_fps", "count", "fps", "expected"),
    [
        (24, 25, 8.0, [0, 3, 6, 9, 12, 15, 18, 21, 24]),
        (24, 24, 8.0, [0, 3, 6, 9, 12, 15, 18, 21]),
        (8, 3, 16.0, [0, 0, 1, 1, 2, 2]),
        (30, 9, 0.0, list(range(9))),
        (30, 1, 8.0, [0]),
    ],
)
def test_rate(source_fps: int, count: int, fps: float, expected: list[int]) -> None:
    """A clip filmed at 24 frames a second must not become three times as slow."""
    times = [number / source_fps for number in range(count)]
    assert segments.shown_frames(times, count, fps) == expected
    if count > 1:  # as webm keeps them
        assert segments.shown_frames([round(t, 3) + 7 for t in times], count, fps) == expected


def test_segments_spread_over_a_long_clip() -> None:
    """Segments are evenly spaced, the last one ends with the clip, and none shows what another shows."""
    source = segments.Source(64, 64, 40, None)
    spec = Spec(width=64, height=64, frames=9, segments=3)
    starts = [(segment.indices[0], segment.indices[-1]) for segment in segments.cut_segments(spec, source, CENTRE)]
    assert starts == [(0, 8), (16, 24), (31, 39)]
    assert len(segments.cut_segments(Spec(width=64, height=64, frames=9, segments=9), source, CENTRE)) == 4


@pytest.mark.parametrize(
    ("settings", "source", "expected"),
    [
        ({}, (64, 64, 20), (96, 64, 17)),
        ({}, (64, 64, 16), None),
        ({"shorter": "bucket"}, (64, 64, 16), (96, 64, 9)),
        ({"shorter": "bucket"}, (64, 64, 8), None),
        ({"buckets": "auto"}, (1920, 1080, 17), (112, 64, 17)),
        ({"buckets": "auto"}, (1080, 1920, 17), (64, 112, 17)),
        ({"choices": ((64, 96, 17), (96, 64, 9))}, (200, 300, 30), (64, 96, 17)),
        ({"choices": ((64, 96, 17), (96, 64, 9))}, (300, 200, 12), (96, 64, 9)),
        ({"choices": ((64, 96, 17), (96, 64, 9))}, (300, 200, 50), (96, 64, 17)),
        ({"choices": ((64, 64, 9),), "buckets": "auto"}, (96, 64, 10), (96, 64, 9)),
    ],
)
def test_bucket(settings: dict[str, Any], source: tuple[int, int, int], expected: tuple | None) -> None:
    """The nearest shape, then the most frames that the clip fills."""
    chosen: dict[str, Any] = {"width": 96, "height": 64, "frames": 17, **settings}
    spec = Spec(**chosen)
    assert segments.choose_size(spec, segments.Source(*source, None), source[2]) == expected


def test_other_shapes_are_cut_and_not_stretched(tmp_path: Path) -> None:
    """The middle of a wide clip, or a random part; resized without stretching."""
    shown = pixels(1, width=128)
    path = write_clip(tmp_path / "a.mkv", shown)
    for offset, left in (((0.5, 0.5), 32), ((0.0, 0.9), 0), ((1.0, 0.1), 64)):
        taken = segments.read_segment(path, segments.Segment((0,), 64, 64, offset))
        assert torch.equal(taken[0], torch.from_numpy(shown[0, :, left : left + 64]).float() / 255)
    assert segments.read_segment(path, segments.Segment((0, 0), 32, 32, CENTRE)).shape == (2, 32, 32, 3)


def test_phones_film_on_their_side(tmp_path: Path) -> None:
    """A clip that says it is to be turned is turned, or a model learns a world that lies on its side."""
    shown = pixels(3, width=96)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write such a file")
        stream.set_display_rotation(90)
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = segments.probe_clip(tmp_path / "a.mov")
    assert (source.width, source.height, source.frames) == (64, 96, 3)
    taken = segments.read_segment(tmp_path / "a.mov", segments.Segment((0,), 64, 96, CENTRE))
    expected = np.rot90(shown[0]).copy()  # to the left, as ffmpeg defines it and ComfyUI's own Load Video does it
    assert torch.equal(taken[0], torch.from_numpy(expected).float() / 255)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"crop": "left"}, "crop"), ({"fps": -1.0}, "fps"), ({"segments": 0}, "segments"), ({"shorter": ""}, "shorter")],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    """A misspelt setting in a recipe must not quietly mean the default."""
    with pytest.raises(UserError, match=words):
        clips.check_spec(Spec(**settings))
    with pytest.raises(UserError, match="64 x 64 with 10 frames.*frames 10"):
        clips.check_spec(Spec(width=64, height=64, frames=10))
