"""Helpers that several tests share: tiny weights in both implementations, and the distance between results."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cogvideox.devtools.embedded_checkpoint import VARIANTS, write_pipeline, write_transformer
from cogvideox.devtools.paths import ROOT
from cogvideox.tests.measured import ERRORS, PARITY

ALL_VARIANTS = tuple(VARIANTS)
TEXT_TO_VIDEO = ("2b", "5b", "1.5-5B")
# Of a VAE in fp32 against diffusers'. Its convolutions add up thousands of products, each implementation in its own
# order, and on each kind of processor in another one: decodes differ by 8.8e-7 with AVX-512 and by 1.1e-6 without,
# where diffusers' own is 7e-7 from float64.
VAE_TOLERANCE = 1.5e-6


def host_lacks(what: str) -> str:
    """Why a test is skipped: this version of ComfyUI has no `what`."""
    import comfyui_version

    return f"ComfyUI {comfyui_version.__version__} has no {what}"


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference, in float64."""
    assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm())


def check_parity(what: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Assert that ours is within `tolerance` of the reference, and keep the figure for the table at the end."""
    check_at_most(what, relative_error(ours, theirs), tolerance)


def check_at_most(what: str, found: float, limit: float) -> None:
    """Assert that a figure, an error or a ratio of errors, is at most `limit`, and keep it for the table at the end."""
    PARITY.setdefault(what, []).append((found, limit))
    assert found <= limit, f"{what}: {found:.3g}, at most {limit:.3g}"


def record_error(precision: str, error: float, note: str) -> None:
    """Keep how far a lossy precision is from fp32, for the table at the end."""
    ERRORS.setdefault(precision, []).append((error, note))


def write_fp32(folder: Path, variant: str, seed: int = 0, **overrides: Any) -> Path:
    """A tiny pipeline of `variant` whose weights are fp32 on disk."""
    return write_pipeline(folder, variant, seed, torch.float32, **overrides)


def write_fp32_transformer(folder: Path, variant: str, seed: int = 0, **overrides: Any) -> Path:
    """The same without its VAE and text encoder."""
    return write_transformer(folder, variant, seed, torch.float32, **overrides)


class TinyPipelines(Mapping[str, Path]):
    """Variant -> folder of its tiny fp32 pipeline, which is written at the first look-up."""

    def __init__(self, root: Path):
        self._root, self._written = root, {}

    def __getitem__(self, variant: str) -> Path:
        if variant not in self._written:
            self._written[variant] = write_fp32(self._root / variant, variant)
        return self._written[variant]

    def __iter__(self) -> Iterator[str]:
        return iter(ALL_VARIANTS)

    def __len__(self) -> int:
        return len(ALL_VARIANTS)


def reference_pipeline(folder: Path) -> Any:
    """diffusers' own text to video pipeline on the weights in `folder`, in fp32."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_transformer(folder: Path) -> Any:
    """diffusers' transformer on the weights in `folder`, in fp32."""
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()


def validated(node: Any, **inputs: Any) -> bool | str:
    """What a node's checks say when a prompt is queued; those of a node that reads a file run in a thread."""
    answer: Any = node.validate_inputs(**inputs)
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


def measured_by_interpreter(*modules: str) -> dict[str, Any]:
    """What `measure()` of modules of the tests, named as in "vae.test_fused", returns in a process of their own, where
    Triton's interpreter runs their kernels; by module, passed on as JSON."""
    code = (
        "import importlib, json, sys; import cogvideox.tests.conftest\n"
        "made = {name: importlib.import_module('cogvideox.tests.' + name).measure() for name in sys.argv[1:]}\n"
        "print(json.dumps(made))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code, *modules], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


async def ticks_during(call: Awaitable[Any]) -> tuple[Any, int]:
    """What `call` returns, and how often the event loop could turn to others meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answer = await call
    ticking.cancel()
    return answer, ticks
