"""Is what the VAE computes on a card right, and the same each time, however busy the card is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.gpu_rows import MISSING, Bench, relative_error
from cogvideox.benchmarks.gpu_vae import make_networks

FP32, BF16 = 5e-6, 1.05  # against diffusers on the device; times diffusers' own error in bf16
REPEATS = 4
DELAY_CYCLES = 200_000  # about 0.1 ms, several times what the host takes to store a frame: it runs far ahead


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    theirs, ours = make_networks(bench)
    size = (5, 4, 6) if bench.smoke else (5, 8, 12)
    bench.attempt("against diffusers", lambda: against_diffusers(bench, theirs, ours, size))
    size = (5, 4, 6) if bench.smoke else (5, 10, 16)
    bench.attempt("again and again", lambda: again_and_again(bench, ours, size))
    bench.attempt("compiled activation", lambda: compiled(bench, ours))


def plans() -> list[Any]:
    """Every memory mode, and the lean ones in bands of a few rows."""
    from cogvideox.vae.plan import LADDER, LEAST, LOW, in_bands

    return [*LADDER, in_bands(LOW, 500), in_bands(LEAST, 2000)]


def decode(bench: Bench, network: Any, latents: torch.Tensor, plan: Any, **options: Any) -> torch.Tensor:
    from cogvideox.vae.streaming import decode_stream

    with torch.inference_mode():
        parts = decode_stream(network, latents, plan, bench.device, latents.dtype, **options)
        return torch.cat([part.cpu() for part in parts], dim=2)


def encode(bench: Bench, network: Any, pixels: torch.Tensor, plan: Any) -> torch.Tensor:
    from cogvideox.vae.streaming import encode_stream

    with torch.inference_mode():
        parts = encode_stream(network, pixels, plan, bench.device, pixels.dtype)
        return torch.cat([part.cpu() for part in parts], dim=2)


def against_diffusers(bench: Bench, theirs: Any, ours: Any, size: tuple[int, int, int]) -> None:
    """The official VAE with random weights, in fp32 and bf16."""
    frames, height, width = size
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, *size, generator=generator)
    pixels = torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width, generator=generator) * 2 - 1
    with torch.inference_mode():
        exact = {"decode": theirs.decode(latents).sample, "encode": theirs._encode(pixels)}
    for dtype in (torch.float32, torch.bfloat16):
        for network in (theirs, ours):
            torch.nn.Module.to(network, bench.device, dtype)
        z, x = latents.to(bench.device, dtype), pixels.to(bench.device, dtype)
        with torch.inference_mode():
            there = {"decode": theirs.decode(z).sample.cpu(), "encode": theirs._encode(x).cpu()}
        for plan in plans():
            got = {"decode": decode(bench, ours, z, plan), "encode": encode(bench, ours, x, plan)}
            for way, found in got.items():
                _compare(bench, f"{way}, {plan.name}, bands {plan.band_pixels}", found, there[way], exact[way], dtype)
    for network in (theirs, ours):
        torch.nn.Module.to(network, torch.float32)


def _compare(
    bench: Bench, what: str, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype
) -> None:
    """exact: diffusers' in fp32 on a CPU."""
    error, reference = relative_error(ours, exact), relative_error(theirs, exact)
    note = f"against fp32 on a CPU ours {error:.1e}, diffusers {reference:.1e}"
    if dtype == torch.float32:
        # Both are rounded by the card's convolutions, each in its own way: twice the error of one may lie between them.
        tolerance = max(FP32, 2 * reference)
        return bench.check(f"VAE {what}, fp32", relative_error(ours, theirs), tolerance, note)
    bench.check(f"VAE {what}, bf16: error", error, BF16 * reference, f"diffusers {reference:.1e}")


def again_and_again(bench: Bench, network: Any, size: tuple[int, int, int]) -> None:
    """Each mode several times, bit-equal; then with a card that is kept busy before each frame is stored, so that a
    frame which is read on the host before its copy has arrived would show."""
    generator = torch.Generator().manual_seed(2)
    frames, height, width = size
    latents = torch.randn(1, 16, *size, generator=generator)
    pixels = torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width, generator=generator) * 2 - 1
    for dtype in (torch.bfloat16,) if bench.smoke else (torch.float32, torch.bfloat16):
        torch.nn.Module.to(network, bench.device, dtype)
        for plan in plans():
            for way, video, walk in (("decode", latents, decode), ("encode", pixels, encode)):
                call = partial(walk, bench, network, video.to(bench.device, dtype), plan)
                name = f"VAE {way}, {plan.name}, bands {plan.band_pixels}, {str(dtype)[6:]}"
                first = call()
                _same(bench, name, first, call)
                with busy_card(bench):
                    _same(bench, f"{name}, busy card", first, call, 2)
    torch.nn.Module.to(network, torch.float32)


def _same(
    bench: Bench, what: str, first: torch.Tensor, call: Callable[[], torch.Tensor], repeats: int = REPEATS
) -> None:
    worst = max(relative_error(call(), first) for _ in range(repeats))
    bench.check(f"{what}, {repeats} times again", worst, 0.0)


@contextmanager
def busy_card(bench: Bench) -> Iterator[None]:
    """The card has something to do before each frame that is stored, and before each cache."""
    from cogvideox.vae import causal, frames

    write, remember = frames.KeptFrames.write, causal._remember

    def wait() -> None:
        if bench.on_card:
            torch.cuda._sleep(DELAY_CYCLES)

    def write_late(self: Any, t: int, start: int, rows: torch.Tensor) -> None:
        wait()
        write(self, t, start, rows)

    def remember_late(*arguments: Any) -> None:
        wait()
        remember(*arguments)

    with (
        mock.patch.object(frames.KeptFrames, "write", write_late),
        mock.patch.object(causal, "_remember", remember_late),
    ):
        yield


def compiled(bench: Bench, network: Any) -> None:
    """The node's option to compile: what it costs and whether the result is the same."""
    from cogvideox.vae.compiled import compiled_modulated_silu
    from cogvideox.vae.plan import FAST

    if bench.smoke:
        return bench.row("VAE, compiled activation", "left out of a smoke run", MISSING)
    torch.nn.Module.to(network, bench.device, torch.bfloat16)
    latents = torch.randn(1, 16, 3, 8, 12, device=bench.device, dtype=torch.bfloat16)
    said: list[str] = []
    activation = compiled_modulated_silu(bench.device, torch.bfloat16, said.append)
    error = relative_error(
        decode(bench, network, latents, FAST, activation=activation), decode(bench, network, latents, FAST)
    )
    bench.check("VAE, compiled activation against the plain one, bf16", error, 1e-2, " ".join(said)[:200])
