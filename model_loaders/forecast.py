"""What a run takes of a card, of host memory and of the disk, before anything runs.

Every figure comes from what ComfyUI itself asks or is told: the memory of a step from the MODEL's memory_required, the
VAE's modes from the count that its decode goes by, what stays on the card from ComfyUI's rules (host/memory_rules.py).
"""

from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import torch
from comfy.controlnet import ControlBase

from ..errors import UserError
from ..host.memory_rules import (
    Card,
    LayerSize,
    Weights,
    both_in_one_batch,
    layer_sizes,
    told_memory,
    weights_on_card,
)
from ..host.quantized import has_int8, is_quantized
from ..host.toy import NAME, WEIGHTS
from ..samplers.checks import check_size
from ..samplers.front import lacks_frame
from ..sockets.model import CogVideoXModel, require_cogvideox_model
from ..sockets.tokenizer import MAX_TOKENS
from ..sockets.vae import CogVideoXVAE, build_autoencoder
from ..transformer.parameter_types import is_block_matrix
from ..vae.geometry import CHANNELS, SPATIAL, latent_frames
from ..vae.memory import PeakMemory
from ..vae.plan import LADDER, OffloadPlan, first_fitting
from .load_text_encoder import T5_XXL, t5_shapes

_BYTES_16_BITS, _BYTES_FP32 = 2, 4


class VideoSize(NamedTuple):
    """What is generated: pixels, frames of the video, videos in one run."""

    width: int
    height: int
    frames: int
    batch_size: int = 1

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W] of the video's latents."""
        count = latent_frames(self.frames)
        return self.batch_size, CHANNELS, count, self.height // SPATIAL, self.width // SPATIAL


class Part(NamedTuple):
    """One of the models of a run on the card. working_bytes: what it needs beside its weights.

    mode: of the VAE. host_bytes: what it keeps in host memory meanwhile, without weights."""

    weights: Weights
    working_bytes: float
    mode: str = ""
    host_bytes: int = 0

    @property
    def peak_bytes(self) -> float:
        """The most that is on the card while this part works."""
        return self.weights.resident_bytes + self.weights.buffer_bytes + self.working_bytes


class Forecast(NamedTuple):
    """One run, of MODEL, CLIP and VAE one after the other.

    family: the model's name. control: weights of control nets, which are on the card with the denoiser. encode: of the
    picture or video that the model is given, None for text to video. in_one_batch: prompt and negative prompt are
    computed together. eight_bits: the denoiser in the precision of that name, ("", None) where it is quantised already.
    host_bytes: RAM for all weights, what the VAE keeps there and the finished frames. disk_bytes: the three parts as
    files in 16 bits.
    """

    family: str
    video: VideoSize
    card: Card
    text_encoder: Part
    control: tuple[Weights, ...]
    encode: Part | None
    denoiser: Part
    decode: Part
    in_one_batch: bool
    eight_bits: tuple[str, Part | None]
    host_bytes: int
    disk_bytes: int

    @property
    def parts(self) -> dict[str, Part]:
        """Every part in the order in which they run, by a name for people."""
        encode = {"VAE, encode": self.encode} if self.encode else {}
        return {"text encoder": self.text_encoder, **encode, "denoiser": self.denoiser, "VAE, decode": self.decode}

    @property
    def missing_bytes(self) -> dict[str, float]:
        """By how much the parts that do not fit exceed what is free on the card."""
        control = sum(weights.resident_bytes for weights in self.control)
        over = {name: part.peak_bytes - self.card.free_bytes for name, part in self.parts.items()}
        over["denoiser"] += control
        return {name: value for name, value in over.items() if value > 0}

    @property
    def weight_dtype(self) -> str:
        """The precision to choose in the loader: the checkpoint's own, or eight bits where less of it is streamed."""
        name, smaller = self.eight_bits
        return name if smaller and self.denoiser.weights.streamed_bytes else "default"


class TextEncoder(NamedTuple):
    """A T5 encoder's sizes. working_bytes: of one prompt."""

    bytes: int
    layers: list[LayerSize]
    working_bytes: int
    parameters: int


class Autoencoder(NamedTuple):
    """A VAE's network, which may have no weights, and the type that it computes in. peaks: what was counted of it, by
    device."""

    network: torch.nn.Module
    layers: list[LayerSize]
    dtype: torch.dtype
    peaks: dict[torch.device, PeakMemory]

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def peak_on(self, device: torch.device) -> PeakMemory:
        """Its counts on a device, which are kept for the forecasts of other cards."""
        if device not in self.peaks:
            self.peaks[device] = PeakMemory(self.network, device)
        return self.peaks[device]


