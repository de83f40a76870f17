"""A Triton kernel of the VAE is tried before it is given a video: what tests/test_interpreted_kernels.py runs in
Triton's interpreter, and what becomes of a kernel that is wrong."""

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from cogvideox.vae import kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A kernel, and its channels and groups: of the official VAE, and of CogVideoX-nano's.
SIZES = (
    *(("fused_modulated_silu", (channels, 0)) for channels in (256, 40)),
    *(("fused_statistics", (channels, 0)) for channels in (256, 40)),
    *(("fused_affine", size) for size in ((128, 32), (512, 32), (40, 8))),
    *(("fused_modulation", (channels, 0)) for channels in (256, 40)),
)


def measure() -> dict[str, list[str]]:
    """What tests/test_interpreted_kernels.py runs in a process of its own: what each trial says of the kernels as they
    are, and of wrong ones."""
    from cogvideox.vae import frame_trials

    found: dict[str, list[str]] = {"right": [], "wrong": []}
    for number, (kernel, size) in enumerate(SIZES):
        found["right"].append(_said(kernel, size, DTYPES[number % len(DTYPES)]))
        for wrong in (_wrong, _elsewhere):
            with mock.patch.object(frame_trials, kernel, wrong(getattr(frame_trials, kernel))):
                found["wrong"].append(_said(kernel, size, torch.bfloat16))
    return found


def _said(kernel: str, size: tuple[int, int], dtype: torch.dtype) -> str:
    from cogvideox.vae import frame_trials

    try:
        frame_trials.try_frame_kernel(kernel, size, torch.device("cpu"), dtype)
    except RuntimeError as error:
        return str(error)
    return ""


def _wrong(kernel: Any) -> Any:
    """A kernel whose last value is wrong."""

    def run(*arguments: Any, **options: Any) -> Any:
        made = kernel(*arguments, **options)
        changed = made[-1] if made is not None else arguments[-1]  # the activation writes to its last argument
        changed[(-1,) * changed.ndim] = 999
        return made

    return run


def _elsewhere(kernel: Any) -> Any:
    """A kernel that takes its arguments for what they often are: zooms for equal, a latent for contiguous, rows for
    added once, and statistics for few."""

    def run(*arguments: Any, **options: Any) -> Any:
        changed = list(arguments)
        if kernel.__name__ == "fused_modulated_silu":
            changed[1] = replace(arguments[1], zoom_x=arguments[1].zoom_y)
        elif kernel.__name__ == "fused_modulation":
            latent = arguments[-1]
            _, height, width = latent.shape
            changed[-1] = torch.as_strided(latent, latent.shape, (height * width, width, 1), latent.storage_offset())
        elif kernel.__name__ == "fused_statistics":
            changed[2] = 1
        else:
            changed[0] = arguments[0][:-3]  # the statistics that it adds up first
        return kernel(*changed, **options)

    return run


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """In the place of frame_trials.try_frame_kernel, which needs Triton, with nothing tried yet."""
    monkeypatch.setattr(kernels, "WITHOUT", set())
    monkeypatch.setattr(kernels, "TRIED", set())
    stand_ins: dict[str, Any] = {
        "frame_trials": SimpleNamespace(try_frame_kernel=mock.Mock()),
        "fused": SimpleNamespace(fused_modulated_silu=lambda: "launched"),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, f"cogvideox.vae.{name}", module)
    return stand_ins["frame_trials"].try_frame_kernel


def launch(like: torch.Tensor, channels: int = 128) -> str | None:
    return kernels.try_kernel(like, "fused_modulated_silu", (channels, 0), lambda run: run())


def test_each_kernel_is_tried_once(trials: mock.Mock) -> None:
    """For each type and number of channels: a kernel is compiled again for it."""
    full, half = torch.zeros(1), torch.zeros(1).bfloat16()
    for like, channels in ((full, 128), (full, 128), (half, 128), (full, 40), (full, 128)):
        assert launch(like, channels) == "launched"
    tried = [(call.args[1][0], call.args[3]) for call in trials.call_args_list]
    assert tried == [(128, torch.float32), (128, torch.bfloat16), (40, torch.float32)]


def test_a_wrong_kernel_is_never_launched(trials: mock.Mock, caplog: pytest.LogCaptureFixture) -> None:
    """Its user would get another video, and no word about it. Others go on."""
    trials.side_effect = RuntimeError("on a few values its result has an error of 3.1e-01")
    with caplog.at_level(logging.WARNING):
        assert launch(torch.zeros(1)) is None and launch(torch.zeros(1)) is None
    assert trials.call_count == 1
    (line,) = caplog.messages
    assert "fused_modulated_silu does not work on cpu in torch.float32 with 128 channels" in line and "3.1e-01" in line
    trials.side_effect = None
    assert launch(torch.zeros(1), 256) == "launched" and launch(torch.zeros(1)) is None


def test_a_trial_without_memory_is_no_broken_kernel(trials: mock.Mock) -> None:
    """The next, leaner plan must find the kernels working."""
    trials.side_effect = torch.OutOfMemoryError("none is left")
    with pytest.raises(torch.OutOfMemoryError):
        launch(torch.zeros(1))
    assert not kernels.WITHOUT and not kernels.TRIED
