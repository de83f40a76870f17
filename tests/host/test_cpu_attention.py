"""Attention on the CPU in parts: the same values, and a look for Cancel between them."""

from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management as mm
import pytest
import torch

from cogvideox.host import cpu_attention
from cogvideox.host.compat import attention_for
from cogvideox.keys import ATTENTION_OVERRIDE

HEADS, WIDTH = 5, 16


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The heads of each call of torch's attention, of which two are taken at a time."""
    called, attend = list[int](), comfy_attention.attention_pytorch

    def counted(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        called.append(query.shape[1])
        return attend(query, *args, **options)

    monkeypatch.setattr(comfy_attention, "attention_pytorch", counted)
    monkeypatch.setattr(cpu_attention, "_MOST_PRODUCTS", 2 * 2 * 40 * 70 * WIDTH)
    return called


def attend(**more: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # [B, N, heads, D] -> [B, heads, N, D], as the transformer hands them over
    query, key, value = (
        torch.randn(2, tokens, HEADS, WIDTH, generator=generator).transpose(1, 2) for tokens in (40, 70, 70)
    )
    return attention_for(torch.device("cpu"))(query, key, value, HEADS, skip_reshape=True, **more)


@pytest.mark.usefixtures("inference")
def test_parts_are_the_whole(parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A video must not depend on how long a head takes."""
    in_parts = attend()
    assert parts == [2, 2, 1] and in_parts.shape == (2, 40, HEADS * WIDTH)
    monkeypatch.setattr(cpu_attention, "_MOST_PRODUCTS", 1 << 34)
    assert torch.equal(attend(), in_parts) and parts[3:] == [HEADS]
    monkeypatch.setattr(cpu_attention, "_MOST_PRODUCTS", 1)  # less than one head
    assert torch.equal(attend(), in_parts) and parts[4:] == [1] * HEADS


@pytest.mark.usefixtures("inference")
def test_cancel_is_heard_between_heads(parts: list[int]) -> None:
    """A head of a large video takes seconds, and all of them minutes."""
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        attend()
    assert not parts and not mm.processing_interrupted()


@pytest.mark.usefixtures("inference")
def test_who_needs_all_heads_gets_them(parts: list[int]) -> None:
    """Another node's attention may do anything with them, and a mask may be of each."""
    seen = []

    def override(function: Any, query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        seen.append(query.shape[1])
        return function(query, *args, **options)

    want = attend()
    assert torch.equal(attend(transformer_options={ATTENTION_OVERRIDE: override}), want) and seen == [HEADS]
    parts.clear()
    attend(mask=torch.zeros(2, HEADS, 40, 70))
    assert parts == [HEADS]


def test_a_training_computes_all_at_once(parts: list[int]) -> None:
    assert torch.is_grad_enabled()
    attend()
    assert parts == [HEADS]
