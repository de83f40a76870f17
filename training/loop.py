"""The training loop: accelerate's processes and precisions, checkpoints that survive a kill, a log of every step."""

import csv
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import TrainingError
from .checkpoint import resume, save, whole

SCHEDULES = ("cosine", "constant")
_COLUMNS = ("step", "loss", "learning_rate", "seconds")


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    batch_size: samples a step in all processes together. ema_decay: 0 keeps no average of the weights.
    accumulate: parts that a process takes its share of a step in, one after another.
    schedule: after the warm-up, "cosine" falls to final_learning_rate, "constant" stays.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    warmup_steps: int = 0
    final_learning_rate: float = 0.0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.0
    save_every: int = 500
    schedule: str = "cosine"


def adamw(model: torch.nn.Module, plan: Plan) -> torch.optim.AdamW:
    """The official trainer's optimizer."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        plan.learning_rate,
        betas=plan.betas,
        weight_decay=plan.weight_decay,
        fused=True,
    )


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, Sequence[int]], torch.Tensor],
    plan: Plan,
    folder: Path,
    settings: dict | None = None,
    on_step: Callable[[int, float], object] = lambda step, loss: None,
    stop: Callable[[], bool] = lambda: False,
    on_save: Callable[[int, dict[str, torch.Tensor]], object] = lambda step, weights: None,
    optimizer_of: Callable[[torch.nn.Module, Plan], torch.optim.Optimizer] = adamw,
) -> dict[str, torch.Tensor]:
    """Train the parameters of `model` that require a gradient; go on from the last checkpoint in `folder`.

    loss_of(model, indices): the mean loss over the samples `indices`; each draws all its chance from
    objective.sample_generator(plan.seed, index): neither the number of processes nor a restart changes anything then.
    settings: what else decides the result, kept beside each checkpoint.
    on_step(step, loss) is called after each step, on the main process; what it raises ends the training as it stands.
    stop() is asked after each step: once any process says True, a checkpoint is written and the training ends.
    on_save(step, weights) is called after each checkpoint, on the main process, with what would be returned.
    optimizer_of(model, plan): whose state by parameter is a count "step" and tensors of the parameter's shape.

    Returns the trained parameters by name, averaged where the plan says so.

    Raises TrainingError where the plan does not suit the processes, the loss is not a number, a checkpoint cannot be
    written, or was made with other settings.
    """
    check_plan(plan, accelerator.num_processes)
    optimizer = optimizer_of(model, plan)
    # every process has loaded the frozen ones itself, and quantised ones could not be sent
    model._ddp_params_and_buffers_to_ignore = [n for n, p in _tensors(model) if not p.requires_grad]
    model, optimizer = accelerator.prepare(model, optimizer)
    try:
        return _train(accelerator, model, optimizer, loss_of, plan, folder, settings or {}, on_step, stop, on_save)
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # accelerate's forward comes off the caller's model


def _train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable,
    plan: Plan,
    folder: Path,
    settings: dict,
    on_step: Callable,
    stop: Callable,
    on_save: Callable,
) -> dict[str, torch.Tensor]:
    settings = json.loads(json.dumps({**asdict(plan), **settings}))
    # asked for now: FSDP has put others in the place of those that the optimizer was made with
    trained = {n: p for n, p in accelerator.unwrap_model(model).named_parameters() if p.requires_grad}
    average = _average_of(trained.values(), plan)
    first = resume(accelerator, folder, settings, trained, optimizer, average)
    log = _Log(folder / "log.csv", first) if accelerator.is_main_process else None
    for step in range(first, plan.steps):
        rate = plan.learning_rate * _rate(plan, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _step(accelerator, model, loss_of, plan, step)
        accelerator.clip_grad_norm_(list(trained.values()), plan.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average:
            average.update_parameters(torch.nn.ParameterList(trained.values()))
        if log:
            log.write(step + 1, loss, rate)
            on_step(step + 1, loss)
        stops = _any_says(accelerator, stop())
        if stops or (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            weights = save(accelerator, folder, step + 1, settings, trained, optimizer, average)
            if accelerator.is_main_process:
                on_save(step + 1, weights)
        if stops:
            break
    source = dict(zip(trained, average.module)) if average else trained
    return {name: whole(parameter) for name, parameter in source.items()}


def check_plan(plan: Plan, processes: int) -> None:
    """Raises TrainingError for a plan that `processes` cannot follow."""
    parts = processes * plan.accumulate
    if plan.batch_size < 1 or plan.accumulate < 1 or plan.batch_size % parts:
        raise TrainingError(
            f"batch_size is {plan.batch_size}, to be shared by {processes} processes in {plan.accumulate} parts each "
            f"(accumulate). Use a multiple of {max(1, parts)}."
        )
    if plan.schedule not in SCHEDULES:
        raise TrainingError(f"schedule is {plan.schedule!r}: use {' or '.join(SCHEDULES)}.")
    if plan.steps < 1 or plan.save_every < 1:
        raise TrainingError(f"steps is {plan.steps}, save_every {plan.save_every}: use 1 or more.")
    if not 0 < plan.learning_rate < float("inf"):
        raise TrainingError(f"learning_rate is {plan.learning_rate}: use a number above 0, such as 0.0001.")


def _step(accelerator: Accelerator, model: torch.nn.Module, loss_of: Callable, plan: Plan, step: int) -> float:
    """Gradients of one step; returns the mean loss of all processes."""
    local = plan.batch_size // accelerator.num_processes // plan.accumulate
    losses = []
    for part in range(plan.accumulate):
        start = step * plan.batch_size + (part * accelerator.num_processes + accelerator.process_index) * local
        is_last = part + 1 == plan.accumulate  # gradients travel once a step
        with nullcontext() if is_last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss = loss_of(model, range(start, start + local))
            accelerator.backward(loss / plan.accumulate)
        losses.append(loss.detach())
    mean_loss = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
    if not mean_loss < float("inf"):
        raise TrainingError(
            f"The loss at step {step + 1} is not a number. Lower the learning rate "
            f"(now {plan.learning_rate:g}), or look for a broken clip in the dataset."
        )
    return mean_loss


def _any_says(accelerator: Accelerator, yes: bool) -> bool:
    """All processes must leave the loop together."""
    if accelerator.num_processes == 1:
        return yes
    return bool(accelerator.reduce(torch.tensor(float(yes), device=accelerator.device), "sum") > 0)


def _rate(plan: Plan, step: int) -> float:
    """The factor of the learning rate: a linear rise, then half a cosine, or no change."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return 1.0
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    last = plan.final_learning_rate / plan.learning_rate
    return last + (1 - last) * 0.5 * (1 + float(torch.cos(torch.tensor(min(1.0, done) * torch.pi))))


