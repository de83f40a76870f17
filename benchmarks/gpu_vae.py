"""The official VAE on a card: seconds and peak of every memory mode, and the forecast that ComfyUI is given."""

from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX

from cogvideox.benchmarks.gpu_models import free
from cogvideox.benchmarks.gpu_rows import FAILED, PASSED, Bench, device_events, gib, peak_bytes, seconds_of, spread

SIZES = {"49 frames, 480 x 720": (13, 60, 90), "81 frames, 768 x 1360": (21, 96, 170)}
SMOKE = {"block_out_channels": (16, 32, 32, 48), "layers_per_block": 1, "norm_num_groups": 8}
# GiB at the peak, counted (benchmarks/README.md, vae) or published; without the weights, 0.40 GiB.
PREDICTED = {
    ("decode", "49 frames, 480 x 720", "diffusers"): "14.7 GiB",
    ("decode", "81 frames, 768 x 1360", "diffusers"): "44.5 GiB",
}
FORECAST = (
    1.10  # ComfyUI frees what the forecast says: too little ends in an error, too much unloads models for nothing
)


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    from cogvideox.vae.plan import FAST, LADDER

    theirs, ours = networks(bench)
    short, long = SIZES
    bench.attempt("VAE kernels", lambda: kernels(bench, SIZES[short], ours, FAST))
    bench.attempt(short, lambda: one_size(bench, short, theirs, ours, LADDER, 3))
    bench.attempt(long, lambda: one_size(bench, long, theirs, ours, (FAST,), 1), 15)


def networks(bench: Bench) -> tuple[Any, Any]:
    """diffusers' and ours with the same random weights, bf16, on the device."""
    theirs, ours = make_networks(bench)
    for network in (theirs, ours):
        torch.nn.Module.to(network, bench.device, torch.bfloat16)
    return theirs, ours


def make_networks(bench: Bench) -> tuple[Any, Any]:
    """diffusers' VAE of the official size, a narrow one in a smoke run, and ours; fp32, on the CPU."""
    import comfy.ops

    from cogvideox.host.ops import adopt_ops
    from cogvideox.vae.network import CogVideoXAutoencoder

    torch.manual_seed(0)
    config: dict[str, Any] = SMOKE if bench.smoke else {}
    theirs = AutoencoderKLCogVideoX(**config).eval().requires_grad_(False)
    ours = CogVideoXAutoencoder(**config).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    adopt_ops(ours, comfy.ops.disable_weight_init)
    return theirs, ours


def one_size(bench: Bench, size: str, theirs: Any, ours: Any, plans: Iterable[Any], repeats: int) -> None:
    frames, height, width = (5, 4, 6) if bench.smoke else SIZES[size]
    where: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    latents = torch.randn(1, 16, frames, height, width, **where)
    pixels = torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width, **where) * 2 - 1
    for way, video in (("decode", latents), ("encode", pixels)):
        for plan in plans:
            bench.attempt(
                f"VAE {way}, {size}, {plan.name}",
                lambda plan=plan, way=way, video=video: _ours(bench, way, size, ours, video, plan, repeats),
                2,
            )
    for way, video in (("decode", latents), ("encode", pixels)):
        for tiled in (True, False):
            bench.attempt(
                f"VAE {way}, {size}, diffusers",
                lambda tiled=tiled, way=way, video=video: _theirs(bench, way, size, theirs, video, tiled),
                4,
            )


def kernels(bench: Bench, size: tuple[int, int, int], network: Any, plan: Any) -> None:
    """What a decode spends its time on, by torch's profiler."""
    from cogvideox.vae.streaming import decode_stream

    latents = torch.randn(1, 16, *((2, 4, 6) if bench.smoke else size), device=bench.device, dtype=torch.bfloat16)

    def call() -> None:
        with torch.inference_mode():
            for part in decode_stream(network, latents, plan, bench.device, latents.dtype):
                part.cpu()

    call()
    events = device_events(bench, call)
    total = sum(event.seconds for event in events)
    top = [(event.name[:90], event.seconds, event.count) for event in events[:40]]
    shares = "; ".join(f"{name[:60]} x{count} {100 * seconds / total:.1f} %" for name, seconds, count in top[:8])
    bench.row(f"VAE kernels, decode, {plan.name}", f"{total:.3f} s: {shares}", top=top, seconds=total)


def _ours(bench: Bench, way: str, size: str, network: Any, video: torch.Tensor, plan: Any, repeats: int) -> None:
    from cogvideox.vae.activation import SPAN_BYTES
    from cogvideox.vae.memory import PeakMemory
    from cogvideox.vae.streaming import decode_stream, encode_stream

    walk: Any = decode_stream if way == "decode" else encode_stream
    estimates = PeakMemory(network, bench.device)
    estimate = estimates.decode_bytes if way == "decode" else estimates.encode_bytes

    def call() -> None:
        with torch.inference_mode():
            for part in walk(network, video, plan, bench.device, video.dtype):
                part.cpu()
                del part

    if plan.name == "fast":
        call()  # compiles the kernel, for the other plans too
    peak, forecast = peak_bytes(bench.device, call), estimate(tuple(video.shape), video.dtype, plan)
    # The lean ones take seconds, and the peak was their warm-up.
    seconds = seconds_of(bench, {plan.name: call}, 1 if plan.band_pixels else repeats, warm=0)[plan.name]
    what = f"VAE {way}, {size}, {plan.name}"
    predicted = "at most 1.0 s" if plan.name == "fast" and way == "decode" and size in list(SIZES)[:1] else ""
    bench.row(what, f"{spread(seconds)}, peak {gib(peak)}", predicted=predicted, seconds=seconds, peak_bytes=peak)
    if not bench.on_card:
        return
    ratio = forecast / peak
    # The forecast has to hold where Triton fails, which shows only at the first decode. Triton holds no span in fp32.
    verdict = PASSED if peak <= forecast <= FORECAST * peak + SPAN_BYTES["other"] else FAILED
    found = f"{gib(forecast)} forecast, {gib(peak)} used: {ratio:.2f}"
    predicted = "1.00 to 1.10, and 64 MiB for a card without Triton"
    bench.row(f"{what}: forecast", found, verdict, predicted=predicted, forecast=forecast, peak_bytes=peak)
    reserved = torch.cuda.max_memory_reserved()
    bench.row(f"{what}: reserved", f"{gib(reserved)} of torch's allocator, weights included", reserved=reserved)


def _theirs(bench: Bench, way: str, size: str, network: Any, video: torch.Tensor, tiled: bool) -> None:
    free()
    network.disable_tiling()
    if tiled:
        network.enable_tiling()

    def call() -> None:
        with torch.inference_mode():
            if way == "decode":
                network.decode(video).sample.cpu()
            else:
                network.encode(video).latent_dist.mode().cpu()

    peak = peak_bytes(bench.device, call)
    seconds = seconds_of(bench, {"diffusers": call}, 1 if median_is_long(bench) else 2, warm=0)["diffusers"]
    name = "diffusers, tiled" if tiled else "diffusers"
    predicted = PREDICTED.get((way, size, name), "")
    found = f"{spread(seconds)}, peak {gib(peak)}"
    what = f"VAE {way}, {size}, {name}"
    bench.row(what, found, predicted=predicted, seconds=seconds, median_s=median(seconds), peak_bytes=peak)


def median_is_long(bench: Bench) -> bool:
    """Whether too little time is left for repetitions."""
    return bench.left() < 20
