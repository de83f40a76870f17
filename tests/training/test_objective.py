"""The training loss against diffusers' own parts put together as its trainer does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox import errors
from cogvideox.model_loaders import load_model as model_loader
from cogvideox.tests.support import check_parity, reference_transformer
from cogvideox.training import objective as objectives
from cogvideox.training.config import TrainConfig

SEED, TEXT_WIDTH = 11, 32


def sample(frames: int, number: int = 0, images: int = 0) -> objectives.Sample:
    generator = torch.Generator().manual_seed(number)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pictures = draw(images, 16, 1, 8, 12) if images else None
    std = 0.1 * draw(16, frames, 8, 12).abs()
    return {"latents": draw(16, frames, 8, 12), "std": std, "text": draw(226, TEXT_WIDTH), "images": pictures}


def load(folder: Path) -> tuple[torch.nn.Module, objectives.Objective]:
    model = model_loader.load_model(folder, "fp32", disable_dynamic=True)
    return model.model.diffusion_model, objectives.objective_for(model)


def reference_loss(folder: Path, batch: objectives.Batch, image: torch.Tensor | None) -> torch.Tensor:
    """As examples/cogvideo/train_cogvideox_lora.py and train_cogvideox_image_to_video_lora.py compute it.

    batch: noise, timesteps, text and clean latents, [B, 16, T, h, w]. image: the first frame's scaled latents.
    """
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
    from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler

    pipeline = CogVideoXPipeline.from_pretrained(folder, transformer=None, torch_dtype=torch.float32)
    scheduler: Any = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config)
    transformer: Any = reference_transformer(folder)
    config, pipeline.transformer = transformer.config, transformer
    clean, noise = batch.clean.transpose(1, 2), batch.noise.transpose(1, 2)  # diffusers' [B, T, C, h, w]
    noisy = scheduler.add_noise(clean, noise, batch.timesteps)
    x = noisy
    if image is not None:
        rest = torch.zeros_like(clean[:, 1:])
        x = torch.cat([noisy, torch.cat([image.transpose(1, 2), rest], dim=1)], dim=2)
    rotary = None
    if config.use_rotary_positional_embeddings:
        size = pipeline.vae_scale_factor_spatial
        rotary = pipeline._prepare_rotary_positional_embeddings(
            8 * size, 12 * size, clean.shape[1], torch.device("cpu")
        )
    ofs = None if config.ofs_embed_dim is None else clean.new_full((1,), 2.0)
    options = {"ofs": ofs, "image_rotary_emb": rotary, "return_dict": False}
    output = transformer(x, batch.text, batch.timesteps, **options)[0]
    predicted = scheduler.get_velocity(output, noisy, batch.timesteps)
    weights = 1 / (1 - scheduler.alphas_cumprod[batch.timesteps])
    while weights.ndim < predicted.ndim:
        weights = weights.unsqueeze(-1)
    return torch.mean((weights * (predicted - clean) ** 2).reshape(len(clean), -1), dim=1).mean()


@pytest.mark.parametrize(
    "variant, frames",
    [("2b", 3), ("5b", 3), ("5b-I2V", 3), ("1.5-5B", 4), ("1.5-5B", 3), ("1.5-5B-I2V", 4), ("1.5-5B-I2V", 3)],
)
def test_loss_is_diffusers(tiny_pipelines: dict[str, Path], variant: str, frames: int) -> None:
    """A wrong weight, scale or image channel would train, and never to what the official trainer reaches."""
    folder, is_image = tiny_pipelines[variant], "I2V" in variant
    dit, objective = load(folder)
    objective = replace(objective, image_dropout=0.0)
    samples = [sample(frames, number, 2 * is_image) for number in range(2)]
    batch = objectives.draw_batch(samples, [4, 5], SEED, objective, torch.zeros(1, 226, TEXT_WIDTH))
    image = None
    if is_image:
        factor = 1 / objective.latent_scale if variant.startswith("1.5") else objective.latent_scale
        assert batch.c_concat is not None
        image = batch.c_concat[:, :, :1]
        for own, taken in zip(samples, image):
            pictures = own.get("images")
            assert pictures is not None and any(torch.allclose(taken, picture * factor) for picture in pictures)
    theirs = reference_loss(folder, batch, image).detach()
    ours = objectives.denoising_loss(dit, batch, objective).detach()
    check_parity("training loss", ours[None], theirs[None], 2e-6)


def test_clean_clip_is_a_sample_of_the_posterior(tiny_pipelines: dict[str, Path]) -> None:
    """The official trainer sees mean + std * noise, scaled; CogVideoX 1.5 pads odd clips with their first frame."""
    _, objective = load(tiny_pipelines["1.5-5B"])
    one = sample(3)
    batch = objectives.draw_batch([one], [9], SEED, objective, torch.zeros(1, 226, TEXT_WIDTH))
    drawn = torch.randn(one["latents"].shape, generator=objectives.sample_generator(SEED, 9))
    std = one.get("std")
    assert std is not None
    expected = (one["latents"] + std * drawn) * objective.latent_scale
    assert batch.clean.shape[2] == 4 and torch.equal(batch.clean[0, :, 1:], expected)
    assert torch.equal(batch.clean[0, :, 0], expected[:, 0])


def test_draws_depend_on_their_numbers_alone(tiny_pipelines: dict[str, Path]) -> None:
    """Another number of processes, or a restart, must not change what is drawn."""
    _, objective = load(tiny_pipelines["5b-I2V"])
    objective = replace(objective, image_dropout=0.3, caption_dropout=0.3, timesteps="stratified", global_batch_size=4)
    samples = [sample(3, number, 2) for number in range(4)]
    empty = torch.zeros(1, 226, TEXT_WIDTH)
    whole = objectives.draw_batch(samples, range(8, 12), SEED, objective, empty)
    for first in (0, 2):
        half = objectives.draw_batch(samples[first : first + 2], [8 + first, 9 + first], SEED, objective, empty)
        for name in ("clean", "noise", "timesteps", "text", "c_concat"):
            assert torch.equal(getattr(half, name), getattr(whole, name)[first : first + 2]), name
    other = objectives.draw_batch(samples, range(12, 16), SEED, objective, empty)
    assert not torch.equal(other.noise, whole.noise)


def test_stratified_timesteps_cover_every_part(tiny_pipelines: dict[str, Path]) -> None:
    """One draw from each quarter in every step, each of them uniform there; and uniform draws reach both ends."""
    _, objective = load(tiny_pipelines["5b"])
    one, empty = sample(1), torch.zeros(1, 226, TEXT_WIDTH)
    stratified = replace(objective, timesteps="stratified", global_batch_size=4)
    quarters = []
    for step in range(100):
        drawn = objectives.draw_batch([one] * 4, range(4 * step, 4 * step + 4), SEED, stratified, empty).timesteps
        assert (drawn // 250).tolist() == [0, 1, 2, 3]
        quarters.append(drawn % 250)
    assert torch.stack(quarters).float().mean(0).sub(124.5).abs().max() < 4 * 250 / 12**0.5 / 10
    middle = replace(objective, timesteps="logit-normal", global_batch_size=400)
    drawn = objectives.draw_batch([one] * 400, range(400), SEED, middle, empty).timesteps.float() / 1000
    logits = drawn.clamp(1e-3, 1 - 1e-3).logit()
    assert abs(float(logits.mean())) < 0.02 and abs(float(logits.std()) - 1) < 0.02
    uniform = objectives.draw_batch([one] * 400, range(400), SEED, objective, empty).timesteps
    assert uniform.min() < 15 and uniform.max() > 984 and uniform.max() <= 999
    assert abs(float(uniform.float().mean()) - 499.5) < 4 * 1000 / 12**0.5 / 20


def test_dropouts_have_their_shares(tiny_pipelines: dict[str, Path]) -> None:
    """Without dropped captions a LoRA breaks classifier-free guidance; too many, and it forgets its words."""
    _, objective = load(tiny_pipelines["5b-I2V"])
    objective = replace(objective, caption_dropout=0.2, image_dropout=0.4)
    one, empty, count = sample(1, images=1), torch.full((1, 226, TEXT_WIDTH), 7.0), 500
    batch = objectives.draw_batch([one] * count, range(count), SEED, objective, empty)
    captions = (batch.text == 7.0).all(dim=(1, 2)).float()
    images = (batch.c_concat == 0).flatten(1).all(1).float()
    both = (captions * images).mean()
    assert abs(float(captions.mean()) - 0.2) < 0.06 and abs(float(images.mean()) - 0.4) < 0.07
    assert abs(float(both) - 0.08) < 0.04  # each by its own chance


def test_loss_is_computed_in_fp32_for_a_model_in_bf16(tiny_pipelines: dict[str, Path]) -> None:
    """In bf16 the last timesteps' weights would round away; the model alone computes in it."""
    _, objective = load(tiny_pipelines["5b"])
    seen = []

    class Zeros(torch.nn.Module):
        def forward(self, x: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, ofs: None) -> torch.Tensor:
            seen.extend([x.dtype, text.dtype])
            return torch.zeros_like(x)

    model = Zeros()

    batch = objectives.draw_batch([sample(1)], [0], SEED, objective, torch.zeros(1, 226, TEXT_WIDTH))
    loss = objectives.denoising_loss(model, batch, replace(objective, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16] * 2 and loss.dtype == torch.float32
    assert torch.equal(loss, objectives.denoising_loss(model, batch, objective))


def test_models_of_other_tasks_are_refused(tiny_pipelines: dict[str, Path]) -> None:
    """A Fun model wants channels that no dataset here has: training without them would ruin it."""
    model = model_loader.load_model(tiny_pipelines["Fun-5b-InP"], "fp32", disable_dynamic=True)
    with pytest.raises(errors.UserError, match="made for inpaint"):
        objectives.objective_for(model)
    with pytest.raises(errors.UserError, match='use "uniform" or "stratified" or "logit-normal"'):
        TrainConfig(timesteps="sorted")