def forecast_run(
    model: comfy.model_patcher.ModelPatcher,
    video: VideoSize,
    card: Card,
    text_encoder: TextEncoder,
    vae: Autoencoder,
    control_net: ControlBase | None = None,
) -> Forecast:
    """What a run of `model` on `card` takes. Nothing is loaded to a device.

    control_net: a CONTROL_NET or None.

    Raises UserError for a MODEL of another pack, and for a size that the model has no positions for.
    """
    require_cogvideox_model(model)
    inner: CogVideoXModel = model.model
    told = _told(model, video, card)
    control, added = [], 0
    if control_net is not None:
        control = [(each.model_size(), layer_sizes(each)) for each in control_net.get_models()]
        added = control_net.inference_memory_requirements(inner.get_dtype())
    denoise = _Denoising(card, told, control, added)
    size = model.model_size()
    denoiser, in_one_batch = denoise.part(size, layer_sizes(model))
    eight_bits: tuple[str, Part | None] = ("", None)
    network = inner.diffusion_model
    if not any(is_quantized(value) or value.dtype.itemsize == 1 for value in network.parameters()):
        name = "int8" if has_int8() else "fp8_e4m3fn"
        layers = eight_bit_layers(network, inner.get_dtype_inference())
        tables = sum(value.nbytes for value in network.buffers())
        eight_bits = name, denoise.part(sum(layer.bytes for layer in layers) + tables, layers)[0]
    decode = _vae_part(card, vae, video, "decode")
    weights = size + text_encoder.bytes + vae.bytes + sum(each[0] for each in control)
    frames = video.batch_size * video.frames * video.height * video.width * 3 * _BYTES_FP32
    parameters = sum(value.numel() for module in (network, vae.network) for value in module.parameters())
    return Forecast(
        _name(model),
        video,
        card,
        _part(card, text_encoder.bytes, text_encoder.layers, text_encoder.working_bytes, told_bytes=0),
        denoise.control,
        _encode_part(card, vae, video, inner),
        denoiser,
        decode,
        in_one_batch,
        eight_bits,
        weights + patch_bytes(model.patches) + decode.host_bytes + frames,
        (parameters + text_encoder.parameters) * _BYTES_16_BITS,
    )


def _name(model: comfy.model_patcher.ModelPatcher) -> str:
    """The model's name for people: that of its family, or of the toy, whose figures are not the family's."""
    family: str = model.model.model_config.family.name
    _, arguments = getattr(model, "cached_patcher_init", None) or (None, ())
    source = arguments[0] if arguments else None
    return f"{NAME} {source.name}" if isinstance(source, Path) and source.parent == WEIGHTS else family


def _told(model: comfy.model_patcher.ModelPatcher, video: VideoSize, card: Card) -> tuple[float, float]:
    """What ComfyUI is told that a step takes on `card`, with both prompts and with one.

    Raises UserError as check_size does."""
    inner: Any = model.model
    batch, channels, frames, height, width = video.latent_shape
    frames += lacks_frame(frames, inner.diffusion_model.config.patch_size_t)
    check_size(inner, (frames, height, width), model.model_options)
    return told_memory(model, (batch, channels, frames, height, width), card)


class _Denoising:
    """The denoiser's share of a card, in one precision or another."""

    def __init__(self, card: Card, told: tuple[float, float], control: list, added_bytes: float):
        """told: of told_memory. control: (bytes, layers) of each control net. added_bytes: what they need in a step."""
        self._told, self._added = told, added_bytes
        loaded = []
        for size, layers in control:  # ComfyUI loads them before the model
            loaded.append(weights_on_card(card, size, layers, told[1] + added_bytes))
            card = card.with_less(loaded[-1].resident_bytes)
        self.control, self._card = tuple(loaded), card

    def part(self, size: int, layers: list[LayerSize]) -> tuple[Part, bool]:
        """The denoiser with `size` bytes of weights, and whether both prompts are computed in one batch."""
        both, one = self._told
        weights = weights_on_card(self._card, size, layers, one + self._added)
        in_one_batch = both_in_one_batch(self._card, weights, both)
        working = (both if in_one_batch else one) + self._added
        if self._card.is_dynamic:  # the weights make room for what the step takes
            weights = weights_on_card(self._card, size, layers, working)
        return Part(weights, working), in_one_batch


def _part(card: Card, size: int, layers: list[LayerSize], working_bytes: float, told_bytes: float) -> Part:
    return Part(weights_on_card(card, size, layers, told_bytes), working_bytes)


def _vae_part(card: Card, vae: Autoencoder, video: VideoSize, way: str, frames: int | None = None) -> Part:
    """The VAE in the mode that `auto` takes. frames: of the video to encode."""
    peak = vae.peak_on(card.device)
    if way == "decode":
        shape: tuple[int, ...] = (1, *video.latent_shape[1:])
        needed = peak.decode_bytes
    else:
        shape, needed = (1, 3, frames or video.frames, video.height, video.width), peak.encode_bytes

    def plan_bytes(plan: OffloadPlan) -> int:
        return needed(shape, vae.dtype, plan)

    # As CogVideoXVAE.load has it.
    plan = first_fitting(LADDER, plan_bytes, card.free_bytes - vae.bytes - card.reserved_bytes)
    working = plan_bytes(plan)
    host = peak.decode_host_bytes(shape, vae.dtype, plan) if way == "decode" else 0
    return Part(weights_on_card(card, vae.bytes, vae.layers, working), working, plan.name, host)


