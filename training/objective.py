"""CogVideoX's training objective: noise a clip, let the model predict v, compare the clip it implies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import TrainingError
from ..samplers.conditioning import concat_channels, image_scale

TIMESTEP_SAMPLINGS = ("uniform", "stratified", "logit-normal")
_OFS = 2.0  # what CogVideoX 1.5's image to video pipeline gives (diffusers pipeline_cogvideox_image2video.py)


@dataclass(frozen=True)
class Objective:
    """How samples are noised and weighed.

    alphas: cumulative products at timesteps 0 .. 999, [1000]; model_sampling.alphas of a loaded MODEL.
    latent_scale: the VAE's scaling factor. image_scale: what a first frame's latents are multiplied by; None for text
    to video. patch_size_t, ofs: of the transformer (None where it has none).
    timesteps: "uniform" draws one for each sample on its own, as the official scripts do; "stratified" one from each
    of `batch_size` equal parts of 0 .. 999, so that every step sees them all (the CogVideoX paper's
    "explicit uniform sampling"); "logit-normal" the same with most of them in the middle, where the content of a
    picture is decided (Esser and others 2024, "Scaling rectified flow transformers", section 3.1).
    caption_dropout, image_dropout: the share of samples that see the empty caption, or no image.
    dtype: what the model is given, and computes in; the loss is computed in fp32.
    """

    alphas: torch.Tensor
    latent_scale: float
    image_scale: float | None = None
    patch_size_t: int | None = None
    ofs: float | None = None
    timesteps: str = "uniform"
    batch_size: int = 1
    caption_dropout: float = 0.0
    image_dropout: float = 0.05
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Batch:
    """What one forward needs. clean, noise: [B, 16, T, h, w], scaled; timesteps: [B], int64; text: [B, L, D];
    beside: channels that stand beside the noisy video, [B, 16, T, h, w], or None."""

    clean: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    text: torch.Tensor
    beside: torch.Tensor | None

    def to(self, device: torch.device) -> "Batch":
        beside = None if self.beside is None else self.beside.to(device)
        return Batch(*(x.to(device) for x in (self.clean, self.noise, self.timesteps, self.text)), beside)


def objective_for(model: object, **choices: object) -> Objective:
    """The objective of a loaded MODEL, CogVideoXModel inside; choices: Objective's fields from `timesteps` on.

    Raises TrainingError for a model of another task than text or image to video.
    """
    inner = model.model
    config, family = inner.model_config.transformer_config, inner.model_config.family
    if family.task not in ("text", "image"):
        raise TrainingError(
            f"The model is {family.name}, made for {family.task}: there is no training for that here. Load a text to "
            "video or image to video model."
        )
    if choices.get("timesteps", TIMESTEP_SAMPLINGS[0]) not in TIMESTEP_SAMPLINGS:
        raise TrainingError(f"timesteps is {choices['timesteps']!r}: use {' or '.join(TIMESTEP_SAMPLINGS)}.")
    factor = inner.model_config.latent_format.scale_factor
    inverted = inner.model_config.inverts_image_scale
    return Objective(
        alphas=inner.model_sampling.alphas.float(),
        latent_scale=factor,
        image_scale=image_scale("checkpoint", factor, inverted) if family.task == "image" else None,
        patch_size_t=config.get("patch_size_t"),
        ofs=_OFS if config.get("ofs_embed_dim") else None,
        **choices,
    )


def draw_batch(
    samples: Sequence[dict], indices: Sequence[int], seed: int, objective: Objective, empty_text: torch.Tensor
) -> Batch:
    """Noise, timesteps and dropouts for `samples`, all of one shape.

    samples: dicts of latents and, where the posterior is to be sampled, std [16, T, h, w]; text [L, D]; images
    [V, 16, 1, h, w], latents of the first frame, for image to video. indices: one a sample, the numbers of these
    draws in the whole training; the same number draws the same. empty_text: [1, L, D].
    """
    drawn = [
        _draw(sample, index, sample_generator(seed, index), objective, empty_text)
        for sample, index in zip(samples, indices)
    ]
    clean, noise, text, beside = (list(column) for column in zip(*(d[:4] for d in drawn)))
    timesteps = torch.tensor([d[4] for d in drawn])
    return Batch(
        torch.stack(clean),
        torch.stack(noise),
        timesteps,
        torch.stack(text),
        torch.stack(beside) if objective.image_scale is not None else None,
    )


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The stream of random numbers of one sample, the same in whichever process it is drawn."""
    # a generator's first numbers are alike for seeds that differ in few bits: mix them
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
    return torch.Generator().manual_seed(mixed)


def _draw(
    sample: dict, index: int, generator: torch.Generator, objective: Objective, empty_text: torch.Tensor
) -> tuple:
    latents = sample["latents"]
    if sample.get("std") is not None:
        latents = latents + sample["std"] * torch.randn(latents.shape, generator=generator)
    clean = pad_front(latents * objective.latent_scale, objective.patch_size_t)
    drops_caption, drops_image, place, variant = torch.rand(4, generator=generator).tolist()
    noise = torch.randn(clean.shape, generator=generator)
    if objective.timesteps != "uniform":
        place = (index % objective.batch_size + place) / objective.batch_size
    if objective.timesteps == "logit-normal":
        place = float(torch.special.ndtri(torch.tensor(place, dtype=torch.float64)).sigmoid())
    timestep = min(int(place * len(objective.alphas)), len(objective.alphas) - 1)
    text = empty_text[0] if drops_caption < objective.caption_dropout else sample["text"]
    beside = None
    if objective.image_scale is not None:
        images = sample["images"]
        image = images[int(variant * len(images))] * float(drops_image >= objective.image_dropout)
        beside = concat_channels(image[None], None, clean[None].shape, objective.image_scale, 1.0)[0]
    return clean, noise, text, beside, timestep


def pad_front(latents: torch.Tensor, patch_size_t: int | None) -> torch.Tensor:
    """[C, T, h, w] with the first frame repeated in front until T divides by `patch_size_t`, as the official trainer
    of CogVideoX 1.5 has it (THUDM/CogVideo, finetune/models/cogvideox1_5_t2v)."""
    extra = -latents.shape[1] % (patch_size_t or 1)
    return torch.cat([latents[:, :1].expand(-1, extra, -1, -1), latents], dim=1)


def denoising_loss(model: torch.nn.Module, batch: Batch, objective: Objective) -> torch.Tensor:
    """mean(1 / (1 - a) * (x0 - clean)^2) over the batch, x0 being the clip that the predicted v implies.

    model: a CogVideoXDiT, alone or wrapped by accelerate.

    Source: diffusers examples/cogvideo/train_cogvideox_lora.py; the weight makes it the mean squared error of v.
    """
    alpha = objective.alphas.to(batch.clean)[batch.timesteps].view(-1, 1, 1, 1, 1)
    noisy = alpha.sqrt() * batch.clean + (1 - alpha).sqrt() * batch.noise
    x = noisy if batch.beside is None else torch.cat([noisy, batch.beside], dim=1)
    x, text = x.to(objective.dtype), batch.text.to(objective.dtype)
    ofs = None if objective.ofs is None else x.new_full((x.shape[0],), objective.ofs)
    v = model(x, batch.timesteps, text, ofs=ofs).to(noisy)
    x0 = alpha.sqrt() * noisy - (1 - alpha).sqrt() * v
    return ((x0 - batch.clean) ** 2 / (1 - alpha)).mean()
