"""What one rank does with a question, with others that are told what to say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host import cpu_products
from cogvideox.parallel import rank as module
from cogvideox.parallel.rank import Rank
from cogvideox.parallel.rank_answers import MEMORY, Question
from cogvideox.parallel.split import Split
from cogvideox.parallel.transport import Sender, packed

pytestmark = pytest.mark.usefixtures("inference")


class Others:
    """Ranks that share all tokens with this one, and leave all of them to it."""

    rank, sent_bytes = 0, 0

    def __init__(self, size: int):
        self.size = size

    def share(self, *tensors: Any) -> tuple[Any, ...]:
        return tensors

    def gather(self, video: torch.Tensor) -> torch.Tensor:
        return video

    def agree(self, choice: int) -> int:
        return choice

    def across(self, attend: Any) -> Any:
        return attend


@pytest.mark.parametrize("split", [Split(2, 1), Split(2, 2), Split(1, 4)])
def test_attention_is_chosen_for_the_heads_of_a_rank(
    tiny_pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, split: Split
) -> None:
    """Of four ranks, two to a prompt have half of the heads each, and not a quarter."""
    rank, measured = Rank(), list[int]()
    rank._ways[split] = 0, Others(split.sequence)  # type: ignore[assignment]
    monkeypatch.setattr(module, "choose_attention", lambda size, heads, options: measured.append(heads))
    rank.load("model", str(tiny_pipelines["5b"]), "fp32", "detect", "torch.float32")
    config = rank._models["model"][0].model.diffusion_model.config
    x, context = torch.zeros(2, config.in_channels, 1, 4, 4), torch.zeros(2, 3, config.text_embed_dim)
    sent = packed(x), packed(torch.full((2,), 500.0)), Sender().kept(context)
    rank.predict(Question("model", True, *sent, None, {"riflex": False, "resample": False}, False, ()), split)
    assert measured == [-(-config.num_attention_heads // split.sequence)]


def test_a_machine_that_computes_in_another_dtype_says_so(
    tiny_pipelines: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One CPU has instructions for bf16, the other has none: the first step would end in a product of two types, or
    hang where ranks send each other tokens of two sizes."""
    monkeypatch.setattr(cpu_products, "bf16_is_faster", lambda: True)
    with pytest.raises(UserError, match="computes the model in torch.bfloat16, ComfyUI's own in torch.float32"):
        Rank().load("model", str(tiny_pipelines["5b"]), "bf16", "detect", "torch.float32")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 24.8 MiB"), torch.OutOfMemoryError("none is left")])
def test_memory_that_runs_out_is_said_as_such(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Also by numpy, which takes tensors from process to process: starting again, as after another end, would not
    help."""
    rank = Rank()
    monkeypatch.setattr(rank, "process", mock.Mock(side_effect=error))
    failure = rank.answer("process").failure
    assert failure is not None and failure.kind == MEMORY
