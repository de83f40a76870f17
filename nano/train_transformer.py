"""The training of a stage of CogVideoX-nano's transformers, from what an earlier one has learned."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from cogvideox.host.standalone import use_comfyui
from cogvideox.training.config import TrainConfig
from cogvideox.transformer.positions import MOST_SIZES

from . import buckets, conditions, control_net, transformer
from .cuda_graphs import captured
from .draws import StepDraws
from .optimizer import MuonAndAdamW
from .stage import SEED, accelerator, log
from .trained_parts import load_transformer
from .transformer_stages import BATCH, TransformerStage

if TYPE_CHECKING:  # what imports ComfyUI has to wait for use_comfyui
    from cogvideox.training.objective import Objective


def train_transformer(work: Path, stage: TransformerStage) -> None:
    """Train a stage to its end, and write its averaged weights to WORK/name/trained.pt."""
    from cogvideox.host.patches import training_switches
    from cogvideox.training import loop
    from cogvideox.transformer.dit import CogVideoXDiT

    torch.manual_seed(SEED)
    model: torch.nn.Module = CogVideoXDiT(**transformer.CONFIGS[stage.variant])
    transformer.init_adaln_zero(model)
    if stage.source:
        transformer.init_from_variant(model, load_transformer(work, stage.source))
    if stage.is_control_net:
        model = control_net.ControlledTransformer(model)
    config = TrainConfig(
        max_steps=stage.steps,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=stage.learning_rate,
        final_learning_rate=stage.learning_rate / 100,
        seed=SEED,
        warmup_steps=200,
        adam_beta2=0.99,
        ema_decay=0.999,
        save_every=250,
    )
    runner = accelerator("bf16", caches_casts=False)
    with training_switches():
        weights = loop.train(
            runner,
            model,
            _StageLoss(work, stage, runner.device),
            config,
            work / stage.name,
            callbacks=loop.Callbacks(on_step=log),
            optimizer_of=muon_and_adamw,
        )
    weights = {name.removeprefix("net."): weight for name, weight in weights.items()}
    torch.save(weights, work / stage.name / "trained.pt")


class _StageLoss:
    """The loss of a step's samples, as training.loop asks for it: all of one bucket, drawn by the step's number."""

    def __init__(self, work: Path, stage: TransformerStage, device: torch.device):
        # Captured graphs go on reading the tables of positions.
        assert len(buckets.BUCKETS) <= MOST_SIZES
        self._draws, self._steps, self._device = StepDraws(work, stage), stage.steps, device
        self._goal = self._draws.objective(device)
        self._batches: Iterator[dict[str, torch.Tensor]] | None = None
        self._captured: dict[torch.Size, Callable[..., torch.Tensor]] = {}

    def __call__(self, model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        if self._batches is None:
            self._batches = self._from_step(indices[0] // BATCH)
        batch = [tensor.to(self._device) for tensor in next(self._batches).values()]
        if self._device.type == "cpu":
            # torch's fused attention takes three times as long as the plain one for so few tokens on a CPU
            with sdpa_kernel(SDPBackend.MATH):
                return Denoising(model, self._goal)(*batch)
        # The batches of a bucket are of one shape.
        shape = batch[0].shape
        if shape not in self._captured:
            self._captured[shape] = captured(Denoising(model, self._goal), batch)
        return self._captured[shape](*batch)

    def _from_step(self, first: int) -> Iterator[dict[str, torch.Tensor]]:
        """The draws of all steps from `first` on; for a card two processes draw them ahead."""
        workers = 0 if self._device.type == "cpu" else 2
        steps = range(first, self._steps)
        return iter(
            DataLoader(self._draws, batch_size=None, sampler=steps, num_workers=workers, worker_init_fn=_begin_worker)
        )


def _begin_worker(_: int) -> None:
    use_comfyui()


class Denoising(torch.nn.Module):
    """The denoising loss of a batch as forward."""

    def __init__(self, model: torch.nn.Module, goal: "Objective"):
        super().__init__()
        self.model, self._goal = model, goal

    def forward(
        self,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See training.objective.Batch. condition: c_concat, or for a control net the packed control videos."""
        from cogvideox.training.objective import Batch, denoising_loss

        if condition is not None and condition.dtype == torch.uint8:
            self.model.guide = conditions.unpacked_edges(condition)
            condition = None
        return denoising_loss(self.model, Batch(clean, noise, timesteps, text, condition), self._goal)


def muon_and_adamw(model: torch.nn.Module, config: TrainConfig) -> MuonAndAdamW:
    betas = config.adam_beta1, config.adam_beta2
    return MuonAndAdamW(model, config.learning_rate, betas, config.weight_decay)
