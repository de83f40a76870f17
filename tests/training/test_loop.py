"""The loop's promise: killed anywhere it goes on to the same numbers, and it never loses what it had."""

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cogvideox.errors import TrainingError
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.support import command_of
from cogvideox.training import checkpoint, loop
from cogvideox.training.lora import attach_lora
from cogvideox.training.objective import sample_generator

ROOT = Path(__file__).resolve().parents[2]

STEPS = 8


def plan(**changes: object) -> object:
    values = {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 2, "save_every": 2, "seed": 5}
    return loop.Plan(**{**values, **changes})


class Line(torch.nn.Module):
    """y = w x + b with a frozen w: the smallest thing that can be trained in part."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((64,), 2.0), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x + self.bias


def line_loss(model: torch.nn.Module, indices: range) -> torch.Tensor:
    x = torch.stack([torch.randn(64, generator=sample_generator(5, i)) for i in indices])
    return ((model(x) - x.cos()) ** 2).mean()


def train(folder: Path, loss_of: Callable = line_loss, model: torch.nn.Module | None = None, **options: object) -> dict:
    from accelerate import Accelerator

    changes = options.pop("plan", {})
    return loop.train(Accelerator(cpu=True), model or Line(), loss_of, plan(**changes), folder, **options)


def lora_training(pipeline: Path) -> tuple[torch.nn.Module, Callable]:
    """A tiny transformer with a LoRA, and its loss."""
    from cogvideox.training import objective as objectives

    model = load_model(pipeline, "fp32", disable_dynamic=True)
    dit = model.model.diffusion_model
    attach_lora(dit, 2, 4.0, seed=1)
    objective = objectives.objective_for(model)
    generator = torch.Generator().manual_seed(0)
    sample = {
        "latents": torch.randn(16, 1, 8, 12, generator=generator),
        "text": torch.randn(226, 32, generator=generator),
    }

    def loss_of(module: torch.nn.Module, indices: range) -> torch.Tensor:
        batch = objectives.draw_batch([sample] * len(indices), indices, 5, objective, sample["text"][None])
        return objectives.denoising_loss(module, batch, objective)

    return dit, loss_of


def work(folder: str, pipeline: str, place: str) -> None:
    """Train and die: after step 5, or half way through the checkpoint of step 6."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_a_save(state: object, file: object) -> None:
        file.write(b"half")
        file.flush()
        die()

    def on_step(step: int, loss: float) -> None:
        if step == 5 and place == "step":
            die()
        if step == 5:
            checkpoint.torch.save = half_a_save

    dit, loss_of = lora_training(Path(pipeline))
    train(Path(folder), loss_of, dit, on_step=on_step)


@pytest.mark.parametrize("place", ["step", "save"])
def test_killed_training_ends_in_the_same_lora(tiny_pipelines: dict[str, Path], tmp_path: Path, place: str) -> None:
    """A power cut must cost minutes, not the training, and what comes out must not tell that there was one."""
    pipeline, folder = tiny_pipelines["5b"], tmp_path / "killed"
    command = command_of("training.test_loop.work", folder, pipeline, place)
    killed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert [path.name for path in checkpoint.finished(folder)] == ["step-000004"]
    assert bool(list(folder.glob(".part-*"))) == (place == "save")
    whole = train(tmp_path / "whole", *reversed(lora_training(pipeline)))
    resumed = train(folder, *reversed(lora_training(pipeline)))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [[row[:3] for row in loop.read_log(path / "log.csv")] for path in (folder, tmp_path / "whole")]
    assert steps[0] == steps[1] and len(steps[0]) == STEPS
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", f"step-{STEPS:06d}"]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"accumulate": 2}, {"schedule": "constant"}])
def test_stopped_training_goes_on_to_the_same_weights(tmp_path: Path, changes: dict) -> None:
    """Cancelling a run and queueing it again must not change its result, whatever else it keeps (averages, moments)."""
    whole = train(tmp_path / "whole", plan=changes)
    done: list[int] = []
    stopped = {"on_step": lambda step, loss: done.append(step), "stop": lambda: len(done) == 3}
    train(tmp_path / "stopped", plan=changes, **stopped)
    assert [path.name for path in checkpoint.finished(tmp_path / "stopped")] == ["step-000003"] and len(done) == 3
    resumed = train(tmp_path / "stopped", plan={**changes, "save_every": 50}, on_step=lambda step, _: done.append(step))
    assert done == list(range(1, STEPS + 1))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


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
    train(tmp_path, settings={"dataset": "a"}, stop=lambda: True)
    with pytest.raises(TrainingError, match="dataset: a there, b now") as caught:
        train(tmp_path, plan={"learning_rate": 2e-2}, settings={"dataset": "b"})
    assert "learning_rate: 0.01 there, 0.02 now" in str(caught.value)
    train(tmp_path, plan={"save_every": 3}, settings={"dataset": "a"})  # decides nothing


