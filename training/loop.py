"""The training loop: steps, learning rate, clipping, averages, a log of every step, checkpoints that survive a kill."""

import csv
import io
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UserError
from ..system.complete_file import complete_file, explained_writing
from ..system.small_files import read_small_text
from .checkpoint import averaged_parameters, resume, save
from .config import TrainConfig
from .parallelize import any_rank, prepare

LossFunction = Callable[[torch.nn.Module, Sequence[int]], torch.Tensor]
_COLUMNS = ("step", "loss", "learning_rate", "seconds")
_MOST_LOG_BYTES = 1 << 28  # of millions of steps


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Callbacks:
    """What a driver hands in.

    on_step(step, loss) is called after each step, on the main process; what it raises ends the training as it stands.
    should_stop() is asked after each micro batch: once any process says True, a checkpoint of the steps that are
    complete is written and the training ends. A training in one process may ask it more often (see StepDropped).
    on_save(step, weights) is called after each checkpoint, on the main process, with what `train` would return.
    """

    on_step: Callable[[int, float], object] = _nothing
    should_stop: Callable[[], bool] = lambda: False
    on_save: Callable[[int, dict[str, torch.Tensor]], object] = _nothing


class StepDropped(Exception):
    """What loss_of, or the model in a forward or backward, raises to end a training in one process within a micro
    batch: the loop goes on as where should_stop() is true. In several processes the others would wait for this one."""


def adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The official trainer's optimizer, by default with its betas and weight decay (THUDM/CogVideo
    finetune/schemas/args.py)."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loss_of: LossFunction,
    config: TrainConfig,
    folder: Path,
    settings: Mapping[str, object] | None = None,
    callbacks: Callbacks = Callbacks(),
    optimizer_of: Callable[[torch.nn.Module, TrainConfig], torch.optim.Optimizer] = adamw,
) -> dict[str, torch.Tensor]:
    """Train the parameters of `model` that require a gradient; go on from the last checkpoint in `folder`.

    loss_of(model, indices): the mean loss over the samples `indices`. All randomness of a sample comes from
    objective.sample_generator(config.seed, index), so that neither the number of processes nor a restart changes it.
    settings: all that decides the result, kept with each checkpoint; by default that of `config`.
    optimizer_of(model, config): whose state by parameter is a count "step" and tensors of the parameter's shape.

    Returns the trained parameters by name, averaged where the config says so. A stop drops the step under way.

    Raises UserError where the batch does not divide among the processes, the loss is NaN or Inf, or a checkpoint cannot
    be written, or was made with other settings.
    """
    config.gradient_accumulation_steps(accelerator.num_processes)  # for its UserError, before any work
    # Through JSON, as a checkpoint's settings.json is read back: a tuple becomes a list there, and would differ.
    kept = json.loads(json.dumps(config.recorded() if settings is None else settings))
    prepared, optimizer = prepare(accelerator, model, optimizer_of(model, config))
    # After prepare: FSDP replaces the parameters by sharded ones, which the optimizer refers to from then on.
    trained = {n: p for n, p in accelerator.unwrap_model(prepared).named_parameters() if p.requires_grad}
    average = _average_of(trained.values(), config)
    log: _Log | None = None
    try:
        first = resume(accelerator, folder, kept, trained, optimizer, average)
        log = _Log(folder / "log.csv", first) if accelerator.is_main_process else None
        done, saved, stops = first, first, False
        while done < config.max_steps and not stops:
            rate = _set_rate(optimizer, config, done)
            loss = _accumulate_gradients(accelerator, prepared, loss_of, config, done, callbacks.should_stop)
            if loss is not None:
                accelerator.clip_grad_norm_(list(trained.values()), config.max_grad_norm)
                optimizer.step()
                done += 1
                if average:
                    average.update_parameters(torch.nn.ParameterList(trained.values()))
            optimizer.zero_grad()
            if log and loss is not None:
                log.write(done, loss, rate)
                callbacks.on_step(done, loss)
            stops = any_rank(accelerator, loss is None or callbacks.should_stop())
            if done > saved and (stops or done % config.save_every == 0 or done == config.max_steps):
                weights = save(accelerator, folder, done, kept, trained, optimizer, average)
                saved = done
                if accelerator.is_main_process:
                    callbacks.on_save(done, weights)
        return averaged_parameters(trained, average)
    finally:
        if log:
            log.close()  # the next training of this folder replaces the file, which Windows refuses while it is open
        # accelerate has replaced the model's forward by one under autocast. It comes off the caller's model again, or a
        # second training would wrap it once more.
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)


