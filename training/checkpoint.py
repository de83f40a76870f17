"""Checkpoints of a training: what is trained and the optimizer's state, without the frozen weights; each is complete
or not there at all.

A folder step-000500 holds training.pt and settings.json. Its tensors are complete whether FSDP has sharded them or not:
any number of processes and either driver can resume from it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from ..errors import UserError, quoted
from ..system.complete_file import complete_folder, explained_writing, only_process, remove_folder, remove_unfinished
from ..system.small_files import read_small_text
from .config import MAY_DIFFER_ON_RESUME
from .parallelize import copy_into_sharded, gather_full_tensor

_STEP_FOLDER = "step-{:06d}"
_STATE, _SETTINGS = "training.pt", "settings.json"
_LOCK = ".cogvideox-training.lock"
_MOST_SETTINGS_BYTES = 1 << 20
# What an optimizer keeps of a parameter: before its first step nothing, then as AdamW and as Muon do.
_MOMENTS = (set(), {"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})
_DIFFERENCES_SHOWN = 3  # of settings, in a message
_LEFT_BY_0_5_0 = ".part-"  # before the name of a checkpoint that was being written


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Make the folder of a training, and hold it until the block ends: two trainings in one folder would delete each
    other's checkpoints and mix their logs. What a killed training has left there is deleted.

    Raises UserError where another training holds it, in this process or in another one, or it cannot be made.
    """
    busy = (
        f"Another training writes to {folder}, in this ComfyUI or in another process. Wait until it has finished, "
        "cancel it, or give this one another name or output folder."
    )
    try:
        with ExitStack() as stack:
            with explained_writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_process(folder / _LOCK, busy))
            remove_unfinished(folder)
            for left in folder.glob(f"{_LEFT_BY_0_5_0}*"):
                remove_folder(left)
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # where the training was refused and has left nothing in it


