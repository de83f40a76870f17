"""Context handlers of other packs: ComfyUI asks them for no more than to run the model in windows of their own."""

from types import SimpleNamespace
from typing import Any

import pytest

from cogvideox.samplers.checks import check_size

MODEL: Any = SimpleNamespace(
    diffusion_model=SimpleNamespace(token_grid=lambda size, options: (size[0], size[1] // 2, size[2] // 2))
)
BATCHED = SimpleNamespace(name="batched")


@pytest.mark.parametrize(
    ("handler", "frames"),
    [
        (None, {13}),
        (SimpleNamespace(context_length=5, context_schedule=BATCHED), {5, 3}),
        (SimpleNamespace(context_length=5), {5}),
        (SimpleNamespace(context_length=20), {13}),
        (SimpleNamespace(), set()),
        (SimpleNamespace(context_length="as it comes"), set()),
    ],
)
def test_a_handler_that_does_not_say_its_windows_runs(handler: Any, frames: set[int]) -> None:
    """The run ended with an AttributeError before its first step, although its windows were the other pack's matter."""
    assert check_size(MODEL, (13, 4, 6), {"context_handler": handler}) == {count * 2 * 3 for count in frames}
