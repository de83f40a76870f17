"""Training a LoRA: a step of ours against one of diffusers' official recipe, on the same model, batch and noise."""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from safetensors.torch import save_file

from cogvideox.benchmarks.common import (
    Table,
    arguments,
    interleave,
    median_spread,
    random_weights,
    ratio,
    report,
    use_comfyui,
)
from cogvideox.devtools.embedded_checkpoint import scheduler_config
from cogvideox.tests.peak_bytes import PeakBytes

if TYPE_CHECKING:
    from cogvideox.training.objective import Batch, Sample

LAYERS, HEADS, RANK, ALPHA = 4, 8, 64, 64.0
LATENT = (3, 16, 24)  # (T, H, W): 288 video tokens
TEXT_TOKENS, SEED, LEARNING_RATE = 226, 0, 1e-4
CASES = {
    "fp32": ("no", False),
    "fp32, gradient checkpointing": ("no", True),
    "bf16": ("bf16", False),
    "bf16, gradient checkpointing": ("bf16", True),
}
LOSS_TOLERANCE = {"no": 1e-5, "bf16": 2e-2}  # relative, over all steps


def main() -> None:
    options = arguments(
        __doc__,
        repeats={"type": int, "default": 10},
        layers={"type": int, "default": LAYERS},
        heads={"type": int, "default": HEADS},
        batch={"type": int, "default": 1},
        cases={"nargs": "+", "choices": list(CASES), "default": list(CASES)},
    )
    use_comfyui()
    torch.manual_seed(SEED)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options)
        for case in options.cases:
            rows.append([case, *compare(Path(folder), *CASES[case], options)])
            print(*rows[-1], flush=True)
    header = ["training", "diffusers", "ours", "time, ours / diffusers", "memory, diffusers", "memory, ours", "losses"]
    notes = [
        f"A step is forward, backward, clipping and AdamW on a LoRA of rank {RANK} on the attention layers of "
        f"{options.layers} layers of {options.heads} x 64, batch {options.batch}, latents {LATENT}; median "
        "(least - most), interleaved.",
        "Memory: the most bytes that a step's tensors take at once, without weights, LoRA and AdamW's moments.",
        "Losses: the largest relative difference over all steps, from the same LoRA, noise and timesteps.",
    ]
    report("train", [Table("One training step", notes, header, rows)], options.save)


def write_model(folder: Path, options: Namespace) -> None:
    weights = random_weights(folder, options.layers, options.heads, text_embed_dim=64)
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")


def compare(folder: Path, precision: str, checkpointing: bool, options: Namespace) -> list[str]:
    """Train both for the same steps; returns the cells of a row. Ends the program where their losses differ."""
    ours, samples = our_trainer(folder, precision, checkpointing, options.batch)
    theirs = official_trainer(folder, precision, checkpointing, ours.dit)
    losses: dict[str, list[float]] = {"diffusers": [], "ours": []}
    calls = {
        "diffusers": lambda: losses["diffusers"].append(theirs(samples(len(losses["diffusers"])))),
        "ours": lambda: losses["ours"].append(ours(samples(len(losses["ours"])))),
    }
    seconds = interleave(calls, options.repeats)
    gap = max(abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses["diffusers"]))
    if gap > LOSS_TOLERANCE[precision]:
        raise SystemExit(f"The losses differ by {gap:.1e}: what was measured is not the same training.")
    memory = {}
    for name, call in calls.items():
        with PeakBytes() as counted:
            call()
        memory[name] = counted.peak / 1e6
    times = [median_spread([1e3 * s for s in seconds[name]], "ms", 0) for name in calls]
    kept = [f"{memory[name]:.0f} MB" for name in calls]
    return [*times, ratio(seconds["ours"], seconds["diffusers"]), *kept, f"{gap:.1e}"]


