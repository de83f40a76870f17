"""Sampling: one node that does it all, and its parts for ComfyUI's custom sampler nodes."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..host.messages import show_on_node
from ..keys import rng_offset, without_rng_offset
from ..media.masks import latent_mask
from ..samplers.comfy_sampler import SAMPLERS, SeededNoise, build_sampler, schedule_sigmas
from ..samplers.guidance import patch_dynamic_cfg
from ..samplers.schedule import TRAIN_TIMESTEPS, require_schedule, total_steps
from .inputs import MAX_SEED
from .validation import problem

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
        tooltip="How strongly the prompt pulls; 6 is the models' own. 1 leaves the negative prompt out, twice as fast.",
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
        tooltip="Below 1 the latent is changed, not replaced: the last `steps` of a schedule of steps / denoise run.",
    )


def _check_schedule(steps: int | None, denoise: float | None) -> bool | str:
    """What validate_inputs returns: True, or why the schedule cannot be. A linked value is None: it is known later."""
    return problem(lambda: require_schedule(1 if steps is None else steps, 1.0 if denoise is None else denoise))


def _fitted_mask(latent: dict) -> torch.Tensor | None:
    """The latent's noise mask in latent frames. (ComfyUI would stretch one of any shape over the video.)"""
    mask, samples = latent.get("noise_mask"), latent["samples"]
    if mask is None or samples.ndim != 5 or (mask.ndim == 5 and mask.shape[2:] == samples.shape[2:]):
        return mask
    return latent_mask(mask, *samples.shape[2:])


class CogVideoXSample(io.ComfyNode):
    """LATENT out: samples [B, 16, T, H/8, W/8], unscaled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSample",
            display_name="CogVideoX Sampler",
            category="CogVideoX/sample",
            search_aliases=["ksampler", "text to video", "t2v", "ddim", "dpm"],
            description="Sample a video with CogVideoX's own schedule and equations, equal to diffusers' pipelines.",
            inputs=[
                io.Model.Input("model", tooltip="From Load CogVideoX Model or Load CogVideoX Pipeline."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it keeps away from; an empty prompt is usual."),
                io.Latent.Input("latent_image", tooltip="Its size is the video's. Its content counts below denoise 1."),
                _seed_input(),
                _steps_input(),
                _cfg_input(),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="ddim", tooltip=_SAMPLER_TOOLTIP),
                io.Boolean.Input(
                    "dynamic_cfg", default=False, tooltip="Let the guidance change over the run, as diffusers can."
                ),
                _denoise_input(),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None, denoise: float | None) -> bool | str:
        return _check_schedule(steps, denoise)

    @classmethod
    def execute(
        cls,
        model: object,
        positive: list,
        negative: list,
        latent_image: dict,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        dynamic_cfg: bool,
        denoise: float,
    ) -> io.NodeOutput:
        model = patch_dynamic_cfg(model, steps, cfg) if dynamic_cfg else model
        sigmas = schedule_sigmas(model.get_model_object("model_sampling"), steps, denoise)
        latent = {**latent_image, "samples": comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])}
        mask = _fitted_mask(latent)
        if denoise <= 0:
            show_on_node("denoise 0 leaves no step to run: the latent stays as it is.", cls.hidden.unique_id)
        samples = comfy.sample.sample_custom(
            model,
            SeededNoise(seed).generate_noise(latent),
            cfg,
            build_sampler(sampler, total_steps(steps, denoise) if denoise > 0 else None, rng_offset(latent, seed)),
            sigmas,
            positive,
            negative,
            latent["samples"],
            noise_mask=mask,
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        # another run on this latent begins the seed's stream at its start
        return io.NodeOutput({**without_rng_offset(latent), "samples": samples})


class CogVideoXSampler(io.ComfyNode):
    """SAMPLER out, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSampler",
            display_name="CogVideoX Sampler Select",
            category="CogVideoX/sample",
            description="CogVideoX's DDIM or DPM equations as a SAMPLER.",
            inputs=[io.Combo.Input("sampler", options=list(SAMPLERS), default="ddim", tooltip=_SAMPLER_TOOLTIP)],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler: str) -> io.NodeOutput:
        return io.NodeOutput(build_sampler(sampler))


class CogVideoXScheduler(io.ComfyNode):
    """SIGMAS out: [steps + 1]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXScheduler",
            display_name="CogVideoX Scheduler",
            category="CogVideoX/sample",
            description="The noise levels of CogVideoX's own schedule: trailing timesteps, zero terminal SNR.",
            inputs=[io.Model.Input("model"), _steps_input(), _denoise_input()],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None, denoise: float | None) -> bool | str:
        return _check_schedule(steps, denoise)

    @classmethod
    def execute(cls, model: object, steps: int, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(schedule_sigmas(model.get_model_object("model_sampling"), steps, denoise))


class CogVideoXNoise(io.ComfyNode):
    """NOISE out, for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXNoise",
            display_name="CogVideoX Noise",
            category="CogVideoX/sample",
            description="Noise in the order in which diffusers draws it: the same seed gives the same video.",
            inputs=[_seed_input()],
            outputs=[io.Noise.Output()],
        )

    @classmethod
    def execute(cls, seed: int) -> io.NodeOutput:
        return io.NodeOutput(SeededNoise(seed))


class CogVideoXDynamicCFG(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDynamicCFG",
            display_name="CogVideoX Dynamic CFG",
            category="CogVideoX/sample",
            description="Let the guidance change over the run as diffusers' use_dynamic_cfg does, with any sampler.",
            inputs=[io.Model.Input("model"), _steps_input(), _cfg_input()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: object, steps: int, cfg: float) -> io.NodeOutput:
        require_schedule(steps, 1.0)
        return io.NodeOutput(patch_dynamic_cfg(model, steps, cfg))
