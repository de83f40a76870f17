"""Train CogVideoX-nano: python -m cogvideox.nano.train STAGE WORK, the stages in the order of STAGES.

Each stage goes on where it was stopped; the decoder and the transformers on a card where there is one. COMFYUI_PATH
names ComfyUI's checkout. WORK takes checkpoints, logs and what was trained; nano.publish makes the checkpoint of it.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from cogvideox.host.standalone import use_comfyui
from cogvideox.training.config import TrainConfig

from . import text, toy_tokenizer, train_lora, vae
from .stage import SEED, accelerator, log
from .train_transformer import train_transformer
from .trained_parts import load_vae
from .transformer_stages import TRANSFORMER_STAGES


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
        accelerator("bf16", on_cpu=True),
        model,
        vae.loss_of(SEED),
        config,
        work / "vae",
        callbacks=loop.Callbacks(on_step=log),
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
    model = vae.TrainedDecoder(load_vae(work))
    runner = accelerator("bf16")

    def loss_of(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        shape = vae.DECODER_SHAPES[indices[0] // vae.DECODER_BATCH % len(vae.DECODER_SHAPES)]
        # a seed that the VAE's own training has not seen
        return model(vae.clips(SEED + 2, indices, *shape).to(runner.device))

    weights = loop.train(runner, model, loss_of, config, work / "decoder", callbacks=loop.Callbacks(on_step=log))
    model.load_state_dict(weights, strict=False)
    model.vae.save_pretrained(work / "decoder" / "trained")
    print_psnr(model.vae)


def print_psnr(autoencoder: AutoencoderKLCogVideoX) -> None:
    for frames, width, height in ((9, 64, 64), (17, 64, 64), (33, 64, 64), (49, 64, 64), (17, 96, 96)):
        psnr_db = vae.psnr_db(autoencoder, vae.clips(SEED + 1, range(32), frames, width, height))
        print(f"PSNR on {frames} frames of {width} x {height} that training has not seen: {psnr_db:.1f} dB", flush=True)


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
        accelerator("no", on_cpu=True),
        model,
        text.loss_of(tokenizer, SEED),
        config,
        work / "text",
        callbacks=loop.Callbacks(on_step=log),
    )
    model.encoder.save_pretrained(work / "text" / "trained")
    toy_tokenizer.save_tokenizer(tokenizer, work / "text" / "tokenizer")
    print("captions of held-out scenes read right:", text.read_share(model, tokenizer, SEED + 1))


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": train_vae,
    "text": train_text,
    "decoder": train_decoder,
    **{stage.name: partial(train_transformer, stage=stage) for stage in TRANSFORMER_STAGES},
    train_lora.NAME: train_lora.train_lora,
}

if __name__ == "__main__":
    stage, work = sys.argv[1], Path(sys.argv[2])
    use_comfyui(cpu=not torch.cuda.is_available())
    STAGES[stage](work)
