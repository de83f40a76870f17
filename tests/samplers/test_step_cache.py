"""CogVideoX Step Cache: which steps are skipped, what stands in for them, and that it works with everything else."""

import math
from pathlib import Path
from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy_extras.nodes_easycache as easycache
import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.samplers.step_cache import StepCache, known_levels, step_cached
from cogvideox.tests.support import relative_error
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures, task_of

pytestmark = pytest.mark.usefixtures("inference")
STEPS = 20


def sigmas_of(steps: int) -> torch.Tensor:
    """Noise levels of a run, from almost pure noise to a clean sample: [steps + 1]."""
    return torch.cat([torch.logspace(1.5, -1, steps), torch.zeros(1)])


def run_of(cache: StepCache, sigmas: torch.Tensor, predict: Any) -> tuple[list[torch.Tensor], list[int]]:
    """The predictions that a sampler gets in a run, and the steps that were computed. predict: time, step -> x0."""
    options, computed, given = {"transformer_options": {"sample_sigmas": sigmas}}, [], []
    for step, sigma in enumerate(sigmas[:-1]):

        def compute(x: torch.Tensor, sigma: torch.Tensor, *_: Any, step: int = step) -> torch.Tensor:
            computed.append(step)
            return predict(-math.log(float(sigma)), step)

        given.append(cache.predict(compute, torch.zeros(1), sigma[None], options))
    return given, computed


def test_a_line_is_extrapolated() -> None:
    """What changes evenly along the logarithm of the noise level needs no more than the first steps and the last."""
    start, change = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    sigmas = sigmas_of(50)
    given, computed = run_of(StepCache(1e-6), sigmas, lambda time, _: (start + time * change)[None])
    assert len(computed) == 8 + 4 and computed == [*range(8), *range(46, 50)]
    for sigma, x0 in zip(sigmas, given):
        assert relative_error(x0[0], start - math.log(sigma) * change) < 1e-5


def test_what_scatters_is_guessed_by_the_last_one() -> None:
    """A straight line through two scattered predictions leads three times as far away."""
    generator, middle = torch.Generator().manual_seed(0), torch.ones(1, 1000)
    scattered = [middle + 0.1 * torch.randn(middle.shape, generator=generator) for _ in range(50)]
    given, computed = run_of(StepCache(0.05), sigmas_of(50), lambda _, step: scattered[step])
    left_out = sorted(set(range(50)) - set(computed))
    assert left_out
    for step in left_out:
        last = max(each for each in computed if each < step)
        assert torch.equal(given[step], scattered[last])


@pytest.mark.parametrize("deviation", (0.0, 0.001, 0.01, 0.05))
def test_the_estimate_stays_within_what_was_asked_for(deviation: float) -> None:
    """The dial would mean nothing."""
    cache = StepCache(deviation)
    curve = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
    _, computed = run_of(cache, sigmas_of(50), lambda time, _: (curve[0] + curve[1] * math.tanh(time))[None])
    assert cache.estimate <= deviation and cache.skipped == 50 - len(computed)
    assert (cache.skipped == 0) == (deviation == 0)


def test_a_member_of_a_batch_decides_for_all() -> None:
    """A clip that changes quickly must not be guessed because the others stand still."""
    still = torch.ones(3, 100)
    noise = torch.randn(50, 100, generator=torch.Generator().manual_seed(2))
    moving = [torch.cat([still[:2], 5 * noise[step : step + 1]]) for step in range(50)]
    assert len(run_of(StepCache(0.01), sigmas_of(50), lambda _, step: moving[step][:2])[1]) == 12
    assert len(run_of(StepCache(0.01), sigmas_of(50), lambda _, step: moving[step])[1]) == 50


