"""Every stage of CogVideoX-nano's transformers runs: two steps on a handful of clips."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from cogvideox.host.patches import own_states
from cogvideox.nano import buckets, encode, publish, train
from cogvideox.nano.stage import SEED
from cogvideox.nano.transformer_stages import TRANSFORMER_STAGES, TransformerStage
from cogvideox.tests.tiers import long_after

FEW = tuple(
    buckets.Bucket(frames, width, height, 4, 0.5)
    for frames, width, height in ((9, 64, 64), (17, 64, 64))  # the second is that of the learned table
)


@pytest.fixture(autouse=True)
def accelerates_own_state() -> Iterator[None]:
    """accelerate keeps a stage's precision for the process: a later test's training would compute in bf16."""
    with own_states(PartialState, AcceleratorState, GradientState):
        yield


@pytest.fixture
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "BUCKETS", FEW)
    monkeypatch.setattr(buckets.Bucket, "batch_size", 2)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stages keep the encoded clips for each other: they depend on the task alone."""
    return tmp_path_factory.mktemp("encoded")


def share(files: Path, into: Path) -> None:
    for file in files.glob("*.pt"):
        if not (into / file.name).exists():
            shutil.copyfile(file, into / file.name)


@pytest.mark.parametrize(
    "stage", long_after(6, [*TRANSFORMER_STAGES[::2], *TRANSFORMER_STAGES[1::2]]), ids=lambda stage: stage.name
)
def test_a_stage_trains_and_leaves_weights_that_are_published(
    stage: TransformerStage, few_clips: None, encoded: Path, tmp_path: Path
) -> None:
    """Who trains the toy again finds out after hours, not minutes, that a stage or its weights do not fit."""
    short = replace(stage, steps=2, only_bucket=None if stage.only_bucket is None else 1)
    share(encoded, tmp_path)
    train.train_transformer(tmp_path, short)
    share(tmp_path, encoded)
    weights = torch.load(tmp_path / stage.name / "trained.pt")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert sum(1 for _ in (tmp_path / stage.name / "log.csv").open()) == 3  # the head and two steps
    if stage.is_control_net:
        publish.write_control_net(tmp_path / "published", weights)
        assert any(weights[name].any() for name in weights if name.startswith("out_projectors"))
    else:
        config = publish.transformer.CONFIGS[stage.variant]
        publish.write_transformer(tmp_path / "published", stage.variant, config, weights)


@pytest.mark.long  # two processes that import ComfyUI; what they call is called in every stage above
def test_what_processes_encode_beforehand_is_what_a_stage_encodes_itself(few_clips: None, tmp_path: Path) -> None:
    """Otherwise a training on a machine of many cores is another one than the recipe's."""
    there, beforehand = tmp_path / "there", tmp_path / "beforehand"
    itself = buckets.load_or_encode(0, there, SEED, "inpaint")
    encode.encode(beforehand, 2, ["text", "inpaint"])
    assert len(list(beforehand.iterdir())) == 2 * len(FEW)
    before = buckets.load_or_encode(0, beforehand, SEED, "inpaint")
    assert before.keys() == itself.keys() and torch.equal(before["known"], itself["known"])
    for name, column in itself.items():  # in bf16, and in another number of threads
        assert torch.allclose(before[name].float(), column.float(), atol=0.02), name


def test_a_task_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="There is no task edges. The tasks are text, image, inpaint"):
        encode.encode(Path(), 1, ["text", "edges"])
