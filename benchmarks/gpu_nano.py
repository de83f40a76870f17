"""CogVideoX-nano painted on a card: the same clips as on a CPU, and the same score."""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideox.benchmarks.common import use_comfyui
from cogvideox.benchmarks.gpu_rows import FAILED, MISSING, PASSED, Bench
from cogvideox.host.toy import WEIGHTS
from cogvideox.nano import paint, score

PROMPTS, SEED = 25, 7
SAME_DB = 40.0  # PSNR of the card's fp32 clips against the CPU's: nobody could tell them apart
SCORE_POINTS = 0.08  # two clips of 25


def measure(bench: Bench) -> None:
    """The section."""
    count, steps = (2, 2) if bench.smoke else (PROMPTS, 50)
    settings = paint.Settings(seed=SEED, steps=steps, frames=5 if bench.smoke else 17)
    with tempfile.TemporaryDirectory() as scratch:
        folder = WEIGHTS / "5b"
        clips = Path(scratch) / "clips.npy"
        # A process of its own: ComfyUI is for one device. It begins before this one has touched the card.
        on_cpu = multiprocessing.get_context().Process(
            target=paint_on_cpu, args=(folder, clips, count, settings), daemon=True
        )
        on_cpu.start()
        bench.start_comfyui()
        requests = paint.held_out_requests(SEED, count, settings)
        painted: dict[str, np.ndarray] = {}
        for weight_dtype in ("fp32", "default", "fp8_e4m3fn"):
            what = f"nano, {weight_dtype}"
            bench.attempt(what, lambda kind=weight_dtype: _paint(bench, folder, kind, requests, settings, painted))
        on_cpu.join(max(1.0, bench.left() - 2))
        bench.attempt("nano, the CPU's clips", lambda: _compare(bench, clips, requests, painted))
        if on_cpu.is_alive():
            on_cpu.kill()


def paint_on_cpu(folder: Path, clips: Path, count: int, settings: Any) -> None:
    """Write the clips that a CPU paints in fp32, [B, F, H, W, 3]."""
    use_comfyui(cpu=True)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # other processes drive the card meanwhile
    requests = paint.held_out_requests(SEED, count, settings)
    np.save(clips, paint.paint(paint.load_pipeline(folder, "fp32"), requests, settings))


def _paint(
    bench: Bench, folder: Path, weight_dtype: str, requests: list, settings: Any, painted: dict[str, np.ndarray]
) -> None:
    began = time.monotonic()
    pipeline = paint.load_pipeline(folder, weight_dtype)
    if weight_dtype == "fp32":
        from cogvideox.model_loaders.load_vae import load_vae

        pipeline = paint.Pipeline(pipeline.model, pipeline.clip, load_vae(folder, "fp32"))
    clips = painted[weight_dtype] = paint.paint(pipeline, requests, settings)
    seconds = (time.monotonic() - began) / len(requests)
    bench.row(
        f"nano, {weight_dtype}: score of {len(requests)} clips",
        f"{_shares(clips, requests)}; {seconds:.2f} s a clip, loading included",
        predicted="colour, shape, size, direction, background near 100 %",
        scores=score.score_clips(clips, [request.scene for request in requests]),
    )


def _shares(clips: np.ndarray, requests: list) -> str:
    shares = score.score_clips(clips, [request.scene for request in requests])
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def _compare(bench: Bench, path: Path, requests: list, painted: dict[str, np.ndarray]) -> None:
    if not path.exists():
        return bench.row("nano, the CPU's clips", "the CPU was not done in time", MISSING)
    truth = np.load(path)
    scenes = [request.scene for request in requests]
    ours = score.score_clips(truth, scenes)
    bench.row("nano, on a CPU in fp32: score", _shares(truth, requests), scores=ours)
    for name, clips in painted.items():
        decibels = float(np.mean([score.psnr_db(a, b) for a, b in zip(clips, truth)]))
        scores = score.score_clips(clips, scenes)
        apart = max(abs(scores[attribute] - ours[attribute]) for attribute in scores)
        # Fewer bits paint the same scene in other pixels: they go by the score alone.
        # Two steps of a smoke run paint nothing that could be scored.
        good = (bench.smoke or apart <= SCORE_POINTS) and (name != "fp32" or decibels >= SAME_DB)
        what = f"nano, {name} on the device against fp32 on a CPU"
        found = f"{decibels:.1f} dB, scores {100 * apart:.0f} points apart at most"
        bench.row(what, found, PASSED if good else FAILED, psnr_db=decibels, points=apart)
