"""Bytes, kernels and peak memory of one forward at official sizes, counted: ours, diffusers' and ComfyUI's class."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.benchmarks.traffic import Counting, Traffic, count_traffic, flash_attention
from cogvideox.benchmarks.traffic_kernels import in_lean_mode, no_stand_in, torch_rotation, triton_kernels

GIB = 2**30
DTYPE = torch.bfloat16
TEXT_TOKENS, TEXT_WIDTH = 226, 4096
Latent = tuple[int, int, int]  # (T, H, W)
Forward = Callable[[], object]
StandIns = Callable[[Counting], Any]


@dataclass(frozen=True)
class Size:
    """A checkpoint at its own size. config: what differs from diffusers' defaults. most_share: of diffusers' bytes,
    most_kernels, most_gib: the goals for a batch of two, None where there is none."""

    config: dict[str, Any]
    latent: Latent
    most_share: float | None = None
    most_kernels: int | None = None
    most_gib: float | None = None


_WIDE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_PAIRS = {"patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300, "sample_frames": 81}
SIZES = {
    "2b": Size({"num_attention_heads": 30, "num_layers": 30}, (13, 60, 90), most_share=0.56),
    "5b": Size(_WIDE, (13, 60, 90), most_share=0.30, most_kernels=720, most_gib=1.45),
    "1.5-5B": Size(_WIDE | _PAIRS, (22, 96, 170), most_gib=3.65),
}
THEIRS, OURS, LEAN = "diffusers", "ours, Triton's kernels", "ours, lean, Triton's kernels"


def main() -> None:
    options = arguments(
        __doc__,
        variants={"nargs": "+", "choices": list(SIZES), "default": list(SIZES)},
        layers={"type": int, "default": 0, "help": "as many alone; 0 for all: bytes grow with them, peaks do not"},
    )
    use_comfyui()
    tables = [table(name, batch, options.layers) for name in options.variants for batch in (2, 1)]
    report("traffic", [*tables, copies_table(options.variants)], options.save)


def table(name: str, batch: int, layers: int = 0) -> Table:
    """What each implementation of a checkpoint moves in one forward. layers: 0 for all."""
    size = SIZES[name]
    counted = count_all(size, batch, layers)
    base = counted[THEIRS]
    rows = [
        [
            title,
            f"{found.flops / 1e12:.0f}",
            f"{found.moved_bytes / 1e9:.0f}",
            f"{found.moved_bytes / base.moved_bytes:.2f}",
            str(found.kernels),
            f"{found.peak_bytes / GIB:.2f}",
        ]
        for title, found in counted.items()
    ]
    notes = [
        f"Latent {' x '.join(map(str, size.latent))}, counted on the meta device in bf16: nothing was computed, and no "
        "card was there. Weights are not counted, nor copies of those that are streamed, which have a table of their "
        "own. The peak has the table of positions in it.",
        *(goals(size, counted) if batch == 2 and not layers else ()),
    ]
    columns = ["", "TFLOP", "GB moved", "of diffusers'", "kernels", "peak of activations, GiB"]
    return Table(f"{name}, batch {batch}", notes, columns, rows)


def copies_table(variants: Sequence[str]) -> Table:
    """What a peak does not have where weights are streamed: their copies, on the way to the card and in use."""
    rows = [[name, *(f"{size / GIB:.3f}" for size in copies_bytes(SIZES[name].config))] for name in variants]
    notes = [
        "By ComfyUI's rules, which keep a layer's copy and those of the next two; all weights are streamed. In 8 bits "
        "(int8) the copy in use is unpacked on the card. A step in the lean mode uses two layers of the feed-forward "
        "at a time.",
    ]
    return Table("Copies of streamed weights", notes, ["", "16 bits, GiB", "8 bits, GiB"], rows)


def copies_bytes(config: dict[str, Any]) -> tuple[int, int]:
    """Bytes that ComfyUI keeps for weights on their way to a card that holds none: in 16 and in 8 bits."""
    import comfy.model_patcher

    from cogvideox.host.memory_rules import Card, layer_sizes, weights_on_card
    from cogvideox.model_loaders.forecast import eight_bit_layers

    model, _ = our_forward(config, *latent_inputs((2, 8, 8), 1))
    cpu, card = torch.device("cpu"), Card(torch.device("cuda:0"), 0, 0, keeps_none=True)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    plain, eight = (
        weights_on_card(card, sum(layer.bytes for layer in layers), layers, 0).buffer_bytes
        for layers in (layer_sizes(patcher), eight_bit_layers(model, DTYPE))
    )
    return plain, eight


def goals(size: Size, counted: dict[str, Traffic]) -> list[str]:
    """One sentence a goal: the figure, and whether it is met."""
    return [
        f"Goal: at most {most:g} {what}; {OURS}: {value:.4g}, {'met' if value <= most else 'NOT met'}."
        for what, value, most in found_goals(size, counted)
    ]


def found_goals(size: Size, counted: dict[str, Traffic]) -> list[tuple[str, float, float]]:
    """Each goal of a size: what is counted with Triton's kernels, the figure, and the most that it is to be."""
    ours, base = counted[OURS], counted[THEIRS]
    found = (
        ("of diffusers' bytes", ours.moved_bytes / base.moved_bytes, size.most_share),
        ("kernels", ours.kernels, size.most_kernels),
        ("GiB at the peak", ours.peak_bytes / GIB, size.most_gib),
    )
    return [(what, value, most) for what, value, most in found if most is not None]


