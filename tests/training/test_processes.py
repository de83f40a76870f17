"""Many processes must train as one does: gradients and LoRA over gloo, on the CPU."""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.children import running
from cogvideox.tests.support import check_at_most, relative_error
from cogvideox.training.block_calls import call_blocks
from cogvideox.training.config import TrainConfig
from cogvideox.training.launch import main
from cogvideox.training.parallelize import shard_blocks

STEPS, BATCH = 3, 4
KINDS = ("replicated", "sharded")  # of two processes; "one" is what they are compared with
MODES = ("lora", "full")


def start(count: int, function: str, *arguments: Path) -> str:
    """Call a function in so many processes that find each other, as accelerate launch does it; what they printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true"}
    with ExitStack() as stack:
        workers = []
        for rank in range(count):
            environ = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            workers.append(stack.enter_context(running(function, *arguments, environ=environ)))
        ends = [worker.wait(500) for worker in workers]
        said = "\n".join(worker.output() for worker in workers)
    assert ends == [0] * count, said[-3000:]
    return said


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """accelerate remembers, for a whole process, what the first training in it was."""
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def results(tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """By kind and mode. To start a process takes long: one trains here, and two all that two do."""
    folder, pipeline = tmp_path_factory.mktemp("trained"), tiny_pipelines["5b"]
    with fresh_accelerate():
        work("one", folder, pipeline)
    start(2, "training.test_processes.work_in_two", folder, pipeline)
    return {
        kind: {mode: torch.load(folder / kind / mode / "result.pt", weights_only=True) for mode in MODES}
        for kind in ("one", *KINDS)
    } | {"stopped": {kind: torch.load(folder / kind / "stopped.pt", weights_only=True) for kind in KINDS}}


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one(results: dict[str, dict], mode: str) -> None:
    """Whoever trains on two cards must get the LoRA that one card would have made, sharded (FSDP) or not."""
    one = results["one"][mode]
    for kind in KINDS:
        other = results[kind][mode]
        for what in ("gradients", "weights"):
            assert other[what].keys() == one[what].keys()
            ours, theirs = (torch.cat([t.flatten() for t in r[what].values()]) for r in (other, one))
            check_at_most(f"{what} of two processes, {kind}", relative_error(ours, theirs), 1e-6)
        assert other["checkpoint"].keys() == one["checkpoint"].keys(), "one process could not go on with it"


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_stops_all_within_a_step(results: dict[str, dict], kind: str) -> None:
    """Ctrl-C reaches one process first: neither may wait for the other for ever, and the step begins again."""
    stopped = results["stopped"][kind]
    assert stopped["computed"] == 3, "of two micro batches a step: the first step and half of the second"
    assert stopped["steps"] == 1
    assert stopped["resumed"].keys() == stopped["whole"].keys()
    assert all(torch.equal(stopped["resumed"][name], weights) for name, weights in stopped["whole"].items())


@pytest.mark.long  # two processes train in every run, above
def test_recipe_in_two_processes_is_the_recipe_in_one(
    tiny_pipelines: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The program that accelerate launch starts: one process encodes the dataset and writes, both train."""
    rng = np.random.default_rng(0)
    for number in range(4):
        clip = tmp_path / "clips" / str(number)
        clip.mkdir(parents=True)
        for frame in range(5):
            Image.fromarray(rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(clip / f"{frame}.png")
        (tmp_path / "clips" / f"{number}.txt").write_text(f"clip number {number}")
    loras = []
    for count in (1, 2):
        sections = {
            "model": {"path": str(tiny_pipelines["5b"])},
            "dataset": {"folder": "clips", "frames": 5, "width": 96, "height": 64, "fps": 0},
            "training": {"max_steps": STEPS, "global_batch_size": 2, "learning_rate": 1e-2, "rank": 2, "alpha": 2},
            "output": {"folder": ".", "name": f"{count}"},
        }
        recipe = tmp_path / f"recipe-{count}.json"
        recipe.write_text(json.dumps(sections))
        if count == 1:
            with fresh_accelerate():
                launch_recipe(recipe)
            said = capfd.readouterr().out
        else:
            said = start(count, "training.test_processes.launch_recipe", recipe)
        assert said.count("Step 3 of 3") == 1 and f"{count} process" in said, said
        loras.append(load_file(tmp_path / f"{count}" / f"{count}.safetensors"))
    one, two = (torch.cat([tensor.flatten() for _, tensor in sorted(lora.items())]) for lora in loras)
    assert relative_error(two, one) <= 1e-6


def launch_recipe(recipe: Path) -> None:
    """One process of a training, as training.launch runs it."""
    assert main([str(recipe)]) == 0


def work_in_two(folder: Path, pipeline: Path) -> None:
    """One of two processes."""
    for kind in KINDS:
        work(kind, folder, pipeline)
    torch.distributed.destroy_process_group()


def work(kind: str, folder: Path, pipeline: Path) -> None:
    """Train in all modes; the main process writes what came of each."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == (1 if kind == "one" else 2)
    for mode in MODES:
        if kind == "sharded":
            shard(accelerator)
        train(accelerator, kind, folder / kind / mode, pipeline, mode)
        accelerator.free_memory()
    if kind != "one":
        stop_within_a_step(accelerator, kind, folder / kind, pipeline)
        accelerator.free_memory()


def train(accelerator: Accelerator, kind: str, folder: Path, pipeline: Path, mode: str) -> None:
    """Three steps on a few samples; the main process writes the first gradients and the trained weights."""
    from cogvideox.training import loop

    dit, loss_of = trained(pipeline, mode)
    with first_gradients(accelerator, kind) as gradients:
        weights = loop.train(accelerator, dit, loss_of, config(BATCH // accelerator.num_processes), folder)
    if accelerator.is_main_process:
        state = torch.load(folder / f"step-{STEPS:06d}" / "training.pt", weights_only=True)
        torch.save(
            {"gradients": gradients, "weights": weights, "checkpoint": state["parameters"]}, folder / "result.pt"
        )


def stop_within_a_step(accelerator: Accelerator, kind: str, folder: Path, pipeline: Path) -> None:
    """A LoRA in steps of two micro batches, whole, and stopped by the second process alone and resumed."""
    from cogvideox.training import checkpoint, loop

    computed = []

    def run(name: str, callbacks: loop.Callbacks = loop.Callbacks()) -> dict[str, torch.Tensor]:
        if kind == "sharded":
            shard(accelerator)
        dit, loss_of = trained(pipeline, "lora")

        def counted(module: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
            computed.append(indices[0])
            return loss_of(module, indices)

        return loop.train(accelerator, dit, counted, config(1), folder / name, callbacks=callbacks)

    whole = run("whole")
    computed.clear()
    run("cut", loop.Callbacks(should_stop=lambda: len(computed) == 3 and not accelerator.is_main_process))
    done = {"whole": whole, "computed": len(computed), "steps": checkpoint.steps_done(folder / "cut")}
    done["resumed"] = run("cut")
    if accelerator.is_main_process:
        torch.save(done, folder / "stopped.pt")


def config(micro_batch_size: int) -> TrainConfig:
    return TrainConfig(
        max_steps=STEPS, global_batch_size=BATCH, micro_batch_size=micro_batch_size, learning_rate=1e-3, seed=7
    )


def trained(pipeline: Path, mode: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """A tiny transformer of which a LoRA or everything is trained, and its loss on a few samples."""
    from cogvideox.training import adapters as loras
    from cogvideox.training import objective as objectives

    model = load_model(pipeline, "fp32", disable_dynamic=True)
    dit = model.model.diffusion_model
    if mode == "lora":
        loras.attach_lora(dit, TrainConfig(rank=4, alpha=8.0, seed=1))
    else:
        dit.requires_grad_(True)
    call_blocks(dit)
    generator = torch.Generator().manual_seed(0)
    samples: list[objectives.Sample] = [
        {
            "latents": torch.randn(16, 3, 8, 12, generator=generator),
            "text": torch.randn(226, 32, generator=generator),
        }
        for _ in range(STEPS * BATCH)
    ]
    objective = objectives.objective_for(model)

    def loss_of(module: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        batch = objectives.draw_batch([samples[i] for i in indices], indices, 7, objective, samples[0]["text"][None])
        return objectives.denoising_loss(module, batch, objective)

    return dit, loss_of


def shard(accelerator: Accelerator) -> None:
    """FSDP, as `accelerate launch --use_fsdp --fsdp_version 2` sets it; accelerate itself offers it for cards only."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    shard_blocks(plugin)
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    assert accelerator.is_fsdp2


@contextmanager
def first_gradients(accelerator: Accelerator, kind: str) -> Iterator[dict[str, torch.Tensor]]:
    """Filled when the loop clips for the first time: all gradients of the step, whole."""
    gradients, clip = {}, accelerator.clip_grad_norm_

    def record(parameters: list, norm: float) -> object:
        if not gradients:
            for number, parameter in enumerate(parameters):
                assert hasattr(parameter, "full_tensor") == (kind == "sharded")
                if parameter.grad is not None:
                    whole = parameter.grad
                    whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
                    gradients[str(number)] = whole.clone()
        return clip(parameters, norm)

    with mock.patch.object(accelerator, "clip_grad_norm_", record):
        yield gradients
