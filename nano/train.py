"""Train CogVideoX-nano from nothing: python -m cogvideox.nano.train STAGE WORK, the stages in the order of STAGES.

Each stage goes on where it was stopped. COMFYUI_PATH names ComfyUI's checkout. WORK takes checkpoints, logs and what
was trained; nano.publish makes the checkpoint of it.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogvideox.complete_file import complete_file
from cogvideox.host.standalone import use_comfyui
from cogvideox.training.config import TrainConfig

from . import text, toy_tokenizer, transformer, vae
from .optimizer import MuonAndAdamW

if TYPE_CHECKING:  # what imports ComfyUI has to wait for use_comfyui
    from cogvideox.training.objective import Sample

SEED = 20261121
# (clips, frames, width) of the latents that the transformers learn from; the first are most of what they see
CLIPS = ((6000, 17, 64), (800, 9, 64), (300, 33, 64), (240, 49, 64), (300, 17, 96))
ONE_LENGTH_SHARE = 0.75  # of a text to video training sees clips of the first kind alone
BATCH = 32


def train_vae(work: Path) -> None:
    from cogvideox.training import loop

    torch.manual_seed(SEED)
    config = TrainConfig(
        max_steps=vae.STEPS,
        global_batch_size=vae.BATCH,
        micro_batch_size=vae.BATCH,
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        seed=SEED,
        warmup_steps=100,
        ema_decay=0.995,
        save_every=200,
    )
    model = vae.TrainedVAE()
    weights = loop.train(
        _accelerator("bf16"), model, vae.loss_of(SEED), config, work / "vae", callbacks=loop.Callbacks(on_step=log)
    )
    model.load_state_dict(weights)
    vae.standardize(model.vae, vae.clips(SEED + 1, range(256), 17))
    model.vae.save_pretrained(work / "vae" / "trained")
    print_psnr(model.vae)


def train_decoder(work: Path) -> None:
    """Sharpen what the VAE paints, on whole clips; at any time after its own training."""
    from cogvideox.training import loop

    config = TrainConfig(
        max_steps=vae.DECODER_STEPS,
        global_batch_size=vae.DECODER_BATCH,
        micro_batch_size=vae.DECODER_BATCH,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        seed=SEED,
        warmup_steps=50,
        ema_decay=0.99,
        save_every=200,
    )
    model = vae.TrainedDecoder(AutoencoderKLCogVideoX.from_pretrained(work / "vae" / "trained"))

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        # indices that the VAE's own training has not seen
        return model(vae.clips(SEED + 2, indices, 17 if indices[0] // vae.DECODER_BATCH % 4 == 0 else 9))

    weights = loop.train(
        _accelerator("bf16"), model, loss_of, config, work / "decoder", callbacks=loop.Callbacks(on_step=log)
    )
    model.load_state_dict(weights, strict=False)
    model.vae.save_pretrained(work / "decoder" / "trained")
    print_psnr(model.vae)


def print_psnr(autoencoder: AutoencoderKLCogVideoX) -> None:
    for frames in (9, 17):
        psnr_db = vae.psnr_db(autoencoder, vae.clips(SEED + 1, range(64), frames))
        print(f"PSNR on {frames} frames that training has not seen: {psnr_db:.1f} dB", flush=True)


def train_text(work: Path) -> None:
    from cogvideox.training import loop

    torch.manual_seed(SEED)
    tokenizer = text.build_tokenizer()
    config = TrainConfig(
        max_steps=text.STEPS,
        global_batch_size=text.BATCH,
        micro_batch_size=text.BATCH,
        learning_rate=3e-3,
        final_learning_rate=1e-5,
        seed=SEED,
        warmup_steps=100,
        weight_decay=1e-2,
    )
    model = text.TrainedText(text.build_encoder(tokenizer.get_vocab_size()))
    loop.train(
        _accelerator("no"),
        model,
        text.loss_of(tokenizer, SEED),
        config,
        work / "text",
        callbacks=loop.Callbacks(on_step=log),
    )
    model.encoder.save_pretrained(work / "text" / "trained")
    toy_tokenizer.save_tokenizer(tokenizer, work / "text" / "tokenizer")
    print("captions of held-out scenes read right:", text.read_share(model, tokenizer, SEED + 1))


def train_transformer(work: Path, name: str, steps: int, learning_rate: float, source: str | None) -> None:
    """Train the variant `name`, or its first round "...-first", from what `source` has learned where it is given."""
    from cogvideox.samplers.schedule import alphas_cumprod
    from cogvideox.training import loop, objective
    from cogvideox.transformer.dit import CogVideoXDiT

    sets = latents_of(work)
    empty = empty_text(work)
    torch.manual_seed(SEED)
    variant = name.removesuffix("-first")
    model = CogVideoXDiT(**transformer.CONFIGS[variant])
    transformer.init_adaln_zero(model)
    if source:
        transformer.init_from_variant(model, torch.load(work / source / "trained.pt"))
    config = TrainConfig(
        max_steps=steps,
        global_batch_size=BATCH,
        micro_batch_size=BATCH,
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        seed=SEED,
        warmup_steps=200,
        adam_beta2=0.99,
        ema_decay=0.999,
        save_every=250,
    )
    is_image = variant.endswith("I2V")
    goal = objective.Objective(
        alphas=alphas_cumprod(1.0).float(),
        latent_scale=vae.SCALING_FACTOR,
        image_scale=vae.SCALING_FACTOR if is_image else None,
        patch_size_t=transformer.CONFIGS[variant].get("patch_size_t"),
        timesteps="logit-normal",
        global_batch_size=BATCH,
        caption_dropout=0.1,
    )

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        clips = sets[0] if is_image else sets[kind_of(indices[0] // BATCH, steps)]
        samples = [sample_at(clips, index) for index in indices]
        # torch's fused attention takes three times as long as the plain one for so few tokens on a CPU
        with sdpa_kernel(SDPBackend.MATH):
            return objective.denoising_loss(model, objective.draw_batch(samples, indices, SEED, goal, empty), goal)

    weights = loop.train(
        _accelerator("bf16"),
        model,
        loss_of,
        config,
        work / name,
        callbacks=loop.Callbacks(on_step=log),
        optimizer_of=muon_and_adamw,
    )
    torch.save(weights, work / name / "trained.pt")


def muon_and_adamw(model: torch.nn.Module, config: TrainConfig) -> MuonAndAdamW:
    betas = config.adam_beta1, config.adam_beta2
    return MuonAndAdamW(model, config.learning_rate, betas, config.weight_decay)


def kind_of(step: int, steps: int) -> int:
    """Which of CLIPS a step sees: the first, and near the end every other step one of the others in turn."""
    if step < ONE_LENGTH_SHARE * steps or step % 2 == 0:
        return 0
    return 1 + step // 2 % (len(CLIPS) - 1)


def sample_at(clips: dict[str, torch.Tensor], index: int) -> "Sample":
    """The clip that a training's draw `index` takes: all of them once before any comes again."""
    count = len(clips["latents"])
    clip = _order(count, index // count)[index % count]
    latents, text_states, image = (clips[name][clip].float() for name in ("latents", "text", "images"))
    return {"latents": latents, "text": text_states, "images": image[None]}


@cache
def _order(count: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SEED + epoch)).tolist()


