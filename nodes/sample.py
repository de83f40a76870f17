"""Sampling: one node for the complete run, and its parts for ComfyUI's custom sampling nodes."""

from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..errors import UserError
from ..host.messages import show_on_node
from ..host.protocols import ModelSampling
from ..keys import Latent, without_rng_offset
from ..media.masks import latent_mask
from ..samplers.comfy_sampler import SAMPLERS, SeededNoise, build_sampler, schedule_sigmas
from ..samplers.front import split_front
from ..samplers.guidance import patch_dynamic_cfg, patch_guidance_rescale
from ..samplers.schedule import TRAIN_TIMESTEPS, require_schedule, total_steps
from .input_checks import check_latent_image, checked
from .inputs import MAX_SEED, model_input
from .search_words import SEARCH_WORDS

_SAMPLER_TOOLTIP = "ddim for CogVideoX-2b, dpm for the 5b models, as their model cards recommend."


def _steps_input() -> io.Int.Input:
    return io.Int.Input("steps", default=50, min=1, max=TRAIN_TIMESTEPS, tooltip="50 in the model cards' examples.")


def _cfg_input() -> io.Float.Input:
    return io.Float.Input(
        "cfg",
        default=6.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance strength; the models' authors use 6. At 1 the negative prompt has no effect and a step takes "
        "half the time.",
    )


def _seed_input() -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        control_after_generate=True,
        tooltip="The same seed draws the same noise as a CPU generator in diffusers.",
    )


def _denoise_input() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Below 1 the latent is changed instead of replaced: of a schedule of steps / denoise steps, the last "
        "`steps` are run.",
    )


def _guidance_rescale_input() -> io.Float.Input:
    return io.Float.Input(
        "guidance_rescale",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        optional=True,
        advanced=True,
        tooltip="Against too much contrast at a high cfg, as rescale_noise_cfg in diffusers. 0 switches it off.",
    )


def noise_levels(model: ModelPatcher) -> ModelSampling:
    """The model's noise levels, as patches leave them."""
    levels: Any = model.get_model_object("model_sampling")  # ComfyUI annotates torch.nn.Module
    return levels


def _fitted_mask(latent: Latent) -> torch.Tensor | None:
    """The latent's noise mask [1, 1, T, h, w], or None.

    ComfyUI stretches a mask of any shape over the video, time included: one with a picture for each frame would not
    meet the latents of these frames, of which the first holds one frame and the others four.

    Raises UserError for a mask that fits neither the video nor the latent: see media.masks.latent_mask.
    """
    mask, samples = latent.get("noise_mask"), latent["samples"]
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise UserError(
            f"The latent's noise_mask is a {type(mask).__name__}; a tensor [frames, height, width] is expected. Set "
            "it with Set Latent Noise Mask."
        )
    if mask is None or samples.ndim != 5 or (mask.ndim == 5 and mask.shape[2:] == samples.shape[2:]):
        return mask
    return latent_mask(mask, *samples.shape[2:])


