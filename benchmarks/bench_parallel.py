"""One model on several ranks against one process: bytes that travel, errors, and what the processes cost."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.devtools.embedded_checkpoint import write_pipeline

VARIANTS = "2b", "5b", "1.5-5B"
TEXT_TOKENS, TEXT_WIDTH = 226, 32
LATENT = (4, 10, 14)  # of a token count that divides by nothing
REPEATS = 5


def main() -> None:
    options = arguments(
        __doc__,
        ranks={"type": int, "nargs": "+", "default": [2], "help": "of which each has a process of its own"},
        splits={"nargs": "+", "choices": ["sequence", "cfg", "both"], "default": ["sequence", "cfg"]},
    )
    use_comfyui(cpu=not torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = [
            row
            for ranks in options.ranks
            for split in options.splits
            if split == "sequence" or ranks % 2 == 0 and (split == "both") == (ranks > 2)
            for row in measured(Path(folder), ranks, split)
        ]
    where = "NCCL, a card a rank" if torch.cuda.is_available() else "gloo, processes of the CPU"
    notes = [
        f"Latents {' x '.join(map(str, LATENT))} of the embedded checkpoints, two prompts, {where}. On a CPU a step in "
        "one process takes the whole machine, so that more processes gain nothing: the time shows what dividing and "
        "asking cost. Counted are the bytes that a rank sends to the others, with those of the result; the formula for "
        "the attention's is 4 L B (N / P) D b (P - 1) / P, with L blocks, B prompts, N tokens of width D in b bytes, "
        "and P ranks that share them.",
    ]
    columns = ["", "error", "bytes sent", "by the formula", "a step, of one process's"]
    report("parallel", [Table("Several ranks", notes, columns, rows)], options.save)


def measured(folder: Path, ranks: int, split: str) -> list[list[str]]:
    """A row for each variant. The first model starts the ranks."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.parallel.remote_model import spread

    rows, kept = [], []
    for variant in VARIANTS:
        path = folder / variant
        if not path.is_dir():
            write_pipeline(path, variant, 0, torch.float32)
        near = load_model(path, "fp32")
        far: Any = spread(near, ranks, split, "", False)
        kept.append(far)  # with the last of them the ranks would end
        want, seconds = timed(forward(near))
        got, far_seconds = timed(forward(far))
        sent = far.weights.sent_bytes
        error = float((got - want).double().norm() / want.double().norm())
        rows.append(
            [
                f"{variant}, {ranks} ranks, {split}",
                f"{error:.1e}",
                f"{sent:,}",
                f"{formula(near.model.diffusion_model, far.weights.team.split):,.0f}",
                f"{far_seconds / seconds:.2f}",
            ]
        )
    return rows


def forward(model: Any) -> Callable[[], torch.Tensor]:
    """One prediction for two prompts."""
    import comfy.model_management as mm

    mm.load_models_gpu([model])
    dit, generator = model.model.diffusion_model, torch.Generator().manual_seed(1)
    native = dit.native_size() if dit.config.use_learned_positional_embeddings else LATENT
    x = torch.randn(2, dit.config.in_channels, *native, generator=generator).to(model.load_device)
    context = torch.randn(2, TEXT_TOKENS, TEXT_WIDTH, generator=generator).to(model.load_device)
    timestep = torch.tensor([500.0, 500.0], device=model.load_device)
    return lambda: dit(x, timestep, context)


def timed(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """(the result, the median of the seconds) after a first call that is not counted."""
    out, seconds = call(), []
    for _ in range(REPEATS):
        began = perf_counter()
        out = call()
        seconds.append(perf_counter() - began)
    return out.cpu(), median(seconds)


def formula(dit: Any, split: Any) -> float:
    """Bytes that a rank sends in a forward of two prompts, without the gathering of the result."""
    c, ranks = dit.config, split.sequence
    tokens = TEXT_TOKENS + LATENT[0] // (c.patch_size_t or 1) * LATENT[1] * LATENT[2] // c.patch_size**2
    heads = -(-c.num_attention_heads // ranks) * ranks
    width, batch = heads * c.attention_head_dim, 2 // split.guidance
    return 4 * c.num_layers * batch * tokens / ranks * width * 4 * (ranks - 1) / ranks


if __name__ == "__main__":
    main()
