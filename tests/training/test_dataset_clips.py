"""What a dataset's folder holds, which frames are taken of a clip, and what they look like."""

import csv
import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import comfy.model_management as mm
import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.errors import UserError
from cogvideox.host.folders import DATASETS_VARIABLE
from cogvideox.tests.clip_files import write_video
from cogvideox.training import cache, caption_lists, clips, segments

Spec = clips.DatasetSpec
CENTRE = (0.5, 0.5)
windows = pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO, and links only for administrators")


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


@windows
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_rows_that_lead_out_of_the_folder(tmp_path: Path, form: str) -> None:
    """A list that was downloaded with its clips must not read the user's other videos, or hang at a device."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "a.mkv", pixels(1))
    private = write_clip(tmp_path / "private.mkv", pixels(1))
    (folder / "link.mkv").symlink_to(private)
    (folder / "zero.mkv").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mkv")
    outside = [str(private), "../private.mkv", "link.mkv", "/dev/zero", "zero.mkv", "..", "x" * 5000]
    rows = [(name, "a caption") for name in ["a.mkv", *outside, "pipe.mkv"]]
    if form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    else:
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "text"), *rows])
    found, problems = clips.find_clips(folder)
    assert [clip.name for clip in found] == ["a.mkv"]
    assert all("leads out of the folder" in problem for problem in problems[: len(outside) - 1]), problems
    assert all("there is no such file" in problem for problem in problems[len(outside) - 1 :]), problems
    assert len(problems) == len(rows) - 1 and max(map(len, problems)) < 450


@windows
def test_links_to_folders_that_the_user_has_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large datasets are links to clips on another disk: whoever has named that disk's folder may use them."""
    folder, disk = tmp_path / "clips", tmp_path / "disk"
    for made in (folder, disk):
        made.mkdir()
    write_clip(disk / "a.mkv", pixels(1))
    (disk / "a.txt").write_text("a caption")
    for name in ("a.mkv", "a.txt"):
        (folder / name).symlink_to(disk / name)
    found, problems = clips.find_clips(folder)
    assert not found and len(problems) == 1 and "leads out of the folder" in problems[0]
    monkeypatch.setenv(DATASETS_VARIABLE, str(disk))
    found, problems = clips.find_clips(folder)
    assert [clip.caption for clip in found] == ["a caption"] and not problems


@windows
def test_links_to_texts_and_pictures_elsewhere(tmp_path: Path) -> None:
    """A dataset from a stranger must not show what another file of the disk says or shows."""
    folder = tmp_path / "clips"
    (folder / "pictures").mkdir(parents=True)
    private = tmp_path / "private.txt"
    private.write_text("SECRET")
    write_clip(folder / "a.mkv", pixels(1))
    (folder / "a.txt").symlink_to(private)
    Image.new("RGB", (64, 64)).save(tmp_path / "private.png")
    (folder / "pictures" / "1.png").symlink_to(tmp_path / "private.png")
    (folder / "videos.txt").symlink_to(private)
    (folder / "prompts.txt").symlink_to(private)
    found, problems = clips.find_clips(folder)
    assert not found and "SECRET" not in str(problems) and "a.mkv: it has no caption" in str(problems)
    assert clips.pictures_in(folder / "pictures") == []


@pytest.mark.parametrize("row", ['{"file_name": "a.mkv", "text": null}', '{"file_name": 1, "text": "b"}'])
def test_null_is_no_caption(tmp_path: Path, row: str) -> None:
    """A clip without a caption was trained with the word None."""
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(UserError, match="line 1, is not"):
        clips.find_clips(tmp_path)


def test_captions_of_several_lines(tmp_path: Path) -> None:
    """Quoted line breaks belong to a caption, and so do those that only Unicode knows."""
    write_clip(tmp_path / "a.mkv", pixels(1))
    caption = "first line\nsecond\u2028third\x0cfourth"
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), ("a.mkv", caption)])
    found, problems = clips.find_clips(tmp_path)
    assert [clip.caption for clip in found] == [caption] and not problems


