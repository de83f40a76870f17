"""Training on a card: the losses of a CPU, falling, and the same bits after a restart."""

import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cogvideox.benchmarks.gpu_rows import FAILED, PASSED, Bench, relative_error

if TYPE_CHECKING:
    from cogvideox.training.config import TrainConfig

STEPS = 20


class Clips:
    """Clips and captions in memory, as training.trainer.ClipSource describes them."""

    hash = "random clips"

    def __init__(self, count: int, size: tuple[int, int, int], text_width: int):
        generator = torch.Generator().manual_seed(0)
        self._latents = [torch.randn(16, *size, generator=generator) for _ in range(count)]
        self._texts = [torch.randn(226, text_width, generator=generator) for _ in range(count)]
        self.empty_text = torch.zeros(1, 226, text_width)

    def shapes(self) -> tuple[Hashable, ...]:
        return tuple(tuple(latents.shape) for latents in self._latents)

    def load(self, index: int) -> Any:
        return {"latents": self._latents[index], "text": self._texts[index]}


def measure(bench: Bench) -> None:
    """The section."""
    bench.start_comfyui()
    from cogvideox.tests.support import TinyPipelines

    with tempfile.TemporaryDirectory() as scratch:
        tiny = TinyPipelines(Path(scratch))
        for variant in ("5b",) if bench.smoke else ("5b", "1.5-5B"):
            for precision in ("fp32", "bf16"):
                what = f"training, {variant}, {precision}"
                bench.attempt(
                    what,
                    lambda variant=variant, kind=precision: lora(bench, tiny[variant], variant, kind, Path(scratch)),
                )


def lora(bench: Bench, pipeline: Path, variant: str, precision: str, scratch: Path) -> None:
    """A LoRA for 20 steps: twice in one go, once with a restart after half, once on a CPU."""
    from cogvideox.training.config import TrainConfig

    config = TrainConfig(
        max_steps=6 if bench.smoke else STEPS,
        learning_rate=1e-2,
        schedule="constant",
        global_batch_size=4,
        micro_batch_size=2,
        rank=8,
        alpha=8.0,
        seed=5,
        timesteps="stratified",
        precision=precision,
        gradient_checkpointing=True,
    )
    name = f"{variant}-{precision}"
    whole, losses = train(pipeline, config, scratch / f"{name}-whole", bench.device)
    again, _ = train(pipeline, config, scratch / f"{name}-again", bench.device)
    train(pipeline, config, scratch / f"{name}-parts", bench.device, stop_after=config.max_steps // 2)
    resumed, _ = train(pipeline, config, scratch / f"{name}-parts", bench.device)
    on_cpu, cpu_losses = train(pipeline, config, scratch / f"{name}-cpu", torch.device("cpu"))
    apart, restart = difference(whole, again), difference(whole, resumed)
    what = f"training, {variant}, {precision}"
    # cuDNN's attention adds gradients up in no fixed order. A restart may differ by what two runs in one go differ by.
    verdict = PASSED if restart <= 2 * apart else FAILED
    found = f"a restart differs by {restart:.1e}, a second run by {apart:.1e}"
    bench.row(f"{what}: restart and second run", found, verdict, restart=restart, second_run=apart)
    half = len(losses) // 2
    before, after = sum(losses[:half]) / half, sum(losses[-half:]) / half
    found = f"mean of the first half {before:.4f}, of the second {after:.4f}"
    bench.row(f"{what}: loss falls", found, PASSED if after < before else FAILED, losses=losses)
    error = relative_error(torch.tensor(losses), torch.tensor(cpu_losses))
    note = f"the LoRA's weights differ by {difference(whole, on_cpu):.1e}"
    bench.check(f"{what}: losses against a CPU's", error, 1e-3 if precision == "fp32" else 3e-2, note)


def train(
    pipeline: Path, config: "TrainConfig", folder: Path, device: torch.device, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train as ComfyUI's node does; returns the trained parameters and the loss of every step."""
    from unittest import mock

    import comfy.model_management as mm

    from cogvideox.model_loaders.load_model import load_model

    with mock.patch.object(mm, "get_torch_device", lambda: device):
        model = load_model(pipeline, "bf16" if config.precision == "bf16" else "fp32", disable_dynamic=True)
        clips = Clips(4, (2, 8, 12), 32)
        return train_model(model, clips, config, folder, stop_after)


def train_model(
    model: Any, clips: Clips, config: "TrainConfig", folder: Path, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """As training.graph.train_lora, with clips from memory."""
    from cogvideox.host.training_mode import load_fully, training_mode
    from cogvideox.training.loop import Callbacks, read_losses
    from cogvideox.training.objective import objective_for
    from cogvideox.training.parallelize import single_process
    from cogvideox.training.trainer import Trainer, compute_dtype

    dtype, done = compute_dtype(model, config.precision), list[int]()
    with training_mode():
        trainer = Trainer(model, clips, config, objective_for(model, config, dtype))
        if model.load_device.type == "cuda":
            load_fully(model)
        trainer.attach()
        callbacks = Callbacks(
            lambda step, loss: done.append(step), lambda: stop_after is not None and len(done) >= stop_after
        )
        with single_process(dtype, model.load_device.type == "cpu") as accelerator:
            weights = trainer.run(accelerator, folder, callbacks)
        kept = {name: weight.detach().float().cpu().clone() for name, weight in weights.items()}
        trainer.detach()
    return kept, read_losses(folder)


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """RMS over RMS of all trained weights together; 0 where they are bit-equal."""
    one, other = (torch.cat([weights[name].flatten() for name in sorted(weights)]) for weights in (first, second))
    return relative_error(one, other)