def _accumulate_gradients(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loss_of: LossFunction,
    config: TrainConfig,
    step: int,
    should_stop: Callable[[], bool],
) -> float | None:
    """Gradients of one step, micro batch by micro batch; returns the mean loss of all processes, or None where the
    training stops before the step is complete."""
    accumulation = config.gradient_accumulation_steps(accelerator.num_processes)
    count, losses = config.micro_batch_size, []
    for part in range(accumulation):
        # Before the first part it was asked at the end of the last step.
        if part and any_rank(accelerator, should_stop()):
            return None
        # A step's samples are numbered micro batch by micro batch, and within each process by process: whatever the
        # number of processes, the same numbers make up the step.
        start = step * config.global_batch_size
        start += (part * accelerator.num_processes + accelerator.process_index) * count
        is_last = part + 1 == accumulation  # processes exchange their gradients once a step, after the last part
        try:
            with nullcontext() if is_last else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss = loss_of(model, range(start, start + count))
                accelerator.backward(loss / accumulation)
        except StepDropped:
            return None
        losses.append(loss.detach())
    reduced: Any = accelerator.reduce(torch.stack(losses).mean(), "mean")
    mean_loss = float(reduced)
    # NaN fails the comparison too. The mean is the same in all processes, so that all raise; it is checked before the
    # optimizer's step, so that neither the weights nor a checkpoint take it up.
    if not mean_loss < float("inf"):
        raise UserError(
            f"The loss at step {step + 1} is NaN or Inf. Lower the learning rate (now {config.learning_rate:g}), or "
            "look for a broken clip in the dataset."
        )
    return mean_loss


def _set_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Give the optimizer its learning rate at `step`, and return it."""
    rate = config.learning_rate * _schedule(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _schedule(config: TrainConfig, step: int) -> float:
    """The factor of the learning rate at `step`: a linear rise, then half a cosine or no change.

    It depends on the step alone: a scheduler object would be one more state to keep in checkpoints.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    last = config.final_learning_rate / config.learning_rate
    return last + (1 - last) * 0.5 * (1 + float(torch.cos(torch.tensor(min(1.0, done) * torch.pi))))


def _average_of(trained: Iterable[torch.nn.Parameter], config: TrainConfig) -> AveragedModel | None:
    if not config.ema_decay:
        return None
    # AveragedModel copies what it is given: of the whole model that would be a second set of frozen weights.
    return AveragedModel(torch.nn.ParameterList(trained), multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))


class _Log:
    """log.csv, cut back to the steps of the checkpoint: those that a kill has undone are run, and logged, again."""

    def __init__(self, path: Path, steps_done: int):
        with explained_writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        kept = read_log(path)[:steps_done]
        with complete_file(path, replaces=True) as unfinished, unfinished.part.open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *kept])
        # buffering=1: each row is in the file as soon as its step is done, whatever ends the process.
        with explained_writing(path):
            self._file = path.open("a", newline="", buffering=1)
        self._writer = csv.writer(self._file)
        # The seconds of the run before are counted on.
        self._began = time.monotonic() - (float(kept[-1][3]) if kept else 0.0)

    def write(self, step: int, loss: float, rate: float) -> None:
        try:
            self._writer.writerow([step, f"{loss:.6f}", f"{rate:.3e}", f"{time.monotonic() - self._began:.1f}"])
        except OSError as error:
            raise UserError(f"log.csv cannot be written: {error}. Free some space and start again.") from error

    def close(self) -> None:
        """Raises nothing: each row is in the file already."""
        with suppress(OSError):
            self._file.close()


def read_log(path: Path) -> list[list[str]]:
    """The complete rows (step, loss, learning_rate, seconds) of a log, as far as the steps count up from 1.

    Raises UserError where there is a log that cannot be read.
    """
    rows: list[list[str]] = []
    if not path.exists():
        return rows
    try:
        text = read_small_text(path, _MOST_LOG_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Delete it, or restore it from a copy.") from error
    with suppress(csv.Error):  # as for any other line that is not a row of the log
        for row in itertools.islice(csv.reader(io.StringIO(text, newline="")), 1, None):
            if len(row) != len(_COLUMNS) or row[0] != str(len(rows) + 1) or not all(map(_is_number, row)):
                break  # a kill in the middle of a write leaves such a row
            rows.append(row)
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_losses(folder: Path) -> list[float]:
    """The loss of every step in a training's log."""
    return [float(row[1]) for row in read_log(folder / "log.csv")]
