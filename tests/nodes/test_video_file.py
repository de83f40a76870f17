"""CogVideoXDecodeToFile as ComfyUI runs it: the frames of decode, a few in memory at a time."""

import json
import math
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import comfy.model_management as mm
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_api.latest import InputImpl, io, ui

from cogvideox import errors
from cogvideox.media import video_file
from cogvideox.media.video_file import FORMATS
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes import decode_to_file as nodes
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.support import validated

CHANNELS = 16
SETTINGS: dict[str, Any] = {
    "fps": 8.0,
    "filename_prefix": "video/test",
    "format": "mp4 (h264)",
    "crf": 1,
    "memory": "auto",
}


@pytest.fixture(scope="module")
def vae(tiny_pipelines: dict[str, Path]) -> CogVideoXVAE:
    return load_vae(tiny_pipelines["5b"], "fp32")


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node shows on itself, and a workflow for it to write into its files."""
    lines = []
    given = {io.Hidden.prompt: {"1": "a"}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    monkeypatch.setattr(nodes.CogVideoXDecodeToFile, "hidden", io.HiddenHolder.from_dict(given), raising=False)
    monkeypatch.setattr(nodes, "show_on_node", lambda text, node_id: lines.append(text))
    return lines


@pytest.fixture(autouse=True)
def output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's output folder, in a temporary place."""
    (tmp_path / "output").mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


def latents(frames: int, batch: int = 1, height: int = 8, width: int = 12) -> torch.Tensor:
    """[batch, 16, frames, height, width]; the same over wide areas, for noise is not what codecs are made for."""
    coarse = torch.randn(batch, CHANNELS, 1, 2, 3, generator=torch.Generator().manual_seed(frames))
    return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")


def decode_to_file(vae: CogVideoXVAE, samples: torch.Tensor, **changes: Any) -> tuple[Any, list[dict]]:
    """VIDEO, and the entries of the preview."""
    result = nodes.CogVideoXDecodeToFile.execute(vae, {"samples": samples}, **SETTINGS | changes)
    assert isinstance(result.ui, ui.PreviewVideo)
    preview = result.ui.as_dict()
    assert preview["animated"] == (True,)
    return result.args[0], preview["images"]


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of the brightness, in dB: a video file has its colours at half the size, and these pictures are all edges."""
    difference = (ours.double() - theirs.double()) @ torch.tensor([0.2126, 0.7152, 0.0722]).double()
    return -10 * math.log10(float(difference.square().mean()))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_are_those_of_decode(
    vae: CogVideoXVAE, output: Path, shown: list[str], format_name: str, count: int
) -> None:
    """The file must hold what CogVideoX Decode and Save Video would have made of the latent."""
    samples = latents(count)
    expected = vae.decode(samples)[0]
    video, preview = decode_to_file(vae, samples, format=format_name, fps=16.0)
    suffix = format_name.split()[0]
    assert preview == [{"filename": f"test_00001_.{suffix}", "subfolder": "video", "type": "output"}]
    assert isinstance(video, InputImpl.VideoFromFile)
    assert Path(str(video.get_stream_source())) == output / "video" / f"test_00001_.{suffix}"
    components = video.get_components()
    assert components.images.shape == expected.shape == (4 * count - 3, 64, 96, 3)
    assert psnr(components.images, expected) > 43
    if suffix == "mp4":
        assert components.frame_rate == Fraction(16)
    assert shown[0].startswith(f"Saved test_00001_.{suffix} (0.0 MB)")


def test_workflow_is_in_the_file(vae: CogVideoXVAE, output: Path) -> None:
    """Dropped on the canvas, the video brings its workflow back."""
    video, _ = decode_to_file(vae, latents(1))
    with av.open(video.get_stream_source()) as container:
        assert json.loads(container.metadata["prompt"]) == {"1": "a"}
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}


def test_a_batch_is_as_many_files(vae: CogVideoXVAE, output: Path) -> None:
    """Two videos in one file, or the second over the first."""
    samples = latents(2, batch=2)
    sound = {"waveform": torch.rand(1, 1, 44100) - 0.5, "sample_rate": 44100}
    video, preview = decode_to_file(vae, samples, audio=sound)
    assert [entry["filename"] for entry in preview] == ["test_00001_.mp4", "test_00002_.mp4"]
    assert video.get_stream_source().endswith("test_00001_.mp4")
    for entry, expected in zip(preview, vae.decode(samples)):
        made = InputImpl.VideoFromFile(str(output / "video" / entry["filename"])).get_components()
        assert psnr(made.images, expected) > 43
        assert made.audio is not None


def test_long_video_at_flat_memory(monkeypatch: pytest.MonkeyPatch, vae: CogVideoXVAE, output: Path) -> None:
    """161 frames at 1360 x 768 are 2 GB: with the frames piling up, the node would be CogVideoXDecode again."""
    alive, written, counts = weakref.WeakSet(), [], []
    stream, update = vae.decode_stream, comfy.utils.ProgressBar.update

    def counted(*arguments: Any) -> Iterator[torch.Tensor]:
        handed = 0
        for frames in stream(*arguments):
            assert len(written) == handed, "a chunk was asked for before the last one was written"
            handed += len(frames)
            alive.add(frames)
            counts.append(sum(map(len, alive)))
            yield frames
            del frames

    monkeypatch.setattr(vae, "decode_stream", counted)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", lambda bar, n: written.append(n) or update(bar, n))
    video, _ = decode_to_file(vae, latents(41, height=4, width=4))
    assert len(counts) == 20 and max(counts) <= 9
    assert written == [1] * 161
    assert video.get_components().images.shape == (161, 32, 32, 3)


@pytest.mark.parametrize("frames", [0, 4, 12])
def test_interrupt_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, vae: CogVideoXVAE, output: Path, frames: int
) -> None:
    """Cancel: no half video, no part, no generator that holds the VAE's caches; the videos before are kept."""
    done, closed = [], []
    stream = vae.decode_stream

    def watched(*arguments: Any) -> Iterator[torch.Tensor]:
        try:
            yield from stream(*arguments)
        finally:
            closed.append(True)

    def update(bar: object, n: int) -> None:
        done.append(n)
        if len(done) == 9 + frames:
            mm.interrupt_current_processing()

    monkeypatch.setattr(vae, "decode_stream", watched)
    monkeypatch.setattr(comfy.utils.ProgressBar, "update", update)
    with pytest.raises(mm.InterruptProcessingException):
        decode_to_file(vae, latents(5, batch=2)[:, :, :3] if frames == 0 else latents(5, batch=2))
    mm.interrupt_current_processing(False)
    assert len(done) == 9 + frames
    assert left_in(output) == (["test_00001_.mp4"] if frames != 4 else [])
    assert closed == [True] * (1 if frames == 4 else 2)


