"""Every sampler and scheduler of ComfyUI's KSampler on CogVideoX-nano, scored by rule against the prompts.

Each combination gets about as many calls of the model as ddim in the row for comparison: a sampler that calls the model
twice a step takes half the steps.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.host.toy import WEIGHTS
from cogvideox.nano import paint, score

GOAL = 10  # points below ddim at the same number of calls
REFUSED = "refused"
PIXELS, FRAMES = 64, 17  # of CogVideoX-nano's clips


@dataclass(frozen=True)
class Prompts:
    """Requests, encoded once: CONDITIONING of the whole batch."""

    requests: Sequence[paint.Request]
    positive: list
    negative: list


def main() -> None:
    options = arguments(
        __doc__,
        prompts={"type": int, "default": 4, "help": "for every combination"},
        again={"type": int, "default": 12, "help": "prompts for those that seem to miss the goal"},
        calls={"type": int, "default": 24, "help": "of the model, for each clip"},
        cfg={"type": float, "default": 6.0},
        cfg_pp={"type": float, "default": 2.0, "help": "cfg of the samplers whose names end in cfg_pp"},
        seed={"type": int, "default": 7, "help": "of the prompts and the noise"},
        samplers={"nargs": "+", "metavar": "SAMPLER"},
        schedulers={"nargs": "+", "metavar": "SCHEDULER"},
    )
    use_comfyui()
    import comfy.samplers

    schedulers = options.schedulers or comfy.samplers.SCHEDULER_NAMES
    bench = Bench(paint.load_pipeline(WEIGHTS / "5b"), options)
    rows = [bench.row(names, schedulers) for names in same_samplers(options.samplers)]
    report("samplers", [tabulate(rows, schedulers, options, bench)], options.save)


def same_samplers(chosen: Sequence[str] | None) -> list[list[str]]:
    """The samplers of KSampler, those together that make the same video: "_gpu" draws noise elsewhere, and ddim is
    euler with other noise under a mask."""
    import comfy.samplers

    groups: dict[str, list[str]] = {}
    for name in comfy.samplers.SAMPLER_NAMES:
        groups.setdefault("euler" if name == "ddim" else name.removesuffix("_gpu"), []).append(name)
    return [names for names in groups.values() if not chosen or set(chosen) & set(names)]


class Bench:
    """Scores of samplers; ddim's, for comparison, by the number of calls and prompts."""

    def __init__(self, pipeline: paint.Pipeline, options: Namespace):
        self.pipeline, self.options = pipeline, options
        self.prompts = {count: self._encode(count) for count in {options.prompts, options.again}}
        self.ddim: dict[tuple[int, int], float] = {}

    @torch.inference_mode()
    def _encode(self, count: int) -> Prompts:
        settings = paint.Settings(frames=FRAMES, width=PIXELS, height=PIXELS)
        requests = paint.held_out_requests(self.options.seed, count, settings)
        positive = paint.encode(self.pipeline, [request.prompt for request in requests])
        return Prompts(requests, positive, paint.encode(self.pipeline, [""] * count))

    def row(self, names: Sequence[str], schedulers: Sequence[str]) -> list[str]:
        cells = [self.cell(names[0], scheduler) for scheduler in schedulers]
        print(", ".join(names), *cells, sep=" | ", flush=True)
        return [", ".join(names), *cells]

    def cell(self, sampler: str, scheduler: str) -> str:
        """The score, with a mark where it misses the goal."""
        from cogvideox.errors import UserError

        for count in sorted({self.options.prompts, self.options.again}):
            try:
                found, calls = self.score(sampler, scheduler, count)
            except UserError:
                return REFUSED
            missing = self.ddim_score(calls, count) - found
            if missing <= GOAL:
                break
        return f"{found:.0f}" if missing <= GOAL else f"**{found:.0f}**"

    def ddim_score(self, calls: int, count: int) -> float:
        """The score of the pack's own ddim in as many steps as `calls`."""
        if (calls, count) not in self.ddim:
            from cogvideox.samplers.comfy_sampler import build_sampler, schedule_sigmas

            sigmas = schedule_sigmas(self._model_sampling(), calls, 1.0)
            self.ddim[calls, count], _ = self._paint(build_sampler("ddim", calls), sigmas, self.options.cfg, count)
        return self.ddim[calls, count]

    def score(self, sampler: str, scheduler: str, count: int) -> tuple[float, int]:
        """Points, 0 .. 100, and calls of the model for each clip."""
        import comfy.samplers

        from cogvideox.samplers.stock_samplers import CALLS_PER_STEP

        per_step = CALLS_PER_STEP.get(sampler, 1)
        cfg = self.options.cfg_pp if sampler.endswith("cfg_pp") else self.options.cfg
        model = self.pipeline.model
        run = comfy.samplers.KSampler(model, self.options.calls // per_step, "cpu", sampler, scheduler, 1.0)
        return self._paint(comfy.samplers.sampler_object(sampler), run.sigmas, cfg, count)

    def _model_sampling(self) -> Any:
        return self.pipeline.model.get_model_object("model_sampling")

    @torch.inference_mode()
    def _paint(self, sampler: Any, sigmas: torch.Tensor, cfg: float, count: int) -> tuple[float, int]:
        import comfy.sample

        from cogvideox.samplers.noise import NoiseStream

        prompts, calls = self.prompts[count], 0

        def counted(apply: Any, arguments: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        model = self.pipeline.model.clone()
        model.set_model_unet_function_wrapper(counted)
        empty = torch.zeros(count, 16, (FRAMES - 1) // 4 + 1, PIXELS // 8, PIXELS // 8)
        latents = comfy.sample.sample_custom(
            model,
            NoiseStream(self.options.seed).draw(empty.shape),
            cfg,
            sampler,
            sigmas,
            prompts.positive,
            prompts.negative,
            empty,
            disable_pbar=True,
            seed=self.options.seed,
        )
        clips = [self.pipeline.vae.decode(one[None])[0].float().numpy() for one in latents]
        shares = score.score_clips(clips, [request.scene for request in prompts.requests])
        return 100 * sum(shares.values()) / len(shares), calls


def tabulate(rows: list[list[str]], schedulers: Sequence[str], options: Namespace, bench: Bench) -> Table:
    ddim = ", ".join(f"{points:.0f} ({calls} calls, {count})" for (calls, count), points in sorted(bench.ddim.items()))
    return Table(
        "Samplers and schedulers of KSampler on CogVideoX-nano",
        [
            f"Points of 100: the mean share of clips whose colour, shape, size, direction and background are right. "
            f"{options.calls} calls of the model for each clip, cfg {options.cfg:g} (cfg_pp: {options.cfg_pp:g}), "
            f"{options.prompts} prompts, and {options.again} where these seemed to miss the goal.",
            f"ddim of CogVideoX Sampler, points (calls, prompts): {ddim}.",
            f"Bold: more than {GOAL} points below ddim at the same number of calls. {REFUSED}: a sentence says so "
            "before the first step.",
        ],
        ["sampler", *schedulers],
        rows,
    )


if __name__ == "__main__":
    main()
