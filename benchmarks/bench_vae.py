"""The VAE: memory of every mode, and time against diffusers' and ComfyUI's own on the same weights."""

import copy
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKLCogVideoX

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    ratio,
    report,
    use_comfyui,
)
from cogvideox.benchmarks.vae_operations import operations_table
from cogvideox.vae.plan import FAST, LADDER

if TYPE_CHECKING:
    from cogvideox.vae.network import CogVideoXAutoencoder

# latents (T, h, w), or (h, w)
TIMED = (5, 10, 14)
DIFFUSERS_TILE = 64, 64  # pixels; with most other sizes diffusers returns a video of another size
GROWING = ((3, 6, 8), (5, 6, 8), (9, 6, 8), (17, 6, 8))
COUNTED = {"49 frames, 480 x 720": (60, 90), "81 frames, 768 x 1360": (96, 170)}
CHUNKS = 7  # latents, of three chunks: every later chunk takes what the third takes
COUNT_REPEATS = 5
PRECISIONS = ("fp32", "bf16")
PARTS = ("memory", "operations", "time", "growth")
GIB = 1 << 30


def main() -> None:
    options = arguments(
        str(__doc__),
        repeats={"type": int, "default": 3},
        precisions={"nargs": "+", "choices": PRECISIONS, "default": list(PRECISIONS)},
        parts={"nargs": "+", "choices": PARTS, "default": list(PARTS)},
    )
    use_comfyui()
    tables = []
    if "memory" in options.parts:
        tables.append(memory_table())
    if "operations" in options.parts:
        tables.append(operations_table())
    if "time" in options.parts:
        tables += time_tables(options.precisions, options.repeats)
    if "growth" in options.parts:
        tables.append(growth_table())
    report("vae", tables, options.save)


def networks() -> tuple[AutoencoderKLCogVideoX, "CogVideoXAutoencoder", Any]:
    """The official VAE with random weights: diffusers', ours and ComfyUI's own, in fp32."""
    import comfy.ops
    import comfy.sd

    from cogvideox.host.ops import adopt_ops
    from cogvideox.vae.network import CogVideoXAutoencoder

    torch.manual_seed(0)
    theirs = AutoencoderKLCogVideoX().eval().requires_grad_(False)
    ours = CogVideoXAutoencoder().eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    adopt_ops(ours, comfy.ops.disable_weight_init)
    native: Any = comfy.sd.VAE(sd=theirs.state_dict(), dtype=torch.float32).first_stage_model
    return theirs, ours, native.requires_grad_(False)


def time_tables(precisions: list[str], repeats: int) -> list[Table]:
    """Time and error of a decode and of an encode, by precision."""
    exact: Any  # diffusers' classes say tuples where they return objects with names
    exact, *_ = all_three = networks()
    latents = torch.randn(1, 16, *TIMED)
    pixels = torch.rand(1, 3, 4 * TIMED[0] - 3, 8 * TIMED[1], 8 * TIMED[2]) * 2 - 1
    with torch.inference_mode():
        frames, moments = exact.decode(latents).sample, exact.encode(pixels).latent_dist.parameters
    decodes, encodes = [], []
    for precision in precisions:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        cast: list[Any] = [torch.nn.Module.to(copy.deepcopy(network), dtype) for network in all_three]
        theirs, ours, native = cast
        decodes += compare(precision, decoders(theirs, ours, native, latents.to(dtype)), frames, repeats)
        encodes += compare(precision, encoders(theirs, ours, native, pixels.to(dtype)), moments, repeats)
    size = f"{pixels.shape[2]} frames of {pixels.shape[3]} x {pixels.shape[4]}, official size, random weights"
    notes = (
        f"{size}; medians (least - most) of {repeats}, in turn in one process.",
        "Error: RMS of the difference over RMS, against diffusers' fp32.",
    )
    tiled = "diffusers tiled: tiles of {} x {} that overlap by a quarter, as is its default.".format(*DIFFUSERS_TILE)
    header = ("precision", "decoder", "time", "of diffusers' untiled", "error")
    return [
        Table("Decode", (*notes, tiled), header, decodes),
        Table("Encode", notes, (header[0], "encoder", *header[2:]), encodes),
    ]


