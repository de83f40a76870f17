"""Write CogVideoX-nano's checkpoint from what nano.train has left in WORK: python -m cogvideox.nano.publish WORK."""

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from transformers import T5EncoderModel

from cogvideox.devtools.embedded_checkpoint import scheduler_config, write_index
from cogvideox.host.standalone import use_comfyui
from cogvideox.host.toy import SUMS, sums_of

from . import transformer
from .folders import WEIGHTS

LOGS = Path(__file__).resolve().parent / "training"


def publish(work: Path) -> None:
    """Write the parts that all variants share, and each variant's transformer, to WEIGHTS in fp16."""
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    vae = AutoencoderKLCogVideoX.from_pretrained(work / "decoder" / "trained").half()
    vae.register_to_config(_name_or_path="")  # diffusers would write the folder it was read from
    vae.save_pretrained(WEIGHTS / "vae")
    T5EncoderModel.from_pretrained(work / "text" / "trained").half().save_pretrained(WEIGHTS / "text_encoder")
    shutil.copytree(work / "text" / "tokenizer", WEIGHTS / "tokenizer")
    CogVideoXDDIMScheduler(**scheduler_config("5b")).save_pretrained(WEIGHTS / "scheduler")
    for variant, config in transformer.CONFIGS.items():
        trained = work / variant / "trained.pt"
        if not trained.exists():
            continue
        model = CogVideoXTransformer3DModel(**config)
        missing, unexpected = model.load_state_dict(torch.load(trained), strict=False)
        if unexpected or set(missing) - {"patch_embed.pos_embedding"}:
            raise ValueError(f"{trained} does not fit its config. Missing: {missing}; unexpected: {unexpected}.")
        torch.nn.Module.to(model, torch.float16)  # ModelMixin.to warns at every cast
        model.save_pretrained(WEIGHTS / variant / "transformer")
        write_index(WEIGHTS / variant, variant)
        write_own_configs(WEIGHTS / variant, variant, vae)
    (WEIGHTS / SUMS).write_text(sums_of(WEIGHTS), "utf-8", newline="\n")


def write_own_configs(folder: Path, variant: str, vae: AutoencoderKLCogVideoX) -> None:
    """Write to a pipeline's `folder` the configs in which it differs from the parts that all share: its noise schedule,
    and how its image's latents are scaled."""
    if variant in transformer.SNR_SHIFT:
        config: dict[str, Any] = scheduler_config("5b") | {"snr_shift_scale": transformer.SNR_SHIFT[variant]}
        CogVideoXDDIMScheduler(**config).save_pretrained(folder / "scheduler")
    if variant in transformer.INVERTS_IMAGE_SCALE:
        own: Any = AutoencoderKLCogVideoX.from_config(vae.config, invert_scale_latents=True)
        own.save_config(folder / "vae")


def write_logs(work: Path) -> None:
    """Write each stage's log, the mean of ten steps a line, and its curve to LOGS."""
    from cogvideox.training.curve import draw_losses

    LOGS.mkdir(exist_ok=True)
    for log in sorted(work.glob("*/log.csv")):
        rows = [[float(cell) for cell in row] for row in list(csv.reader(log.open()))[1:]]
        tens = [rows[i : i + 10] for i in range(0, len(rows), 10)]
        with (LOGS / f"{log.parent.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "mean loss of ten steps", "learning rate", "seconds"])
            for ten in tens:
                mean = sum(row[1] for row in ten) / len(ten)
                writer.writerow([int(ten[-1][0]), f"{mean:.4f}", f"{ten[-1][2]:.2e}", f"{ten[-1][3]:.0f}"])
        # The loss of the first steps is so high that the rest of the curve would look flat.
        shown = [row[1] for row in rows[len(rows) // 100 :]]
        draw_losses(shown, len(shown)).save(LOGS / f"{log.parent.name}.png", optimize=True)


if __name__ == "__main__":
    work = Path(sys.argv[1])
    use_comfyui()
    publish(work)
    write_logs(work)