class Trainer:
    """One training step: batch -> loss."""

    def __init__(self, dit: torch.nn.Module, loss_of: Callable[["Batch"], torch.Tensor], fused: bool):
        self.dit, self._loss_of = dit, loss_of
        self._trained = [p for p in dit.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._trained, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=1e-4, fused=fused
        )

    def __call__(self, batch: "Batch") -> float:
        loss = self._loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def our_trainer(
    folder: Path, precision: str, checkpointing: bool, count: int
) -> tuple[Trainer, Callable[[int], "Batch"]]:
    """(our trainer as training.trainer sets it up, a function from a step's number to its batch of `count` samples)"""
    import comfy.ops

    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.training.adapters import attach_lora
    from cogvideox.training.block_calls import call_blocks
    from cogvideox.training.config import TrainConfig
    from cogvideox.training.objective import denoising_loss, draw_batch, objective_for

    stored = "bf16" if precision == "bf16" else "fp32"
    model = load_model(folder, stored, disable_dynamic=True)
    dit = model.model.diffusion_model
    for leaf in dit.modules():
        if isinstance(leaf, comfy.ops.CastWeightBiasOp):
            leaf.comfy_cast_weights = True
    attach_lora(dit, TrainConfig(rank=RANK, alpha=ALPHA, seed=SEED))
    call_blocks(dit, checkpointing)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    objective = objective_for(model, dtype=dtype)
    generator = torch.Generator().manual_seed(SEED)
    entries: list[Sample] = [
        {
            "latents": torch.randn(16, *LATENT, generator=generator),
            "text": torch.randn(TEXT_TOKENS, 64, generator=generator),
        }
        for _ in range(count)
    ]

    def samples(step: int) -> "Batch":
        indices = range(step * count, (step + 1) * count)
        return draw_batch(entries, indices, SEED, objective, entries[0]["text"][None])

    return Trainer(dit, lambda batch: denoising_loss(dit, batch, objective), fused=True), samples


def official_trainer(folder: Path, precision: str, checkpointing: bool, dit: torch.nn.Module) -> Trainer:
    """As diffusers examples/cogvideo/train_cogvideox_lora.py trains, from the LoRA that is on `dit`."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    transformer = CogVideoXTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).requires_grad_(False)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    lora = peft.LoraConfig(r=RANK, lora_alpha=int(ALPHA), init_lora_weights=True, target_modules=targets)
    transformer.add_adapter(lora)
    start = {name: p.detach() for name, p in dit.named_parameters() if p.requires_grad}
    for name, parameter in transformer.named_parameters():
        if parameter.requires_grad:
            parameter.data = start[name].clone()
    # diffusers annotates both as less than they are.
    scheduler: Any = CogVideoXDPMScheduler.from_config(scheduler_config("5b"))
    config: Any = transformer.config
    grid = LATENT[1] // config.patch_size, LATENT[2] // config.patch_size
    base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    rotary = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim,
        crops_coords=get_resize_crop_region_for_grid(grid, base[1], base[0]),
        grid_size=grid,
        temporal_size=LATENT[0],
    )

    def loss_of(batch: "Batch") -> torch.Tensor:
        clean, noise = batch.clean.transpose(1, 2).to(dtype), batch.noise.transpose(1, 2).to(dtype)
        noisy = scheduler.add_noise(clean, noise, batch.timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = transformer(
                hidden_states=noisy,
                encoder_hidden_states=batch.text.to(dtype),
                timestep=batch.timesteps,
                image_rotary_emb=rotary,
                return_dict=False,
            )[0]
        output = output.float() if precision == "bf16" else output  # as accelerate's prepared forward returns it
        predicted = scheduler.get_velocity(output, noisy, batch.timesteps)
        weights = 1 / (1 - scheduler.alphas_cumprod[batch.timesteps])
        while weights.ndim < predicted.ndim:
            weights = weights.unsqueeze(-1)
        return torch.mean((weights * (predicted - clean) ** 2).reshape(len(clean), -1), dim=1).mean()

    return Trainer(transformer.train(), loss_of, fused=False)


if __name__ == "__main__":
    main()
