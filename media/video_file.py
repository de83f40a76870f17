"""Video files in ComfyUI's output folder: written while their frames are made; only a complete file is left there."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from comfy.cli_args import args

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..host.output import new_output_path
from ..system.complete_file import complete_file
from .thread_priority import usual_priority

if TYPE_CHECKING:  # PyAV is imported where it is needed: it takes part of a second, and not every run writes a video
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

MIN_FPS, MAX_FPS, MAX_CRF = 0.01, 1000.0, 63
_MIN_FREE_BYTES = 50_000_000  # a disk with less is close to full, however small the video
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # FFmpeg's channel layouts, by number of channels
_ANY_RATE = 48000  # samples a second that every audio encoder here takes
_BT709, _LIMITED = 1, 1  # ITU-T H.273, tables 2 to 4; FFmpeg's pixfmt.h, AVCOL_RANGE_MPEG


@dataclass(frozen=True)
class VideoFormat:
    """A container and what fills it. container, encoder, audio_encoder, pixel_format: by FFmpeg's names."""

    container: str
    encoder: str
    audio_encoder: str
    pixel_format: str
    max_crf: int
    options: Mapping[str, str] = field(default_factory=dict)  # the encoder's
    container_options: Mapping[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        return f".{self.container}"


FORMATS = {
    # Without use_metadata_tags FFmpeg drops the tags that MP4 does not know, and with them the workflow. faststart puts
    # the index in front, so that a browser can play before it has all of the file. Source: ComfyUI
    # comfy_api/latest/_input_impl/video_types.py.
    "mp4 (h264)": VideoFormat(
        "mp4", "libx264", "aac", "yuv420p", 51, container_options={"movflags": "use_metadata_tags+faststart"}
    ),
    # row-mt: by default libvpx encodes with one thread.
    "webm (vp9)": VideoFormat("webm", "libvpx-vp9", "libopus", "yuv420p", 63, {"row-mt": "1", "cpu-used": "2"}),
    # Pixel format and preset as ComfyUI's SaveWEBM has them (comfy_extras/nodes_video.py).
    "webm (av1)": VideoFormat("webm", "libsvtav1", "libopus", "yuv420p10le", 63, {"preset": "6"}),
}


@dataclass(frozen=True)
class VideoSettings:
    """How a video is written. rate: frames a second. crf: the encoder's constant rate factor, 0 the best. metadata: the
    file's tags."""

    format: VideoFormat
    rate: Fraction
    crf: int
    metadata: Mapping[str, str] = field(default_factory=dict)


class Sound(NamedTuple):
    """waveform: [C, S], -1 .. 1; rate: samples a second."""

    waveform: torch.Tensor
    rate: int


def video_settings(name: str, fps: float, crf: int, metadata: Mapping[str, str] | None = None) -> VideoSettings:
    """The settings for what is chosen on a node: name is a key of FORMATS.

    Raises UserError for an unknown format, one that PyAV cannot write here, or a rate or crf out of range.
    """
    kind = find_format(name)
    check_crf(crf, name)
    return VideoSettings(kind, frame_rate(fps), crf, metadata or {})


def find_format(name: str) -> VideoFormat:
    """The format of this name.

    Raises UserError for an unknown one, and for one that this machine's PyAV has no encoder for.
    """
    if name not in FORMATS:
        raise UserError(f"{name!r} is not a video format. Choose one of {', '.join(FORMATS)}.")
    kind = FORMATS[name]
    if not can_encode(kind.encoder):
        import av

        others = ", ".join(other for other in FORMATS if can_encode(FORMATS[other].encoder)) or "none of the others"
        raise UserError(
            f"PyAV {av.__version__} was built without {kind.encoder} and cannot write {name}. It can write {others}: "
            "choose that, or install PyAV as ComfyUI's requirements.txt asks."
        )
    return kind


def can_encode(encoder: str) -> bool:
    """Whether this machine's PyAV has this encoder."""
    from av.codec import Codec

    try:
        return bool(Codec(encoder, "w"))
    # PyAV's UnknownCodecError is a ValueError; versions of PyAV define it in different modules.
    except ValueError:
        return False


def frame_rate(fps: float) -> Fraction:
    """Frames a second, in thousandths as SaveVideo has them.

    Raises UserError for a rate that no video has.
    """
    # Written with `not` so that NaN, which is neither smaller nor larger, is refused as well.
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UserError(
            f"fps is {fps}: use {MIN_FPS:g} to {MAX_FPS:g}; CogVideoX makes 8 frames a second, CogVideoX 1.5 16."
        )
    return Fraction(round(fps * 1000), 1000)


def check_crf(crf: int, format_name: str) -> None:
    """Raises UserError for a quality that the encoder of this format does not know. x264 would take 52 for 51 without
    saying so."""
    most = find_format(format_name).max_crf
    if not 0 <= crf <= most:
        raise UserError(f"crf is {crf}: for {format_name} use 0 (best) to {most}.")


def workflow_metadata(prompt: dict | None, extra_pnginfo: dict | None) -> dict[str, str]:
    """What ComfyUI's own nodes write into a video, so that dropping it on the canvas opens its workflow.

    Source: ComfyUI comfy_extras/nodes_video.py, SaveVideo.
    """
    if args.disable_metadata:
        return {}
    values = dict(extra_pnginfo or {}) | ({} if prompt is None else {"prompt": prompt})
    # Tags are text; ComfyUI's frontend parses each as JSON.
    return {name: json.dumps(value) for name, value in values.items()}


def video_sound(audio: dict | None, index: int = 0) -> Sound | None:
    """The sound of video `index` from an AUDIO of one or several, or None.

    Raises UserError for a number of channels without a layout, and for NaN or Inf.
    """
    if audio is None or 0 in audio["waveform"].shape:
        return None
    waveforms = audio["waveform"]  # [B, C, S]
    if waveforms.ndim != 3 or waveforms.shape[1] not in _LAYOUTS:
        raise UserError(
            f"The audio has shape {list(waveforms.shape)}; expected [batch, channels, samples] with 1, 2 or 6 channels."
        )
    if not torch.isfinite(waveforms).all():
        raise UserError("The audio contains NaN or Inf. Check the node it comes from.")
    return Sound(waveforms[min(index, len(waveforms) - 1)].float().cpu(), int(audio["sample_rate"]))


def new_video_path(prefix: str, suffix: str) -> Path:
    """new_output_path for a video, in a folder that can be written to.

    Raises UserError, which also says where a folder cannot be made.
    """
    path = new_output_path(prefix, suffix, example="video/CogVideoX")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} cannot be written to. Change its permissions, or write to another folder.")
    return path


