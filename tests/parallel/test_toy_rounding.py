"""Whole runs of the toy on two ranks: how far rounding takes them, measured by runs whose network computes in fp64."""

import copy
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.model_loaders.load_model import load_model
from cogvideox.nano.folders import WEIGHTS
from cogvideox.tests.parallel.test_remote_model import on_two, run
from cogvideox.tests.support import check_at_most, relative_error

pytestmark = [pytest.mark.usefixtures("inference", "ray_runs"), pytest.mark.long]
WHAT = "20 steps of the toy against fp64, two ranks' error over one process's"
SIZE = (5, 8, 8)  # the toy's own: 17 frames of 64 x 64 pixels


def prompt(model: ModelPatcher, seed: int) -> list:
    config, generator = model.model.diffusion_model.config, torch.Generator().manual_seed(seed)
    return [[torch.randn(1, config.max_text_seq_length, config.text_embed_dim, generator=generator), {}]]


def in_fp64(model: ModelPatcher) -> ModelPatcher:
    """`model` with a network that computes in fp64; what the sampler adds up stays fp32."""
    network: Any = model.model.diffusion_model
    wide = copy.deepcopy(network).double()

    def forward(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, ofs: Any = None, **options: Any) -> Any:
        wide_ofs = None if ofs is None else ofs.double()
        return wide(x.double(), timestep.double(), context.double(), ofs=wide_ofs, **options).float()

    network.forward = forward
    return model


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5B"])
def test_ranks_round_as_one_process_does(variant: str) -> None:
    """Its weights are trained, and larger steps add up more rounding than those of the random ones in other tests."""
    weights = WEIGHTS / variant
    near, far, exact = load_model(weights, "fp32"), load_model(weights, "fp32"), load_model(weights, "fp32")
    prompts = prompt(near, 3), prompt(near, 4)
    worst = []
    for sampler in ("dpm", "ddim"):
        inputs = {"conditioning": prompts, "steps": 20, "sampler": sampler}
        truth = run(in_fp64(exact), SIZE, **inputs)
        worst.append([relative_error(run(model, SIZE, **inputs), truth) for model in (near, on_two(far, "sequence"))])
    one, two = map(max, zip(*worst))
    check_at_most(WHAT, two / one, 1.5)