def test_a_table_of_many_columns(tmp_path: Path) -> None:
    """As many cells, in a file of 170 KB, took half a minute: each row became a dict of all columns; Cancel was not
    seen. Few rows: each is looked up on the disk, which takes longer than to read it."""
    (tmp_path / "metadata.csv").write_text("file_name,text" + ",a" * 80_000 + "\n" + "x\n" * 5_000)
    began = time.monotonic()
    found, problems = clips.find_clips(tmp_path)
    assert not found and len(problems) == 5_000 and time.monotonic() - began < 20
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        clips.find_clips(tmp_path)


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", b"ffconcat version 1.0\n"])
@pytest.mark.parametrize("name", ["1.png", "a.gif", "a.mp4"])
def test_formats_go_by_the_list_and_not_by_the_content(tmp_path: Path, name: str, content: bytes) -> None:
    """Pillow runs Ghostscript for EPS, and FFmpeg opens the files that a playlist names, whatever the suffix says."""
    write_clip(tmp_path / "other.mkv", pixels(9))
    path = tmp_path / "clip" / name
    path.parent.mkdir()
    path.write_bytes(content + b"file ../other.mkv\n")
    with pytest.raises(clips.UnusableClipError, match="cannot be read"):
        segments.probe_clip(path.parent if name == "1.png" else path)


@windows
def test_only_regular_files_are_clips(tmp_path: Path) -> None:
    """To open a FIFO waits until somebody writes into it, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "1.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "2.png")
    for name in ("pipe", "zero", "pictures"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    found, problems = clips.find_clips(tmp_path)
    assert [clip.name for clip in found] == ["pictures"] and not problems
    assert [picture.name for picture in clips.pictures_in(tmp_path / "pictures")] == ["2.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "SECRET,PASSWORD\n1,2\n"),
        ("metadata.csv", "file_name,text\n" + "SECRET" * 50_000 + ",b\n"),
        ("metadata.jsonl", '{"file_name": SECRET'),
        ("metadata.jsonl", '["SECRET"]'),
        ("metadata.jsonl", '{"SECRET": 1}'),
    ],
    ids=["columns", "long field", "json", "list", "key"],
)
def test_messages_do_not_repeat_a_file(tmp_path: Path, name: str, content: str) -> None:
    """Any file can be called metadata.csv; what is in it belongs in no message, log or shared error report."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        clips.find_clips(tmp_path)
    assert "SECRET" not in str(caught.value) and name in str(caught.value)


def test_captions_and_lists_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption of gigabytes would fill the memory before the tokenizer cuts it to 226 tokens."""
    write_clip(tmp_path / "a.mkv", pixels(1))
    (tmp_path / "a.txt").write_text("x" * (clips.MAX_CAPTION_BYTES + 1))
    _, problems = clips.find_clips(tmp_path)
    assert len(problems) == 1 and "has more than 65536 bytes" in problems[0]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mkv", "text": "x" * 70_000}))
    _, problems = clips.find_clips(tmp_path)
    assert len(problems) == 1 and "more than 65536 bytes" in problems[0]
    monkeypatch.setattr(caption_lists, "MAX_LIST_BYTES", 1000)
    with pytest.raises(UserError, match="has more than 1000 bytes"):
        clips.find_clips(tmp_path)


def test_reading_ends_when_the_run_is_cancelled(tmp_path: Path) -> None:
    """Listing, hashing and probing a large dataset take minutes: the button must work meanwhile."""
    path = write_clip(tmp_path / "a.mkv", pixels(9))
    animation = tmp_path / "b.gif"
    flat = [Image.new("RGB", (64, 64), (20 * i, 0, 0)) for i in range(3)]
    flat[0].save(animation, save_all=True, append_images=flat[1:])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mkv", "text": "a"}))
    segment = segments.Segment(tuple(range(9)), 64, 64, CENTRE)
    for work in (
        lambda: clips.find_clips(tmp_path),
        lambda: cache.hash_clip(path),
        lambda: segments.probe_clip(path),
        lambda: segments.probe_clip(animation),
        lambda: segments.read_segment(path, segment),
    ):
        mm.interrupt_current_processing(True)
        try:
            with pytest.raises(mm.InterruptProcessingException):
                work()
        finally:
            mm.interrupt_current_processing(False)
        work()
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a.txt").write_text("a")
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        clips.find_clips(tmp_path)


def test_a_video_that_declares_a_huge_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reserves what a header declares, for each of its threads, before it reads the first frame."""
    path = write_clip(tmp_path / "a.mkv", pixels(9))
    monkeypatch.setattr(segments, "_MAX_PIXELS", 1000)
    with pytest.raises(clips.UnusableClipError, match="it declares 64 x 64 pixels"):
        segments.probe_clip(path)


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
    for kept in (times, [round(t, 3) + 7 for t in times]) if count > 1 else (times,):  # as webm keeps them
        moments = range(segments.count_shown(kept, count, fps))
        assert segments.shown_frames(kept, fps, moments) == expected


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