def test_a_sampler_may_compute_in_the_prediction_s_memory() -> None:
    """The next guess would be made of what the sampler has left there."""
    cache, clean = StepCache(1e-3), torch.ones(1, 8)
    options = {"transformer_options": {"sample_sigmas": sigmas_of(50)}}
    for sigma in sigmas_of(50)[:-1]:
        x0 = cache.predict(lambda *_: clean.clone(), torch.zeros(1), sigma[None], options)
        assert torch.equal(x0, clean)
        x0.zero_()
    assert cache.skipped == 38


def runs_of(task: Task, model: Any, given: Any, **inputs: Any) -> tuple[torch.Tensor, int]:
    """The latents, and how many times the transformer was run."""
    runs = []
    handle = model.model.diffusion_model.transformer_blocks[0].attn1.norm_q.register_forward_hook(
        lambda *_: runs.append(1)
    )
    try:
        return task.sample(*given, model=model, **{"steps": STEPS} | inputs), len(runs)
    finally:
        handle.remove()


def text(task: Task, frames: int = 9) -> tuple:
    latent = task.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=frames, batch_size=1)
    return task.positive, task.negative, latent[0]


def compare(task: Task, given: Any, plain: Any, deviation: float = 0.05, **inputs: Any) -> torch.Tensor:
    """Run with and without the cache: fewer forwards, another result, yet near, and the same again. Returns it."""
    said: list[str] = []
    model = step_cached(plain, deviation, said.append)
    want, all_runs = runs_of(task, plain, given, **inputs)
    got, runs = runs_of(task, model, given, **inputs)
    assert runs < all_runs and 1e-7 < relative_error(got, want) < 0.2
    left_out = int(said[0].split("skipped ")[1].split(" of")[0])
    assert left_out * all_runs == (all_runs - runs) * STEPS
    assert torch.equal(runs_of(task, model, given, **inputs)[0], got)
    return got


@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
@pytest.mark.parametrize("variant", ("5b", "1.5-5B"))
def test_runs_with_fewer_steps(tiny_pipelines: dict[str, Path], variant: str, sampler: str) -> None:
    """17 frames are an odd number of latents: 1.5 samples them with a frame in front."""
    task = task_of(tiny_pipelines[variant])
    compare(task, text(task, 17), task.model, sampler=sampler)


def test_deviation_0_is_the_exact_run(tiny_pipelines: dict[str, Path]) -> None:
    """Bit for bit: a user who turns it off wants the video of the seed."""
    task, said = task_of(tiny_pipelines["5b"]), []
    given = text(task)
    exact = runs_of(task, task.model, given)[0]
    got, runs = runs_of(task, step_cached(task.model, 0.0, said.append), given)
    assert torch.equal(got, exact) and runs == STEPS
    assert said[0].startswith("The step cache has skipped 0 of 20 steps")


def test_image_to_video(tiny_pipelines: dict[str, Path]) -> None:
    """The start image is part of each computed step."""
    task = task_of(tiny_pipelines["5b-I2V"])
    given = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    compare(task, given, task.model)


@pytest.mark.parametrize("end_percent", (1.0, 0.5))
def test_control_nets(tiny_pipelines: dict[str, Path], tmp_path: Path, end_percent: float) -> None:
    """What a control net adds is a part of each computed step. A skipped one does not ask it: it takes time as well."""
    task = task_of(tiny_pipelines["5b"])
    net = load_controlnet(write_controlnet(tmp_path / "net", "5b", 7, torch.float32), "fp32")
    positive, negative, latent = text(task)
    options = {"control_video": pictures(9), "strength": 1.0, "start_percent": 0.0, "end_percent": end_percent}
    given = (
        *task.node(
            "controlnet", "CogVideoXApplyControlNet", positive=positive, negative=negative, control_net=net, **options
        ),
        latent,
    )
    got = compare(task, given, task.model)
    asked: list[int] = []
    (patcher,) = net.get_models()
    norm = patcher.model.transformer_blocks[0].attn1.norm_q
    norm.register_forward_hook(lambda *_: asked.append(1))
    again, runs = runs_of(task, step_cached(task.model, 0.05, print), given)
    assert torch.equal(again, got)
    assert (0 < len(asked) < runs) if end_percent < 1 else len(asked) == runs
    # The net is heard: without it the cached run gives another video.
    assert relative_error(runs_of(task, step_cached(task.model, 0.05, print), text(task))[0], got) > 1e-3