def _encode_part(card: Card, vae: Autoencoder, video: VideoSize, model: CogVideoXModel) -> Part | None:
    """What the model is given: one picture, or a video as long as the one to make."""
    family = model.model_config.family
    if family.task == "text":
        return None
    frames = 1 if family.task == "image" and not family.repeats_image else video.frames
    return _vae_part(card, vae, video, "encode", frames)


def text_encoder_of(clip: comfy.sd.CLIP) -> TextEncoder:
    """The sizes of a CLIP that is loaded. Raises UserError where it is no T5 encoder."""
    patcher = clip.patcher
    shapes = {name: tuple(value.shape) for name, value in patcher.model.named_parameters()}
    if not any(name.endswith(".layer.1.DenseReluDense.wi_0.weight") for name in shapes):
        raise UserError(
            f"The text encoder is a {type(patcher.model).__name__}, and CogVideoX reads the T5-XXL v1.1 encoder.",
            advice="encode the prompt",
        )
    parameters = sum(value.numel() for value in patcher.model.parameters())
    return TextEncoder(patcher.model_size(), layer_sizes(patcher), _text_working_bytes(shapes), parameters)


def official_text_encoder() -> TextEncoder:
    """T5-XXL v1.1's encoder in 16 bits, which every official checkpoint carries."""
    shapes = t5_shapes(T5_XXL)
    parameters = [_count(shape) for shape in shapes.values()]
    layers = [LayerSize(_BYTES_16_BITS * count, _BYTES_16_BITS * count) for count in parameters]
    return TextEncoder(_BYTES_16_BITS * sum(parameters), layers, _text_working_bytes(shapes), sum(parameters))


def _text_working_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """About what ComfyUI's T5 takes for one prompt. It computes in fp32: the largest matrix of a layer is cast, and the
    widest activations are the feed-forward's two and their product, beside the input and the positions' bias.

    tests/model_loaders/test_forecast.py counts 1.0 times as much or less.
    """
    of = {name.split(".layer.")[-1]: shape for name, shape in shapes.items() if ".layer." in name}
    inner, width = of["1.DenseReluDense.wi_0.weight"]
    heads = of["0.SelfAttention.relative_attention_bias.weight"][1]
    rows = 3 * inner + 3 * width + heads * MAX_TOKENS
    return _BYTES_FP32 * (inner * width + MAX_TOKENS * rows)


def vae_of(vae: CogVideoXVAE) -> Autoencoder:
    """A VAE that is loaded."""
    return Autoencoder(vae.first_stage_model, layer_sizes(vae.patcher), vae.vae_dtype, {})


def official_vae(card: Card) -> Autoencoder:
    """The VAE of every official checkpoint, without weights, in the type that it has on `card`."""
    # Of a card that is not here ComfyUI knows nothing: NVIDIA's since Ampere compute in bf16.
    is_here = card.device == mm.vae_device()
    dtype = mm.vae_dtype(card.device, [torch.bfloat16, torch.float16, torch.float32]) if is_here else torch.bfloat16
    network, cpu = build_autoencoder({}, dtype), torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    return Autoencoder(network, layer_sizes(patcher), dtype, {})


def eight_bit_layers(network: torch.nn.Module, compute: torch.dtype) -> list[LayerSize]:
    """The layers of a transformer as layer_sizes counts them where it is loaded in int8 (fp8 takes a little less)."""
    layers = []
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        size = streamed = 0
        for key, value in own.items():
            if value.ndim == 2 and is_block_matrix(f"{name}.{key}"):
                size += value.numel() + _BYTES_FP32 * value.shape[0]  # one scale a row
                streamed += value.numel() * compute.itemsize  # the unpacked matrix
            else:
                size += value.numel() * compute.itemsize
        layers.append(LayerSize(size + streamed, size))
    return layers


def patch_bytes(patches: Any) -> int:
    """Bytes of the tensors in a MODEL's patches: LoRAs stay in host memory, beside the weights."""
    if isinstance(patches, torch.Tensor):
        return patches.nbytes
    if isinstance(patches, dict):
        return sum(map(patch_bytes, patches.values()))
    if isinstance(patches, (list, tuple)):
        return sum(map(patch_bytes, patches))
    return patch_bytes(getattr(patches, "weights", ()))  # a comfy.weight_adapter; () for numbers and functions


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
