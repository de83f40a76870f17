"""CogVideoX's training objective: noise a clip, let the model predict v, compare the clip it implies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import comfy.model_patcher
import torch

from ..errors import UserError
from ..samplers.conditioning import concat_channels, image_scale
from ..sockets.model import OFS, CogVideoXModel, require_weights
from .config import TrainConfig


@dataclass(frozen=True)
class Objective:
    """How samples are noised and weighed.

    alphas: cumulative products at timesteps 0 .. 999, [1000]; model_sampling.alphas of a loaded MODEL.
    latent_scale: the VAE's scaling factor. image_scale: what a first frame's latents are multiplied by; None for text
    to video. patch_size_t, ofs: of the transformer (None where it has none).
    timesteps: "uniform" draws one for each sample on its own, as the official scripts do; "stratified" one from each
    of `global_batch_size` equal parts of 0 .. 999, so that every step sees them all (the CogVideoX paper's
    "explicit uniform sampling"); "logit-normal" the same with most of them in the middle, where the content of a
    picture is decided (Esser et al. 2024, "Scaling rectified flow transformers", section 3.1).
    caption_dropout, image_dropout: the share of samples that see the empty caption, or no image.
    dtype: what the model is given, and computes in; the loss is computed in fp32.
    """

    alphas: torch.Tensor
    latent_scale: float
    image_scale: float | None = None
    patch_size_t: int | None = None
    ofs: float | None = None
    timesteps: str = TrainConfig.timesteps
    global_batch_size: int = TrainConfig.global_batch_size
    caption_dropout: float = TrainConfig.caption_dropout
    image_dropout: float = TrainConfig.image_dropout
    dtype: torch.dtype = torch.float32


class _ClipAndCaption(TypedDict):
    latents: torch.Tensor
    text: torch.Tensor


class Sample(_ClipAndCaption, total=False):
    """A clip and its caption, as a dataset or ComfyUI's sockets give them; fp32, on the CPU.

    latents: [16, T, h, w], unscaled. text: [L, D]. std: of the VAE's posterior, [16, T, h, w]; None where it is not
    known: then the latents are taken as they are. images: for image to video [V, 16, 1, h, w], latents of the first
    frame.
    """

    std: torch.Tensor | None
    images: torch.Tensor | None


@dataclass(frozen=True)
class Batch:
    """What one forward needs. clean, noise: [B, 16, T, h, w], scaled; timesteps: [B], int64; text: [B, L, D];
    c_concat: channel-concatenated conditioning, [B, 16, T, h, w], or None."""

    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    text: torch.Tensor
    c_concat: torch.Tensor | None

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.clean.to(device),
            self.noise.to(device),
            self.timesteps.to(device),
            self.text.to(device),
            None if self.c_concat is None else self.c_concat.to(device),
        )


def cogvideox_inside(model: comfy.model_patcher.ModelPatcher) -> CogVideoXModel:
    """The model inside a MODEL of this pack's loaders, with its type: ComfyUI's annotation says only BaseModel."""
    return cast(CogVideoXModel, model.model)


def objective_for(
    model: comfy.model_patcher.ModelPatcher, config: TrainConfig = TrainConfig(), dtype: torch.dtype = torch.float32
) -> Objective:
    """The objective of a loaded MODEL. dtype: what the model is given.

    Raises UserError for a model of another task than text or image to video, or one whose weights are elsewhere.
    """
    require_weights(model)
    model_config = cogvideox_inside(model).model_config
    family, transformer = model_config.family, model_config.transformer_config
    if family.task not in ("text", "image"):
        raise UserError(
            f"The model is {family.name}, made for {family.task}: there is no training for that here. Choose a text to "
            "video or an image to video model."
        )
    if family.repeats_image:
        raise UserError(
            f"{family.name} sees the start image in every frame, which there is no training for here. Choose a text to "
            "video model, or one of the official image to video models."
        )
    factor, is_inverted = model_config.latent_format.scale_factor, model_config.inverts_image_scale
    return Objective(
        alphas=cogvideox_inside(model).model_sampling.alphas.float(),
        latent_scale=factor,
        image_scale=image_scale("checkpoint", factor, is_inverted) if family.task == "image" else None,
        patch_size_t=transformer.get("patch_size_t"),
        ofs=OFS if transformer.get("ofs_embed_dim") else None,
        timesteps=config.timesteps,
        global_batch_size=config.global_batch_size,
        caption_dropout=config.caption_dropout,
        image_dropout=config.image_dropout,
        dtype=dtype,
    )


def draw_batch(
    samples: Sequence[Sample], indices: Sequence[int], seed: int, objective: Objective, empty_text: torch.Tensor
) -> Batch:
    """Noise, timesteps and dropouts for `samples`, all of one shape.

    indices: one a sample, the numbers of these draws in all of the training; the same number draws the same.
    empty_text: [1, L, D].
    """
    drawn = [
        _draw(sample, index, sample_generator(seed, index), objective, empty_text)
        for sample, index in zip(samples, indices)
    ]
    concat = [one.c_concat for one in drawn if one.c_concat is not None]
    return Batch(
        torch.stack([one.clean for one in drawn]),
        torch.stack([one.noise for one in drawn]),
        torch.stack([one.timesteps for one in drawn]),
        torch.stack([one.text for one in drawn]),
        torch.stack(concat) if concat else None,
    )


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The stream of random numbers of one sample, the same in whichever process it is drawn."""
    # seed + index would give the training with the next seed the same noise, one sample later. torch seeds its CPU
    # generator with the low 32 bits alone; an odd factor keeps these different for every index below 2^32. The
    # constants are those of SplitMix64.
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def _draw(
    sample: Sample, index: int, generator: torch.Generator, objective: Objective, empty_text: torch.Tensor
) -> Batch:
    """One sample of a batch, without the batch dimension.

    The order of the draws from `generator` is part of a training's result: another one would make a checkpoint go on
    with other noise than the run that wrote it.
    """
    latents, std = sample["latents"], sample.get("std")
    # A new sample of the VAE's posterior each time the clip is drawn, as latent_dist.sample() in diffusers'
    # train_cogvideox_image_to_video_lora.py, collate_fn. The cache holds mean and std for this.
    if std is not None:
        latents = latents + std * torch.randn(latents.shape, generator=generator)
    clean = pad_front(latents * objective.latent_scale, objective.patch_size_t)
    # All four are drawn whether they are used or not, so that a dropout does not change the noise.
    drops_caption, drops_image, level, variant = torch.rand(4, generator=generator).tolist()
    noise = torch.randn(clean.shape, generator=generator)
    if objective.timesteps != "uniform":
        # A step's samples have consecutive indices that begin at a multiple of the batch size: each sample is drawn
        # from its own part of 0 .. 1.
        level = (index % objective.global_batch_size + level) / objective.global_batch_size
    if objective.timesteps == "logit-normal":
        # Uniform -> standard normal (ndtri is its inverse distribution function) -> logit-normal with mean 0, scale 1.
        level = float(torch.special.ndtri(torch.tensor(level, dtype=torch.float64)).sigmoid())
    # Rounding can bring a level up to 1, one past the last timestep.
    timestep = torch.tensor(min(int(level * len(objective.alphas)), len(objective.alphas) - 1))
    text = empty_text[0] if drops_caption < objective.caption_dropout else sample["text"]
    c_concat = None
    if objective.image_scale is not None:
        # One of the first frame's latents [V, 16, 1, h, w], clean or with noise, or zeros where the picture is dropped.
        # concat_channels fills the other frames with zeros, as in sampling.
        images = cast(torch.Tensor, sample.get("images"))
        image = images[int(variant * len(images))] * float(drops_image >= objective.image_dropout)
        c_concat = concat_channels(image[None], None, clean[None].shape, objective.image_scale, 1.0)[0]
    return Batch(clean, noise, timestep, text, c_concat)