def test_context_windows(tiny_pipelines: dict[str, Path]) -> None:
    """All windows of a step are skipped together."""
    task = task_of(tiny_pipelines["5b"])
    options = {"schedule": "standard_static", "fuse_method": "pyramid", "freenoise": True}
    windowed = task.node(
        "long", "CogVideoXContextWindows", model=task.model, context_frames=9, overlap_frames=4, **options
    )[0]
    compare(task, text(task, 25), windowed)


def test_what_a_mask_keeps_stays_exact(tiny_pipelines: dict[str, Path]) -> None:
    """The mask is applied to guesses as well."""
    task = task_of(tiny_pipelines["5b"])
    given = list(text(task))
    samples = torch.randn(given[2]["samples"].shape, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 1, 1, *samples.shape[3:])
    mask[..., 4:] = 1
    given[2] = {"samples": samples, "noise_mask": mask}
    got = compare(task, given, task.model)
    kept = (mask == 0).expand_as(samples)
    assert torch.equal(got[kept], samples[kept])


def test_a_sampler_that_does_not_suit(tiny_pipelines: dict[str, Path]) -> None:
    """heun computes twice a step: all steps are computed, and the node says why nothing was gained."""
    task, said = task_of(tiny_pipelines["5b"]), []
    positive, negative, latent = text(task)

    def heun(model: Any) -> torch.Tensor:
        noise = comfy.sample.prepare_noise(latent["samples"], 1)
        return comfy.sample.sample(
            model, noise, 8, 6.0, "heun", "simple", positive, negative, latent["samples"], seed=1
        )

    assert torch.equal(heun(step_cached(task.model, 0.05, said.append)), heun(task.model))
    assert "does not suit this sampler" in said[0] and "Use ddim, dpm or euler" in said[0]


