"""A Triton kernel of the VAE is tried before it is given a video: what tests/test_interpreted_kernels.py runs in
Triton's interpreter, and what becomes of a kernel that is wrong."""

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from cogvideox.vae import kernels

MODULES = ("fused", "fused_statistics", "fused_norms")
# (module, a kernel of it): that of channels is wrong for the last of the network's sizes only
WRONG = (
    ("fused", "fused_modulated_silu"),
    ("fused_statistics", "fused_statistics"),
    ("fused_norms", "fused_affine"),
    ("fused_norms", "fused_modulation"),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def measure() -> dict[str, list[str]]:
    """What tests/test_interpreted_kernels.py runs in a process of its own: what each trial says of the kernels as they
    are, and of wrong ones."""
    from cogvideox.vae import frame_trials

    found: dict[str, list[str]] = {"right": [_said(module, dtype) for module in MODULES for dtype in DTYPES]}
    found["wrong"] = []
    for module, kernel in WRONG:
        with mock.patch.object(frame_trials, kernel, _wrong(getattr(frame_trials, kernel))):
            found["wrong"].append(_said(module, torch.bfloat16))
    return found


def _said(module: str, dtype: torch.dtype) -> str:
    from cogvideox.vae import frame_trials

    try:
        frame_trials.try_kernels(module, torch.device("cpu"), dtype)
    except RuntimeError as error:
        return str(error)
    return ""


def _wrong(kernel: Any) -> Any:
    """A kernel whose last value is wrong."""

    def run(*arguments: Any, **options: Any) -> Any:
        made = kernel(*arguments, **options)
        changed = made[-1] if made is not None else arguments[-1]  # the activation writes to its last argument
        if changed.shape not in ((128,), (256,)):
            changed[(-1,) * changed.ndim] = 999
        return made

    return run


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """In the place of frame_trials.try_kernels, which needs Triton, with nothing tried yet."""
    monkeypatch.setattr(kernels, "WITHOUT", set())
    monkeypatch.setattr(kernels, "TRIED", set())
    stand_ins: dict[str, Any] = {"frame_trials": ModuleType("frame_trials"), "fused": SimpleNamespace(name="fused")}
    stand_ins["frame_trials"].try_kernels = tried = mock.Mock()
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, f"cogvideox.vae.{name}", module)
    return tried


def test_each_kernel_is_tried_once(trials: mock.Mock) -> None:
    """For each type: a kernel is compiled again for it."""
    full, half = torch.zeros(1), torch.zeros(1).bfloat16()
    for like in (full, full, half, full):
        assert kernels.try_kernel(like, "fused", lambda module: module.name) == "fused"
    assert trials.call_args_list == [mock.call("fused", like.device, like.dtype) for like in (full, half)]


def test_a_wrong_kernel_is_never_launched(trials: mock.Mock, caplog: pytest.LogCaptureFixture) -> None:
    """Its user would get another video, and no word about it."""
    trials.side_effect = RuntimeError("on a few values its result has an error of 3.1e-01")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert kernels.try_kernel(torch.zeros(1), "fused", lambda _: pytest.fail("launched")) is None
    assert trials.call_count == 1
    (line,) = caplog.messages
    assert "vae/fused.py do not work on cpu in torch.float32 (RuntimeError: on a few values" in line


def test_a_trial_without_memory_is_no_broken_kernel(trials: mock.Mock) -> None:
    """The next, leaner plan must find the kernels working."""
    trials.side_effect = torch.OutOfMemoryError("none is left")
    with pytest.raises(torch.OutOfMemoryError):
        kernels.try_kernel(torch.zeros(1), "fused", lambda _: None)
    assert not kernels.WITHOUT and not kernels.TRIED
