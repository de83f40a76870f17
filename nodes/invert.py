"""Editing a video: invert it to noise, then generate another video that follows it."""

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..keys import Latent, with_trajectory
from ..samplers.follow import follow_video, read_trajectory
from ..samplers.inversion import inversion_sigmas, record_inversion
from ..samplers.schedule import TRAIN_TIMESTEPS
from .input_checks import check_latent_image, check_percent_range, checked
from .inputs import model_input, range_inputs
from .sample import noise_levels
from .search_words import SEARCH_WORDS


@checked(check_latent_image)
class CogVideoXInvert(io.ComfyNode):
    """LATENT out: samples [B, 16, T, H/8, W/8] at the highest noise level (for an odd T of CogVideoX 1.5 with two more
    frames in front, samplers.front), and the trajectory that led there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXInvert",
            display_name="Invert CogVideoX Video",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXInvert"],
            description="Run DDIM backwards: from an encoded video to the noise that would generate it.",
            inputs=[
                model_input(),
                io.Conditioning.Input("positive", tooltip="An empty prompt, or one that describes the video."),
                io.Conditioning.Input("negative", tooltip="An empty prompt. It has no effect at cfg 1."),
                io.Latent.Input("latent_image", tooltip="The video, from a CogVideoX VAE."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=TRAIN_TIMESTEPS,
                    tooltip="The number of steps of the run that follows. More steps come closer to the exact noise.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="At 1 a run at cfg 1 restores the video; with guidance no run does.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The noise, to be sampled without adding noise; for CogVideoX Follow Video as well.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, positive: list, negative: list, latent_image: Latent, steps: int, cfg: float
    ) -> io.NodeOutput:
        sigmas = inversion_sigmas(noise_levels(model), steps)
        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        sampler, trajectory = record_inversion(steps)
        # The noise is zero, for the run begins with the clean video. The latent's noise mask is left out: all of the
        # video is inverted.
        samples = comfy.sample.sample_custom(
            model,
            torch.zeros_like(latent),
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            latent,
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        )
        return io.NodeOutput(with_trajectory(latent_image, samples, trajectory))


@checked(check_percent_range)
class CogVideoXFollowVideo(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXFollowVideo",
            display_name="CogVideoX Follow Video",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXFollowVideo"],
            description="Generate a video that follows an inverted one with a new prompt, by sharing attention with "
            "it.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the video was inverted with."),
                io.Latent.Input("inverted", tooltip="From Invert CogVideoX Video."),
                *range_inputs("following the video"),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model that follows the video.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, inverted: Latent, start_percent: float, end_percent: float) -> io.NodeOutput:
        return io.NodeOutput(follow_video(model, read_trajectory(inverted, start_percent, end_percent)))
