"""Ranks as Ray actors, started once for the tests of this folder."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.model_loaders.load_model import load_model
from cogvideox.parallel import engine
from cogvideox.parallel.remote_model import spread


@pytest.fixture(scope="session")
def ray_runs() -> Iterator[Any]:
    """What a test starts in Ray ends with the tests."""
    # As the node imports it, which a test that changes the environment must not do first.
    yield engine._ray()
    engine.shut_down()


@pytest.fixture(scope="session")
def two_ranks(tiny_pipelines: Mapping[str, Path], ray_runs: Any) -> Iterator[ModelPatcher]:
    """5b on two ranks. They live as long as a model that uses them, so that other tests' models find them there."""
    with torch.inference_mode():
        model = spread(load_model(tiny_pipelines["5b"], "fp32"), 2, "auto", "", False)
    yield model