def test_where_samplers_of_comfyui_ask(tiny_pipelines: dict[str, Path]) -> None:
    """A level that is taken for known saves a wait for the card in each step. Where the sampler asked at another one,
    no step would be skipped."""
    model, found = task_of(tiny_pipelines["5b"]).model.clone(), {}
    sampling: Any = model.get_model_object("model_sampling")
    kinds = comfy.patcher_extension.WrappersMP

    def look(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        found["known"] = known_levels(args[2], args[3], sampling)
        return executor(*args, **kwargs)

    def predict(_: Any, __: Any, conds: list, x: torch.Tensor, sigma: torch.Tensor, *___: Any) -> list[torch.Tensor]:
        found["asked"].append(float(sigma[0]))
        return [x / (1 + sigma[0] ** 2) for _ in conds]

    model.add_wrapper_with_key(kinds.OUTER_SAMPLE, "test", look)
    model.add_wrapper_with_key(kinds.CALC_COND_BATCH, "test", predict)
    noise, text = torch.randn(1, 16, 3, 8, 12), [[torch.zeros(1, 226, 32), {}]]
    unknown = set()
    for name in comfy.samplers.KSampler.SAMPLERS:
        found["asked"] = []
        comfy.sample.sample(model, noise, 8, 1.0, name, "simple", text, text, noise * 0, seed=1)
        if found["known"] is None:
            unknown.add(name)
        else:
            assert found["asked"] == found["known"], name
    assert unknown.isdisjoint(("euler", "dpmpp_2m", "uni_pc", "res_multistep"))


@pytest.mark.parametrize("sampler", ("dpmpp_2m", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "gradient_estimation_cfg_pp"))
def test_samplers_of_comfyui(tiny_pipelines: dict[str, Path], sampler: str) -> None:
    """Those of cfg_pp also read the prediction of the negative prompt, which a skipped step does not have: they mixed
    a step with an earlier one's."""
    task, said = task_of(tiny_pipelines["5b"]), []
    positive, negative, latent = text(task)

    def run(model: Any) -> torch.Tensor:
        noise, samples = comfy.sample.prepare_noise(latent["samples"], 1), latent["samples"]
        return comfy.sample.sample(model, noise, STEPS, 1.5, sampler, "simple", positive, negative, samples, seed=1)

    is_same = torch.equal(run(step_cached(task.model, 0.05, said.append)), run(task.model))
    assert is_same == sampler.endswith("cfg_pp") == ("does not suit this sampler" in said[0])


def test_the_last_of_two_nodes_counts(tiny_pipelines: dict[str, Path]) -> None:
    """One would take the other's steps for computed ones, and find that they lie on a line."""
    task, said, unheard = task_of(tiny_pipelines["5b"]), [], []
    both = step_cached(step_cached(task.model, 0.05, unheard.append), 0.02, said.append)
    one = runs_of(task, step_cached(task.model, 0.02, said.append), text(task))[0]
    assert torch.equal(runs_of(task, both, text(task))[0], one)
    assert len(said) == 2 and said[0] == said[1] and not unheard


def test_nan_skips_nothing() -> None:
    """One member of a batch that overflows would spoil the others."""
    broken = torch.ones(2, 10)
    broken[1] = math.nan
    _, computed = run_of(StepCache(0.05), sigmas_of(50), lambda *_: broken)
    assert len(computed) == 50


@pytest.mark.parametrize("part", ({"denoise": 0.6}, {"start": 8}))
def test_a_part_of_a_schedule(tiny_pipelines: dict[str, Path], part: dict[str, Any]) -> None:
    """Video to video, and the second half of a run that is cut in two."""
    task = task_of(tiny_pipelines["5b"])
    positive, negative, latent = text(task)
    if "denoise" in part:
        latent = {"samples": torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(3))}
        compare(task, (positive, negative, latent), task.model, **part)
        return
    said: list[str] = []
    noise = comfy.sample.prepare_noise(latent["samples"], 1)
    runs = [
        comfy.sample.sample(
            model, noise, STEPS, 6.0, "euler", "simple", positive, negative, noise, start_step=8, seed=1
        )
        for model in (step_cached(task.model, 0.05, said.append), task.model)
    ]
    assert 1e-7 < relative_error(*runs) < 0.2
    assert said[0].split("skipped ")[1].split(";")[0].endswith(" of 12 steps")


def test_two_caches_are_refused(tiny_pipelines: dict[str, Path]) -> None:
    """EasyCache would take guesses for predictions."""
    task = task_of(tiny_pipelines["5b"])
    both = easycache.EasyCacheNode.execute(step_cached(task.model, 0.01, print), 0.2, 0.15, 0.95, False).args[0]
    with pytest.raises(UserError, match="two caches of steps.*Remove one"):
        task.sample(*text(task), model=both)


def test_nothing_is_kept_after_a_run_that_fails(
    tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents of a long video would stay on the card."""
    kept: list[StepCache] = []
    plain = StepCache.__init__
    monkeypatch.setattr(
        StepCache, "__init__", lambda self, *args, **kwargs: (kept.append(self), plain(self, *args, **kwargs))[1]
    )
    task = task_of(tiny_pipelines["5b"])
    model = step_cached(task.model, 0.01, print)
    steps = []

    def fail(args: dict) -> torch.Tensor:
        steps.append(len(kept[0].computed))
        if len(steps) == 6:
            raise RuntimeError("enough")
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(fail)
    with pytest.raises(RuntimeError, match="enough"):
        task.sample(*text(task), model=model, steps=STEPS)
    assert max(steps) == 3 and not kept[0].computed and not kept[0].errors
