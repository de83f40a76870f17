"""What the steps of a transformer's training see: clips of one bucket, their noise, and what is shown of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import buckets, transformer, vae
from .stage import SEED
from .trained_parts import empty_text
from .transformer_stages import TransformerStage

if TYPE_CHECKING:  # what imports ComfyUI has to wait for use_comfyui
    from cogvideox.training.objective import Objective, Sample


class StepDraws(torch.utils.data.Dataset):
    """Step -> what train_transformer.Denoising is called with, in its order: all of one bucket, on the CPU."""

    def __init__(self, work: Path, stage: TransformerStage):
        self._stage = stage
        numbers = range(len(buckets.BUCKETS)) if stage.only_bucket is None else [stage.only_bucket]
        self._sets = {number: buckets.load_or_encode(number, work, SEED, stage.task) for number in numbers}
        self._empty_text = empty_text(work)
        self._goal = self.objective(torch.device("cpu"))

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        from cogvideox.training import objective

        number = self._stage.only_bucket
        number = buckets.bucket_of(step, SEED) if number is None else number
        count = buckets.BUCKETS[number].batch_size
        # Numbered by themselves in each bucket, so that the samples of a step are spread over all noise levels.
        drawn = range(step * count, (step + 1) * count)
        columns = [buckets.sample_at(self._sets[number], index, SEED) for index in drawn]
        samples = [_sample_of(column) for column in columns]
        goal = replace(self._goal, global_batch_size=count)
        batch = objective.draw_batch(samples, drawn, SEED + number, goal, self._empty_text)
        inputs = {"clean": batch.clean, "noise": batch.noise, "timesteps": batch.timesteps, "text": batch.text}
        if batch.c_concat is not None:
            inputs["c_concat"] = batch.c_concat
        elif "concat" in columns[0]:
            inputs["c_concat"] = _concat(columns, batch.clean.shape)
        elif "guide" in columns[0]:
            inputs["control_video"] = torch.stack([column["guide"] for column in columns]).byte()
        return inputs

    def objective(self, device: torch.device) -> "Objective":
        """What is minimised, computed on `device`."""
        from cogvideox.samplers.schedule import alphas_cumprod
        from cogvideox.sockets.model import OFS
        from cogvideox.training.objective import Objective

        config = transformer.CONFIGS[self._stage.variant]
        inverts = self._stage.variant in transformer.INVERTS_IMAGE_SCALE
        return Objective(
            alphas=alphas_cumprod(transformer.SNR_SHIFT.get(self._stage.variant, 1.0)).float().to(device),
            latent_scale=vae.SCALING_FACTOR,
            image_scale=vae.SCALING_FACTOR ** (-1 if inverts else 1) if self._stage.task == "image" else None,
            patch_size_t=config.get("patch_size_t"),
            ofs=OFS if config.get("ofs_embed_dim") else None,
            timesteps="logit-normal",
            caption_dropout=0.1,
        )


def _sample_of(column: Mapping[str, torch.Tensor]) -> "Sample":
    sample: Sample = {"latents": column["latents"], "text": column["text"]}
    return {**sample, "images": column["images"][None]} if "images" in column else sample


def _concat(columns: Sequence[Mapping[str, torch.Tensor]], shape: torch.Size) -> torch.Tensor:
    """The further input channels of a Fun model, as sockets.model.CogVideoXModel.concat_cond makes them."""
    from cogvideox.samplers.conditioning import concat_channels

    latents, known = (
        torch.stack([column[name] for column in columns]) if name in columns[0] else None
        for name in ("concat", "known")
    )
    assert latents is not None
    return concat_channels(latents, known, shape, vae.SCALING_FACTOR, vae.SCALING_FACTOR)