def _average_of(trained: Iterable[torch.nn.Parameter], plan: Plan) -> AveragedModel | None:
    if not plan.ema_decay:
        return None
    # of these alone: a copy of the whole model would hold the frozen weights twice
    return AveragedModel(torch.nn.ParameterList(trained), multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))


class _Log:
    """log.csv, cut back to the steps that the checkpoint knows of."""

    def __init__(self, path: Path, steps_done: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = read_log(path)[:steps_done]
        part = path.with_name(f".{path.name}.part")
        with part.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *kept])
        os.replace(part, path)
        self._writer = csv.writer(path.open("a", newline="", buffering=1))
        self._began = time.monotonic() - (float(kept[-1][3]) if kept else 0.0)

    def write(self, step: int, loss: float, rate: float) -> None:
        try:
            self._writer.writerow([step, f"{loss:.6f}", f"{rate:.3e}", f"{time.monotonic() - self._began:.1f}"])
        except OSError as error:
            raise TrainingError(f"log.csv cannot be written: {error}. Free some space and start again.") from error


def read_log(path: Path) -> list[list[str]]:
    """The whole rows (step, loss, learning_rate, seconds) of a log, as far as the steps count up from 1."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            for row in list(csv.reader(file))[1:]:
                if len(row) != len(_COLUMNS) or row[0] != str(len(rows) + 1):
                    break  # a kill has cut this row
                rows.append(row)
    return rows


def _tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
