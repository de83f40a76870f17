"""A Triton kernel of the transformer is tried before it is given a video's tokens: what
tests/test_interpreted_kernels.py runs in Triton's interpreter, and what becomes of a kernel that is wrong."""

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

from cogvideox.tests.transformer.test_token_passes import TINY, kernels, make_layers, run_passes
from cogvideox.transformer import token_passes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ((False, True), (True, False), (True, True))  # adds, norms


def measure() -> dict[str, list[str]]:
    """What tests/test_interpreted_kernels.py runs in a process of its own: what each trial says of the kernels as they
    are, and of wrong ones."""
    from cogvideox.transformer import token_trials as trials

    def said(trial: Callable[..., None], *arguments: Any) -> str:
        try:
            trial(*arguments)
        except RuntimeError as error:
            return str(error)
        return ""

    def all_trials(dtype: torch.dtype) -> list[str]:
        tokens, heads = torch.zeros(1, 1, 1920, dtype=dtype), torch.zeros(1, 1, 30, 64, dtype=dtype)  # 2b's
        found = [said(trials.try_token_kernel, tokens, *kind) for kind in KINDS]
        return found + [said(trials.try_head_kernel, heads, rotates) for rotates in (True, False)]

    token_kernel, head_kernel = trials.run_token_kernel, trials.run_head_kernel

    def wrong_tokens(source: Any, added: Any, normed: Any) -> None:
        token_kernel(source, added, normed)
        (normed[2] if normed else added[2][1]).view(-1)[-1] = 0  # one value of the last token

    def wrong_heads(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> None:
        head_kernel(query, key, *rest)
        key.view(-1)[-1] = 0

    right = [text for dtype in DTYPES for text in all_trials(dtype)]
    with mock.patch.multiple(trials, run_token_kernel=wrong_tokens, run_head_kernel=wrong_heads):
        return {"right": right, "wrong": all_trials(torch.bfloat16)}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """In the place of token_trials, which needs Triton, with nothing tried yet."""
    stand_in: Any = ModuleType("token_trials")
    stand_in.try_token_kernel, stand_in.try_head_kernel = mock.Mock(), mock.Mock()
    monkeypatch.setitem(sys.modules, "cogvideox.transformer.token_trials", stand_in)
    for name in ("_WITHOUT", "_EXACT"):
        monkeypatch.setattr(token_passes, name, set())
    return stand_in


def test_each_kernel_is_tried_once(trials: Any) -> None:
    """For each type and width, which it is compiled for."""
    launched = mock.Mock()
    tokens, half, wide = torch.zeros(1, 4, 48), torch.zeros(1, 4, 48).bfloat16(), torch.zeros(1, 4, 96)
    for x in (tokens, tokens, half, wide, tokens):
        assert token_passes._launched("residual", x, [], launched)
    assert launched.call_count == 5 and trials.try_token_kernel.call_count == 3
    heads = torch.zeros(1, 4, 3, 16)
    for rotates in (True, True, False):
        assert token_passes._launched("norm and rotation of heads", heads, [], launched, rotates)
    assert [call.args[1] for call in trials.try_head_kernel.call_args_list] == [True, False]


def test_a_wrong_kernel_is_never_launched(trials: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its user would get another video, and no word about it."""
    of = make_layers(TINY[0], 16, torch.float32, "cpu")
    with kernels(False):
        plain = run_passes(of, True)
    for trial in (trials.try_token_kernel, trials.try_head_kernel):
        trial.side_effect = RuntimeError("its result on a few tokens has an error of 3.1e-01")
    with caplog.at_level(logging.WARNING), kernels(True) as launches:
        ours = run_passes(of, True)
    assert not +launches and all(torch.equal(ours[name], plain[name]) for name in plain)
    assert len(caplog.messages) == 4 and all("has an error of 3.1e-01" in line for line in caplog.messages)
