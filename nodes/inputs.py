"""Inputs that several nodes share, and the checks that belong to them."""

from collections.abc import Sequence

import node_helpers
from comfy_api.latest import io

from ..errors import UserError
from ..keys import Concat, Latent
from ..media.pictures import FITS
from ..vae.geometry import SIZE_STEP, check_size
from .validation import problem

MAX_SIDE, MAX_FRAMES, MAX_BATCH, MAX_SEED = 16384, 1025, 64, 0xFFFFFFFFFFFFFFFF
MAX_STRENGTH = 10.0
_DTYPE = (
    "Precision of the weights in memory. default: as the file has them, or in the checkpoint's trained precision where "
    "the device computes in it. fp8_e4m3fn and int8 halve the memory of the large matrices; int8 is the more exact of "
    "the two. _fast multiplies in that type as well, where the device can: quicker and less exact."
)
_SIDE = "Pixels, a multiple of 16."
_LIMITS = {"width": MAX_SIDE, "height": MAX_SIDE, "frames": MAX_FRAMES, "batch_size": MAX_BATCH}


def dtype_input(choices: Sequence[str]) -> io.Combo.Input:
    return io.Combo.Input("weight_dtype", options=list(choices), default="default", tooltip=_DTYPE)


def size_inputs() -> list[io.Int.Input]:
    """width, height, frames and batch_size of a video."""
    return [
        io.Int.Input("width", default=720, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=_SIDE),
        io.Int.Input("height", default=480, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=_SIDE),
        io.Int.Input("frames", default=49, min=1, max=MAX_FRAMES, step=8, tooltip="Video frames, 8k + 1."),
        io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, tooltip="Videos made at once."),
    ]


def own_size_inputs() -> list[io.Int.Input]:
    """width and height that may be those of the pictures."""
    tooltip = "Pixels, a multiple of 16. 0: the pictures' own, cut to the next multiple."
    limits = {"min": 0, "max": MAX_SIDE, "step": SIZE_STEP}
    return [io.Int.Input(name, default=0, optional=True, tooltip=tooltip, **limits) for name in ("width", "height")]


def fit_input() -> io.Combo.Input:
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default="crop",
        optional=True,
        tooltip="Pictures of another shape: crop cuts the edges off, letterbox adds black bars. Nothing is stretched.",
    )


def hold_input(what: str) -> io.Boolean.Input:
    return io.Boolean.Input(
        "hold_last_frame",
        default=False,
        optional=True,
        tooltip=f"Where {what} is shorter than the clip, let its last frame stand instead of refusing it.",
    )


def posterior_inputs() -> list[io.Input]:
    """sample_posterior and seed, for nodes that encode pictures."""
    return [
        io.Boolean.Input(
            "sample_posterior",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Take a random sample of the VAE's posterior, as diffusers' pipelines do, instead of its mode.",
        ),
        seed_input("Of that sample and of added noise. The sampler's own seed here gives diffusers' video."),
    ]


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of what is drawn before sampling: it stays as it is from run to run."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=MAX_SEED,
        optional=True,
        advanced=True,
        control_after_generate=False,
        tooltip=tooltip,
    )


def noise_augmentation_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        "noise_augmentation", default=0.0, min=0.0, max=1.0, step=0.0001, optional=True, tooltip=tooltip
    )


def conditioned_outputs() -> list[io.Output]:
    """What a node gives that adds something to the prompts: positive, negative and the latent to sample."""
    return [
        io.Conditioning.Output(display_name="positive"),
        io.Conditioning.Output(display_name="negative"),
        io.Latent.Output(display_name="latent"),
    ]


def conditioned(positive: list, negative: list, values: Concat, latent: Latent) -> io.NodeOutput:
    """`values` (see samplers.conditioning) added to both prompts, and the latent."""
    both = (node_helpers.conditioning_set_values(conditioning, values) for conditioning in (positive, negative))
    return io.NodeOutput(*both, latent)


def strength_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.01, tooltip=tooltip)


def range_inputs(what: str) -> list[io.Float.Input]:
    """start_percent and end_percent of a run."""
    return [
        io.Float.Input(
            "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip=f"When in the run {what} sets in."
        ),
        io.Float.Input(
            "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip=f"When in the run {what} ends."
        ),
    ]


def size_problem(width: int | None, height: int | None, frames: int | None) -> bool | str:
    """What validate_inputs returns for a size. None is a linked value, known only when the node runs."""
    width, height = (SIZE_STEP if side is None else side for side in (width, height))
    return problem(lambda: require_size(width, height, 1 if frames is None else frames))


def require_size(width: int, height: int, frames: int, batch_size: int = 1) -> None:
    """Raises UserError where no video has this size.

    ComfyUI holds neither linked values nor those that validate_inputs takes to their limits, and a million frames too
    many take the whole server down.
    """
    check_size(width, height, frames)
    for (name, most), value in zip(_LIMITS.items(), (width, height, frames, batch_size)):
        if not 1 <= value <= most:
            raise UserError(f"{name} is {value}: use 1 to {most}.")
