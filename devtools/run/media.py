"""Pictures and videos of a person's own: opened before anything long, and as a server takes them."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
from PIL import Image, ImageOps, UnidentifiedImageError

from cogvideox.errors import UserError
from cogvideox.media.file_formats import PICTURE_FORMATS, VIDEO_FORMATS, VIDEO_OPTIONS, listed
from cogvideox.video_limits import check_amount

from ..errors import DevError
from .requests import Request

_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_MAX_PICTURE_BYTES = 1 << 28  # a checkpoint that is named in the place of a picture would fill the memory


@dataclass(frozen=True)
class Media:
    """A picture or a video as it is uploaded. frames, fps: of a video; 1 and 0 of a picture."""

    data: bytes
    suffix: str
    sha256: str
    frames: int = 1
    fps: float = 0.0

    @property
    def name(self) -> str:
        """A file name of its own for these contents."""
        return f"{self.sha256[:32]}{self.suffix}"


def read_media(requests: Iterable[Request]) -> dict[Path, Media]:
    """Every picture and video of the requests. Raises: DevError, with the name that the person has written."""
    found: dict[Path, Media] = {}
    for request in requests:
        for name, read in (("image", _read_picture), ("video", _read_video)):
            path = request.file(name)
            if path is not None and path not in found:
                place = f"{request.label(name)} names {request.values[name]}"
                try:
                    found[path] = read(path, place)
                except OSError as error:
                    raise DevError(f"{place}, which cannot be read: {error.strerror or error}.") from error
    return found


def _read_picture(path: Path, place: str) -> Media:
    """One still picture; one that its camera only marks as turned is turned."""
    with path.open("rb") as file:
        data = file.read(_MAX_PICTURE_BYTES + 1)
    if len(data) > _MAX_PICTURE_BYTES:
        raise DevError(f"{place}, which has more than {_MAX_PICTURE_BYTES >> 20} MiB: give a PNG or JPEG file.")
    digest = hashlib.sha256(data).hexdigest()
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            # A phone's MPO is one picture with small ones beside it.
            count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
            picture.load()
            if picture.getexif().get(_ORIENTATION, 1) != 1:
                upright = io.BytesIO()
                ImageOps.exif_transpose(picture).convert("RGB").save(upright, "PNG")
                data = upright.getvalue()
    except UnidentifiedImageError as error:  # it names an object of Python's, and nothing of the file
        raise DevError(
            f"{place}, which is not a picture that can be read: give a file in {listed(PICTURE_FORMATS)}."
        ) from error
    # Decoders of damaged files raise nearly anything; decompression bombs have an error of their own.
    except Exception as error:
        raise DevError(
            f"{place}, which is not a picture that can be read ({error}): give a file in {listed(PICTURE_FORMATS)}."
        ) from error
    if count > 1:
        raise DevError(f"{place}, which has {count} pictures: give one picture, or a video with --video.")
    return Media(data, ".png" if data[:4] == b"\x89PNG" else path.suffix.lower() or ".png", digest)


def _read_video(path: Path, place: str) -> Media:
    """A video with at least one frame. All of its frames together must fit into a run."""
    try:
        with av.open(str(path), options=VIDEO_OPTIONS) as container:
            if not container.streams.video:
                raise DevError(f"{place}, in which there is no video: give another file.")
            stream = container.streams.video[0]
            frames = 0
            for frame in container.decode(stream):
                frames += 1
                # Decoding on to the end of a film would take hours: the limit is met long before.
                check_amount(frame.width, frame.height, frames)
            fps = float(stream.average_rate or 0)
    except UserError as error:
        # The server decodes all of it into memory.
        raise DevError(f"{place}, which is too long: {error} Cut the part out that you need.") from error
    except (av.error.FFmpegError, ValueError) as error:
        raise DevError(
            f"{place}, which is not a video that can be read ({error}): give a file in {listed(VIDEO_FORMATS)}."
        ) from error
    if not frames:
        raise DevError(f"{place}, in which there are no frames: give another file.")
    data = path.read_bytes()
    return Media(data, path.suffix.lower() or ".mp4", hashlib.sha256(data).hexdigest(), frames, fps)