@checked(require_schedule, check_latent_image)
class CogVideoXSample(io.ComfyNode):
    """LATENT out: samples [B, 16, T, H/8, W/8], unscaled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSample",
            display_name="CogVideoX Sampler",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXSample"],
            description="Sample a video with CogVideoX's own schedule and equations. The result equals diffusers' "
            "pipelines. In API JSON this node is CogVideoXSample.",
            inputs=[
                model_input(),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, usually empty."),
                io.Latent.Input(
                    "latent_image", tooltip="Sets the size of the video. Its content has an effect below denoise 1."
                ),
                _seed_input(),
                _steps_input(),
                _cfg_input(),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="ddim", tooltip=_SAMPLER_TOOLTIP),
                io.Boolean.Input(
                    "dynamic_cfg",
                    default=False,
                    tooltip="Change the guidance over the run, as use_dynamic_cfg does in diffusers.",
                ),
                _denoise_input(),
                _guidance_rescale_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The video latent, for CogVideoX Decode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent_image: Latent,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        dynamic_cfg: bool,
        denoise: float,
        guidance_rescale: float = 0.0,
    ) -> io.NodeOutput:
        if dynamic_cfg:
            model = patch_dynamic_cfg(model, steps, cfg)
            cfg = max(cfg, 1.0)  # below 1 there is no guidance, and no second pass of the model either
        model = patch_guidance_rescale(model, guidance_rescale)
        sigmas = schedule_sigmas(noise_levels(model), steps, denoise)
        # As ComfyUI's KSampler: an empty latent of another model gets this one's channels and a frame.
        # This run adds noise of its own: what a run that stopped early has left in front is of no use.
        _, samples = split_front(latent_image["samples"])
        latent: Latent = {**latent_image, "samples": comfy.sample.fix_empty_latent_channels(model, samples)}
        mask = _fitted_mask(latent)
        if denoise <= 0:
            show_on_node("denoise is 0, so no step is run: the latent stays as it is.", cls.hidden.unique_id)
        # build_sampler gets the length of the complete schedule, of which the sigmas may be only the end: the steps of
        # the equations go by it, as in diffusers.
        samples = comfy.sample.sample_custom(
            model,
            SeededNoise(seed).generate_noise(latent),
            cfg,
            build_sampler(sampler, total_steps(steps, denoise) if denoise > 0 else None),
            sigmas,
            positive,
            negative,
            latent["samples"],
            noise_mask=mask,
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        # The note of used-up random numbers holds for this run's noise only: a second run on the result draws its own.
        return io.NodeOutput({**without_rng_offset(latent), "samples": samples})


@checked()
class CogVideoXSampler(io.ComfyNode):
    """SAMPLER out, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSampler",
            display_name="CogVideoX Sampler Select",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXSampler"],
            description="CogVideoX's DDIM or DPM equations as a SAMPLER, for SamplerCustomAdvanced. CogVideoX Sampler "
            "is the node that samples by itself. In API JSON this is CogVideoXSampler, and that one CogVideoXSample.",
            inputs=[io.Combo.Input("sampler", options=list(SAMPLERS), default="ddim", tooltip=_SAMPLER_TOOLTIP)],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, sampler: str) -> io.NodeOutput:
        return io.NodeOutput(build_sampler(sampler))


@checked(require_schedule)
class CogVideoXScheduler(io.ComfyNode):
    """SIGMAS out: [steps + 1]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXScheduler",
            display_name="CogVideoX Scheduler",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXScheduler"],
            description="The noise levels of CogVideoX's own schedule: trailing timesteps with zero terminal SNR.",
            inputs=[model_input(), _steps_input(), _denoise_input()],
            outputs=[io.Sigmas.Output(tooltip="One noise level more than steps, the last one 0.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, steps: int, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(schedule_sigmas(noise_levels(model), steps, denoise))


@checked()
class CogVideoXNoise(io.ComfyNode):
    """NOISE out, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXNoise",
            display_name="CogVideoX Noise",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXNoise"],
            description="Noise in the order in which diffusers draws it: the same seed gives the same video.",
            inputs=[_seed_input()],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(SeededNoise(seed))


@checked()
class CogVideoXDynamicCFG(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDynamicCFG",
            display_name="CogVideoX Dynamic CFG",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXDynamicCFG"],
            description="Change the guidance over the run as diffusers' use_dynamic_cfg does, with any sampler.",
            inputs=[model_input(), _steps_input(), _cfg_input(), _guidance_rescale_input()],
            outputs=[io.Model.Output(tooltip="A copy of the model with this guidance.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, steps: int, cfg: float, guidance_rescale: float = 0.0) -> io.NodeOutput:
        return io.NodeOutput(patch_guidance_rescale(patch_dynamic_cfg(model, steps, cfg), guidance_rescale))
