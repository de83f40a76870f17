"""CogVideoX-nano's optimizer in the training loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from cogvideox.nano import optimizer
from cogvideox.nano.optimizer import MuonAndAdamW
from cogvideox.nano.train_transformer import muon_and_adamw
from cogvideox.training import loop
from cogvideox.training.config import TrainConfig
from cogvideox.training.objective import sample_generator


def train(folder: Path, stop_after: int = 0) -> dict[str, torch.Tensor]:
    """A tiny regression, stopped after a step where asked."""
    torch.manual_seed(0)
    done = []
    config = TrainConfig(
        max_steps=6,
        global_batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-2,
        warmup_steps=2,
        final_learning_rate=1e-4,
    )

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        x = torch.stack([torch.randn(8, generator=sample_generator(3, i)) for i in indices])
        return ((model(x) - x.cos()[:, :4]) ** 2).mean()

    return loop.train(
        Accelerator(cpu=True),
        torch.nn.Linear(8, 4),
        loss_of,
        config,
        folder,
        callbacks=loop.Callbacks(lambda step, loss: done.append(step), lambda: len(done) == stop_after),
        optimizer_of=muon_and_adamw,
    )


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """A run of an hour on a lent machine is interrupted."""
    whole = train(tmp_path / "whole")
    train(tmp_path / "stopped", stop_after=3)
    resumed = train(tmp_path / "stopped")
    assert all(torch.equal(resumed[name], weights) for name, weights in whole.items())


def test_both_follow_the_loops_learning_rate() -> None:
    """accelerate loads the optimizer's state once, which puts new groups in the place of the first ones."""
    model = torch.nn.Linear(8, 4)
    optimizer = MuonAndAdamW(model, 1.0, (0.9, 0.99), 0.0)
    optimizer.load_state_dict(optimizer.state_dict())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    steps = {name: float((p - before[name]).detach().norm()) for name, p in model.named_parameters()}
    assert steps["bias"] == pytest.approx(1e-3 * 4**0.5, rel=1e-3)
    # of rank 1: one singular value, brought to about 1, by 0.2 * sqrt(8)
    assert 0.5e-3 < steps["weight"] / (0.2 * 8**0.5) < 1.5e-3


@pytest.mark.parametrize(("bf16", "tolerance"), ((True, 1e-4), (False, 1e-3)), ids=("bf16", "fp32"))
def test_matrices_take_muons_steps(bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours against torch's, which takes them one by one and in bf16: shapes laid on their side, two of one shape."""
    monkeypatch.setattr(optimizer, "multiplies_bf16", lambda device: bf16)
    muon: Any = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    shapes = ((8, 4), (4, 8), (8, 4), (6, 6), (5,))
    torch.manual_seed(0)
    ours, theirs = (torch.nn.ParameterList(torch.zeros(shape) for shape in shapes) for _ in range(2))
    for one, other in zip(ours, theirs):
        one.data.normal_()
        other.data.copy_(one.data)
    optimizers = (
        MuonAndAdamW(ours, 1e-2, (0.9, 0.99), 1e-2),
        muon(theirs[:4], 1e-2, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for stepped in optimizers:
            stepped.step()
    for one, other in zip(ours[:4], theirs[:4]):
        assert torch.allclose(one, other, atol=tolerance), (one - other).abs().max()
