"""Caches of steps on CogVideoX-nano: how far the latents deviate at how many forwards, and what the clips score.

The deviation tells caches apart that score alike. Ours is CogVideoX Step Cache; the others are ComfyUI's, plainly fewer
steps, guidance (prompt minus negative prompt) that is kept for every second step, and the caches of blocks that others
have published (block_caches.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from cogvideox.benchmarks.block_caches import (
    BlockCache,
    FirstBlockCache,
    Known,
    MagCache,
    MakeCache,
    TeaCache,
    rivals,
    with_block_cache,
)
from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.host.toy import WEIGHTS
from cogvideox.nano import paint, score, tasks, toy_settings

BATCH = 4  # clips that are sampled together: a cache decides for all of them
EASY, LAZY, OURS = (0.1, 0.2, 0.4), (0.2,), (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)
RIVALS: dict[MakeCache, tuple[float, ...]] = {
    FirstBlockCache: (0.05, 0.1),
    TeaCache: (0.07, 0.15, 0.2),
    MagCache: (0.06, 0.2),
}
BESIDE_RIVALS = ("Step Cache 0.003", "Step Cache 0.01", "Step Cache 0.02", "Step Cache 0.05", "EasyCache 0.4")
FROM, TO = 0.2, 0.86  # of a run: where the guidance is kept
# Of CogVideoX-nano: what a clip is made from, and the cfg: that of large models, but for pictures, which it drives to
# extremes in the toy.
MODELS: dict[str, tuple[paint.Prepare, float]] = {
    "5b": (paint.from_text, 6.0),
    "1.5-5B": (paint.from_text, 6.0),
    "5b-I2V": (tasks.from_image, toy_settings.GIVEN.cfg),
}


def main() -> None:
    options = arguments(
        __doc__,
        prompts={"type": int, "default": 24},
        models={"nargs": "+", "choices": list(MODELS), "default": list(MODELS)},
        samplers={"nargs": "+", "default": ["ddim", "dpm"]},
        steps={"type": int, "default": 50},
        cfg={"type": float, "help": "instead of the toy's own"},
        others={"action": "store_true", "help": "the caches of blocks, with some of the rest"},
        seed={"type": int, "default": 7, "help": "of the prompts and the noise"},
    )
    use_comfyui()
    for model in options.models:
        pipeline, (prepare, cfg) = paint.load_pipeline(WEIGHTS / model), MODELS[model]
        tables = []
        for sampler in options.samplers:
            guidance = cfg if options.cfg is None else options.cfg
            settings = paint.Settings(seed=options.seed, sampler=sampler, steps=options.steps, cfg=guidance)
            bench = Bench(pipeline, settings, options.prompts, prepare)
            rows = beside_rivals(bench) if options.others else all_rows(bench)
            tables.append(table_of(bench, rows, model))
        # A section for each model, so that one of them can be measured again alone.
        parts = ["cache", *(["others"] if options.others else []), *([] if model == "5b" else [model])]
        report(", ".join(parts), tables, options.save)


@dataclass
class Row:
    """latents: [N, 16, T, h, w]. forwards: of one clip, prompt and negative prompt counted each."""

    name: str
    latents: torch.Tensor
    forwards: float
    scores: dict[str, float]


class Bench:
    """The same prompts and noise under every cache."""

    def __init__(self, pipeline: paint.Pipeline, settings: paint.Settings, prompts: int, prepare: paint.Prepare):
        self.pipeline, self.settings = pipeline, settings
        self.requests = paint.held_out_requests(settings.seed, prompts, settings)
        with torch.inference_mode():
            self.inputs = [prepare(pipeline, request, settings) for request in self.requests]

    @torch.inference_mode()
    def run(self, name: str, change: Callable[[Any], Any] = lambda model: model, steps: int | None = None) -> Row:
        settings = replace(self.settings, steps=steps or self.settings.steps)
        forwards, latents = 0, []
        dit = self.pipeline.model.model.diffusion_model

        def count(_: Any, args: tuple) -> None:
            nonlocal forwards
            forwards += args[0].shape[0]

        handle = dit.transformer_blocks[-1].attn1.to_q.register_forward_pre_hook(count)
        try:
            for start in range(0, len(self.inputs), BATCH):
                batch = self.inputs[start : start + BATCH]
                model = change(self.pipeline.model)
                latents.append(
                    paint.sample([replace(one, model=model) for one in batch], settings, settings.seed + start)
                )
        finally:
            handle.remove()
        joined = torch.cat(latents)
        clips = [self.pipeline.vae.decode(one[None])[0].float().numpy() for one in joined]
        scores = score.score_clips(clips, [request.scene for request in self.requests])
        row = Row(name, joined, forwards / len(joined), scores)
        print(name, f"{row.forwards:.1f}", flush=True)
        return row


def all_rows(bench: Bench) -> list[Row]:
    rows = [bench.run("all steps"), *(bench.run(name, change) for name, change in caches().items())]
    steps = bench.settings.steps
    return rows + [bench.run(f"{fewer} steps", steps=fewer) for fewer in (steps // 2, steps // 3)]


def beside_rivals(bench: Bench) -> list[Row]:
    """The published caches of blocks, and what they are compared with."""
    watched = Known()
    rows = [bench.run("all steps", lambda model: with_block_cache(model, BlockCache(watched)))]
    known = watched.mean_of_runs(bench.settings.steps)
    compared = {name: change for name, change in caches().items() if name in BESIDE_RIVALS}
    rows += [bench.run(name, change) for name, change in (compared | rivals(known, RIVALS)).items()]
    return [*rows, bench.run(f"{bench.settings.steps // 2} steps", steps=bench.settings.steps // 2)]


def table_of(bench: Bench, rows: list[Row], model: str) -> Table:
    exact = rows[0].latents.numpy()
    cells = [
        [
            row.name,
            f"{row.forwards:.0f}",
            f"{score.deviation(exact, row.latents.numpy()):.4f}",
            *(f"{row.scores[name]:.0%}".replace("%", " %") for name in ("colour", "shape", "direction")),
        ]
        for row in rows
    ]
    settings = bench.settings
    return Table(
        f"CogVideoX-nano {model}, {settings.sampler}, {settings.steps} steps, cfg {settings.cfg:g}",
        [
            f"{len(exact)} prompts of combinations that it never saw, {BATCH} in a batch; {settings.frames} frames of "
            f"{settings.width} x {settings.height}; fp32, seed {settings.seed}.",
            "deviation: RMS of the difference from the latents with all steps, over the RMS of these.",
        ],
        ["", "forwards a clip", "deviation", "colour", "shape", "direction"],
        cells,
    )


def caches() -> dict[str, Callable[[Any], Any]]:
    """The name of each cache, and what puts it on a MODEL."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    from cogvideox.samplers.step_cache import step_cached

    found: dict[str, Callable[[Any], Any]] = {}
    for value in OURS:
        found[f"Step Cache {value}"] = lambda model, value=value: step_cached(model, value, lambda _: None)
    for node, values in ((EasyCacheNode, EASY), (LazyCacheNode, LAZY)):
        for value in values:
            found[f"{node.__name__.removesuffix('Node')} {value}"] = lambda model, node=node, value=value: node.execute(
                model, value, 0.15, 0.95, False
            ).args[0]
    return found | {"guidance kept every second step": with_kept_guidance}


def with_kept_guidance(model: Any) -> Any:
    """A clone that computes the negative prompt in every second step, and otherwise keeps its difference."""
    import comfy.patcher_extension

    kept: dict[str, torch.Tensor] = {}

    def predict(executor: Callable, base: Any, conds: list, x: Any, sigma: torch.Tensor, options: Any) -> list:
        sigmas = options["transformer_options"]["sample_sigmas"]
        step, steps = int((sigmas > sigma[0] * 1.0001).sum()), len(sigmas) - 1
        if not FROM * steps <= step < TO * steps or step % 2 == 0 or "difference" not in kept:
            positive, negative = executor(base, conds, x, sigma, options)
            kept["difference"] = positive - negative
            return [positive, negative]
        positive = executor(base, [conds[0], None], x, sigma, options)[0]
        return [positive, positive - kept["difference"]]

    patched = model.clone()
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, "kept guidance", predict)
    return patched


if __name__ == "__main__":
    main()