def resume(
    accelerator: Accelerator,
    folder: Path,
    settings: Mapping[str, object],
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> int:
    """Load the newest checkpoint in `folder` into what is trained; returns the number of steps done, 0 without one.

    Raises UserError where the checkpoint was made with other settings, or cannot be read.
    """
    found = finished_checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    _require_same_settings(newest, settings)
    state = _read(newest / _STATE)
    _require_fit(newest, state, trained, average is not None)
    with torch.no_grad():
        for name, parameter in trained.items():
            copy_into_sharded(parameter, state["parameters"][name])
            # AdamW's "step", "exp_avg" and "exp_avg_sq". Optimizer.load_state_dict would assign them by position, and
            # put complete tensors beside sharded parameters.
            moments = state["optimizer"].get(name, {})
            optimizer.state[parameter] = {
                key: copy_into_sharded(_empty_state_like(parameter, key), value) for key, value in moments.items()
            }
        if average:
            # At 0 the next update would overwrite the average with the weights.
            average.n_averaged.fill_(state["averaged"])
            for name, parameter in zip(trained, average.module.parameters()):
                copy_into_sharded(parameter, state["average"][name])
    if accelerator.scaler is not None and state.get("scaler"):
        try:
            accelerator.scaler.load_state_dict(state["scaler"])
        except Exception as error:  # whatever a scaler of another shape makes torch raise
            raise _unreadable(newest, error) from error
    return _steps_of(newest)


def save(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    settings: Mapping[str, object],
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> dict[str, torch.Tensor]:
    """Write a checkpoint under a temporary name, rename it, and only then delete the one before.

    Returns the trained parameters by name, averaged where there is an average, on the CPU.

    Raises UserError where it cannot be written; the one before is still there then.
    """
    # Outside of is_main_process: gathering shards is a collective, which hangs unless every process takes part.
    state: dict[str, Any] = {
        "parameters": {name: gather_full_tensor(parameter) for name, parameter in trained.items()},
        "optimizer": {
            name: {key: gather_full_tensor(value) for key, value in optimizer.state[parameter].items()}
            for name, parameter in trained.items()
        },
    }
    if average:
        state["average"] = averaged_parameters(trained, average)
        state["averaged"] = int(average.n_averaged)
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    if accelerator.is_main_process:
        _write(folder, step, settings, state)
    accelerator.wait_for_everyone()
    return state["average" if average else "parameters"]


def averaged_parameters(
    trained: Mapping[str, torch.nn.Parameter], average: AveragedModel | None
) -> dict[str, torch.Tensor]:
    """The trained parameters by name, or their average where there is one; complete, on the CPU."""
    source = trained.values() if average is None else average.module.parameters()
    return {name: gather_full_tensor(parameter) for name, parameter in zip(trained, source)}


def finished_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the newest last."""
    # Not a folder that a user has copied under a name of his own.
    found = (path for path in folder.glob("step-*") if re.fullmatch(r"step-[0-9]{6,12}", path.name))
    return sorted(found, key=_steps_of)


def steps_done(folder: Path) -> int:
    """Of the newest checkpoint in a folder; 0 without one."""
    found = finished_checkpoints(folder)
    return _steps_of(found[-1]) if found else 0


def _write(folder: Path, step: int, settings: Mapping[str, object], state: dict[str, Any]) -> None:
    older = finished_checkpoints(folder)
    try:
        with complete_folder(folder / _STEP_FOLDER.format(step)) as unfinished:
            with (unfinished / _STATE).open("wb") as file:
                torch.save(state, file)
            (unfinished / _SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a write fails
        kept = f"{older[-1].name} is kept" if older else "there is none before it"
        raise UserError(
            f"The checkpoint of step {step} cannot be written to {folder}: {error}. Free some space and start again "
            f"({kept})."
        ) from error
    for path in older:
        remove_folder(path)  # the new one is there, whatever keeps an old one


def _require_same_settings(checkpoint: Path, settings: Mapping[str, object]) -> None:
    try:
        saved = json.loads(read_small_text(checkpoint / _SETTINGS, _MOST_SETTINGS_BYTES))
        if not isinstance(saved, dict):
            raise ValueError("its settings are not a JSON object")
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise _unreadable(checkpoint, error) from error
    # The names of both: a setting that only one of them has is a difference too.
    names = [name for name in {**saved, **settings} if name not in MAY_DIFFER_ON_RESUME]
    other = [
        f"{quoted(n)}: {quoted(str(saved.get(n)))} there, {quoted(str(settings.get(n)))} now"
        for n in names
        if saved.get(n) != settings.get(n)
    ]
    if other:
        more = f"; and {len(other) - _DIFFERENCES_SHOWN} more" if len(other) > _DIFFERENCES_SHOWN else ""
        raise UserError(
            f"{checkpoint} was trained with other settings ({'; '.join(other[:_DIFFERENCES_SHOWN])}{more}). Set those "
            "again to go on with it, or choose another folder to start from the beginning."
        )


def _require_fit(checkpoint: Path, state: Any, trained: Mapping[str, torch.nn.Parameter], has_average: bool) -> None:
    """Raises UserError unless the state is that of these parameters: nothing is copied before all of it is known."""
    parts: list[Any] = [state.get(name) for name in ("parameters", "optimizer")] if isinstance(state, dict) else []
    parts += [state.get("average")] if parts and has_average else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise _unreadable(checkpoint, ValueError("it lacks the parameters, the optimizer or the average"))
    parameters, moments, average = parts[0], parts[1], parts[-1] if has_average else parts[0]
    if parameters.keys() != trained.keys():
        other = sorted(map(str, parameters.keys() ^ trained.keys()))
        raise UserError(
            f"{checkpoint} is of another model: {quoted(other[0])} and {len(other) - 1} more parameters are in one of "
            "the two. Choose another folder to start from the beginning."
        )
    averaged = state.get("averaged") if has_average else 1
    if type(averaged) is not int or averaged < 1 or average.keys() != trained.keys():
        raise _unreadable(checkpoint, ValueError("its average is of other parameters"))
    if moments.keys() != trained.keys() or not all(isinstance(kept, dict) for kept in moments.values()):
        raise _unreadable(checkpoint, ValueError("its optimizer is of other parameters"))
    for name, parameter in trained.items():
        kept = {key: value for key, value in moments[name].items() if key != "step"}
        for value in (parameters[name], average[name], *kept.values()):
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or not value.is_floating_point():
                raise _unreadable(checkpoint, ValueError(f"{name} does not fit the model"))
            if not torch.isfinite(value).all():
                raise _unreadable(checkpoint, ValueError(f"{name} contains NaN or Inf"))
        # Otherwise the optimizer would miss an entry at its next step.
        if moments[name].keys() not in _MOMENTS:
            raise _unreadable(checkpoint, ValueError(f"{name} has other moments than those of this optimizer"))
        step = moments[name].get("step", torch.zeros(()))
        if not isinstance(step, torch.Tensor) or step.numel() != 1 or not 0 <= float(step) < float("inf"):
            raise _unreadable(checkpoint, ValueError(f"{name} has no count of steps"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of many kinds for a damaged file
        raise _unreadable(path.parent, error) from error


def _unreadable(checkpoint: Path, error: Exception) -> UserError:
    why = quoted(" ".join(str(error).split()))
    return UserError(
        f"{checkpoint} cannot be read ({type(error).__name__}: {why}). Delete it to start from the beginning, or "
        "restore it from a copy."
    )


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _empty_state_like(parameter: torch.Tensor, key: str) -> torch.Tensor:
    """An empty tensor for an entry of the optimizer's state of `parameter`: its count of steps, or a moment, which has
    its shape and is sharded like it."""
    return torch.zeros((), device=parameter.device) if key == "step" else torch.empty_like(parameter)
