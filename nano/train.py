"""Train CogVideoX-nano from nothing: python -m nano.train vae WORK. Each stage goes on where it was stopped."""

import os
import sys
from pathlib import Path

import torch

from devtools.in_process import load_pack, pack, use_comfyui

SEED = 20261121


def train_vae(work: Path) -> None:
    from accelerate import Accelerator

    from . import vae

    loop = pack("training.loop")
    torch.manual_seed(SEED)
    plan = loop.Plan(
        steps=vae.STEPS,
        batch_size=vae.BATCH,
        learning_rate=2e-3,
        final_learning_rate=2e-5,
        seed=SEED,
        warmup_steps=100,
        ema_decay=0.995,
        save_every=200,
    )
    model = vae.TrainedVAE()
    weights = loop.train(
        Accelerator(cpu=True, mixed_precision="bf16"), model, vae.loss_of(SEED), plan, work / "vae", on_step=tell
    )
    model.load_state_dict(weights)
    model.vae.save_pretrained(work / "vae" / "trained")
    print("PSNR", vae.psnr_db(model.vae.float(), vae.clips(SEED + 1, range(64), 9)))


def train_text(work: Path) -> None:
    from accelerate import Accelerator

    from . import text

    loop = pack("training.loop")
    torch.manual_seed(SEED)
    tokenizer = text.build_tokenizer()
    plan = loop.Plan(
        steps=text.STEPS,
        batch_size=text.BATCH,
        learning_rate=3e-3,
        final_learning_rate=1e-5,
        seed=SEED,
        warmup_steps=100,
        weight_decay=1e-2,
    )
    model = text.TrainedText(text.build_encoder(len(tokenizer)))
    loop.train(Accelerator(cpu=True), model, text.loss_of(tokenizer, SEED), plan, work / "text", on_step=tell)
    model.encoder.save_pretrained(work / "text" / "trained")
    tokenizer.save_pretrained(work / "text" / "tokenizer")
    print("read right", text.read_share(model, tokenizer, SEED + 1))


def tell(step: int, loss: float) -> None:
    if step % 50 == 0:
        print(step, f"{loss:.4f}", flush=True)


if __name__ == "__main__":
    stage, work = sys.argv[1], Path(sys.argv[2])
    use_comfyui(Path(os.environ["COMFYUI_PATH"]))  # takes sys.argv for itself
    load_pack()
    {"vae": train_vae, "text": train_text}[stage](work)
