"""ComfyUI's own server on a card, as users start it: with dynamic VRAM, and with the allocator that it chooses."""

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from cogvideox.benchmarks.gpu_rows import FAILED, MISSING, PASSED, Bench, relative_error
from cogvideox.devtools import client, paths
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.devtools.server import Server, running_server
from cogvideox.host.standalone import comfyui_from_environment

ERRORS = {"fp32": 2e-5, "default": 3e-2, "fp8_e4m3fn": 6e-2, "int8": 3e-2}  # of a run of 3 steps, against fp32 on a CPU


def measure(bench: Bench) -> None:
    """The section. This process itself stays away from the card."""
    os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)  # main.py would add its choice to another one
    with tempfile.TemporaryDirectory() as scratch:
        base, frontend = Path(scratch) / "base", Path(scratch) / "frontend"
        frontend.mkdir()
        (frontend / "index.html").write_text("There is no frontend here.", encoding="utf-8")
        prepare_base(base, paths.ROOT, paths.PACK_NAME)
        pipelines = base / "models" / "diffusers"
        references = {name: _reference(bench, pipelines, name) for name in ("5b", "1.5-5B")[: 1 if bench.smoke else 2]}
        log = Path(scratch) / "server.log"
        start = running_server(
            comfyui_from_environment(),
            base,
            log=log,
            python=_python(Path(scratch)),
            cpu=not bench.on_card,
            arguments=("--front-end-root", str(frontend)),
            timeout_s=max(5.0, bench.left() - 10),
        )
        with start as server:
            for variant, reference in references.items():
                for weight_dtype, tolerance in ERRORS.items():
                    what = f"server, {variant}, {weight_dtype}"
                    bench.attempt(
                        what,
                        lambda kind=weight_dtype, name=variant, want=reference, at_most=tolerance: _run(
                            bench, server, name, kind, want, at_most
                        ),
                        3,
                    )
            _log_row(bench, log)


def _python(scratch: Path) -> Path:
    """This Python with this process's packages: running_server takes PYTHONPATH out of the environment."""
    if os.name == "nt" or "PYTHONPATH" not in os.environ:
        return Path(sys.executable)
    wrapper = scratch / "python"
    path = os.environ["PYTHONPATH"]
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec "{sys.executable}" "$@"\n', encoding="utf-8")
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper


def _reference(bench: Bench, pipelines: Path, variant: str) -> torch.Tensor:
    """Write a tiny pipeline in fp32; returns what diffusers makes of the workflow's prompt on a CPU, unscaled."""
    from cogvideox.tests.graphs import HEIGHT, WIDTH, text_to_video
    from cogvideox.tests.support import reference_pipeline, write_fp32

    folder = write_fp32(pipelines / folder_name(variant), variant)
    pipeline, graph = reference_pipeline(folder), text_to_video()
    with torch.inference_mode():
        latents = pipeline(
            prompt=graph["prompt"]["inputs"]["text"],
            negative_prompt="",
            width=WIDTH,
            height=HEIGHT,
            num_frames=9,
            num_inference_steps=3,
            guidance_scale=6.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).frames.transpose(1, 2)
    return latents[:, :, latents.shape[2] - 3 :] / pipeline.vae.config.scaling_factor


def _run(
    bench: Bench, server: Server, variant: str, weight_dtype: str, reference: torch.Tensor, tolerance: float
) -> None:
    from cogvideox.tests.graphs import LATENTS, saved_latent, text_to_video

    graph = text_to_video(folder_name(variant), weight_dtype=weight_dtype)
    for video in ("create", "video"):  # an mp4 needs no card
        del graph[video]
    result = client.run_workflow(server.url, graph, timeout_s=max(3.0, bench.left() - 3))
    what = f"server, {variant}, {weight_dtype}: latents against diffusers' on a CPU in fp32"
    if result.error is not None:
        return bench.row(what, str(result.error)[:300], FAILED)
    latent: Any = saved_latent(result, server.output, LATENTS)
    pictures = [path.name for path in result.files(server.output) if path.suffix == ".png"]
    note = f"{len(pictures)} pictures, {len(result.previews)} previews"
    bench.check(what, relative_error(latent, reference), tolerance if len(pictures) == 9 else -1.0, note)


def _log_row(bench: Bench, log: Path) -> None:
    """What the server itself says of dynamic VRAM and of errors."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if "DynamicVRAM" in line or "dynamic vram" in line.lower()]
    words = ("failed", "error")
    ours = [line for line in lines if "cogvideox" in line.lower() and any(word in line.lower() for word in words)]
    verdict = MISSING if not bench.on_card else PASSED if any("enabled" in line for line in said) else FAILED
    bench.row("server: dynamic VRAM", "; ".join(said)[:200] or "not mentioned", verdict, log=lines[-80:])
    bench.row("server: errors of the pack", "; ".join(ours)[:300] or "none", FAILED if ours else PASSED)
