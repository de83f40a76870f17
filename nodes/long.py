"""Videos longer or larger than those a model was trained on."""

from typing import Any

import comfy.context_windows
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..errors import UserError
from ..host.compat import patch_context_windows
from ..samplers.comfy_sampler import require_cogvideox
from ..sockets.model import patch_positions
from ..vae.geometry import TEMPORAL, latent_frames
from .input_checks import checked
from .inputs import MAX_FRAMES, model_input
from .sample import noise_levels
from .search_words import SEARCH_WORDS

# The names of comfy.context_windows.ContextSchedules.
SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")


def _check_windows(context_frames: int, overlap_frames: int) -> None:
    # ComfyUI goes from window to window in steps of length - overlap, in latents, and fails where these are 0.
    if (context_frames - 1) % TEMPORAL or overlap_frames >= context_frames - 1:
        raise UserError(
            f"Windows of {context_frames} frames with an overlap of {overlap_frames} are not possible. Use 4k + 1 "
            "frames, 5 or more (49 for CogVideoX, 81 for 1.5), and an overlap of fewer frames."
        )


def _prompt_inputs() -> list[io.Input]:
    """What of the conditioning each window gets."""
    return [
        io.Boolean.Input(
            "retain_start_image",
            default=False,
            optional=True,
            tooltip="Image to video: give the start image to every window, not only to the first one.",
        ),
        io.Boolean.Input(
            "split_prompts",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Prompts joined with Conditioning (Combine) apply one after the other over the video, "
            "instead of all at once.",
        ),
    ]


@checked(_check_windows)
class CogVideoXContextWindows(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXContextWindows",
            display_name="CogVideoX Context Windows",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXContextWindows"],
            description="Sample a video of any length in overlapping windows, with ComfyUI's own context windows.",
            inputs=[
                model_input(),
                io.Int.Input(
                    "context_frames",
                    default=49,
                    min=5,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="Frames per window, 4k + 1: 49 for CogVideoX, 81 for 1.5.",
                ),
                io.Int.Input(
                    "overlap_frames",
                    default=16,
                    min=0,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="Frames that neighbouring windows share. More is smoother and slower.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="standard_static",
                    tooltip="The positions of the windows. static: the same at every step. uniform: shifted from step "
                    "to step. looped: the end continues at the start, for endless videos. batched: without overlap.",
                ),
                io.Combo.Input(
                    "fuse_method",
                    options=comfy.context_windows.ContextFuseMethods.LIST_STATIC,
                    default="pyramid",
                    advanced=True,
                    tooltip="How the windows' predictions are averaged where they overlap.",
                ),
                io.Boolean.Input(
                    "freenoise",
                    default=True,
                    tooltip="FreeNoise: later windows start from the shuffled noise of the first one, which keeps the "
                    "content consistent.",
                ),
                *_prompt_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model that samples in windows, for any sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        context_frames: int,
        overlap_frames: int,
        schedule: str,
        fuse_method: str,
        freenoise: bool,
        retain_start_image: bool = False,
        split_prompts: bool = False,
    ) -> io.NodeOutput:
        require_cogvideox(noise_levels(model))
        # Any, for importing the class would import diffusers.
        dit: Any = model.get_model_object("diffusion_model")
        pairs = dit.config.patch_size_t or 1
        patched = patch_context_windows(
            model,
            schedule,
            fuse_method,
            freenoise,
            # CogVideoX 1.5 takes latents in pairs: 81 frames are 21 latents and one more in front, rounded up to 22.
            context_length=-(-latent_frames(context_frames) // pairs) * pairs,
            context_overlap=overlap_frames // TEMPORAL,
            dim=2,  # of time in [B, C, T, H, W]
            cond_retain_index_list="0" if retain_start_image else "",
            split_conds_to_windows=split_prompts,
            # ComfyUI prepends the frame before it to each window but the first. A learned table fits one number of
            # frames and has no position for another.
            causal_window_fix=not dit.config.use_learned_positional_embeddings,
        )
        return io.NodeOutput(patched)


@checked()
class CogVideoXPositions(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXPositions",
            display_name="CogVideoX Positions",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXPositions"],
            description="Change the position embeddings of a model, for sizes and lengths beyond those it was trained "
            "on.",
            inputs=[
                model_input(),
                io.Boolean.Input(
                    "riflex",
                    default=False,
                    tooltip="RIFLEx: keep a single run of more than 20 latent frames from repeating itself. Not for "
                    "CogVideoX-2b.",
                ),
                io.Boolean.Input(
                    "resample_table",
                    default=False,
                    tooltip="CogVideoX-5b-I2V: interpolate its learned position table to any size, with some loss of "
                    "quality.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model with these positions, for any sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, riflex: bool, resample_table: bool) -> io.NodeOutput:
        return io.NodeOutput(patch_positions(model, riflex, resample_table))
