"""A sampling step makes the host wait for the card at most once: counted on an imagined card."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.benchmarks.bench_syncs import RUNS, count
from cogvideox.benchmarks.syncs import CARD, READ, UPLOAD, ImaginedCard
from cogvideox.samplers.step_cache import StepCache
from cogvideox.tests.samplers.test_step_cache import sigmas_of

STEPS = 4
# One of each kind. The step cache needs more steps to skip any.
KINDS = {
    "dpm, previews": STEPS,
    "ddim, dynamic cfg, guidance_rescale": STEPS,
    "image to video, streamed": STEPS,
    "control video in a part of the run": STEPS,
    "Step Cache, previews": 12,
    "Step Cache, dpmpp_2m, previews": 12,
    "Context Windows": STEPS,
    "Follow Video": STEPS,
}


@pytest.mark.parametrize("name", KINDS)
def test_the_host_waits_once_a_step(tiny_pipelines: dict[str, Path], name: str) -> None:
    """A card that is waited for stands still afterwards, until the host has told it what comes next."""
    found = count(RUNS[name], tiny_pipelines, KINDS[name])
    assert len(found.steps) == KINDS[name] - 1, "a step was not seen"
    ours = [place for step in found.steps for place in step.elements() if place.is_ours]
    assert found.most(READ, is_ours=True) + found.most(UPLOAD, is_ours=True) <= 1, ours
    assert any(not place.is_ours for place in found.total), "ComfyUI's own at the beginning were not seen"


@pytest.mark.parametrize(
    ("call", "waits"),
    (
        (lambda x, host: float(x[0]), [READ]),
        (lambda x, host: bool((x > 1).any()), [READ]),
        (lambda x, host: x.tolist(), [READ]),
        (lambda x, host: x[x > 1], [READ]),
        (lambda x, host: x.cpu().sum().item(), [READ]),
        (lambda x, host: host.to(x), [UPLOAD]),
        (lambda x, host: x[[0, 2]], [UPLOAD]),
        (lambda x, host: x[None, 1:][:, [1]], [UPLOAD]),
        (lambda x, host: torch.tensor([1.0], device=x.device), [UPLOAD]),
        (lambda x, host: host.to(x.device, non_blocking=True) + x, []),
        (lambda x, host: (x * 2 + torch.ones_like(x)).to(torch.float64).to(x), []),
        (lambda x, host: host.sum().item() + float(host[0]), []),
    ),
)
def test_what_is_counted(call: Any, waits: list[str]) -> None:
    """A count that misses a kind of wait would say that all is well."""
    card = ImaginedCard()
    with card.working():
        on_card, host = torch.arange(4.0).to(CARD, non_blocking=True), torch.ones(4)
        call(on_card, host)
    assert [place.kind for place in card.counted.total.elements()] == waits


def test_levels_that_something_else_has_asked_at() -> None:
    """Guesses would be made for other noise levels than those that the sampler is told to ask at."""
    sigmas = sigmas_of(50)
    cache = StepCache(0.05, levels=sigmas[:-1].tolist())
    options = {"transformer_options": {"sample_sigmas": sigmas}}
    for sigma in sigmas[:-1]:
        for _ in range(2):
            cache.predict(lambda *_: torch.ones(1, 8), torch.zeros(1), sigma[None], options)
    assert cache.skipped == 0 and not cache.is_suited