def pad_front(latents: torch.Tensor, patch_size_t: int | None) -> torch.Tensor:
    """[C, T, h, w] with the first frame repeated in front until T divides by `patch_size_t`.

    In sampling the frame in front is one of noise (samplers.outer_sample); a clean clip has no such frame.
    Source: THUDM/CogVideo finetune/models/cogvideox_t2v/lora_trainer.py, compute_loss, for CogVideoX 1.5 as well.
    """
    extra = -latents.shape[1] % (patch_size_t or 1)
    return torch.cat([latents[:, :1].expand(-1, extra, -1, -1), latents], dim=1)


def denoising_loss(model: torch.nn.Module, batch: Batch, objective: Objective) -> torch.Tensor:
    """mean(1 / (1 - a) * (x0 - clean)^2) over the batch, x0 being the clip that the predicted v implies.

    model: a CogVideoXDiT, alone or wrapped by accelerate.

    x0 - clean is sqrt(1 - a) (v_target - v), so that the weight makes it the mean squared error of v.

    Source: diffusers examples/cogvideo/train_cogvideox_lora.py.
    """
    # fp32 whatever the model computes in: in bf16 an alpha above 0.998 is 1, and the weight would be infinite.
    alpha = objective.alphas.to(batch.clean)[batch.timesteps].view(-1, 1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.clean + (1 - alpha).sqrt() * batch.noise
    x = noisy if batch.c_concat is None else torch.cat([noisy, batch.c_concat], dim=1)
    x, text = x.to(objective.dtype), batch.text.to(objective.dtype)
    ofs = None if objective.ofs is None else x.new_full((x.shape[0],), objective.ofs)
    v = model(x, batch.timesteps, text, ofs=ofs).to(noisy)
    x0 = alpha.sqrt() * noisy - (1 - alpha).sqrt() * v
    return ((x0 - batch.clean) ** 2 / (1 - alpha)).mean()
