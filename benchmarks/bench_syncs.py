"""How often a sampling step makes the host wait for the card, counted on an imagined one: by kind of run, and where."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cogvideox.benchmarks.common import Table, arguments, report, use_comfyui
from cogvideox.benchmarks.syncs import READ, UPLOAD, Counted, ImaginedCard

STEPS = 12  # enough for the step cache, which computes the first and the last ones


@dataclass(frozen=True)
class Run:
    """A kind of run. sampler: ours, or one of ComfyUI's KSampler. change: what nodes do to the MODEL. entries: of
    CONDITIONING. options: further inputs of CogVideoX Sampler."""

    variant: str = "5b"
    sampler: str = "ddim"
    cfg: float = 6.0
    frames: int = 3  # latent
    previews: bool = False
    change: Callable[[Any], Any] = lambda model: model
    entries: Callable[[], dict[str, Any]] = dict
    options: dict[str, Any] = field(default_factory=dict)


def _step_cached(model: Any) -> Any:
    from cogvideox.samplers.step_cache import step_cached

    return step_cached(model, 0.05, lambda sentence: None)


def _windowed(model: Any) -> Any:
    from cogvideox.nodes.long import CogVideoXContextWindows

    return CogVideoXContextWindows.execute(model, 9, 4, "standard_static", "pyramid", True).args[0]


def _easy_cached(model: Any) -> Any:
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0]


def _following(model: Any) -> Any:
    from cogvideox.samplers.follow import Followed, follow_video

    timesteps = tuple(range(-1, 1000, 50))
    samples = tuple(torch.randn(1, 16, 3, 8, 12) for _ in timesteps)
    return follow_video(model, Followed(timesteps, samples, 999.0, 0.0))


def _table_on_host(model: Any) -> Any:
    """As ComfyUI leaves it where it streams weights: buffers are not moved to the card."""
    import comfy.patcher_extension

    def sample(executor: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        embed = model.model.diffusion_model.patch_embed
        embed.pos_embedding = embed.pos_embedding.cpu()
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE
    model.add_wrapper_with_key(kind, "table on the host", sample)
    return model


def _start_image() -> dict[str, Any]:
    from cogvideox.keys import image_concat

    return {**image_concat(torch.randn(1, 16, 1, 8, 12), "checkpoint", False)}


def _control_video() -> dict[str, Any]:
    from cogvideox.keys import control_concat

    return {**control_concat(torch.randn(1, 16, 3, 8, 12), (0.1, 0.7))}


RUNS = {
    "ddim": Run(),
    "ddim, cfg 1": Run(cfg=1.0),
    "ddim, previews": Run(previews=True),
    "dpm": Run(sampler="dpm"),
    "dpm, previews": Run(sampler="dpm", previews=True),
    "euler of ComfyUI's KSampler": Run(sampler="euler"),
    "euler, previews": Run(sampler="euler", previews=True),
    "dpmpp_2m of ComfyUI's KSampler": Run(sampler="dpmpp_2m"),
    "ddim, dynamic cfg, guidance_rescale": Run(options={"dynamic_cfg": True, "guidance_rescale": 0.5}),
    "image to video": Run("5b-I2V", entries=_start_image),
    "image to video, streamed": Run("5b-I2V", entries=_start_image, change=_table_on_host),
    "control video in a part of the run": Run("Fun-5b-Control", entries=_control_video),
    "1.5, an odd number of latents, previews": Run("1.5-5B", previews=True),
    "2b": Run("2b"),
    "Step Cache": Run(change=_step_cached),
    "Step Cache, previews": Run(change=_step_cached, previews=True),
    "Step Cache, dpmpp_2m, previews": Run(sampler="dpmpp_2m", change=_step_cached, previews=True),
    "Context Windows": Run(frames=7, change=_windowed),
    "Follow Video": Run(change=_following),
    "EasyCache of ComfyUI": Run(change=_easy_cached),
}


def main() -> None:
    options = arguments(
        __doc__,
        runs={"nargs": "+", "choices": list(RUNS), "default": list(RUNS)},
        steps={"type": int, "default": STEPS},
    )
    use_comfyui()
    from cogvideox.tests.support import write_fp32_transformer

    with tempfile.TemporaryDirectory() as scratch:
        variants = {RUNS[name].variant for name in options.runs}
        folders = {variant: write_fp32_transformer(Path(scratch) / variant, variant) for variant in variants}
        counted = {name: count(RUNS[name], folders, options.steps) for name in options.runs}
    report("syncs", [table(counted), table_of_places(counted)], options.save)


def count(run: Run, folders: Mapping[str, Path], steps: int = STEPS) -> Counted:
    """What the steps of a run wait for. folders: of tiny models, by variant."""
    card = ImaginedCard()
    with torch.inference_mode(), card.working():
        sample(run, folders, steps)
    return card.counted


def sample(run: Run, folders: Mapping[str, Path], steps: int = STEPS) -> None:
    """Load the model of a run and sample with it, as nodes do."""
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod

    from cogvideox.model_loaders.load_model import load_model

    model = run.change(load_model(folders[run.variant], "fp32", notify=lambda sentence: None))
    method = LatentPreviewMethod.Latent2RGB if run.previews else LatentPreviewMethod.NoPreviews
    with mock.patch.object(latent_preview.args, "preview_method", method):
        _run_node(run, model, steps)


def _run_node(run: Run, model: Any, steps: int) -> None:
    from cogvideox.host.standalone import comfyui_nodes
    from cogvideox.nodes.sample import CogVideoXSample

    prompts = [[[torch.randn(1, 226, 32), run.entries()]] for _ in range(2)]
    latent = {"samples": torch.zeros(1, 16, run.frames, 8, 12)}
    if run.sampler in ("ddim", "dpm"):
        node: Any = CogVideoXSample
        node.hidden = type("Hidden", (), {"unique_id": None})
        options = {"dynamic_cfg": False, "denoise": 1.0} | run.options
        node.execute(model, *prompts, latent, 1, steps, run.cfg, run.sampler, **options)
    else:
        comfyui_nodes().common_ksampler(model, 1, steps, run.cfg, run.sampler, "simple", *prompts, latent)


def table(counted: Mapping[str, Counted]) -> Table:
    """The most waits of one step, by kind of run."""
    rows = [
        [name, *(str(found.most(kind, is_ours)) for is_ours in (True, False) for kind in (READ, UPLOAD))]
        for name, found in counted.items()
    ]
    worst = max(found.most(READ, True) + found.most(UPLOAD, True) for found in counted.values())
    notes = [
        "Tiny models on a card that is imagined on the CPU; the most of one step, without the first one. A read waits "
        "for what the card computes, an upload of memory that is not pinned for the copy alone.",
        f"Goal: at most 1 a step of the pack's own; found: {worst}, {'met' if worst <= 1 else 'NOT met'}.",
    ]
    columns = ["", "the pack's reads", "the pack's uploads", "ComfyUI's reads", "ComfyUI's uploads"]
    return Table("Waits for the card, a step", notes, columns, rows)


def table_of_places(counted: Mapping[str, Counted]) -> Table:
    """Where they are."""
    rows = [
        [name, place.kind, place.where, str(times)]
        for name, found in counted.items()
        for place, times in sorted(found.places().items())
    ]
    return Table("Where they are", [], ["", "kind", "where", "times"], rows)


if __name__ == "__main__":
    main()
