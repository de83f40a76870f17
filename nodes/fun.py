"""The CogVideoX-Fun models: inpainting (InP) and control."""

import torch
from comfy_api.latest import io

from ..errors import UserError
from ..keys import control_concat, inpaint_concat
from ..media.masks import hold_last
from ..media.pictures import check_pictures, fit_pictures
from ..sockets.conditioning_images import encode_masked_video, known_clip, require_length
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import empty_latent
from .input_checks import check_all_sizes, check_percent_range, check_vae, checked
from .inputs import (
    conditioned,
    conditioned_outputs,
    fit_input,
    hold_input,
    noise_augmentation_input,
    prompt_inputs,
    range_inputs,
    seed_input,
    size_inputs,
    strength_input,
    vae_input,
)
from .search_words import SEARCH_WORDS


@checked(check_all_sizes, check_vae)
class CogVideoXFunInpaint(io.ComfyNode):
    """CONDITIONING with a masked video's latents and mask as concat conditioning; an empty LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXFunInpaint",
            display_name="CogVideoX Fun Inpaint",
            category="CogVideoX/condition",
            search_aliases=SEARCH_WORDS["CogVideoXFunInpaint"],
            description="Keep parts of a video and regenerate the rest, with CogVideoX-Fun InP models: a start image, "
            "an end image, a region, or any of them together.",
            inputs=[
                *prompt_inputs(),
                vae_input(),
                *size_inputs(),
                io.Image.Input("video", optional=True, tooltip="The video of which parts are kept."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White is regenerated, black is kept. One mask for all frames, or one for each.",
                ),
                io.Image.Input("start_image", optional=True, tooltip="The first frame or frames, kept."),
                io.Image.Input("end_image", optional=True, tooltip="The last frame or frames, kept."),
                noise_augmentation_input(
                    "Standard deviation of noise added to what is kept (pixels from -1 to 1), for more motion. "
                    "CogVideoX-Fun V1.1 and later were trained with it; their own programs use 0.0563."
                ),
                seed_input("The seed of that noise."),
                fit_input(),
                hold_input("the video"),
            ],
            outputs=conditioned_outputs("the masked video"),
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: CogVideoXVAE,
        width: int,
        height: int,
        frames: int,
        batch_size: int,
        video: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        start_image: torch.Tensor | None = None,
        end_image: torch.Tensor | None = None,
        noise_augmentation: float = 0.0,
        seed: int = 0,
        fit: str = "crop",
        hold_last_frame: bool = False,
    ) -> io.NodeOutput:
        if video is not None and hold_last_frame:
            video = hold_last(video, frames)
        clip, inpainted = known_clip(video, mask, start_image, end_image, (width, height, frames), fit)
        # 0.5 is where the model's mask channel has its threshold (media.masks.fun_mask).
        if not (inpainted >= 0.5).any():
            raise UserError(
                "The mask is empty: there is nothing to inpaint. Connect a mask that is white where the video changes."
            )
        latents, known = encode_masked_video(vae, clip, inpainted, noise_augmentation, seed)
        values = inpaint_concat(latents, known)
        return conditioned(positive, negative, values, {"samples": empty_latent(width, height, frames, batch_size)})


@checked(check_all_sizes, check_percent_range, check_vae)
class CogVideoXFunControl(io.ComfyNode):
    """CONDITIONING with a control video's latents as concat conditioning; an empty LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXFunControl",
            display_name="CogVideoX Fun Control",
            category="CogVideoX/condition",
            search_aliases=SEARCH_WORDS["CogVideoXFunControl"],
            description="Guide a CogVideoX-Fun Control or Pose model with a control video (poses, edges, depth).",
            inputs=[
                *prompt_inputs(),
                vae_input(),
                io.Image.Input(
                    "control_video",
                    tooltip="One image for each frame: poses, edges or depth, as the model was trained on.",
                ),
                *size_inputs(),
                strength_input("The control video's latents are multiplied by it; the models were trained with 1."),
                *range_inputs("the control"),
                fit_input(),
                hold_input("the control video"),
            ],
            outputs=conditioned_outputs("the control video"),
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: CogVideoXVAE,
        control_video: torch.Tensor,
        width: int,
        height: int,
        frames: int,
        batch_size: int,
        strength: float,
        start_percent: float,
        end_percent: float,
        fit: str = "crop",
        hold_last_frame: bool = False,
    ) -> io.NodeOutput:
        check_pictures(control_video)
        if hold_last_frame:
            control_video = hold_last(control_video, frames)
        require_length(control_video, frames, "The control video")
        latents = vae.encode(fit_pictures(control_video[:frames], width, height, fit)) * strength
        values = control_concat(latents, (start_percent, end_percent))
        return conditioned(positive, negative, values, {"samples": empty_latent(width, height, frames, batch_size)})
