"""Videos longer or larger than a model was made for."""

import comfy.context_windows
from comfy_api.latest import io

from ..errors import UserError
from ..host.compat import patch_context_windows
from ..samplers.comfy_sampler import require_cogvideox
from ..sockets.model import patch_positions
from ..vae.geometry import TEMPORAL, latent_frames
from .checks import checked
from .inputs import MAX_FRAMES

SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform", "batched")


def _check_windows(context_frames: int, overlap_frames: int) -> None:
    if (context_frames - 1) % TEMPORAL or overlap_frames >= context_frames - 1:
        raise UserError(
            f"Windows of {context_frames} frames with an overlap of {overlap_frames} are not possible. Use 4k + 1 "
            "frames, 5 or more (49 for CogVideoX, 81 for 1.5), and an overlap of fewer frames."
        )


@checked(_check_windows)
class CogVideoXContextWindows(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXContextWindows",
            display_name="CogVideoX Context Windows",
            category="CogVideoX/sample",
            search_aliases=["long video", "freenoise", "context options"],
            description="Sample a video of any length in overlapping windows, with ComfyUI's own context windows.",
            inputs=[
                io.Model.Input("model"),
                io.Int.Input(
                    "context_frames",
                    default=49,
                    min=5,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="Frames of a window, 4k + 1: 49 for CogVideoX, 81 for 1.5.",
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
                    tooltip="Where the windows lie: static the same at every step, uniform shifted from step to step, "
                    "looped for videos without an end, batched without overlap.",
                ),
                io.Combo.Input(
                    "fuse_method",
                    options=comfy.context_windows.ContextFuseMethods.LIST_STATIC,
                    default="pyramid",
                    tooltip="How the windows' predictions are averaged where they overlap.",
                ),
                io.Boolean.Input(
                    "freenoise",
                    default=True,
                    tooltip="FreeNoise: later windows begin with the first window's noise, shuffled, for steadier "
                    "content.",
                ),
                io.Boolean.Input(
                    "retain_start_image",
                    default=False,
                    optional=True,
                    tooltip="Image to video: show the start image to every window, not to the first one alone.",
                ),
                io.Boolean.Input(
                    "split_prompts",
                    default=False,
                    optional=True,
                    tooltip="Several prompts joined with Conditioning (Combine): one after the other over the video, "
                    "instead of all at once.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: object,
        context_frames: int,
        overlap_frames: int,
        schedule: str,
        fuse_method: str,
        freenoise: bool,
        retain_start_image: bool = False,
        split_prompts: bool = False,
    ) -> io.NodeOutput:
        require_cogvideox(model.get_model_object("model_sampling"))
        config = model.get_model_object("diffusion_model").config
        pairs = config.patch_size_t or 1
        patched = patch_context_windows(
            model,
            schedule,
            fuse_method,
            freenoise,
            # CogVideoX 1.5 sees whole pairs: 81 frames are 21 latents and one in front
            context_length=-(-latent_frames(context_frames) // pairs) * pairs,
            context_overlap=overlap_frames // TEMPORAL,
            dim=2,
            cond_retain_index_list="0" if retain_start_image else "",
            split_conds_to_windows=split_prompts,
            # a learned table has no place for the frame that ComfyUI puts in front of later windows
            causal_window_fix=not config.use_learned_positional_embeddings,
        )
        return io.NodeOutput(patched)


class CogVideoXPositions(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXPositions",
            display_name="CogVideoX Positions",
            category="CogVideoX/sample",
            search_aliases=["riflex", "long video", "resolution"],
            description="Change how a model counts frames and pixels, for sizes and lengths beyond its own.",
            inputs=[
                io.Model.Input("model"),
                io.Boolean.Input(
                    "riflex",
                    default=False,
                    tooltip="RIFLEx: keep single runs of over 20 latent frames from repeating themselves. Not for 2b.",
                ),
                io.Boolean.Input(
                    "resample_table",
                    default=False,
                    tooltip="CogVideoX-5b-I2V: stretch its learned position table to any size, at some loss.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: object, riflex: bool, resample_table: bool) -> io.NodeOutput:
        return io.NodeOutput(patch_positions(model, riflex, resample_table))
