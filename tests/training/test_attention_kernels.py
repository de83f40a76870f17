"""Gradient checkpointing computes a block twice, and both times needs the same attention kernel."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cogvideox.host.training_mode import settle_attention
from cogvideox.tests.fake_card import CARD, fake_card
from cogvideox.training import trainer
from cogvideox.training.trainer import Trainer


def test_torch_decides_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attention of a process is the one that torch's own order is made for."""
    events: list[str] = []
    monkeypatch.setattr(trainer, "settle_attention", lambda device: events.append(f"settle {device}"))
    monkeypatch.setattr(trainer, "train", lambda *_: events.append("train"))
    monkeypatch.setattr(Trainer, "_loss", lambda self: None)
    without: Any = Trainer.__new__(Trainer)
    without.dit = without._config = without.settings = None
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    callbacks: Any = None
    without.run(accelerator, Path(), callbacks)
    assert events == ["settle cpu", "train"]


def test_one_attention_on_a_card_and_none_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, torch.dtype]] = []
    attend = F.scaled_dot_product_attention

    def attended(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append((query.device.type, query.dtype))
        return attend(query, *rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attended)
    settle_attention(torch.device("cpu"))
    assert calls == []
    with fake_card():
        settle_attention(CARD)
    assert calls == [("cuda", torch.float16)]


IN_A_NEW_PROCESS = """
import torch
from cogvideox.host.standalone import use_comfyui
use_comfyui(cpu=False)
import comfy.ops
from torch.utils.checkpoint import checkpoint
from cogvideox.host.training_mode import settle_attention
device = torch.device("cuda", torch.cuda.current_device())
settle_attention(device)
attend = comfy.ops.scaled_dot_product_attention
x = torch.randn(1, 4, 2048, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
checkpoint(lambda x: attend(x, x, x), x, use_reentrant=False).float().sum().backward()
print("computed twice")
"""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recomputed_attention_on_a_card() -> None:
    """In a process that has computed no attention before, as a headless training whose texts are in the cache."""
    out = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, timeout=120)
    assert "computed twice" in out.stdout, out.stderr[-2000:]
