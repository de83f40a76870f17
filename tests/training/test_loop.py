"""The loop's promise: killed anywhere it goes on to the same numbers, and it never loses what it had."""

import errno
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.children import running
from cogvideox.tests.tiers import long_after
from cogvideox.training import checkpoint, loop
from cogvideox.training.adapters import attach_lora
from cogvideox.training.config import MAY_DIFFER_ON_RESUME, TrainConfig
from cogvideox.training.objective import sample_generator

STEPS = 8


def config(**changes: Any) -> TrainConfig:
    values = {"max_steps": STEPS, "global_batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2}
    return TrainConfig(**{**values, "warmup_steps": 2, "save_every": 2, "seed": 5, **changes})


class Line(torch.nn.Module):
    """y = w x + b with a frozen w: the smallest thing that can be trained in part."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((64,), 2.0), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x + self.bias


def line_loss(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
    x = torch.stack([torch.randn(64, generator=sample_generator(5, i)) for i in indices])
    return ((model(x) - x.cos()) ** 2).mean()


def train(
    folder: Path,
    loss_of: loop.LossFunction = line_loss,
    model: torch.nn.Module | None = None,
    changes: dict[str, Any] = {},
    settings: dict[str, object] = {},
    optimizer_of: Callable[[torch.nn.Module, TrainConfig], torch.optim.Optimizer] = loop.adamw,
    **callbacks: Any,
) -> dict[str, torch.Tensor]:
    """changes: of the config. settings: what else is kept with checkpoints."""
    from accelerate import Accelerator

    chosen = config(**changes)
    with checkpoint.only_training(folder):  # as both drivers do
        return loop.train(
            Accelerator(cpu=True),
            model or Line(),
            loss_of,
            chosen,
            folder,
            {**chosen.recorded(), **settings},
            loop.Callbacks(**callbacks),
            optimizer_of,
        )


def lora_training(pipeline: Path) -> tuple[loop.LossFunction, torch.nn.Module]:
    """The loss of a tiny transformer with a LoRA, and the transformer."""
    from cogvideox.training import objective as objectives

    model = load_model(pipeline, "fp32", disable_dynamic=True)
    dit = model.model.diffusion_model
    attach_lora(dit, TrainConfig(rank=2, alpha=4.0, seed=1))
    objective = objectives.objective_for(model)
    generator = torch.Generator().manual_seed(0)
    sample: objectives.Sample = {
        "latents": torch.randn(16, 1, 8, 12, generator=generator),
        "text": torch.randn(226, 32, generator=generator),
    }

    def loss_of(module: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        batch = objectives.draw_batch([sample] * len(indices), indices, 5, objective, sample["text"][None])
        return objectives.denoising_loss(module, batch, objective)

    return loss_of, dit


def work(folder: Path, pipeline: Path, place: str) -> None:
    """Train and die: after step 5, or half way through the checkpoint of step 6."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_save(state: object, file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        die()

    def on_step(step: int, loss: float) -> None:
        if step == 5 and place == "step":
            die()
        if step == 5:
            checkpoint.torch.save = half_a_save

    train(folder, *lora_training(pipeline), on_step=on_step)


@pytest.mark.parametrize("place", long_after(1, ["step", "save"]))
def test_killed_training_ends_in_the_same_lora(tiny_pipelines: dict[str, Path], tmp_path: Path, place: str) -> None:
    """A power cut must cost minutes, not the training, and what comes out must not tell that there was one."""
    pipeline, folder = tiny_pipelines["5b"], tmp_path / "killed"
    with running("training.test_loop.work", folder, pipeline, place) as killed:
        assert killed.wait(500) == -signal.SIGKILL, killed.output()[-2000:]
    assert [path.name for path in checkpoint.finished_checkpoints(folder)] == ["step-000004"]
    assert bool(list(folder.glob(".step-*.part"))) == (place == "save")
    whole = train(tmp_path / "whole", *lora_training(pipeline))
    resumed = train(folder, *lora_training(pipeline))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [[row[:3] for row in loop.read_log(path / "log.csv")] for path in (folder, tmp_path / "whole")]
    assert steps[0] == steps[1] and len(steps[0]) == STEPS
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", f"step-{STEPS:06d}"]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"micro_batch_size": 1}, {"schedule": "constant"}])
def test_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, changes: dict) -> None:
    """Cancelling a run and queueing it again must not change its result, whatever else it keeps (averages, moments)."""
    whole = train(tmp_path / "whole", changes=changes)
    done: list[int] = []
    stopped = {"on_step": lambda step, loss: done.append(step), "should_stop": lambda: len(done) == 3}
    train(tmp_path / "stopped", changes=changes, **stopped)
    assert [path.name for path in checkpoint.finished_checkpoints(tmp_path / "stopped")] == ["step-000003"] and len(
        done
    ) == 3
    resumed = train(
        tmp_path / "stopped", changes={**changes, "save_every": 50}, on_step=lambda step, _: done.append(step)
    )
    assert done == list(range(1, STEPS + 1))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("place", ["between", "inside"])
