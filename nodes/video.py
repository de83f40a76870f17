"""Encode videos for video to video."""

import torch
from comfy_api.latest import io

from ..host.messages import show_on_node
from ..media.masks import latent_mask
from ..media.pictures import check_pictures
from ..sockets.conditioning_images import encode_video
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import latent_frames, video_frames
from ..video_limits import check_amount
from .input_checks import check_own_size, check_vae, checked
from .inputs import MAX_BATCH, fit_input, own_size_inputs, posterior_inputs, vae_input
from .search_words import SEARCH_WORDS


@checked(check_own_size, check_vae)
class CogVideoXEncodeVideo(io.ComfyNode):
    """LATENT out: samples [B, 16, T, H / 8, W / 8], unscaled: the posterior's mode, or a sample of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXEncodeVideo",
            display_name="CogVideoX Encode Video",
            category="CogVideoX/latent",
            search_aliases=SEARCH_WORDS["CogVideoXEncodeVideo"],
            description="Encode a video exactly as diffusers does. Sample it with denoise below 1 to change it.",
            inputs=[
                vae_input(),
                io.Image.Input(
                    "images", tooltip="The frames. The last ones are left out where their number is not 4k + 1."
                ),
                *own_size_inputs(),
                fit_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is regenerated, black is kept. One mask for all frames or one for each, as large as "
                    "the encoded video.",
                ),
                *posterior_inputs(),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=MAX_BATCH,
                    optional=True,
                    advanced=True,
                    tooltip="Number of videos in one run. With sample_posterior each gets a sample of its own, as in "
                    "diffusers.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The encoded video, for latent_image of CogVideoX Sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        vae: CogVideoXVAE,
        images: torch.Tensor,
        width: int = 0,
        height: int = 0,
        fit: str = "crop",
        mask: torch.Tensor | None = None,
        sample_posterior: bool = False,
        seed: int = 0,
        batch_size: int = 1,
    ) -> io.NodeOutput:
        check_pictures(images)
        kept = video_frames(latent_frames(images.shape[0]))  # the largest 4k + 1 that is not above it
        # Before the encoding, which takes minutes: the videos of the batch are copies of this one.
        check_amount(width or images.shape[2], height or images.shape[1], kept, batch_size)
        latent = encode_video(vae, images[:kept], width, height, fit, seed if sample_posterior else None, batch_size)
        if mask is not None:
            latent["noise_mask"] = latent_mask(mask, *latent["samples"].shape[2:])
        if kept < images.shape[0]:
            text = f"{images.shape[0]} frames are not 4k + 1: the last {images.shape[0] - kept} are left out."
            show_on_node(text, cls.hidden.unique_id)
        return io.NodeOutput(latent)