def decoders(theirs: Any, ours: Any, native: Any, latents: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """A call for each way to decode `latents`."""
    from cogvideox.vae.streaming import decode_stream

    tiled = copy.deepcopy(theirs)
    tiled.enable_tiling(*DIFFUSERS_TILE, 0.25, 0.25)
    calls = {"diffusers": lambda: theirs.decode(latents).sample}
    calls["diffusers, tiled"] = lambda: tiled.decode(latents).sample
    calls["ComfyUI's own"] = lambda: native.decode(latents)
    for plan in LADDER:
        if plan.name != "medium":  # on a CPU it is what fast is
            calls[f"ours, {plan.name}"] = lambda plan=plan: torch.cat(
                list(decode_stream(ours, latents, plan, latents.device, latents.dtype)), dim=2
            )
    return calls


def encoders(theirs: Any, ours: Any, native: Any, pixels: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """A call for each way to encode `pixels`."""
    from cogvideox.vae.streaming import encode_stream

    calls = {"diffusers": lambda: theirs.encode(pixels).latent_dist.parameters}
    # ComfyUI's returns the mean alone, without the variance.
    calls["ComfyUI's own"] = lambda: native.encode(pixels)
    for plan in LADDER:
        if plan.name != "medium":
            calls[f"ours, {plan.name}"] = lambda plan=plan: torch.cat(
                list(encode_stream(ours, pixels, plan, pixels.device, pixels.dtype)), dim=2
            )
    return calls


def compare(
    precision: str, calls: dict[str, Callable[[], torch.Tensor]], exact: torch.Tensor, repeats: int
) -> list[list[str]]:
    """The rows of `calls`; exact: diffusers' result in fp32."""
    with torch.inference_mode():
        errors = {name: relative_error(call(), exact) for name, call in calls.items()}
        seconds = interleave(calls, repeats, warmup=0)
    rows = []
    for name, values in seconds.items():
        rows.append([precision, name, median_spread(values), ratio(values, seconds["diffusers"]), errors[name]])
        print(*rows[-1], flush=True)
    return rows


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> str:
    """RMS of the difference over RMS, of the channels that `found` has."""
    exact = exact[:, : found.shape[1]].double()
    if found.shape != exact.shape:
        return f"another size, {list(found.shape)}"
    return f"{float((found.double() - exact).norm() / exact.norm()):.1e}"


def growth_table() -> Table:
    """Time by number of frames."""
    from cogvideox.vae.streaming import decode_stream

    _, ours, _ = networks()
    rows, points = [], []

    def decode(size: tuple[int, int, int]) -> Callable[[], list[torch.Tensor]]:
        latents = torch.randn(1, 16, *size)
        return lambda: list(decode_stream(ours, latents, FAST, latents.device, latents.dtype))

    with torch.inference_mode():
        seconds = interleave({str(4 * size[0] - 3): decode(size) for size in GROWING}, 3)
    for name, values in seconds.items():
        frames = int(name)
        points.append((math.log(frames), math.log(min(values))))
        rows.append([name, median_spread(values), f"{1000 * min(values) / frames:.0f} ms"])
    x, y = (sum(axis) / len(points) for axis in zip(*points))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    notes = (
        f"fp32, {8 * GROWING[0][1]} x {8 * GROWING[0][2]}; time grows with the frames to the power of {slope:.3f}.",
    )
    return Table("Time by length", (*notes, "Goal: at most 1.03."), ("frames", "decode", "a frame, at best"), rows)


def memory_table() -> Table:
    """The peak of every plan at official sizes, counted on a fake card."""
    from cogvideox.tests.fake_card import CARD, official_vae, peak_on_card
    from cogvideox.vae.memory import PeakMemory, count_peak
    from cogvideox.vae.streaming import decode_stream, encode_stream

    network, rows = official_vae(), []
    estimates = PeakMemory(network, CARD)
    for name, (height, width) in COUNTED.items():
        latents, pixels = (1, 16, CHUNKS, height, width), (1, 3, 4 * CHUNKS - 3, 8 * height, 8 * width)
        for plan in LADDER:
            began, found = time.perf_counter(), []
            for stream, shape, estimate in (
                (decode_stream, latents, estimates.decode_bytes),
                (encode_stream, pixels, estimates.encode_bytes),
            ):
                peak = peak_on_card(network, stream, shape, plan, torch.bfloat16)
                seconds = []
                for _ in range(COUNT_REPEATS):
                    started = time.thread_time()
                    count_peak(stream, network, shape[1:], torch.bfloat16, plan, CARD)
                    seconds.append(time.thread_time() - started)
                ratio_text = f"{estimate(torch.Size(shape), torch.bfloat16, plan) / peak:.2f}"
                found += [f"{peak / GIB:.2f}", ratio_text, f"{1000 * min(seconds):.0f} ms"]
            rows.append([name, f"ours, {plan.name}", *found])
            print(*rows[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    notes = (
        "bf16, GiB at the peak, counted tensor by tensor on a simulated card. The weights, 0.40 GiB, and the finished "
        "frames, which leave the card, are not in it. estimate: what ComfyUI is told, over what is used. count: the "
        "CPU time that the estimate takes the first time it is asked for.",
        f"Counted over {CHUNKS} latents: the chunks after the third take what the third takes, however many there are.",
        "Goals for the decode, weights included: fast 5.5 and 16.5, low 2.0 and 5.5.",
    )
    header = ("video", "mode", "decode", "estimate", "count", "encode", "estimate", "count")
    return Table("Memory", notes, header, rows)


if __name__ == "__main__":
    main()