def count_all(size: Size, batch: int, layers: int = 0, titles: Collection[str] = ()) -> dict[str, Traffic]:
    """Title -> what it moves. titles: which implementations; () for all."""
    config = size.config | ({"num_layers": layers} if layers else {})
    inputs = latent_inputs(size.latent, batch)
    makers: dict[str, tuple[Callable[..., tuple[torch.nn.Module, Forward]], StandIns]] = {
        THEIRS: (diffusers_forward, no_stand_in),
        "ComfyUI's class": (comfyui_forward, no_stand_in),
        "ours, torch's operations": (our_forward, torch_rotation),
        "ours, comfy-kitchen's rotation": (our_forward, no_stand_in),
        OURS: (our_forward, triton_kernels),
        "ours, lean, torch's operations": (our_forward, in_lean_mode(torch_rotation)),
        LEAN: (our_forward, in_lean_mode(triton_kernels)),
    }
    counted = {}
    for title, (make, stand_ins) in makers.items():
        if titles and title not in titles:
            continue
        model, forward = make(config, *inputs)
        weights = [*model.parameters(), *model.buffers()]
        with torch_attention():
            counted[title] = count_traffic(forward, weights, stand_ins)
    return counted


def latent_inputs(latent: Latent, batch: int, channels: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents [B, channels, T, H, W], text [B, 226, 4096] and timesteps [B], without values."""
    frames, height, width = latent
    return (
        torch.empty(batch, channels, frames, height, width, device="meta", dtype=DTYPE),
        torch.empty(batch, TEXT_TOKENS, TEXT_WIDTH, device="meta", dtype=DTYPE),
        torch.empty(batch, device="meta", dtype=DTYPE),
    )


def diffusers_forward(
    config: dict[str, Any], latents: torch.Tensor, text: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.nn.Module, Forward]:
    from diffusers import CogVideoXTransformer3DModel

    make: Any = CogVideoXTransformer3DModel
    with torch.device("meta"):
        model = make(**config).to(DTYPE).eval()
    _, _, frames, height, width = latents.shape
    tokens = frames // (config.get("patch_size_t") or 1) * (height // 2) * (width // 2)
    tables = tuple(torch.empty(tokens, 64, device="meta") for _ in range(2))  # cosines and sines, fp32
    rotary = tables if config.get("use_rotary_positional_embeddings") else None
    frames_first = latents.transpose(1, 2)
    return model, lambda: model(frames_first, text, timesteps, image_rotary_emb=rotary, return_dict=False)


def comfyui_forward(
    config: dict[str, Any], latents: torch.Tensor, text: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.nn.Module, Forward]:
    import comfy.ops
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    how = {"dtype": DTYPE, "device": "meta", "operations": comfy.ops.disable_weight_init}
    make: Any = CogVideoXTransformer3DModel
    with torch.device("meta"):
        model = make(**config, **how).eval()
    return model, lambda: model(latents, timesteps, text)


def our_forward(
    config: dict[str, Any], latents: torch.Tensor, text: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.nn.Module, Forward]:
    import comfy.ops

    from cogvideox.sockets.model import build_dit

    model = build_dit(config, DTYPE, None, comfy.ops.disable_weight_init)
    ofs = torch.empty_like(timesteps) if config.get("ofs_embed_dim") else None
    return model, lambda: model(latents, timesteps, context=text, transformer_options={}, ofs=ofs)


@contextmanager
def torch_attention() -> Iterator[None]:
    """All implementations with one kernel of attention, as on a card; ComfyUI would take another function for a CPU."""
    import comfy.ldm.cogvideo.model as native
    import comfy.ldm.modules.attention as attention

    with (
        mock.patch.object(F, "scaled_dot_product_attention", flash_attention),
        mock.patch.object(attention, "optimized_attention", attention.attention_pytorch),
        mock.patch.object(native, "optimized_attention", attention.attention_pytorch),
    ):
        yield


if __name__ == "__main__":
    main()