@pytest.mark.parametrize("step", [0, 3, 4])
def test_step_that_a_stop_interrupts_is_dropped(tmp_path: Path, place: str, step: int) -> None:
    """A step of many micro batches takes hours: Cancel ends it at once, and the result must not tell that it did."""
    changes = {"global_batch_size": 4, "micro_batch_size": 1, "ema_decay": 0.5}
    whole, computed, saved = train(tmp_path / "whole", changes=changes), [], []

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        computed.append(indices[0])
        loss = line_loss(model, indices)
        if place == "inside" and len(computed) == 4 * step + 2:  # of which the gradients are there already
            (loss / 4).backward(retain_graph=True)
            raise loop.StepDropped
        return loss

    def should_stop() -> bool:
        return place == "between" and len(computed) == 4 * step + 2

    def on_save(step: int, weights: dict[str, torch.Tensor]) -> None:
        saved.append(step)

    weights = train(tmp_path / "cut", loss_of, changes=changes, on_save=on_save, should_stop=should_stop)
    assert computed == list(range(4 * step + 2)), "it went on"
    assert saved == [n for n in (2, 4) if n <= step] + [3] * (step == 3), "a checkpoint twice, or of half a step"
    assert step or not weights["bias"].any()
    resumed = train(tmp_path / "cut", changes=changes)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    rows = [[row[:3] for row in loop.read_log(tmp_path / name / "log.csv")] for name in ("whole", "cut")]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS


def test_finished_training_gives_its_weights_again(tmp_path: Path) -> None:
    """Queueing a finished training again must give its LoRA at once."""
    weights, done = train(tmp_path), []
    again = train(tmp_path, on_step=lambda step, _: done.append(step))
    assert not done and torch.equal(weights["bias"], again["bias"])


def test_checkpoint_holds_no_frozen_weights(tmp_path: Path) -> None:
    """A LoRA's checkpoint of 11 GB, every 250 steps, would fill the disk."""
    saved = []
    weights = train(tmp_path, on_save=lambda step, weights: saved.append((step, weights["bias"])))
    state = torch.load(tmp_path / f"step-{STEPS:06d}" / "training.pt", weights_only=True)
    assert list(state["parameters"]) == list(state["optimizer"]) == list(weights) == ["bias"]
    assert [step for step, _ in saved] == [2, 4, 6, 8] and torch.equal(saved[-1][1], weights["bias"])


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    """Going on with another learning rate or dataset by mistake would ruin the LoRA without a word."""
    train(tmp_path, settings={"dataset": "a"}, should_stop=lambda: True)
    with pytest.raises(UserError, match="dataset: a there, b now") as caught:
        train(tmp_path, changes={"learning_rate": 2e-2}, settings={"dataset": "b"})
    assert "learning_rate: 0.01 there, 0.02 now" in str(caught.value)
    may_differ = {"save_every": 3, "gradient_checkpointing": True}
    assert may_differ.keys() == set(MAY_DIFFER_ON_RESUME)
    train(tmp_path, changes=may_differ, settings={"dataset": "a"})


def test_other_model_and_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    """A checkpoint that does not fit must be named, not end in a stack of torch's errors."""
    train(tmp_path, should_stop=lambda: True)
    with pytest.raises(UserError, match="is of another model: 0.bias and 1 more"):
        train(tmp_path, lambda model, _: model(torch.ones(64)).mean(), torch.nn.Sequential(Line()))
    state = tmp_path / "step-000001" / "training.pt"
    state.write_bytes(state.read_bytes()[:300])
    with pytest.raises(UserError, match="step-000001 cannot be read"):
        train(tmp_path)


def test_unfinished_checkpoint_is_ignored(tmp_path: Path) -> None:
    """What a kill left half written must not be taken for a checkpoint, nor lie about for ever."""
    left = tmp_path / ".part-step-000006"
    left.mkdir()
    (left / "training.pt").write_bytes(b"half")
    assert torch.equal(train(tmp_path)["bias"], train(tmp_path / "other")["bias"])
    assert not left.exists()


def test_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    """A curve with steps twice, or with the half line that a kill left, would show what never happened."""
    train(tmp_path, should_stop=lambda: True)
    log = tmp_path / "log.csv"
    log.write_text(log.read_text() + "2,0.5,1e-2,0.1\r\n3,0.4,1e")
    train(tmp_path)
    rows = loop.read_log(log)
    assert [int(row[0]) for row in rows] == list(range(1, STEPS + 1)) and rows[1][1] != "0.5"
    assert len(log.read_text().splitlines()) == STEPS + 1


