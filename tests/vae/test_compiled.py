"""Decoding through torch.compile: the same frames, its time on the node, and the ordinary way where it fails."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.decode import CogVideoXDecode
from cogvideox.tests.support import VAE_TOLERANCE, check_parity
from cogvideox.vae import compiled

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "cl")), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is shown on the node; nothing is compiled yet. Why it has failed is in the log of a test that fails."""
    lines: list[str] = []
    caplog.set_level("DEBUG")
    monkeypatch.setattr(compiled, "_COMPILED", {})
    return lines


def decode(
    messages: list[str], folder: Path, weight_dtype: str, latents: torch.Tensor, memory: str, compile: bool
) -> torch.Tensor:
    vae = load_vae(folder, weight_dtype, messages.append)
    with torch.inference_mode():
        return CogVideoXDecode.execute(vae, {"samples": latents}, memory, compile).args[0]


def latents(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 16, count, height, width, generator=torch.Generator().manual_seed(count))


@needs_compiler
def test_compiled_decode_equals_diffusers(tiny_pipelines: dict[str, Path], messages: list[str]) -> None:
    """An option for speed may not change the video, it must say what the wait of the first run was for, and it may not
    compile again for another size, count or band, which would take longer than the decode."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    folder, graphs = tiny_pipelines["5b"], []
    theirs: Any = AutoencoderKLCogVideoX.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    for count, height, width, memory in ((3, 8, 12, "fast"), (5, 10, 6, "low")):
        z = latents(count, height, width)
        with torch.inference_mode():
            want = ((theirs.decode(z).sample[0] + 1) / 2).clamp(0, 1).movedim(0, -1)
        check_parity("VAE decode, compiled", decode(messages, folder, "fp32", z, memory, True), want, VAE_TOLERANCE)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(messages) == 1 and "Compiled" in messages[0] and " s. " in messages[0], messages
    assert graphs[0] == graphs[1]


@needs_compiler
def test_compiled_bf16_rounds_as_often(tiny_pipelines: dict[str, Path], messages: list[str]) -> None:
    """With channels last it is another kernel: one that rounds in between would lose what bf16 has."""
    z = latents(3, 8, 12)
    exact = decode(messages, tiny_pipelines["5b"], "fp32", z, "fast", False).double()
    ordinary, ours = (decode(messages, tiny_pipelines["5b"], "bf16", z, "fast", c).double() for c in (False, True))
    assert (ours - exact).norm() <= 1.02 * (ordinary - exact).norm()
    assert "Compiled" in messages[0]


def test_without_a_compiler_the_decode_goes_on(
    tiny_pipelines: dict[str, Path],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Windows without Visual Studio, or a Python newer than torch.compile knows, must not cost the video."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Compiler: cl is not found.")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    z = latents(1, 8, 12)
    frames = [decode(messages, tiny_pipelines["5b"], "fp32", z, "fast", compile) for compile in (False, True, True)]
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[0], frames[2])
    assert len(messages) == 1 and "Compiler: cl is not found." in messages[0]
    assert "Traceback" in caplog.text and "in fail" in caplog.text  # at debug: the message has two lines of it
