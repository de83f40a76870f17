"""Pictures and videos of one's own: what is wrong with one is found before a server starts."""

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.codec import UnknownCodecError
from PIL import Image

from cogvideox import video_limits
from cogvideox.devtools import paths
from cogvideox.devtools.errors import DevError
from cogvideox.devtools.run import media
from cogvideox.devtools.run.media import read_media
from cogvideox.devtools.run.requests import Request
from cogvideox.media.file_formats import PICTURE_FORMATS, VIDEO_FORMATS, listed

from .conftest import encode_video


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def animation() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 100, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, kind)
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("image", b"no picture", "is not a picture that can be read"),
        ("image", b"", "is not a picture that can be read"),
        ("image", jpeg()[:2000], "is not a picture that can be read"),
        ("image", animation(), "has 3 pictures"),
        ("image", b"P3 1 1 255 12 34 56", "is not a picture that can be read"),  # plain text that Pillow takes for one
        ("image", saved("TGA"), "is not a picture that can be read"),  # as nearly any file without a mark
        ("image", saved("EPS"), "is not a picture that can be read"),  # a program
        ("video", b"no video", "is not a video that can be read"),
        ("video", b"", "is not a video that can be read"),
        ("video", sound(), "in which there is no video"),
    ],
)
def test_wrong_file_is_named_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: bytes, words: str
) -> None:
    """ComfyUI would name a copy in its input folder, after its start and the loading of the model."""
    monkeypatch.chdir(tmp_path)
    Path("mine").write_bytes(data)
    with pytest.raises(DevError, match=f"--{kind} names ./mine, .*{words}"):
        read_media([Request({kind: "./mine"})])


def test_a_playlist_is_no_video(tmp_path: Path, video: Callable[..., Path]) -> None:
    """FFmpeg opens what it names: files of this machine first, and then those of the server that it is uploaded to."""
    name = video(9).name
    for text in (f"ffconcat version 1.0\nfile {name}\n", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(DevError, match="which is not a video that can be read"):
            read_media([Request({"video": str(tmp_path / "list.mp4")})])


@pytest.mark.parametrize("kind, formats", [("image", PICTURE_FORMATS), ("video", VIDEO_FORMATS)])
def test_formats_that_are_taken_are_named(tmp_path: Path, kind: str, formats: tuple[str, ...]) -> None:
    """An AVIF opens in every browser, and its refusal did not say what to convert it to."""
    (tmp_path / "mine").write_bytes(saved("ICO"))
    with pytest.raises(DevError, match=f"can be read.*: give a file in {listed(formats)}.$") as raised:
        read_media([Request({kind: str(tmp_path / "mine")})])
    assert "BytesIO" not in str(raised.value)
    page = " ".join((paths.ROOT / "docs" / "command_line.md").read_text("utf-8").split())
    assert listed(formats) in page


@pytest.mark.parametrize("kind", PICTURE_FORMATS)
def test_every_picture_that_is_named_is_taken(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine").write_bytes(saved(kind))
    assert read_media([Request({"image": str(tmp_path / "mine")})])


@pytest.mark.parametrize(
    "container", ["mp4", "mov", "matroska", "webm", "avi", "gif", "flv", "ogg", "asf", "mpegts", "mpeg"]
)
def test_every_video_that_is_named_is_taken(tmp_path: Path, container: str) -> None:
    """One for each of VIDEO_FORMATS, in its order."""
    codec = {"webm": "libvpx", "gif": "gif", "ogg": "libvpx", "flv": "flv", "mpeg": "mpeg1video"}.get(container)
    try:
        (tmp_path / "mine").write_bytes(encode_video(9, fps=25, container=container, codec=codec or "mpeg4"))
    except UnknownCodecError:
        pytest.skip(f"this FFmpeg has no {codec}")
    (found,) = read_media([Request({"video": str(tmp_path / "mine")})]).values()
    assert found.frames == 9


def test_a_checkpoint_is_not_read_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 GB under a wrong name would fill the memory."""
    assert media._MAX_PICTURE_BYTES == 256 << 20
    monkeypatch.setattr(media, "_MAX_PICTURE_BYTES", 1 << 20)
    (tmp_path / "x.png").write_bytes(bytes(1 + (1 << 20)))
    with pytest.raises(DevError, match="x.png, which has more than 1 MiB: give a PNG or JPEG file"):
        read_media([Request({"image": str(tmp_path / "x.png")})])


def test_film_is_refused_before_it_is_decoded_to_its_end(
    video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server decodes all of a file into memory, whatever part of it is used."""
    monkeypatch.setattr(video_limits, "MAX_VIDEO_PIXELS", 64 * 64 * 20)
    assert read_media([Request({"video": str(video(20))})])
    with pytest.raises(DevError, match="which is too long: 64 x 64 pixels x 21 frames .*Cut the part out"):
        read_media([Request({"video": str(video(99))})])


def test_video_says_its_frames_and_speed(video: Callable[..., Path]) -> None:
    (found,) = read_media([Request({"video": str(video(13, fps=16))})] * 2).values()
    assert (found.frames, found.fps, found.suffix) == (13, 16.0, ".mp4")
    assert found.name == f"{found.sha256[:32]}.mp4"


def test_picture_of_a_turned_phone_is_upright(tmp_path: Path) -> None:
    """Hosts differ in whether they look at the mark; a video of somebody lying on the side comes out."""
    picture = Image.new("RGB", (80, 48))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.jpg", exif=exif)
    (found,) = read_media([Request({"image": str(tmp_path / "phone.jpg")})]).values()
    with Image.open(io.BytesIO(found.data)) as sent:
        assert sent.size == (48, 80) and found.suffix == ".png"
    picture.save(tmp_path / "plain.jpg")
    (found,) = read_media([Request({"image": str(tmp_path / "plain.jpg")})]).values()
    assert found.data == (tmp_path / "plain.jpg").read_bytes() and found.suffix == ".jpg"
