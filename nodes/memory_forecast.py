"""What a run will take of the card, said before it begins."""

from comfy.controlnet import ControlBase
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..host.compat import is_dynamic
from ..host.memory_rules import GIB, Card, card_of, this_card, total_ram
from ..host.messages import show_on_node
from ..keys import read_compiled_blocks
from ..model_loaders.forecast import (
    Forecast,
    Part,
    VideoSize,
    forecast_run,
    official_text_encoder,
    official_vae,
    text_encoder_of,
    vae_of,
)
from ..sockets.model import require_cogvideox_model
from ..sockets.recommended import describe, recommended_for
from ..sockets.vae import CogVideoXVAE
from .input_checks import check_all_sizes, check_vae_if_any, checked
from .inputs import model_input, size_inputs
from .search_words import SEARCH_WORDS

_MOST_GB = 1024.0
_HEAD = "|  | weights | stay on the card | work | peak |"  # one text, for its translation


@checked(check_all_sizes, require_cogvideox_model, check_vae_if_any)
class CogVideoXMemoryForecast(io.ComfyNode):
    """STRING out: the text that is shown on the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXMemoryForecast",
            display_name="CogVideoX Memory Forecast",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXMemoryForecast"],
            description="Say before a run what it takes of the card, of main memory and of the disk, and which "
            "weight_dtype and memory mode to choose. Nothing is loaded to the card.",
            inputs=[
                model_input(),
                *size_inputs(tooltip="The forecast's own: set it as in your run."),
                io.Vae.Input("vae", optional=True, tooltip="Without one, the VAE of the official checkpoints."),
                io.Clip.Input("clip", optional=True, tooltip="Without one, T5-XXL in 16 bits."),
                io.ControlNet.Input(
                    "control_net", optional=True, tooltip="A ControlNet that is to be on the card as well."
                ),
                io.Float.Input(
                    "card_gb",
                    default=0.0,
                    min=0.0,
                    max=_MOST_GB,
                    step=0.5,
                    optional=True,
                    tooltip="Another card's memory in GB, as it is sold. 0: the card of this machine.",
                ),
            ],
            outputs=[io.String.Output(display_name="forecast", tooltip="The same text, for other nodes.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        width: int,
        height: int,
        frames: int,
        batch_size: int,
        vae: CogVideoXVAE | None = None,
        clip: CLIP | None = None,
        control_net: ControlBase | None = None,
        card_gb: float = 0.0,
    ) -> io.NodeOutput:
        card = card_of(card_gb, is_dynamic(model)) if card_gb else this_card(model)
        forecast = forecast_run(
            model,
            VideoSize(width, height, frames, batch_size),
            card,
            official_text_encoder() if clip is None else text_encoder_of(clip),
            official_vae(card) if vae is None else vae_of(vae),
            control_net,
        )
        notes = [describe_card(card, card_gb), *_stand_ins(vae, clip), *_compiled(model), *advice(forecast)]
        config = model.model.model_config
        if settings := recommended_for(config.family, config.transformer_config):
            notes.append(f"The authors of {forecast.family} recommend {describe(settings)}.")
        # The empty line ends the table where Markdown is drawn: the sentences would be rows of it.
        text = "\n".join([title(forecast), *table(forecast), "", *notes])
        show_on_node(text, cls.hidden.unique_id)
        return io.NodeOutput(text)


def title(forecast: Forecast) -> str:
    """What is forecast."""
    video = forecast.video
    videos = f", {video.batch_size} videos" if video.batch_size > 1 else ""
    return (
        f"{forecast.family}, {video.width} × {video.height}, {video.frames} frames{videos}. "
        "In GiB, counted and not measured:"
    )


def table(forecast: Forecast) -> list[str]:
    """The parts in the order in which they run, as lines that the node shows as a table in its Markdown mode."""
    rows = []
    for name, part in forecast.parts.items():
        weights = part.weights
        shown = f"{name}, mode {part.mode}" if part.mode else name
        sizes = (weights.bytes, weights.resident_bytes, part.working_bytes + weights.buffer_bytes, part.peak_bytes)
        rows.append((shown, *map(_gib, sizes)))
    for weights in forecast.control:
        rows.append(("ControlNet", *map(_gib, (weights.bytes, weights.resident_bytes)), "", ""))
    return [_HEAD, f"|{' --- |' * 5}", *(f"| {' | '.join(row)} |" for row in rows)]


def describe_card(card: Card, card_gb: float) -> str:
    """Which memory the parts have to fit into."""
    free = f"{_gib(card.free_bytes)} GiB"
    if card_gb:
        return f"A card of {card_gb:g} GB has about {free} free: the driver and the desktop are taken to hold 1 GiB."
    if card.keeps_all and card.device.type == "cpu":
        return f"ComfyUI computes on the CPU here: all of it is main memory, of which {free} are free."
    return f"{free} of the card can be free for it."


def _stand_ins(vae: CogVideoXVAE | None, clip: CLIP | None) -> list[str]:
    # Each sentence is a text of its own: what is put together of words cannot be translated.
    if vae is None and clip is None:
        return ["No VAE and no text encoder is connected: that of the official checkpoints is counted."]
    if vae is None:
        return ["No VAE is connected: that of the official checkpoints is counted."]
    if clip is None:
        return ["No text encoder is connected: that of the official checkpoints is counted."]
    return []


def _compiled(model: ModelPatcher) -> list[str]:
    if not read_compiled_blocks(model.model_options.get("transformer_options", {})):
        return []
    return [
        "The model is compiled: the compiler plans the memory of its blocks by itself, which cannot be counted. The "
        "table shows what the blocks need without the compiler; ComfyUI keeps that much free."
    ]


def advice(forecast: Forecast) -> list[str]:
    """Sentences on what fits, what is streamed, and what to choose."""
    notes = [_missing(name, over) for name, over in forecast.missing_bytes.items()]
    denoiser, encoder = forecast.denoiser.weights, forecast.text_encoder.weights
    if denoiser.streamed_bytes:
        notes.append(f"Every call of the denoiser streams {_gib(denoiser.streamed_bytes)} GiB from main memory.")
    else:
        notes.append("All weights of the denoiser stay: nothing is streamed in a step.")
    if encoder.streamed_bytes:
        notes.append(f"The text encoder streams {_gib(encoder.streamed_bytes)} GiB, once a prompt.")
    together = "in one batch" if forecast.in_one_batch else "one after the other, because a batch of both does not fit"
    notes.append(f"Prompt and negative prompt are computed {together}.")
    notes.append(_precision(*forecast.eight_bits, forecast))
    mode = forecast.decode.mode
    notes.append(f"memory of the decoder: auto, which takes mode {mode} here.")
    ram = total_ram()
    notes.append(
        f"Main memory: about {_gib(forecast.host_bytes)} GiB, the finished frames included"
        f"{'' if forecast.host_bytes < ram else f', which is more than the {_gib(ram)} GiB of this machine'}. "
        f"Disk: {forecast.disk_bytes / 1e9:.1f} GB for transformer, text encoder and VAE in 16 bits."
    )
    return notes


def _missing(name: str, over: float) -> str:
    step = "Choose a smaller size" if name.startswith("VAE") else "Choose a smaller size, fewer frames or one video"
    more = ", or CogVideoX Context Windows" if name == "denoiser" else ""
    return f"The {name} does not fit: it takes {_gib(over)} GiB more than is free. {step}{more}."


def _precision(name: str, smaller: Part | None, forecast: Forecast) -> str:
    if smaller is None:
        return "weight_dtype: as it is loaded, in eight bits or less."
    if forecast.weight_dtype == "default":
        return "weight_dtype: default."
    weights = smaller.weights
    rest = f"{_gib(weights.streamed_bytes)} GiB of them are streamed" if weights.streamed_bytes else "and all stay"
    return (
        f"weight_dtype: {name}, with {_gib(weights.bytes)} GiB of weights, {rest}. default is more exact, and streams "
        "more."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