def test_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    """Hours of training on NaN would overwrite every good checkpoint."""

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        return line_loss(model, indices) * (float("nan") if indices[0] >= 6 else 1)

    with pytest.raises(UserError, match="The loss at step 4 is NaN or Inf. Lower the learning rate"):
        train(tmp_path, loss_of)
    assert [path.name for path in checkpoint.finished_checkpoints(tmp_path)] == ["step-000002"]


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Exception
) -> None:
    """A full disk must cost the steps since the last checkpoint only."""
    whole, write, calls = train(tmp_path / "whole"), torch.save, []

    def save(state: object, file: BinaryIO) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise kind
        write(state, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(UserError, match=r"step 4 cannot be written .* Free some space .*step-000002 is kept"):
        train(tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["log.csv", "step-000002"]
    assert torch.equal(whole["bias"], train(tmp_path / "full")["bias"])


def test_accumulated_parts_train_as_one_batch(tmp_path: Path) -> None:
    """Who has less memory and takes a batch in parts must get the same LoRA."""
    whole, parts = (
        train(tmp_path / str(n), changes={"global_batch_size": 4, "micro_batch_size": n})["bias"] for n in (4, 1)
    )
    assert torch.allclose(whole, parts, atol=1e-6)


def test_constant_schedule_stays(tmp_path: Path) -> None:
    """constant must mean constant after the warm-up, and cosine must end near nothing."""
    for schedule, last in (
        ("constant", 1e-2),
        ("cosine", 1e-2 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 5 / 6)))),
    ):
        train(tmp_path / schedule, changes={"schedule": schedule})
        rates = [float(row[2]) for row in loop.read_log(tmp_path / schedule / "log.csv")]
        assert rates[:2] == [5e-3, 1e-2] and rates[-1] == pytest.approx(float(last), rel=1e-3)


@pytest.mark.parametrize(
    "changes, processes, message",
    [
        ({"global_batch_size": 3, "micro_batch_size": 2}, 1, "use a multiple of 2"),
        ({"global_batch_size": 2, "micro_batch_size": 1}, 4, "global_batch_size is 2, but 4 processes with micro_ba"),
        ({"global_batch_size": 0}, 1, "global_batch_size is 0: use a whole number from 1"),
        ({"global_batch_size": 2048}, 1, "global_batch_size is 2048: use a whole number from 1 to 1024"),
        ({"micro_batch_size": 129, "global_batch_size": 258}, 1, "micro_batch_size is 129: use a whole number from 1"),
        ({"schedule": "linear"}, 1, 'use "cosine" or "constant"'),
        ({"max_steps": 0}, 1, "max_steps is 0"),
        ({"learning_rate": float("nan")}, 1, "learning_rate is nan"),
    ],
)
def test_config_that_cannot_be_followed(changes: dict, processes: int, message: str) -> None:
    """Samples that no process takes would be left out of every step without a word."""
    with pytest.raises(UserError, match=message):
        config(**changes).gradient_accumulation_steps(processes)


def test_average_of_the_weights_is_what_is_saved(tmp_path: Path) -> None:
    """Whoever asks for an exponential moving average must get it, at every checkpoint and at the end."""
    model, decay = Line(), 0.75
    expected: list[torch.Tensor] = []

    def follow(step: int, loss: float) -> None:
        weights = model.bias.detach().clone()
        expected.append(weights if step == 1 else decay * expected[-1] + (1 - decay) * weights)

    saved: dict[int, torch.Tensor] = {}

    def keep(step: int, weights: dict[str, torch.Tensor]) -> None:
        saved[step] = weights["bias"]

    averaged = train(tmp_path, model=model, changes={"ema_decay": decay}, on_step=follow, on_save=keep)["bias"]
    assert torch.allclose(averaged, expected[-1], rtol=0, atol=1e-7) and torch.equal(averaged, saved[STEPS])
    assert torch.allclose(saved[4], expected[3], rtol=0, atol=1e-7)
    # the weights themselves have gone further
    assert (averaged - model.bias.detach()).abs().max() > 1e-3


@pytest.mark.parametrize("scale, moved", [(1e3, 0.5), (1e-3, None)])
def test_large_gradients_are_clipped(tmp_path: Path, scale: float, moved: float | None) -> None:
    """One broken clip must not throw a LoRA out of what it has learnt: a step goes no further than max_grad_norm."""
    model = Line()
    gradient = model.bias.new_full((64,), scale)  # of the sum below, of norm 8 * scale

    def loss_of(module: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        return scale * module(torch.zeros(64)).sum()

    once = {"max_steps": 1, "warmup_steps": 0, "learning_rate": 1.0, "schedule": "constant", "max_grad_norm": 0.5}
    train(tmp_path, loss_of, model, once, optimizer_of=lambda model, _: torch.optim.SGD(model.parameters(), lr=1.0))
    norm = float(gradient.norm()) if moved is None else moved
    assert float(model.bias.detach().norm()) == pytest.approx(norm, rel=1e-4)


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    """A copy that a user keeps beside them ended every further run in an error about a number."""
    train(tmp_path, changes={"max_steps": 2})
    for name in ("step-copy", "step-000002 copy", "step-2", "step-", "step-000002.old"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.finished_checkpoints(tmp_path)] == ["step-000002"]
    assert checkpoint.steps_done(tmp_path) == 2
