"""Video files: what is in them is what was handed over, and a video that could not be finished leaves no file."""

import json
import math
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import comfy.cli_args
import comfy.model_management as mm
import folder_paths
import pytest
import torch
from comfy_api.latest import InputImpl, Types

from cogvideox.errors import UserError
from cogvideox.media import video_file as files

WIDTH, HEIGHT = 96, 64
SIZE = (WIDTH, HEIGHT)
THREADS = Path("/proc/self/task")  # one folder each
CODECS = {"mp4 (h264)": "h264", "webm (vp9)": "vp9", "webm (av1)": "av1"}
FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(not files.can_encode(kind.encoder), reason=f"no {kind.encoder} here"))
    for name, kind in files.FORMATS.items()
]


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's output folder, in a temporary folder."""
    folder = tmp_path / "output"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    return folder


def clip(frames: int) -> torch.Tensor:
    """Moving colours without edges, [frames, H, W, 3] in 0 .. 1."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    waves = [torch.sin(x / 17 + t / 5), torch.cos(y / 13 - t / 7), torch.sin((x + y) / 23 + t / 3)]
    return torch.stack(waves, dim=-1).float() * 0.4 + 0.5


def in_chunks(frames: torch.Tensor) -> Iterator[torch.Tensor]:
    """As the VAE hands them out: 9, then 8 at a time."""
    yield frames[:9]
    yield from frames[9:].split(8)


def write(
    frames: torch.Tensor | Iterable[torch.Tensor],
    name: str = "mp4 (h264)",
    prefix: str = "a/b",
    fps: float = 8,
    crf: int = 4,
    **more,
) -> Path:
    metadata = more.pop("metadata", {})
    settings = files.video_settings(name, fps, crf, metadata)
    chunks = in_chunks(frames) if isinstance(frames, torch.Tensor) else frames
    new_path = partial(files.new_video_path, prefix, settings.format.suffix)
    return files.write_video(new_path, chunks, SIZE, settings, **more)


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return -10 * math.log10(float((ours.double() - theirs.double()).square().mean()))


def pictures_in(path: Path) -> torch.Tensor:
    """[frames, H, W, 3] in 0 .. 1, in floats: older readers of ComfyUI round them to 8 bits."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="gbrpf32le") for frame in container.decode(video=0)]
    return torch.stack([torch.from_numpy(frame) for frame in frames])


def sound_in(path: Path) -> tuple[torch.Tensor, int]:
    """[channels, samples], all of them, and their rate: older readers of ComfyUI stop after the first block."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        blocks = [torch.from_numpy(b.to_ndarray()) for f in container.decode(stream) for b in resampler.resample(f)]
        return torch.cat(blocks, dim=1), stream.rate


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("fps", [8, 23.976])
@pytest.mark.parametrize("name", FORMATS)
def test_frames_come_back(output: Path, name: str, fps: float) -> None:
    """A lost frame, another rate or a shift of the colours would be in every video that is made."""
    frames = clip(17)
    path = write(frames, name, fps=fps)
    assert path == output / "a" / f"b_00001_.{name.split()[0]}"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == CODECS[name]
        picture = next(container.decode(video=0))
        assert (picture.colorspace, picture.color_range) == (1, 1), "BT.709, limited"
    video = InputImpl.VideoFromFile(str(path)).get_components()
    assert video.images.shape == frames.shape
    assert abs(video.frame_rate - Fraction(round(fps * 1000), 1000)) < Fraction(fps) / 500
    shown = pictures_in(path)
    assert psnr(shown, frames) > 41
    assert (shown - frames).mean(dim=(0, 1, 2)).abs().max() < 1 / 255, "no tint"


def test_exact_rate(output: Path) -> None:
    """A rate off by a thousandth runs away from the sound."""
    with av.open(str(write(clip(9), fps=23.976))) as container:
        assert container.streams.video[0].average_rate == Fraction(23976, 1000)


@pytest.mark.skipif(not THREADS.is_dir() or os.geteuid() != 0, reason="encoders ask for it as root, on Linux")
@pytest.mark.parametrize("name", CODECS)
def test_no_thread_has_real_time_priority(output: Path, name: str) -> None:
    """SVT-AV1 took it for itself and for the thread that runs ComfyUI's graphs, to the process's end."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(thread.name)) for thread in THREADS.iterdir()}

    def chunks() -> Iterator[torch.Tensor]:
        yield clip(9)
        found.append((policies(), len(list(THREADS.iterdir()))))

    found: list[tuple[set[int], int]] = []
    threads = len(list(THREADS.iterdir()))
    write(chunks(), name)
    ((during, count),) = found
    assert during == policies() == {os.SCHED_OTHER}
    assert count > threads or "av1" not in name  # its threads are there from the beginning


