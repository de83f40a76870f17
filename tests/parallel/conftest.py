"""Ranks as Ray actors, started once for the tests of this folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.model_loaders.load_model import load_model
from cogvideox.parallel import engine
from cogvideox.parallel.remote_model import spread


@pytest.fixture(scope="session")
def ray_runs() -> Iterator[None]:
    """What a test starts in Ray ends with the tests."""
    pytest.importorskip("ray")
    yield
    engine.shut_down()


@pytest.fixture(scope="session")
def two_ranks(tiny_pipelines: Mapping[str, Path], ray_runs: None) -> Iterator[ModelPatcher]:
    """5b on two ranks. They live as long as a model that uses them, so that other tests' models find them there."""
    with torch.inference_mode():
        yield spread(load_model(tiny_pipelines["5b"], "fp32"), 2, "auto", "", False)
