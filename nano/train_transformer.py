"""The stages that train CogVideoX-nano's transformers, each from what an earlier one has learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogvideox.training.config import TrainConfig

from . import buckets, conditions, control_net, transformer, vae
from .optimizer import MuonAndAdamW
from .stage import SEED, accelerator, log
from .trained import empty_text, load_transformer

if TYPE_CHECKING:  # what imports ComfyUI has to wait for use_comfyui
    from cogvideox.training.objective import Objective, Sample

BATCH = 32  # what a step's samples are numbered by; how many of them a step takes depends on its bucket


@dataclass(frozen=True)
class TransformerStage:
    """One training of a transformer, or of a control net for it.

    variant: of transformer.CONFIGS. source: the stage whose weights it begins with; None begins with new ones.
    only_bucket: the number in buckets.BUCKETS of the only clips it sees; None draws from all.
    """

    name: str
    variant: str
    source: str | None
    steps: int
    learning_rate: float
    only_bucket: int | None = None
    is_control_net: bool = False

    @property
    def task(self) -> str:
        """A key of conditions.CONDITIONS, or "text"."""
        if self.is_control_net:
            return "control net"
        return next((task for part, task in _TASKS.items() if part in self.variant), "text")


_TASKS = {"I2V": "image", "InP": "inpaint", "Control": "control"}
_17_FRAMES = next(number for number, bucket in enumerate(buckets.BUCKETS) if bucket.name == "17x64x64")
TRANSFORMER_STAGES = (
    TransformerStage("5b-short", "5b", None, 11000, 5e-3, _17_FRAMES),
    TransformerStage("5b", "5b", "5b-short", 16000, 3e-3),
    TransformerStage("Fun-5b-InP", "Fun-5b-InP", "5b", 7000, 2e-3),
    TransformerStage("Fun-5b-Control", "Fun-5b-Control", "5b", 4000, 2e-3),
    TransformerStage(control_net.NAME, control_net.BASE, "5b", 4000, 2e-3, is_control_net=True),
    TransformerStage("2b", "2b", "5b", 8000, 3e-3),
    TransformerStage("1.5-5B", "1.5-5B", "5b", 8000, 3e-3),
    # Its table of positions is of one size.
    TransformerStage("5b-I2V", "5b-I2V", "5b", 6000, 2e-3, _17_FRAMES),
    TransformerStage("1.5-5B-I2V", "1.5-5B-I2V", "1.5-5B", 6000, 2e-3),
)


def train_transformer(work: Path, stage: TransformerStage) -> None:
    """Train a stage to its end, and write its averaged weights to WORK/name/trained.pt."""
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
    weights = loop.train(
        accelerator("bf16"),
        model,
        _StageLoss(work, stage),
        config,
        work / stage.name,
        callbacks=loop.Callbacks(on_step=log),
        optimizer_of=muon_and_adamw,
    )
    weights = {name.removeprefix("net."): weight for name, weight in weights.items()}
    torch.save(weights, work / stage.name / "trained.pt")


class _StageLoss:
    """The loss of a step's samples, as training.loop asks for it: all of one bucket, drawn by the step's number."""

    def __init__(self, work: Path, stage: TransformerStage):
        self._stage = stage
        self._sets = buckets.encoded(work, SEED, stage.task)
        self._empty_text = empty_text(work)

    def __call__(self, model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        from cogvideox.training import objective

        step = indices[0] // BATCH
        number = self._stage.only_bucket
        number = buckets.bucket_of(step, SEED) if number is None else number
        goal = self._objective(count := buckets.BUCKETS[number].batch_size)
        # Numbered by themselves in each bucket, so that the samples of a step are spread over all noise levels.
        drawn = range(step * count, (step + 1) * count)
        columns = [buckets.sample_at(self._sets[number], index, SEED) for index in drawn]
        samples = [_sample_of(column) for column in columns]
        # torch's fused attention takes three times as long as the plain one for so few tokens on a CPU
        with sdpa_kernel(SDPBackend.MATH):
            batch = objective.draw_batch(samples, drawn, SEED + number, goal, self._empty_text)
            if "concat" in columns[0]:
                batch = replace(batch, c_concat=_concat(columns, batch.clean.shape))
            if "guide" in columns[0]:
                model.guide = conditions.unpacked_edges(torch.stack([column["guide"] for column in columns]))
            return objective.denoising_loss(model, batch, goal)

    def _objective(self, count: int) -> "Objective":
        from cogvideox.samplers.schedule import alphas_cumprod
        from cogvideox.sockets.model import OFS
        from cogvideox.training.objective import Objective

        config = transformer.CONFIGS[self._stage.variant]
        inverts = self._stage.variant in transformer.INVERTS_IMAGE_SCALE
        return Objective(
            alphas=alphas_cumprod(transformer.SNR_SHIFT.get(self._stage.variant, 1.0)).float(),
            latent_scale=vae.SCALING_FACTOR,
            image_scale=vae.SCALING_FACTOR ** (-1 if inverts else 1) if self._stage.task == "image" else None,
            patch_size_t=config.get("patch_size_t"),
            ofs=OFS if config.get("ofs_embed_dim") else None,
            timesteps="logit-normal",
            global_batch_size=count,
            caption_dropout=0.1,
        )


def _sample_of(column: dict[str, torch.Tensor]) -> "Sample":
    sample: Sample = {"latents": column["latents"], "text": column["text"]}
    return {**sample, "images": column["images"][None]} if "images" in column else sample


def _concat(columns: Sequence[dict[str, torch.Tensor]], shape: torch.Size) -> torch.Tensor:
    """The further input channels of a Fun model, as sockets.model.CogVideoXModel.concat_cond makes them."""
    from cogvideox.samplers.conditioning import concat_channels

    latents, known = (
        torch.stack([column[name] for column in columns]) if name in columns[0] else None
        for name in ("concat", "known")
    )
    assert latents is not None
    return concat_channels(latents, known, shape, vae.SCALING_FACTOR, vae.SCALING_FACTOR)


def muon_and_adamw(model: torch.nn.Module, config: TrainConfig) -> MuonAndAdamW:
    betas = config.adam_beta1, config.adam_beta2
    return MuonAndAdamW(model, config.learning_rate, betas, config.weight_decay)
