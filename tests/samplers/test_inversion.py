"""A video run backwards and made again, against diffusers' schedulers and transformer on the same weights."""

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cogvideox import errors as errors_module
from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.keys import Trajectory
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nodes import sample as sample_module
from cogvideox.nodes.invert import CogVideoXFollowVideo, CogVideoXInvert
from cogvideox.nodes.sample import CogVideoXSample
from cogvideox.nodes.text import CogVideoXEncodeText
from cogvideox.tests.support import TEXT_TO_VIDEO, check_parity, reference_pipeline, relative_error
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
WIDTH, HEIGHT = 96, 64
# 7 does not divide 1000: the steps start off the grid; 5, 20 and 50 do
STEP_COUNTS = (7, 5)
# What following does besides its numbers is the same for all.
of_one_family = pytest.mark.parametrize("bench", long_after(1, ("5b", "2b", "1.5-5B")), indirect=True)
PROMPT, NEW_PROMPT = "A panda plays a guitar.", "A fox plays a flute."
SEED = 42


class SharedAttention:
    """A diffusers attention processor: the batch is [run, video], and the run's queries see the keys of both."""

    def __call__(self, attn: Any, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        from diffusers.models.embeddings import apply_rotary_emb

        text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            to(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            rotate: Any = apply_rotary_emb  # returns a pair for other models
            query, key = (
                torch.cat([x[:, :, :text], rotate(x[:, :, text:], image_rotary_emb)], dim=2) for x in (query, key)
            )
        half = len(tokens) // 2
        keys, values = torch.cat([key[:half], key[half:]], dim=2), torch.cat([value[:half], value[half:]], dim=2)
        run = F.scaled_dot_product_attention(query[:half], keys, values)
        video = F.scaled_dot_product_attention(query[half:], key[half:], value[half:])
        out = attn.to_out[0](torch.cat([run, video]).transpose(1, 2).flatten(2))
        return out[:, text:], out[:, :text]


class Reference:
    """diffusers' transformer and schedulers. Latents are [B, T, C, H, W], in the model's scale."""

    def __init__(self, folder: Path):
        from diffusers import CogVideoXDDIMScheduler

        self.pipeline = reference_pipeline(folder)
        self.scheduler: Any = CogVideoXDDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.scale = self.pipeline.vae.config.scaling_factor
        self.text = {p: self.pipeline.encode_prompt(p, do_classifier_free_guidance=False)[0] for p in _PROMPTS}

    def predict_v(self, x: torch.Tensor, t: int, prompt: str, cfg: float, video: torch.Tensor | None = None):
        prompts = [prompt] if cfg == 1 else ["", prompt]
        batch = torch.cat([part for part in (x, video) if part is not None for _ in prompts])
        text = torch.cat([self.text[p].expand(len(x), -1, -1) for p in prompts])
        transformer = self.pipeline.transformer
        rotary = None
        if transformer.config.use_rotary_positional_embeddings:
            size = HEIGHT, WIDTH, x.shape[1]
            rotary = self.pipeline._prepare_rotary_positional_embeddings(*size, torch.device("cpu"))
        v = transformer(
            hidden_states=batch,
            encoder_hidden_states=text.repeat(len(batch) // len(text), 1, 1),
            timestep=torch.full([len(batch)], int(t)),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0][: len(text)]
        v = v.chunk(len(prompts))
        return v[0] if cfg == 1 else v[0] + cfg * (v[1] - v[0])

    def invert(self, x: torch.Tensor, steps: int, cfg: float, prompt: str = PROMPT) -> list[torch.Tensor]:
        from diffusers import DDIMInverseScheduler

        inverse: Any = DDIMInverseScheduler.from_config(self.pipeline.scheduler.config)
        if self.scheduler.config.snr_shift_scale != 1:  # the inverse scheduler knows no SNR shift
            inverse.alphas_cumprod = self.scheduler.alphas_cumprod
        inverse.set_timesteps(steps)
        trajectory = []
        for t in inverse.timesteps:
            x = inverse.step(self.predict_v(x, t, prompt, cfg), t, x).prev_sample
            trajectory.append(x)
        return trajectory

    def follow(self, noise: torch.Tensor, trajectory: list[torch.Tensor], prompt: str, cfg: float) -> torch.Tensor:
        self.scheduler.set_timesteps(len(trajectory))
        processors = self.pipeline.transformer.attn_processors
        self.pipeline.transformer.set_attn_processor(SharedAttention())
        x = noise
        for t, video in zip(self.scheduler.timesteps, reversed(trajectory)):
            x = self.scheduler.step(self.predict_v(x, t, prompt, cfg, video), t, x, return_dict=False)[0]
        self.pipeline.transformer.set_attn_processor(processors)
        return x


_PROMPTS = ("", PROMPT, NEW_PROMPT)


class Bench:
    """The pack's MODEL and conditionings, and the reference, on the same fp32 weights."""

    def __init__(self, variant: str, folder: Path):
        self.variant = variant
        self.reference = Reference(folder)
        self.model = load_model(folder, "fp32")
        clip = load_text_encoder(folder, "fp32")
        encode: Any = CogVideoXEncodeText
        self.text = {prompt: encode.execute(clip, prompt).args[0] for prompt in _PROMPTS}

    def invert(
        self, latent: torch.Tensor, steps: int, cfg: float = 1.0, prompt: str = PROMPT, model: Any = None
    ) -> Any:
        node: Any = CogVideoXInvert
        samples = {"samples": latent}
        return node.execute(model or self.model, self.text[prompt], self.text[""], samples, steps, cfg).args[0]

    def following(self, inverted: Any, start: float = 0.0, end: float = 1.0) -> Any:
        node: Any = CogVideoXFollowVideo
        return node.execute(self.model, inverted, start, end).args[0]

    def sample(self, model: Any, latent: torch.Tensor, steps: int, cfg: float = 6.0, **kw: Any) -> torch.Tensor:
        """A new video with the new prompt."""
        arguments = {"seed": SEED, "sampler": "ddim", "dynamic_cfg": False, "denoise": 1.0} | kw
        node: Any = CogVideoXSample
        prompts = {"positive": self.text[NEW_PROMPT], "negative": self.text[""]}
        out = node.execute(model=model, latent_image={"samples": latent}, steps=steps, cfg=cfg, **prompts, **arguments)
        return out.args[0]["samples"]

    def resample(self, inverted: Any, steps: int, model: Any = None) -> torch.Tensor:
        """The way back from an inverted latent, through stock nodes: the old prompt, no guidance, no fresh noise."""
        from comfy_extras.nodes_custom_sampler import CFGGuider, DisableNoise, SamplerCustomAdvanced

        nodes: Any = sample_module
        guider: Any = CFGGuider
        run: Any = SamplerCustomAdvanced
        noise: Any = DisableNoise
        model = model or self.model
        return run.execute(
            noise.execute().args[0],
            guider.execute(model, self.text[PROMPT], self.text[""], 1.0).args[0],
            nodes.CogVideoXSampler.execute("ddim").args[0],
            nodes.CogVideoXScheduler.execute(model, steps, 1.0).args[0],
            inverted,
        ).args[0]["samples"]


@pytest.fixture(scope="module")
def benches(tiny_pipelines: dict[str, Path]) -> Callable[[str], Bench]:
    """Each is made once."""
    return cache(lambda variant: Bench(variant, tiny_pipelines[variant]))


@pytest.fixture(params=TEXT_TO_VIDEO)
def bench(request: pytest.FixtureRequest, benches: Callable[[str], Bench]) -> Bench:
    with torch.inference_mode():
        return benches(request.param)


def video(frames: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    """Latents [B, 16, T, H/8, W/8] that stand for an encoded video."""
    return torch.randn(batch, 16, frames, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(seed))


def last_timesteps(trajectory: Trajectory) -> torch.Tensor:
    return torch.stack(trajectory["samples"][1:])


@pytest.fixture
def frames(request: pytest.FixtureRequest, bench: Bench) -> int:
    """An odd and an even count of latent frames; of CogVideoX 1.5 diffusers takes even ones alone."""
    return request.param - (bench.variant == "1.5-5B" and request.param % 2)


@pytest.mark.parametrize(
    ("steps", "cfg", "frames"),
    [
        *long_but_one_in(2, STEP_COUNTS, (1.0, 6.0), (3, 4)),
        *(pytest.param(*case, marks=pytest.mark.long) for case in product((20, 50), (1.0, 6.0), (3, 4))),
    ],
    indirect=["frames"],
)
def test_inversion_equals_diffusers(bench: Bench, steps: int, cfg: float, frames: int) -> None:
    """Other noise than the published script finds makes another video of the same prompt."""
    scale = bench.reference.scale
    got = bench.invert(video(frames), steps, cfg)
    want = bench.reference.invert(video(frames).transpose(1, 2) * scale, steps, cfg)
    trajectory = got["cogvideox_trajectory"]
    what = f"inversion, {bench.variant}, cfg {cfg:g}"
    check_parity(what, last_timesteps(trajectory), torch.stack(want).transpose(2, 3), 5e-6)
    sampling: Any = bench.model.get_model_object("model_sampling")
    sigma = sampling.sigmas[999]
    end = got["samples"] * scale / (1 + sigma**2) ** 0.5
    check_parity(what, end, want[-1].transpose(1, 2), 5e-6)


def test_inversion_runs_on_the_models_own_levels(bench: Bench) -> None:
    """diffusers' inverse scheduler ignores 2b's SNR shift; noise found on other levels than the run's leads nowhere."""
    from diffusers import DDIMInverseScheduler

    theirs: Any = DDIMInverseScheduler.from_config(bench.reference.pipeline.scheduler.config)
    sampling: Any = bench.model.get_model_object("model_sampling")
    error = relative_error(sampling.alphas, theirs.alphas_cumprod)
    assert error > 0.1 if bench.variant == "2b" else error < 1e-6


def test_inversion_of_a_batch_and_of_one_frame(bench: Bench) -> None:
    """Two videos at once must come out as one by one, and a picture is a video of one latent."""
    both = bench.invert(video(4, batch=2), 7)["samples"]
    alone = bench.invert(video(4, batch=2)[1:], 7)["samples"]
    assert relative_error(both[1:], alone) < 1e-5
    one = bench.invert(video(1), 7)
    assert one["samples"].shape[2] == (3 if bench.variant == "1.5-5B" else 1)  # with the frame in front, samplers.front
    assert bench.sample(bench.following(one), video(1), 7).shape == video(1).shape


@pytest.mark.parametrize("bench", long_after(1, ("2b", "1.5-5B", "5b")), indirect=True)
@pytest.mark.parametrize("more_steps", long_after(1, (50, 100, 200)))
# for an odd count on every run see the next test
@pytest.mark.parametrize("frames", (4, pytest.param(3, marks=pytest.mark.long)), indirect=True)
def test_way_back_leads_to_the_video(bench: Bench, frames: int, more_steps: int) -> None:
    """Inverted and sampled again with the same prompt and no guidance, a video must come back, the better the more
    steps: DDIM's error is of first order. Measured 0.13, 0.07 and 0.04 at 50, 100 and 200 steps on random weights,
    which change a sample along the way more than trained ones."""
    counts = more_steps // 2, more_steps
    errors = [relative_error(bench.resample(bench.invert(video(frames), n), n), video(frames)) for n in counts]
    assert errors[0] < 0.2 * 50 / counts[0] and errors[1] < 0.65 * errors[0], errors


@pytest.mark.parametrize("bench", long_after(1, ("1.5-5B", "5b", "2b")), indirect=True)
def test_way_back_of_an_odd_count(bench: Bench) -> None:
    """81 frames are 21 latents: in CogVideoX 1.5 the frame in front must be the inverted one on the way back as well,
    or no video of the models' own length ever comes back; whether the run follows the video or not."""
    inverted = bench.invert(video(3), 50)
    for model in (bench.following(inverted), bench.model):
        assert relative_error(bench.resample(inverted, 50, model), video(3)) < 0.2
    if bench.variant == "1.5-5B":
        assert inverted["cogvideox_trajectory"]["samples"][0].shape[2] == 4


@pytest.mark.parametrize(
    ("steps", "cfg"),
    [
        *long_but_one_in(2, STEP_COUNTS, (6.0, 1.0)),
        *(pytest.param(20, cfg, marks=pytest.mark.long) for cfg in (1.0, 6.0)),
    ],
)
def test_following_equals_diffusers(bench: Bench, steps: int, cfg: float) -> None:
    """The edit itself: fresh noise, a new prompt, attention shared with the inverted video at the same noise level."""
    latent, scale = video(4), bench.reference.scale
    inverted = bench.invert(latent, steps, prompt="")
    got = bench.sample(bench.following(inverted), latent, steps, cfg)
    noise = torch.randn(latent.transpose(1, 2).shape, generator=torch.Generator().manual_seed(SEED))
    trajectory = bench.reference.invert(latent.transpose(1, 2) * scale, steps, 1.0, prompt="")
    want = bench.reference.follow(noise, trajectory, NEW_PROMPT, cfg).transpose(1, 2) / scale
    check_parity(f"following a video, {bench.variant}, cfg {cfg:g}", got, want, 5e-6)
    assert relative_error(bench.sample(bench.model, latent, steps, cfg), want) > 1e-3  # and without, another video


@of_one_family
def test_following_a_batch(bench: Bench) -> None:
    """Each video of a batch must follow its own, under guidance too; one video may lead the whole batch."""
    latent = video(4, batch=2)
    got = bench.sample(bench.following(bench.invert(latent, 4)), latent, 4)
    one = bench.sample(bench.following(bench.invert(latent[:1], 4)), latent, 4)
    assert relative_error(one[:1], got[:1]) < 1e-5
    assert relative_error(one[1:], got[1:]) > 1e-4
    # conditions one at a time, as on a card without room for both
    patched = bench.following(bench.invert(latent, 4))
    patched.add_object_patch("memory_required", lambda *_, **__: 1e20)
    assert relative_error(bench.sample(patched, latent, 4), got) < 1e-5


@of_one_family
def test_part_of_the_run(bench: Bench) -> None:
    """The range must count as everywhere in ComfyUI: none of it is the plain run, half of it lies between."""
    latent, inverted = video(4), bench.invert(video(4), 10)
    whole, early, plain = (
        bench.sample(model, latent, 10)
        for model in (bench.following(inverted), bench.following(inverted, 0.0, 0.5), bench.model)
    )
    never = bench.sample(bench.following(inverted, 0.985, 0.99), latent, 10)  # between the last two timesteps
    assert torch.equal(never, plain)
    assert relative_error(early, plain) > 1e-4 and relative_error(early, whole) > 1e-4


@of_one_family
def test_other_attention_overrides_stay(bench: Bench) -> None:
    """A node that chooses the attention kernel must still be asked, and see its usual arguments."""
    calls = []

    def override(attend, query, key, value, *args, **kwargs):
        calls.append((query.shape[0], key.shape[-2] // query.shape[-2]))
        return attend(query, key, value, *args, **kwargs)

    latent, inverted = video(4), bench.invert(video(4), 2)
    patched = bench.following(inverted)
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(bench.sample(patched, latent, 2, 1.0), bench.sample(bench.following(inverted), latent, 2, 1.0))
    assert calls == [(1, 2), (1, 1)] * 4  # 2 steps, 2 blocks


@of_one_family
def test_stock_sampler_follows(bench: Bench) -> None:
    """KSampler with its own schedules visits other timesteps; the nearest of the video's must do."""
    comfy_nodes = comfyui_nodes()

    inverted = bench.invert(video(4), 10)
    for scheduler in ("simple", "normal"):
        out = comfy_nodes.common_ksampler(
            bench.following(inverted),
            SEED,
            10,
            6.0,
            "euler",
            scheduler,
            bench.text[NEW_PROMPT],
            bench.text[""],
            {"samples": video(4)},
        )
        assert torch.isfinite(out[0]["samples"]).all()


@of_one_family
def test_interrupted_run_leaves_nothing(bench: Bench) -> None:
    """Cancelled in the middle, neither node may change a later run of the same model."""
    import comfy.model_management as mm

    latent, inverted = video(4), bench.invert(video(4), 5)
    patched = bench.following(inverted)
    want = bench.sample(patched, latent, 5), bench.sample(bench.model, latent, 5)

    def stop(executor, *args, **kwargs):
        if float(args[1][0]) < 700:
            raise mm.InterruptProcessingException
        return executor(*args, **kwargs)

    stopped, inverting = patched.clone(), bench.model.clone()
    stopped.add_wrapper_with_key("diffusion_model", "test", stop)
    inverting.add_wrapper_with_key("diffusion_model", "test", lambda *a, **k: stop(*a, **k))
    with pytest.raises(mm.InterruptProcessingException):
        bench.sample(stopped, latent, 5)
    with pytest.raises(mm.InterruptProcessingException):
        bench.invert(latent, 5, model=inverting)
    assert torch.equal(bench.sample(patched, latent, 5), want[0])
    assert torch.equal(bench.sample(bench.model, latent, 5), want[1])
    assert torch.equal(bench.invert(latent, 5)["samples"], inverted["samples"])


@of_one_family
def test_memory_for_the_video_is_asked_for(bench: Bench) -> None:
    """The second half of the batch needs its activations too; unasked, a full card runs out of memory. Asked twice,
    ComfyUI would move out weights that fit."""
    asked, shape = [], (1, 16, 4, HEIGHT // 8, WIDTH // 8)
    from cogvideox.samplers import follow

    inverted = bench.invert(video(4), 2)
    again = follow.follow_video(bench.following(inverted), follow.read_trajectory(inverted, 0.0, 1.0))
    memory_required = bench.model.get_model_object("memory_required")
    both = memory_required([2, *shape[1:]])
    assert again.get_model_object("memory_required")(list(shape)) == both > 1.9 * memory_required(list(shape))
    (prepare,) = again.get_wrappers("prepare_sampling", "cogvideox_follow")
    prepare(lambda patcher, shape: asked.append(patcher.model.memory_required(list(shape))), again, shape)
    again.patch_model(load_weights=False)
    prepare(lambda patcher, shape: asked.append(patcher.model.memory_required(list(shape))), again, shape)
    again.unpatch_model(unpatch_weights=False)
    assert asked == [both, both]


@of_one_family
def test_refusals(bench: Bench) -> None:
    """What cannot be followed must be said before the run, with what to do."""
    errors = errors_module
    follow: Any = CogVideoXFollowVideo
    inverted = bench.invert(video(4, batch=2), 5)
    patched = bench.following(inverted)
    with pytest.raises(errors.UserError, match="has no trajectory.*output of Invert CogVideoX Video directly"):
        follow.execute(bench.model, {"samples": video(4)}, 0.0, 1.0)
    with pytest.raises(errors.UserError, match="start_percent 0.5 is not below end_percent 0.5"):
        follow.execute(bench.model, inverted, 0.5, 0.5)
    for other, wrong in (
        (video(2, 2), "number of frames"),
        (video(4, 3), "batch size"),
        (video(4, 2)[..., :8], "width and height"),
        (video(2, 3), "number of frames, batch size"),
    ):
        words = "video to follow is 96 x 64 pixels, 4 latent frames, batch 2"
        with pytest.raises(errors.UserError, match=f"{words}.*Set the same {wrong}, or"):
            bench.sample(patched, other, 5)
    with pytest.raises(errors.UserError, match="nearest of the 5 steps.*in as many steps as the sampler runs"):
        bench.sample(patched, video(4, 2), 20)
    with pytest.raises(errors.UserError, match="This run adds noise"):
        bench.invert(video(4, 2), 5, model=patched)
    with pytest.raises(errors.UserError, match="steps is 1001: use 1 to 1000"):
        bench.invert(video(4), 1001)
    with pytest.raises(errors.UserError, match="steps is 0: use 1 to 1000"):
        bench.invert(video(4), 0)
    with pytest.raises(errors.UserError, match="CogVideoX needs"):
        bench.invert(torch.ones(1, 4, 4, 8, 12), 5)


@of_one_family
def test_parts_of_the_video_are_refused(bench: Bench) -> None:
    """A context window or an area sees a part of the video, and would follow another part."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    error, inverted = UserError, bench.invert(video(4), 5)
    sizes = {"context_length": 2, "context_overlap": 0, "context_stride": 1, "dim": 2}
    ways = {"context_schedule": "standard_static", "closed_loop": False, "fuse_method": "flat", "freenoise": False}
    node: Any = ContextWindowsManualNode
    windows = node.execute(bench.following(inverted), **sizes, **ways).args[0]
    with pytest.raises(error, match="cannot be combined with context windows"):
        bench.sample(windows, video(4), 5)
    patched, whole = bench.following(inverted), bench.text[NEW_PROMPT]
    bench.text[NEW_PROMPT] = [[whole[0][0], {**whole[0][1], "area": (4, 4, 6, 0, 0, 0)}]]
    try:
        with pytest.raises(error, match="a part of the video.*remove areas"):
            bench.sample(patched, video(4), 5)
    finally:
        bench.text[NEW_PROMPT] = whole
