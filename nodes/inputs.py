"""Inputs and outputs that several nodes share."""

from collections.abc import Iterable

import node_helpers
from comfy_api.latest import io

from ..host.placeholders import fill_in
from ..keys import Concat, Latent
from ..media.pictures import FITS
from ..model_loaders.variants import DETECT, FAMILY_NAMES
from ..vae.geometry import SIZE_STEP, TEMPORAL

# MAX_SIDE and MAX_SEED are those of ComfyUI's own nodes (nodes.py).
MAX_SIDE, MAX_FRAMES, MAX_BATCH, MAX_SEED = 16384, 1025, 64, 0xFFFFFFFFFFFFFFFF
MAX_STRENGTH = 10.0
# What weight_dtype means differs from loader to loader, and so does what it may be.
_TRAINED = "in the precision that the checkpoint was trained in, where the device supports it."
_EIGHT_BITS = "fp8_e4m3fn and int8 halve the memory of the large matrices; int8 is the more exact of the two."
MODEL_DTYPE = (
    f"Precision of the weights in memory. default: quantised weights as in the file, others {_TRAINED} {_EIGHT_BITS} "
    "_fast also multiplies in that type, where the device supports it: faster and less exact."
)
TEXT_ENCODER_DTYPE = f"Precision of the weights in memory. default: as in the file. {_EIGHT_BITS}"
VAE_DTYPE = "Precision of the weights and of the computation. default: what ComfyUI prefers on the device."
CONTROL_NET_DTYPE = (
    f"Precision of the weights in memory. default: {_TRAINED} fp8_e4m3fn halves the memory of the large matrices, with "
    "some loss of accuracy."
)
TOY = "CogVideoX-nano is a toy that comes with the pack."
COUNT = "4k + 1: 49 for CogVideoX, 81 for CogVideoX 1.5. The models were trained on 8k + 1."
MODEL_OUT = "The transformer, for CogVideoX Sampler, KSampler and nodes that change a model."
CLIP_OUT = "The text encoder, for CogVideoX Text Encode."
VAE_OUT = "For CogVideoX Decode and the nodes that encode images and videos."
FRAMES_OUT = "The frames, one after the other. The videos of a batch follow each other."
_SIDE = "Pixels, a multiple of 16."
_VIDEOS = "Number of videos in one run."


def model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="From Load CogVideoX Model or Load CogVideoX Pipeline.")


def clip_input() -> io.Clip.Input:
    return io.Clip.Input("clip", tooltip="From Load CogVideoX Text Encoder or Load CogVideoX Pipeline.")


def vae_input() -> io.Vae.Input:
    return io.Vae.Input("vae", tooltip="From Load CogVideoX VAE or Load CogVideoX Pipeline.")


def prompt_inputs() -> list[io.Input]:
    """positive and negative, of a node that adds to them."""
    return [
        io.Conditioning.Input("positive", tooltip="What the video shows, from CogVideoX Text Encode."),
        io.Conditioning.Input("negative", tooltip="The negative prompt, usually empty."),
    ]


def dtype_input(choices: Iterable[str], tooltip: str) -> io.Combo.Input:
    return io.Combo.Input("weight_dtype", options=list(choices), default="default", tooltip=tooltip)


def family_input() -> io.Combo.Input:
    return io.Combo.Input(
        "family",
        options=list(FAMILY_NAMES),
        default=DETECT,
        optional=True,
        advanced=True,
        tooltip="Which model the weights are, where they cannot tell. NimVideo's 2b-img2vid has the shapes of "
        "CogVideoX-Fun-2b-Control, which detect takes it for.",
    )


def size_inputs(tooltip: str = "") -> list[io.Input]:
    """width, height, frames and batch_size of a video. tooltip: a sentence for the end of each."""
    side, frames, batch = (f"{text} {tooltip}".rstrip() for text in (_SIDE, f"Video frames, {COUNT}", _VIDEOS))
    return [
        io.Int.Input("width", default=720, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=side),
        io.Int.Input("height", default=480, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=side),
        # A step of 8 would turn a 21 that is typed into 25: the frontend rounds to multiples of the step.
        io.Int.Input("frames", default=49, min=1, max=MAX_FRAMES, step=TEMPORAL, tooltip=frames),
        io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, tooltip=batch),
    ]


def own_size_inputs() -> list[io.Input]:
    """width and height, where 0 stands for those of the images."""
    tooltip = "Pixels, a multiple of 16. 0: the size of the images, cropped to a multiple of 16."
    return [
        io.Int.Input(name, default=0, min=0, max=MAX_SIDE, step=SIZE_STEP, optional=True, tooltip=tooltip)
        for name in ("width", "height")
    ]


def fit_input() -> io.Combo.Input:
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default="crop",
        optional=True,
        tooltip="For images of another aspect ratio: crop cuts the edges off, letterbox adds black bars. Nothing is "
        "stretched.",
    )


def hold_input(what: str) -> io.Boolean.Input:
    return io.Boolean.Input(
        "hold_last_frame",
        default=False,
        optional=True,
        advanced=True,
        tooltip=f"If {what} is shorter than the clip, repeat its last frame instead of stopping with an error.",
    )


def posterior_inputs() -> list[io.Input]:
    """sample_posterior and seed, for nodes that encode images."""
    return [
        io.Boolean.Input(
            "sample_posterior",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Draw a random sample from the VAE's posterior, as diffusers' pipelines do, instead of taking its "
            "mode.",
        ),
        seed_input("The seed of that sample and of added noise. Use the sampler's seed to get the video of diffusers."),
    ]


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of random numbers that a node draws before sampling. It does not change by itself from run to run: what
    the node encodes stays in ComfyUI's cache.
    """
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
        "noise_augmentation",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.0001,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


def conditioned_outputs(what: str) -> list[io.Output]:
    """Outputs of a node that adds `what` to the prompts: positive, negative and the latent to sample."""
    return [
        io.Conditioning.Output(display_name="positive", tooltip=f"The prompt with {what}, for a sampler."),
        io.Conditioning.Output(display_name="negative", tooltip="The same for the negative prompt."),
        io.Latent.Output(display_name="latent", tooltip="Empty, of this size: for latent_image of a sampler."),
    ]


def conditioned(positive: list, negative: list, values: Concat, latent: Latent) -> io.NodeOutput:
    """Both prompts with `values` (see keys.Concat) added, and the latent. The negative prompt needs them too: the model
    has these input channels in every call.
    """
    both = (node_helpers.conditioning_set_values(conditioning, values) for conditioning in (positive, negative))
    return io.NodeOutput(*both, latent)


def strength_input(tooltip: str) -> io.Float.Input:
    return io.Float.Input("strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.01, tooltip=tooltip)


def range_inputs(what: str) -> list[io.Input]:
    """start_percent and end_percent: the share of the run in which `what` has an effect."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"When {what} starts: 0 is the first step of the run.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip=f"When {what} ends: 1 is the end of the run.",
        ),
    ]


def filled_name(node: type[io.ComfyNode], name: str, size: tuple[int, int] | None = None) -> str:
    """`name` with its placeholders filled in from the workflow that `node` runs in, of which it asks for the hidden
    inputs prompt and extra_pnginfo. size: as in fill_in."""
    return fill_in(name, node.hidden.prompt, node.hidden.extra_pnginfo, size)
