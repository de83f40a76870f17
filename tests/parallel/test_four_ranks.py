"""A model on four ranks against the same model in one process."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from comfy.model_patcher import ModelPatcher

from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.parallel.remote_model import spread
from cogvideox.tests.parallel.test_remote_model import (
    controlled,  # noqa: F401 (a fixture)
    forward,
    guided_or_not,
    near,  # noqa: F401 (a fixture)
    quantised,
    run,
    some_lora,
)
from cogvideox.tests.support import ALL_VARIANTS, check_parity, relative_error

pytestmark = [pytest.mark.usefixtures("inference", "four_ranks"), pytest.mark.long]
WHAT = "four ranks against one process"


@pytest.fixture(scope="module", params=["sequence", "both"])
def four_ranks(request: pytest.FixtureRequest, near: ModelPatcher, ray_runs: Any) -> Iterator[ModelPatcher]:  # noqa: F811
    """5b on all four to the tokens of both prompts, or two to a prompt. They live as long as this model."""
    yield on_four(near, request.param)


def on_four(model: ModelPatcher, split: str) -> ModelPatcher:
    return spread(model, 4, split, "", False)


def split_of(model: Any) -> str:
    return model.weights.team.split_name


def test_runs(near: ModelPatcher, four_ranks: ModelPatcher, controlled: Any) -> None:  # noqa: F811
    """With guidance and without, and with control nets."""
    for inputs in guided_or_not(controlled):
        check_parity(WHAT, run(four_ranks, **inputs), run(near, **inputs), 5e-6)


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_every_family(tiny_pipelines: Mapping[str, Path], four_ranks: ModelPatcher, variant: str) -> None:
    """At its own size and at one whose tokens do not divide, where it can have another."""
    model = load_model(tiny_pipelines[variant], "fp32")
    far, network = on_four(model, split_of(four_ranks)), model.model.diffusion_model
    is_learned = network.config.use_learned_positional_embeddings
    for size in (network.native_size(),) if is_learned else ((3, 8, 12), (1, 6, 10)):
        check_parity(WHAT, forward(far, size), forward(model, size), 5e-6)


@pytest.mark.parametrize("weights", ["fp32", "fp8_e4m3fn", "Q8_0"])
def test_lora(tiny_pipelines: Mapping[str, Path], four_ranks: ModelPatcher, tmp_path: Path, weights: str) -> None:
    """On plain and on quantised weights."""
    model = quantised(tiny_pipelines["5b"], tmp_path, weights)
    lora = some_lora(model, tmp_path)
    want = run(apply_lora(model, lora, 0.8)[0])
    assert relative_error(want, run(model)) > 1e-3
    check_parity(WHAT, run(apply_lora(on_four(model, split_of(four_ranks)), lora, 0.8)[0]), want, 5e-6)
