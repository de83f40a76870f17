"""Write what nano.train has left in WORK to CogVideoX-nano's published weights: python -m cogvideox.nano.publish WORK.

What WORK does not hold stays as it was published.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import T5EncoderModel

from cogvideox.devtools.embedded_checkpoint import scheduler_config, write_index
from cogvideox.host.standalone import use_comfyui
from cogvideox.host.toy import published_files
from cogvideox.system.published_files import SUMS, sums_of

from . import control_net, train_lora, transformer
from .folders import WEIGHTS

LOGS = Path(__file__).resolve().parent / "training"


def publish(work: Path) -> None:
    """Write the parts that all variants share, transformers, the control net and the LoRA to WEIGHTS, all in fp16."""
    if (work / "decoder" / "trained").exists():
        vae: Any = AutoencoderKLCogVideoX.from_pretrained(work / "decoder" / "trained")
        vae.register_to_config(_name_or_path="")  # diffusers would write the folder it was read from
        vae.half().save_pretrained(WEIGHTS / "vae")
    if (work / "text" / "trained").exists():
        T5EncoderModel.from_pretrained(work / "text" / "trained").half().save_pretrained(WEIGHTS / "text_encoder")
        shutil.copytree(work / "text" / "tokenizer", WEIGHTS / "tokenizer", dirs_exist_ok=True)
    CogVideoXDDIMScheduler(**scheduler_config("5b")).save_pretrained(WEIGHTS / "scheduler")
    for variant, config in transformer.CONFIGS.items():
        trained = work / variant / "trained.pt"
        if trained.exists():
            write_transformer(WEIGHTS / variant, variant, config, torch.load(trained))
    net = work / control_net.NAME / "trained.pt"
    if net.exists():
        write_control_net(WEIGHTS / control_net.NAME, torch.load(net))
    lora = work / train_lora.NAME / f"{train_lora.NAME}.safetensors"
    if lora.exists():
        write_lora(WEIGHTS / lora.name, lora)
    (WEIGHTS / SUMS).write_text(sums_of(WEIGHTS, published_files(WEIGHTS)), "utf-8", newline="\n")


def write_transformer(folder: Path, variant: str, config: dict, weights: dict[str, torch.Tensor]) -> None:
    """Write a variant's pipeline, without the parts that all share. Raises ValueError for weights of another config."""
    model = CogVideoXTransformer3DModel(**config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"patch_embed.pos_embedding"}:
        raise ValueError(f"{variant} does not fit its config. Missing: {missing}; unexpected: {unexpected}.")
    torch.nn.Module.to(model, torch.float16)  # ModelMixin.to warns at every cast
    model.save_pretrained(folder / "transformer")
    write_index(folder, variant)
    write_own_configs(folder, variant)


def write_control_net(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a control net in the files of TheDenk's checkpoints."""
    folder.mkdir(exist_ok=True)
    halves = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(halves, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(control_net.config(), indent=2) + "\n", "utf-8")


def write_lora(file: Path, trained: Path) -> None:
    """Write a trained LoRA with its header."""
    with safe_open(trained, "pt") as opened:
        halves = {name: opened.get_tensor(name).half() for name in opened.keys()}
        save_file(halves, file, metadata=opened.metadata())


def write_own_configs(folder: Path, variant: str) -> None:
    """Write to a pipeline's `folder` the configs in which it differs from the parts that all share: its noise schedule,
    and how its image's latents are scaled."""
    if variant in transformer.SNR_SHIFT:
        config: dict[str, Any] = scheduler_config("5b") | {"snr_shift_scale": transformer.SNR_SHIFT[variant]}
        CogVideoXDDIMScheduler(**config).save_pretrained(folder / "scheduler")
    if variant in transformer.INVERTS_IMAGE_SCALE:
        shared: Any = AutoencoderKLCogVideoX.load_config(WEIGHTS / "vae")
        own: Any = AutoencoderKLCogVideoX.from_config(shared, invert_scale_latents=True)
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
