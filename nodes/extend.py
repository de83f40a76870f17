"""Videos longer than a model makes in one run: clip after clip."""

import torch
from comfy_api.latest import io

from ..media.continuation import check_overlap, continuation_latent, join_videos, last_frames
from ..media.pictures import fit_clip
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import SIZE_STEP, TEMPORAL, check_size
from .input_checks import check_vae, checked
from .inputs import COUNT, MAX_FRAMES, fit_input, own_size_inputs, vae_input
from .search_words import SEARCH_WORDS


def _check_continuation(frames: int = MAX_FRAMES, overlap: int = 1, width: int = 0, height: int = 0) -> None:
    """Raises UserError; a width or height of 0 is the clip's own.

    The defaults stand in for what is not known yet when a prompt is queued (input_checks.checked): they fit any other
    value.
    """
    check_size(width or SIZE_STEP, height or SIZE_STEP, frames)
    check_overlap(overlap, frames)


@checked(_check_continuation, check_vae)
class CogVideoXContinueVideo(io.ComfyNode):
    """LATENT out: samples [1, 16, T, h, w], the overlap first; noise_mask [1, 1, T, h, w], 0 there and 1 after it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXContinueVideo",
            display_name="CogVideoX Continue Video",
            category="CogVideoX/extend",
            search_aliases=SEARCH_WORDS["CogVideoXContinueVideo"],
            description="Begin a new clip with the last frames of the previous one. Text to video models continue "
            "the latent; image to video models take last_frames as their start image.",
            inputs=[
                vae_input(),
                io.Image.Input("images", tooltip="The clip so far."),
                io.Int.Input(
                    "frames",
                    default=49,
                    min=1,
                    max=MAX_FRAMES,
                    step=TEMPORAL,
                    tooltip=f"Frames of the new clip, including the overlap: {COUNT}",
                ),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=1,
                    max=MAX_FRAMES,
                    step=TEMPORAL,
                    tooltip="Frames taken over from the end of the clip, 4k + 1: 1 keeps the image, 5 or more also "
                    "keep the motion.",
                ),
                *own_size_inputs(),
                fit_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="For a text to video model: the latent_image of a sampler at denoise 1.",
                ),
                io.Image.Output(
                    display_name="last_frames",
                    tooltip="For an image to video model: the start_image of CogVideoX Image to Video.",
                ),
                io.Int.Output(display_name="overlap", tooltip="For CogVideoX Join Videos."),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae: CogVideoXVAE,
        images: torch.Tensor,
        frames: int,
        overlap: int,
        width: int = 0,
        height: int = 0,
        fit: str = "crop",
    ) -> io.NodeOutput:
        # The frames are encoded again. The latents that they were decoded from would not do: a clip's first latent is
        # of one frame, and every other latent of four.
        pictures = fit_clip(last_frames(images, overlap), width, height, fit)
        return io.NodeOutput(continuation_latent(vae.encode(pictures), frames), pictures, overlap)


@checked()
class CogVideoXJoinVideos(io.ComfyNode):
    """IMAGE out: [A + B - overlap, H, W, C]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXJoinVideos",
            display_name="CogVideoX Join Videos",
            category="CogVideoX/extend",
            search_aliases=SEARCH_WORDS["CogVideoXJoinVideos"],
            description="Join a clip and its continuation, without the frames that both of them show.",
            inputs=[
                io.Image.Input("images_before", tooltip="The video so far."),
                io.Image.Input("images_after", tooltip="The clip that continues it."),
                io.Int.Input(
                    "overlap",
                    default=1,
                    min=0,
                    max=MAX_FRAMES,
                    tooltip="How many frames both show: the overlap of CogVideoX Continue Video. 0 concatenates them.",
                ),
                io.Boolean.Input(
                    "blend",
                    default=False,
                    tooltip="Cross-fade between the two clips over the overlap, which hides a jump in colour.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="All frames in order.")],
        )

    @classmethod
    def execute(
        cls, images_before: torch.Tensor, images_after: torch.Tensor, overlap: int, blend: bool
    ) -> io.NodeOutput:
        return io.NodeOutput(join_videos(images_before, images_after, overlap, blend))