def test_numbers_go_on(vae: CogVideoXVAE, output: Path) -> None:
    """A second run writes beside the first, not over it."""
    decode_to_file(vae, latents(1))
    decode_to_file(vae, latents(1))
    assert left_in(output) == ["test_00001_.mp4", "test_00002_.mp4"]


def broken_in(frame: int) -> torch.Tensor:
    samples = latents(5)
    samples[:, 3, frame, 0, 0] = torch.nan
    return samples


REFUSED = [
    (torch.zeros(1, CHANNELS, 0, 8, 12), {}, errors.UserError, "nothing in it to decode"),
    (torch.zeros(0, CHANNELS, 3, 8, 12), {}, errors.UserError, "nothing in it to decode"),
    (torch.zeros(1, 4, 3, 8, 12), {}, errors.UserError, r"shape \[1, 4, 3, 8, 12\]"),
    (torch.zeros(1, CHANNELS, 8, 12), {}, errors.UserError, r"shape \[1, 16, 8, 12\]"),
    (broken_in(3), {}, errors.UserError, r"in latent frame 3 of 5 \(video frames 9 to 12\)"),
    (latents(1), {"fps": 0}, errors.UserError, "fps is 0: use 0.01 to 1000"),
    (latents(1), {"crf": 63}, errors.UserError, "crf is 63"),
    (latents(1), {"format": "avi"}, errors.UserError, "format is 'avi': use mp4 .h264., webm .vp9. or webm .av1."),
    (latents(1), {"filename_prefix": "../up"}, errors.UserError, "is not a valid file name"),
    (latents(1), {"filename_prefix": "taken/video"}, errors.UserError, "There is no folder"),
    (
        latents(1),
        {"audio": {"waveform": torch.zeros(1, 5, 9), "sample_rate": 8}},
        errors.UserError,
        "audio has shape",
    ),
]


@pytest.mark.parametrize(("samples", "changes", "error", "words"), REFUSED)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch,
    vae: CogVideoXVAE,
    output: Path,
    samples: torch.Tensor,
    changes: dict,
    error: type,
    words: str,
) -> None:
    """One message before any work, and no file."""
    (output / "taken").write_text("a file")
    monkeypatch.setattr(vae, "decode_stream", lambda *a: pytest.fail("decoding has begun"))
    with pytest.raises(error, match=words):
        decode_to_file(vae, samples, **changes)
    assert left_in(output) == ["taken"]


def test_no_room(monkeypatch: pytest.MonkeyPatch, vae: CogVideoXVAE, output: Path) -> None:
    """A full disk is found before decoding, for all videos of a batch together."""
    free = video_file.shutil.disk_usage(output)._replace(free=49_000_000)
    monkeypatch.setattr(video_file.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(vae, "decode_stream", lambda *a: pytest.fail("decoding has begun"))
    with pytest.raises(errors.UserError, match="has 49 MB left; 10 frames of 96 x 64 may need 50 MB"):
        decode_to_file(vae, latents(2, batch=2))
    assert left_in(output) == []


def test_another_vae(output: Path) -> None:
    """ComfyUI's own VAE has no such stream and other numbers."""
    with pytest.raises(errors.UserError, match="from another loader"):
        another: Any = object()
        decode_to_file(another, latents(1))


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ((8.0, "video/x", "mp4 (h264)", 18), None),
        ((None, None, None, None), None),
        ((8.0, "video/x", None, 63), None),
        ((0.0, "video/x", "mp4 (h264)", 18), "fps is 0"),
        ((8.0, "../x", "mp4 (h264)", 18), "is not a valid file name"),
        ((8.0, "video/x", "gif", 18), "format is 'gif': use mp4 (h264), webm (vp9) or webm (av1)."),
        ((8.0, "video/x", "mp4 (h264)", 60), "crf is 60"),
    ],
)
def test_widgets_are_checked_before_the_run(output: Path, widgets: tuple, words: str | None) -> None:
    """Else the message comes after minutes of sampling."""
    answer = validated(nodes.CogVideoXDecodeToFile, **dict(zip(("fps", "filename_prefix", "format", "crf"), widgets)))
    assert answer is True if words is None else words in str(answer)