def tags(path: Path) -> dict[str, str]:
    """A file's own tags, by small names: WebM has them in capitals."""
    with av.open(str(path)) as container:
        found = {name.lower(): value for name, value in container.metadata.items()}
    return {name: value for name, value in found.items() if name in ("prompt", "workflow", "more")}


PROMPT = {"1": {"class_type": "A", "inputs": {"text": "a “panda” 🐼"}}}
PNGINFO = {"workflow": {"nodes": [1]}, "more": 2}


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_is_that_of_save_video(output: Path, name: str) -> None:
    """A video dropped on the canvas opens its workflow only where it is written as ComfyUI's nodes write it."""
    metadata = files.workflow_metadata(PROMPT, PNGINFO)
    found = tags(write(clip(1), name, metadata=metadata))
    components = Types.VideoComponents(images=clip(1), frame_rate=Fraction(8))
    reference = InputImpl.VideoFromComponents(components)
    reference.save_to(str(output / "reference.mp4"), metadata=PNGINFO | {"prompt": PROMPT})
    assert found == tags(output / "reference.mp4")
    assert json.loads(found["prompt"]) == PROMPT and json.loads(found["workflow"]) == PNGINFO["workflow"]


def test_metadata_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts ComfyUI with --disable-metadata does not want the prompt to travel with the video."""
    assert files.workflow_metadata(None, None) == {}
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    assert files.workflow_metadata(PROMPT, PNGINFO) == {}


def test_one_chunk_at_a_time(output: Path) -> None:
    """Frames that pile up are what this file is to save people from."""
    alive, handed, written = weakref.WeakSet(), [0], [0]

    def chunks() -> Iterator[torch.Tensor]:
        for _ in range(5):
            assert not alive, "the last chunk is still held"
            assert written == handed, "the last chunk is not written"
            chunk = clip(8)
            alive.add(chunk)
            handed[0] += len(chunk)
            yield chunk
            del chunk

    def on_frame() -> None:
        written[0] += 1

    write(chunks(), on_frame=on_frame)
    assert written == [40]


class Stop(BaseException):
    """As ComfyUI's own, no Exception."""


@pytest.mark.parametrize("error", [Stop, mm.InterruptProcessingException, RuntimeError, GeneratorExit])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("after", [0, 5, 17])
def test_what_is_stopped_leaves_nothing(output: Path, name: str, error: type, after: int) -> None:
    """Half a video that looks complete, or gigabytes of hidden partial files."""

    def chunks() -> Iterator[torch.Tensor]:
        yield from clip(after).split(1)
        raise error()

    with pytest.raises(RuntimeError if error is RuntimeError else error):
        write(chunks(), name)
    assert left_in(output) == []


def test_interrupt_is_seen_between_frames(output: Path) -> None:
    """Cancel must work while a chunk is encoded, not only when the decoder asks."""
    seen = []

    def on_frame() -> None:
        seen.append(1)
        if len(seen) == 3:
            mm.interrupt_current_processing()

    with pytest.raises(mm.InterruptProcessingException):
        write(clip(9), on_frame=on_frame)
    assert len(seen) == 3 and left_in(output) == []


def test_nothing_is_written_over(output: Path) -> None:
    """Another program may take the name while the video is made, which lasts minutes."""

    def chunks() -> Iterator[torch.Tensor]:
        yield clip(9)
        assert {name[0] for name in left_in(output)} == {"."}, "no name before it is complete"
        (output / "a" / "b_00001_.mp4").write_text("theirs")

    assert write(chunks()).name == "b_00002_.mp4"
    assert (output / "a" / "b_00001_.mp4").read_text() == "theirs"
    assert left_in(output) == ["b_00001_.mp4", "b_00002_.mp4"]


def test_a_disk_that_fills_up(output: Path) -> None:
    """The system's own words are lost in a stack trace, and the part stays and keeps the disk full."""
    resource = pytest.importorskip("resource", reason="no limit to a file's size on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = torch.rand(17, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(UserError, match=r"b_00001_.mp4 cannot be written: .*free space"):
            write(noise, crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(output) == []


def test_a_disk_with_no_room(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    """Found before minutes of decoding, with the folder and both sizes."""
    usage = shutil.disk_usage(output)._replace(free=49_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="has 49 MB left; 1 frames of 96 x 64 may need 50 MB"):
        files.require_room(output, WIDTH, HEIGHT, 1)
    with pytest.raises(UserError, match="1025 frames of 1360 x 768 may need 161 MB"):
        files.require_room(output, 1360, 768, 1025)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=51_000_000))
    files.require_room(output, WIDTH, HEIGHT, 49)


def never() -> Iterator[torch.Tensor]:
    raise AssertionError("decoding has begun")
    yield


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("../out", "is not a valid file name"),
        ("", "is not a valid file name"),
        (None, "is not a valid file name"),
        ("file/video", "There is no folder"),
        ("n" * 300, "more than 200 bytes"),
    ],
)
def test_bad_prefix(output: Path, prefix: str, words: str) -> None:
    """Before the first frame is decoded."""
    (output / "file").write_text("in the way")
    with pytest.raises(UserError, match=words):
        write(never(), prefix=prefix)
    assert left_in(output.parent) == ["file"]