def latents_of(work: Path) -> list[dict[str, torch.Tensor]]:
    """The encoded clips of each kind in CLIPS; made once."""
    sets = []
    for count, frames, width in CLIPS:
        path = work / f"latents-{frames}x{width}.pt"
        if not path.exists():
            autoencoder, encoder, tokenizer = _encoders(work)
            clips = transformer.encode_clips(autoencoder, encoder, tokenizer, SEED, count, frames, width)
            with complete_file(path, replaces=True) as file:
                torch.save(clips, file.part)
        sets.append(torch.load(path))
    return sets


@torch.inference_mode()
def empty_text(work: Path) -> torch.Tensor:
    """The embedding of the empty caption, [1, 32, width]."""
    _, encoder, tokenizer = _encoders(work)
    return encoder(input_ids=text.token_ids(tokenizer, [""])).last_hidden_state.clone()


@cache
def _encoders(work: Path) -> tuple:
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel

    return (
        AutoencoderKLCogVideoX.from_pretrained(work / "vae" / "trained").eval(),
        T5EncoderModel.from_pretrained(work / "text" / "trained").eval(),
        Tokenizer.from_file(str(work / "text" / "tokenizer" / "tokenizer.json")),
    )


def _accelerator(precision: str) -> Accelerator:
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)


def log(step: int, loss: float) -> None:
    if step % 50 == 0:
        print(step, f"{loss:.4f}", flush=True)


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": train_vae,
    "text": train_text,
    "decoder": train_decoder,
    "5b": lambda work: train_transformer(work, "5b", 11000, 5e-3, None),
    "5b-I2V": lambda work: train_transformer(work, "5b-I2V", 8000, 3e-3, "5b"),
    "1.5-5B-first": lambda work: train_transformer(work, "1.5-5B-first", 3000, 3e-3, "5b"),
    "1.5-5B": lambda work: train_transformer(work, "1.5-5B", 3500, 3e-3, "1.5-5B-first"),
}

if __name__ == "__main__":
    stage, work = sys.argv[1], Path(sys.argv[2])
    use_comfyui()
    STAGES[stage](work)