def test_other_model_and_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    """A checkpoint that does not fit must be named, not end in a stack of torch's errors."""
    train(tmp_path, stop=lambda: True)
    with pytest.raises(TrainingError, match="is of another model: 0.bias and 1 more"):
        train(tmp_path, lambda model, _: model[0](torch.ones(64)).mean(), torch.nn.Sequential(Line()))
    state = tmp_path / "step-000001" / "training.pt"
    state.write_bytes(state.read_bytes()[:300])
    with pytest.raises(TrainingError, match="step-000001 cannot be read"):
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
    train(tmp_path, stop=lambda: True)
    log = tmp_path / "log.csv"
    log.write_text(log.read_text() + "2,0.5,1e-2,0.1\r\n3,0.4,1e")
    train(tmp_path)
    rows = loop.read_log(log)
    assert [int(row[0]) for row in rows] == list(range(1, STEPS + 1)) and rows[1][1] != "0.5"
    assert len(log.read_text().splitlines()) == STEPS + 1


def test_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    """Hours of training on NaN would overwrite every good checkpoint."""

    def loss_of(model: torch.nn.Module, indices: range) -> torch.Tensor:
        return line_loss(model, indices) * (float("nan") if indices[0] >= 6 else 1)

    with pytest.raises(TrainingError, match="The loss at step 4 is not a number. Lower the learning rate"):
        train(tmp_path, loss_of)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["step-000002"]


@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Exception
) -> None:
    """A full disk must cost the steps since the last checkpoint only."""
    whole, write, calls = train(tmp_path / "whole"), torch.save, []

    def save(state: object, file: object) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise kind
        write(state, file)

    monkeypatch.setattr(checkpoint.torch, "save", save)
    with pytest.raises(TrainingError, match=r"step 4 cannot be written .* Free some space .*step-000002 is kept"):
        train(tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["log.csv", "step-000002"]
    assert torch.equal(whole["bias"], train(tmp_path / "full")["bias"])


def test_accumulated_parts_train_as_one_batch(tmp_path: Path) -> None:
    """Who has less memory and takes a batch in parts must get the same LoRA."""
    whole, parts = (train(tmp_path / str(n), plan={"batch_size": 4, "accumulate": n})["bias"] for n in (1, 4))
    assert torch.allclose(whole, parts, atol=1e-6)


def test_constant_schedule_stays(tmp_path: Path) -> None:
    """constant must mean constant after the warm-up, and cosine must end near nothing."""
    for schedule, last in (
        ("constant", 1e-2),
        ("cosine", 1e-2 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 5 / 6)))),
    ):
        train(tmp_path / schedule, plan={"schedule": schedule})
        rates = [float(row[2]) for row in loop.read_log(tmp_path / schedule / "log.csv")]
        assert rates[:2] == [5e-3, 1e-2] and rates[-1] == pytest.approx(float(last), rel=1e-3)


@pytest.mark.parametrize(
    "changes, processes, message",
    [
        ({"batch_size": 3, "accumulate": 2}, 1, "multiple of 2"),
        ({"batch_size": 2}, 4, "batch_size is 2, to be shared by 4 processes"),
        ({"batch_size": 0}, 1, "multiple of 1"),
        ({"schedule": "linear"}, 1, "use cosine or constant"),
        ({"steps": 0}, 1, "steps is 0"),
        ({"learning_rate": float("nan")}, 1, "learning_rate is nan"),
    ],
)
def test_plan_that_nobody_can_follow(changes: dict, processes: int, message: str) -> None:
    """Samples that no process takes would be left out of every step without a word."""
    with pytest.raises(TrainingError, match=message):
        loop.check_plan(plan(**changes), processes)
