"""Decode latents to video files, with only a few frames in memory at a time."""

import contextlib
from functools import partial
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import InputImpl, io, ui

from ..host.messages import show_on_node
from ..host.output import check_output_prefix
from ..keys import Latent
from ..media import video_file as files
from ..samplers.front import split_front
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import SPATIAL, check_latents, video_frames
from .decode import MEMORY_MODES
from .file_inputs import checks_files
from .input_checks import check_vae, checked
from .inputs import filled_name, vae_input
from .search_words import SEARCH_WORDS

_FORMAT = next(iter(files.FORMATS))


def _check_quality(format: str, crf: int = 0) -> None:
    files.check_crf(crf, format)


def _check_prefix(filename_prefix: str) -> None:
    check_output_prefix(filename_prefix, "video/CogVideoX")


# frame_rate is a check as well: it raises UserError for an `fps` that it cannot convert.
@checks_files
@checked(check_vae, files.frame_rate, _check_quality, _check_prefix)
class CogVideoXDecodeToFile(io.ComfyNode):
    """LATENT [B, 16, n, h, w] -> B files of 4 n - 3 frames in the output folder. VIDEO out: the first of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDecodeToFile",
            display_name="CogVideoX Decode to File",
            category="CogVideoX/decode",
            search_aliases=SEARCH_WORDS["CogVideoXDecodeToFile"],
            description=(
                "Decode a video latent exactly as diffusers does and write each frame to a video file as soon as it is "
                "decoded: only a few frames are in memory at a time, however long the video is."
            ),
            inputs=[
                vae_input(),
                io.Latent.Input("samples", tooltip="The video latent, from a sampler."),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=files.MIN_FPS,
                    max=files.MAX_FPS,
                    step=0.001,  # 23.976
                    tooltip="Frames per second: 8 for CogVideoX, 16 for CogVideoX 1.5.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/CogVideoX",
                    tooltip="The file's path in ComfyUI's output folder; a number is added. It may contain "
                    "placeholders such as %date:yyyy-MM-dd%, as in Save Video.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(files.FORMATS),
                    default=_FORMAT,
                    tooltip="h264 plays everywhere. vp9 and av1 make smaller files and take longer; av1 stores 10 bits "
                    "per colour.",
                ),
                io.Int.Input(
                    "crf",
                    default=18,
                    min=0,
                    max=files.MAX_CRF,
                    tooltip="Quality: a lower value is better and makes a larger file. 18 is hard to distinguish from "
                    "the frames; Save Video uses 23 for h264, Save WEBM 32. h264 goes up to 51, and its 0 is lossless, "
                    "which browsers do not play.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY_MODES),
                    default="auto",
                    tooltip="As in CogVideoX Decode: the result is the same with each.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="The video's sound, cut to its length."),
            ],
            outputs=[io.Video.Output(tooltip="The file; for a batch, the first one.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        vae: CogVideoXVAE,
        samples: Latent,
        fps: float,
        filename_prefix: str,
        format: str,
        crf: int,
        memory: str,
        audio: dict | None = None,
    ) -> io.NodeOutput:
        check_latents(samples["samples"])
        _, latents = split_front(samples["samples"])  # of a run that stopped early, and no part of the video
        metadata = files.workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        settings = files.video_settings(format, fps, crf, metadata)
        prefix = filled_name(cls, filename_prefix, (SPATIAL * latents.shape[4], SPATIAL * latents.shape[3]))
        paths = _decode(vae, latents, prefix, settings, memory, audio)
        names = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in paths)
        show_on_node(f"Saved {names}.", cls.hidden.unique_id)
        return io.NodeOutput(InputImpl.VideoFromFile(str(paths[0])), ui=ui.PreviewVideo([*map(_saved, paths)]))


def _decode(
    vae: CogVideoXVAE,
    latents: torch.Tensor,
    prefix: str,
    settings: files.VideoSettings,
    memory: str,
    audio: dict | None,
) -> list[Path]:
    """Decode each video of the batch into a file of its own, in order."""
    frames, width, height = video_frames(latents.shape[2]), SPATIAL * latents.shape[4], SPATIAL * latents.shape[3]
    sounds = [files.video_sound(audio, index) for index in range(len(latents))]
    new_path = partial(files.new_video_path, prefix, settings.format.suffix)
    # new_path is called again for each file: the numbers in the names go by the files that exist by then.
    files.require_room(new_path().parent, width, height, len(latents) * frames)
    bar = comfy.utils.ProgressBar(len(latents) * frames)
    paths = []
    for video, sound in zip(latents.split(1), sounds):
        # The suspended generator holds frames and caches on the device: where writing fails or the run is cancelled,
        # they are freed at once, while the exception's traceback would keep them alive.
        with contextlib.closing(vae.decode_stream(video, memory)) as chunks:
            on_frame = partial(bar.update, 1)
            paths.append(files.write_video(new_path, chunks, (width, height), settings, sound, on_frame))
    return paths


def _saved(path: Path) -> ui.SavedResult:
    """The file as the frontend asks for it: its name and its folder, relative to ComfyUI's output folder."""
    root = Path(folder_paths.get_output_directory()).resolve()
    folder = path.parent.relative_to(root)
    return ui.SavedResult(path.name, "" if folder == Path() else str(folder), io.FolderType.output)