def require_room(folder: Path, width: int, height: int, frames: int) -> None:
    """Raises UserError where the disk of `folder` would hardly hold a video of this size."""
    # A twentieth of the frames as plain 8-bit RGB: only a guess, since the encoded size depends on the pictures.
    free, needed = shutil.disk_usage(folder).free, max(_MIN_FREE_BYTES, width * height * 3 * frames // 20)
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB left; {frames} frames of {width} x {height} may need "
            f"{needed / 1e6:.0f} MB. Free some space, or move ComfyUI's output folder."
        )


def write_video(
    new_path: Callable[[], Path],
    chunks: Iterable[torch.Tensor],
    size: tuple[int, int],
    settings: VideoSettings,
    sound: Sound | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Path:
    """Write a video and return its path.

    new_path(): a free name; asked again at the end where another program has taken that in the minutes of writing.
    chunks: frames [t, H, W, 3] in 0 .. 1, each written and let go before the next is asked for. size: (width, height).
    sound: cut to the length of the video. on_frame() is called after each frame. Whatever it or `chunks` raises,
    nothing is left behind.

    Raises UserError where the file cannot be written, as far as can be known before the first chunk is asked for.
    """
    with complete_file(new_path(), next_path=new_path) as file:
        # Found out here whether the folder takes a file at all: the system's error says more than FFmpeg's.
        with _explained(file.path):
            file.part.open("xb").close()
        encoder = _Encoder(file.part, file.path, size, settings, sound)
        try:
            for chunk in chunks:
                for frame in chunk:
                    throw_if_interrupted()
                    encoder.add(frame)
                    on_frame()
                # Frees their memory before `chunks` makes the next ones.
                frame = chunk = None
            encoder.finish()
        finally:
            encoder.close()
    return file.path


class _Encoder:
    """A video file that is being written. __init__ writes the header, so that an encoder that refuses its settings does
    so before the first frame is there."""

    def __init__(self, part: Path, path: Path, size: tuple[int, int], settings: VideoSettings, sound: Sound | None):
        import av

        kind = settings.format
        self.part, self.path, self.rate, self.sound = part, path, settings.rate, sound
        self.frames = self.samples = 0
        with _explained(path):
            self.container = av.open(str(part), "w", format=kind.container, options=dict(kind.container_options))
        try:
            with _explained(path):
                self.container.metadata.update(settings.metadata)
                self.video = self._add_video(size, settings)
                self.audio = None if sound is None else self._add_audio(kind.audio_encoder, sound)
                with usual_priority():
                    self.container.start_encoding()
        # Cancel too is one: ComfyUI's InterruptProcessingException. An open file could not be deleted on Windows.
        except BaseException:
            self.close()
            raise

    def _add_video(self, size: tuple[int, int], settings: VideoSettings) -> "VideoStream":
        stream = cast("VideoStream", self.container.add_stream(settings.format.encoder, rate=settings.rate))
        stream.width, stream.height = size
        stream.pix_fmt = settings.format.pixel_format
        stream.bit_rate = 0  # any other value is an upper limit for VP9, whatever its crf
        stream.options = {"crf": str(settings.crf), **settings.format.options}
        # Without these entries a player guesses the colour matrix by the size of the picture: BT.601 for a small one.
        colours = stream.codec_context
        colours.colorspace = colours.color_primaries = colours.color_trc = _BT709
        colours.color_range = _LIMITED
        return stream

    def _add_audio(self, encoder: str, sound: Sound) -> "AudioStream":
        from av.codec import Codec

        # None where the encoder takes any rate. PyAV resamples to the stream's rate.
        rates = Codec(encoder, "w").audio_rates
        rate = sound.rate if not rates or sound.rate in rates else _ANY_RATE
        stream = self.container.add_stream(encoder, rate=rate, layout=_LAYOUTS[len(sound.waveform)])
        return cast("AudioStream", stream)

    def add(self, frame: torch.Tensor) -> None:
        """Write one frame [H, W, 3] in 0 .. 1, and the sound up to its end."""
        import av

        # Rounded, since the cast alone would cut off and darken by half a step. Then full range RGB -> limited range
        # YUV in BT.709, as the stream's entries say; by default FFmpeg converts with BT.601's matrix.
        pixels = frame.float().mul(255).round().clamp(0, 255).to("cpu", torch.uint8).contiguous()
        picture = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24").reformat(
            format=self.video.pix_fmt, dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
        )
        with _explained(self.path):
            self.container.mux(self.video.encode(picture))
            self.frames += 1
            if self.audio is not None and self.sound is not None:
                # Fractions, so that no rounding adds up over the frames.
                until = math.ceil(self.frames / self.rate * self.sound.rate)
                self._add_sound(self.audio, self.sound, until)

    def _add_sound(self, stream: "AudioStream", sound: Sound, until: int) -> None:
        """Write the samples from the last one written up to `until`."""
        import av

        # [C, n]; fltp is 32-bit float, a plane for each channel. Empty once the sound has ended.
        part = sound.waveform[:, self.samples : until]
        if part.shape[1]:
            frame = av.AudioFrame.from_ndarray(part.contiguous().numpy(), format="fltp", layout=_LAYOUTS[len(part)])
            frame.sample_rate, frame.time_base, frame.pts = sound.rate, Fraction(1, sound.rate), self.samples
            self.samples += part.shape[1]
            self.container.mux(stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoders still hold, and the index. All is on the disk then; a full disk is found out here,
        where the error can be explained."""
        with _explained(self.path):
            for stream in (self.video, self.audio):
                if stream is not None:
                    # None asks for the packets that the encoder has held back.
                    self.container.mux(stream.encode(None))
            self.container.close()
            with self.part.open("rb+") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Close the file, complete or not; after `finish` this does nothing."""
        from av.error import FFmpegError

        # Where writing has failed, closing may fail as well; the first error is the one that matters.
        with contextlib.suppress(OSError, FFmpegError):
            self.container.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns errors of the system or of FFmpeg while `path` is written into a UserError."""
    from av.error import FFmpegError

    try:
        yield
    except (OSError, FFmpegError) as error:
        raise UserError(
            f"{path} cannot be written: {error}. Check the free space and the permissions of its folder, or choose "
            "another name or format."
        ) from error
