"""From a prompt to an mp4 on CogVideoX-nano: the CPU time of a warm ComfyUI server and of a diffusers script."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cogvideox.benchmarks.common import Table, arguments, interleave, median_spread, ratio, report, use_comfyui
from cogvideox.devtools import client, paths
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.server import Server, running_server
from cogvideox.host.standalone import comfyui_from_environment
from cogvideox.nano.toy_settings import TEXT

PROMPTS = (
    "A big yellow star moves to the right on a gradient from blue to purple.",
    "A small red circle moves up on a gradient from green to white.",
    "A big blue square moves to the left on a gradient from orange to black.",
)
GOAL = 0.6  # of the script's CPU time
SERVER, WARM, SCRIPT = "warm ComfyUI server", "diffusers, pipeline loaded", "diffusers script, from its start"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 5},
        threads={"type": int, "default": 1, "help": "of torch, in the server and in the script"},
        script={"type": Path, "help": "for the benchmark itself: be the diffusers script on this folder"},
        previews={"action": "store_true", "help": "with live previews in the server, which diffusers has none of"},
    )
    for name in _THREADS:
        os.environ[name] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.script:
        make_with_diffusers(load_diffusers(options.script), PROMPTS[0], 1, options.script / "video.mp4")
        return
    use_comfyui()
    from cogvideox.nano.folders import write_pipeline

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_pipeline(Path(scratch) / "nano", "5b")
        seconds = measure(folder, Path(scratch), options.repeats, options.previews)
    report("server", [table(seconds, options.threads, options.previews)], options.save)


def measure(folder: Path, scratch: Path, repeats: int, previews: bool) -> dict[str, list[float]]:
    """The CPU seconds of each way, in turn. folder: CogVideoX-nano in diffusers' layout."""
    pipeline, spent = load_diffusers(folder), dict[str, list[float]]()
    number = 0
    with _server(scratch, previews) as server:

        def through_server() -> float:
            process = psutil.Process(server.process.pid)
            before = _cpu_seconds(process)
            result = client.run_workflow(server.url, template(PROMPTS[number % len(PROMPTS)], number))
            assert result.error is None, result.error
            assert any(path.suffix == ".mp4" for path in result.files(server.output)), "no mp4"
            return _cpu_seconds(process) - before

        def with_pipeline() -> float:
            before = time.process_time()
            make_with_diffusers(pipeline, PROMPTS[number % len(PROMPTS)], number, scratch / "theirs.mp4")
            return time.process_time() - before

        def script() -> float:
            return _cpu_seconds_of([sys.executable, "-m", __spec__.name, "--script", str(folder)])

        calls: dict[str, Callable[[], float]] = {SERVER: through_server, WARM: with_pipeline, SCRIPT: script}

        def kept(name: str) -> None:
            nonlocal number
            number += 1
            spent.setdefault(name, []).append(calls[name]())

        interleave({name: lambda name=name: kept(name) for name in calls}, repeats)
    return {name: values[1:] for name, values in spent.items()}  # the first of each has warmed it up


def template(prompt: str, seed: int) -> dict:
    """The template 01 Text to video, in API format."""
    from cogvideox.tests.graphs import FPS, LATENT, PROMPT, SAMPLE, text_to_video, with_inputs

    sample = {"steps": TEXT.steps, "cfg": TEXT.cfg, "sampler": TEXT.sampler, "seed": seed}
    graph = text_to_video("CogVideoX-nano 5b", frames=TEXT.frames, **sample)
    graph = with_inputs(with_inputs(graph, LATENT, width=TEXT.width, height=TEXT.height), PROMPT, text=prompt)
    assert FPS == TEXT.fps and graph[SAMPLE]["inputs"]["steps"] == TEXT.steps
    return {name: node for name, node in graph.items() if node["class_type"] not in ("SaveImage", "SaveLatent")}


def load_diffusers(folder: Path) -> Any:
    """diffusers' pipeline in fp32, in which a CPU computes there and here, with the template's sampler."""
    import torch
    from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline

    pipeline = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_with_diffusers(pipeline: Any, prompt: str, seed: int, path: Path) -> None:
    """The template's video, written by the library and codec that ComfyUI's SaveVideo has."""
    import av
    import torch

    size = {"height": TEXT.height, "width": TEXT.width, "num_frames": TEXT.frames}
    frames = pipeline(
        prompt=prompt,
        negative_prompt="",
        num_inference_steps=TEXT.steps,
        guidance_scale=TEXT.cfg,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **size,
    ).frames[0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=round(TEXT.fps))
        stream.width, stream.height, stream.pix_fmt = TEXT.width, TEXT.height, "yuv420p"
        for frame in (frames * 255).round().clip(0, 255).astype("uint8"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@contextmanager
def _server(scratch: Path, previews: bool) -> Iterator[Server]:
    base, frontend = scratch / "base", scratch / "frontend"
    frontend.mkdir()
    (frontend / "index.html").write_text("There is no frontend here.", encoding="utf-8")
    prepare_base(base, paths.ROOT, paths.PACK_NAME)
    method = () if previews else ("--preview-method", "none")
    arguments = ("--front-end-root", str(frontend), *method)
    with running_server(
        comfyui_from_environment(), base, log=scratch / "server.log", cpu=True, arguments=arguments
    ) as server:
        yield server


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _cpu_seconds_of(command: list[str]) -> float:
    before = _children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=paths.ROOT)
    return _children() - before


def _children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def table(seconds: dict[str, list[float]], threads: int, previews: bool) -> Table:
    """CPU seconds of each way, and the server's share of theirs."""
    share = ratio(seconds[SERVER], seconds[SCRIPT])
    notes = [
        f"The template 01: {TEXT.frames} frames of {TEXT.width} x {TEXT.height}, {TEXT.steps} steps, {TEXT.sampler}, "
        f"cfg {TEXT.cfg:g}, fp32, {threads} thread{'s' if threads > 1 else ''}, live previews "
        f"{'on' if previews else 'off'}; another prompt and seed each time.",
        f"Goal: at most {GOAL:g} of the script's CPU time; found: {share}, "
        f"{'met' if float(share) <= GOAL else 'NOT met'}.",
    ]
    rows = [[name, median_spread(found), ratio(seconds[SERVER], found)] for name, found in seconds.items()]
    return Table("Prompt to mp4", notes, ["", "CPU time", "the server's share of it"], rows)


if __name__ == "__main__":
    main()