def test_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, output: Path) -> None:
    """Before the first frame is decoded. (Tests may run as root, whom no permission stops.)"""
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="output/a cannot be written to. Change its permissions"):
        write(never())


def test_unknown_format_and_missing_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is built in many ways; the message names what this one can write."""
    with pytest.raises(UserError, match=r"'gif' is not a video format. Choose one of mp4 \(h264\), webm"):
        files.video_settings("gif", 8, 18)
    monkeypatch.setattr(files, "can_encode", lambda encoder: encoder == "libvpx-vp9")
    with pytest.raises(UserError, match=r"without libx264 and cannot write mp4 .* It can write webm \(vp9\): "):
        files.video_settings("mp4 (h264)", 8, 18)
    monkeypatch.undo()
    assert not files.can_encode("libnone")


@pytest.mark.parametrize("fps", [0, -8, 1000.5, float("nan"), float("inf")])
def test_bad_rate(fps: float) -> None:
    """A linked number has no limits."""
    with pytest.raises(UserError, match="fps is .*: use 0.01 to 1000"):
        files.video_settings("mp4 (h264)", fps, 18)


def test_bad_crf() -> None:
    """x264 takes 52 and more for 51 without a word."""
    with pytest.raises(UserError, match=r"crf is 52: for mp4 \(h264\) use 0 \(best\) to 51"):
        files.video_settings("mp4 (h264)", 8, 52)
    files.video_settings("webm (vp9)", 8, 63)
    with pytest.raises(UserError, match="crf is -1"):
        files.video_settings("webm (vp9)", 8, -1)


def tone(seconds: float, rate: int, channels: int) -> dict:
    """A hum of 440 Hz, and 220 Hz on the second channel."""
    t = torch.arange(int(seconds * rate)) / rate
    waves = [0.5 * torch.sin(2 * math.pi * 440 / (1 + c) * t) for c in range(channels)]
    return {"waveform": torch.stack(waves)[None], "sample_rate": rate}


@pytest.mark.parametrize(("seconds", "rate", "channels"), [(5, 44100, 2), (0.5, 48000, 1), (5, 22050, 6)])
@pytest.mark.parametrize("name", FORMATS)
def test_sound(output: Path, name: str, seconds: float, rate: int, channels: int) -> None:
    """Sound at another speed or longer than the video, which then ends in a still picture."""
    audio = tone(seconds, rate, channels)
    video = write(clip(17), name, sound=files.video_sound(audio))
    components = InputImpl.VideoFromFile(str(video)).get_components()
    assert len(components.images) == 17
    assert components.audio is not None
    heard, heard_rate = sound_in(video)
    assert len(heard) == channels == components.audio["waveform"].shape[1]
    assert abs(heard.shape[1] / heard_rate - min(seconds, 17 / 8)) < 0.08, "aac and opus fill their last block"
    spectrum = torch.fft.rfft(heard[0, : heard_rate // 4].double()).abs()
    assert abs(int(spectrum.argmax()) * 4 - 440) <= 8
    assert heard[0, : heard_rate // 4].square().mean().sqrt() == pytest.approx(0.5 / math.sqrt(2), abs=0.03)


def test_bad_sound() -> None:
    """Refused before decoding, not by the encoder in the middle of the video."""
    assert files.video_sound(None) is None
    assert files.video_sound({"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}) is None
    with pytest.raises(UserError, match=r"shape \[1, 3, 9\].* 1, 2 or 6 channels"):
        files.video_sound({"waveform": torch.zeros(1, 3, 9), "sample_rate": 44100})
    with pytest.raises(UserError, match="audio contains NaN or Inf"):
        files.video_sound({"waveform": torch.full((1, 1, 9), torch.nan), "sample_rate": 44100})


def test_each_video_has_its_sound() -> None:
    """A batch of sounds belongs to a batch of videos; one sound belongs to all."""
    audio = {"waveform": torch.arange(2.0).view(2, 1, 1), "sample_rate": 8}
    sounds = [files.video_sound(audio, i) for i in range(3)]
    assert [None if sound is None else float(sound.waveform) for sound in sounds] == [0, 1, 1]
