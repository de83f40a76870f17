"""CONTROL_NET in ComfyUI's hands: whole runs against the reference, chaining, windows, refusals, files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.context_windows
import comfy.controlnet
import comfy.model_management
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from torch._subclasses.fake_tensor import FakeTensorMode

from cogvideox import errors
from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.media.pictures import fit_pictures
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nodes.controlnet import CogVideoXApplyControlNet
from cogvideox.nodes.latent import CogVideoXEmptyLatent
from cogvideox.nodes.sample import CogVideoXSample
from cogvideox.sockets.control import CogVideoXControl, chain_control, check_model
from cogvideox.tests.controlnet_reference import Controlled, ReferenceControl
from cogvideox.tests.support import check_parity, host_lacks, reference_pipeline, relative_error, write_fp32
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.transformer import attention
from cogvideox.transformer import control_net as controlnet_module

pytestmark = pytest.mark.usefixtures("inference")
WIDTH, HEIGHT, FRAMES, SEED, STEPS = 96, 64, 9, 42, 10
PROMPT, NEGATIVE = "A panda plays a guitar.", ""
Text = tuple[list[Any], list[Any]]  # positive and negative conditioning


def control_video(frames: int = FRAMES, seed: int = 3) -> torch.Tensor:
    """[F, H, W, 3] in 0 .. 1."""
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def apply(conditioning: Text, net: Any, video: torch.Tensor | None = None, strength: float = 1.0, **more: Any) -> Text:
    arguments: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0} | more
    video = control_video() if video is None else video
    return CogVideoXApplyControlNet.execute(*conditioning, net, video, strength, **arguments).args


class Run:
    """MODEL, text and a control net of ours, and diffusers' pipeline and the reference's control net."""

    def __init__(self, variant: str, pipeline: Path, folder: Path):
        self.pipeline: Any = reference_pipeline(pipeline)
        self.reference = ReferenceControl(folder)
        self.model = load_model(pipeline, "fp32")
        self.net = load_controlnet(folder, "fp32")
        clip = load_text_encoder(pipeline, "fp32")
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, NEGATIVE))
        self.text: Text = (positive, negative)

    def theirs(self, sampler: str, controls: list[tuple]) -> torch.Tensor:
        """Latents [1, 16, T, H, W], unscaled; controls as in Controlled."""
        from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

        scheduler = CogVideoXDPMScheduler if sampler == "dpm" else CogVideoXDDIMScheduler
        self.pipeline.scheduler = scheduler.from_config(self.pipeline.scheduler.config)
        with Controlled(self.pipeline.transformer, STEPS, controls):
            latents = self.pipeline(
                prompt=PROMPT,
                negative_prompt=NEGATIVE,
                width=WIDTH,
                height=HEIGHT,
                num_frames=FRAMES,
                num_inference_steps=STEPS,
                guidance_scale=6.0,
                output_type="latent",
                generator=torch.Generator().manual_seed(SEED),
            ).frames
        return latents.transpose(1, 2) / self.pipeline.vae.config.scaling_factor

    def ours(
        self,
        conditioning: Text,
        sampler: str = "ddim",
        frames: int = FRAMES,
        model: ModelPatcher | None = None,
        steps: int = STEPS,
    ) -> torch.Tensor:
        latent = CogVideoXEmptyLatent.execute(WIDTH, HEIGHT, frames, 1).args[0]
        out = CogVideoXSample.execute(
            model=model or self.model,
            positive=conditioning[0],
            negative=conditioning[1],
            latent_image=latent,
            seed=SEED,
            steps=steps,
            cfg=6.0,
            sampler=sampler,
            dynamic_cfg=False,
            denoise=1.0,
        )
        return out.args[0]["samples"]


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("controlnets")
    out = {v: write_controlnet(root / v, v, 7, torch.float32) for v in ("2b", "5b")}
    return out | {"other": write_controlnet(root / "other", "5b", 8, torch.float32, num_layers=2)}


@pytest.fixture(scope="module", params=("2b", "5b"))
def run(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path], nets: dict[str, Path]) -> Run:
    with torch.inference_mode():
        return Run(request.param, tiny_pipelines[request.param], nets[request.param])


@pytest.fixture(scope="module")
def run_5b(tiny_pipelines: dict[str, Path], nets: dict[str, Path]) -> Run:
    with torch.inference_mode():
        return Run("5b", tiny_pipelines["5b"], nets["5b"])


def pixels(video: torch.Tensor) -> torch.Tensor:
    return video.movedim(-1, 1) * 2 - 1


# strength, start, end, and the reference's start. Its range is open at both ends: its default of 0 leaves the first
# step out, as 0.001 does here.
RANGES = {
    "whole": (1.0, 0.0, 1.0, -1.0),
    "half strength": (0.5, 0.0, 1.0, -1.0),
    "reference's default": (1.0, 0.001, 1.0, 0.0),
    "range": (0.8, 0.25, 0.65, 0.25),
}


@pytest.mark.parametrize(("sampler", "steered"), long_but_one_in(2, ("ddim", "dpm"), tuple(RANGES)))
def test_run_equals_the_reference(run: Run, sampler: str, steered: str) -> None:
    """The published control nets must steer as strongly, in the same steps, as where they come from."""
    video, (strength, start, end, their_start) = control_video(), RANGES[steered]
    got = run.ours(apply(run.text, run.net, video, strength, start_percent=start, end_percent=end), sampler)
    want = run.theirs(sampler, [(run.reference, pixels(video), strength, (their_start, end))])
    check_parity("sampling run with a control net", got, want, 5e-6)
    assert relative_error(got, run.ours(run.text, sampler)) > 1e-2


def test_two_control_nets_equal_the_reference(run_5b: Run, nets: dict[str, Path]) -> None:
    """Edges and depth together: what both say is added, each with its own strength, range and number of layers."""
    videos = control_video(seed=3), control_video(seed=4)
    other, reference = load_controlnet(nets["other"], "fp32"), ReferenceControl(nets["other"])
    first = apply(run_5b.text, run_5b.net, videos[0], 0.7)
    got = run_5b.ours(apply(first, other, videos[1], 0.4, end_percent=0.65))
    controls = [
        (run_5b.reference, pixels(videos[0]), 0.7, (-1.0, 1.0)),
        (reference, pixels(videos[1]), 0.4, (-1.0, 0.65)),
    ]
    check_parity("sampling run with two control nets", got, run_5b.theirs("ddim", controls), 5e-6)
    reverse = apply(apply(run_5b.text, other, videos[1], 0.4, end_percent=0.65), run_5b.net, videos[0], 0.7)
    assert relative_error(run_5b.ours(reverse), got) < 1e-5


def test_strength_zero_changes_nothing(run_5b: Run) -> None:
    """Switched off, a control net must not change a bit, neither by the node's shortcut nor in sampling."""
    plain = run_5b.ours(run_5b.text)
    assert apply(run_5b.text, run_5b.net, strength=0.0) == run_5b.text
    chained = chain_control(list(run_5b.text), run_5b.net, control_video(), 0.0, (0.0, 1.0), False)
    assert torch.equal(run_5b.ours((chained[0], chained[1])), plain)
    never = apply(run_5b.text, run_5b.net, start_percent=0.999)
    assert torch.equal(run_5b.ours(never), plain)


def test_stock_apply_node(run_5b: Run) -> None:
    """Workflows with ComfyUI's own Apply ControlNet must give the same video as ours."""
    apply_stock = comfyui_nodes().ControlNetApplyAdvanced()

    stock = apply_stock.apply_controlnet(*run_5b.text, run_5b.net, control_video(), 0.6, 0.0, 0.8)
    ours = apply(run_5b.text, run_5b.net, strength=0.6, end_percent=0.8)
    assert torch.equal(run_5b.ours(stock), run_5b.ours(ours))


def test_conditioning_is_not_changed_in_place(run_5b: Run) -> None:
    """ComfyUI keeps node outputs: the prompt without control must stay without."""
    positive, negative = apply(run_5b.text, run_5b.net)
    assert "control" not in run_5b.text[0][0][1] and "control" not in run_5b.text[1][0][1]
    assert positive[0][1]["control"] is negative[0][1]["control"] is not run_5b.net


def test_other_sizes_are_fitted(run_5b: Run) -> None:
    """A control video of another size is scaled and cropped, as a control video of the right size would be made."""
    large = torch.nn.functional.interpolate(control_video().movedim(-1, 1), scale_factor=2.0).movedim(1, -1)
    fitted = fit_pictures(large, WIDTH, HEIGHT)
    assert fitted.shape == control_video().shape
    got, want = (run_5b.ours(apply(run_5b.text, run_5b.net, video), steps=2) for video in (large, fitted))
    assert torch.equal(got, want)


def test_longer_is_cut_shorter_is_held_or_refused(run_5b: Run) -> None:
    """A short control video must say so before the first step even where it would act later, never loop silently."""
    video = control_video(13)
    want = run_5b.ours(apply(run_5b.text, run_5b.net, video[:FRAMES]), steps=2)
    assert torch.equal(run_5b.ours(apply(run_5b.text, run_5b.net, video), steps=2), want)
    held = torch.cat([video[:6], video[5:6].expand(FRAMES - 6, -1, -1, -1)])
    want = run_5b.ours(apply(run_5b.text, run_5b.net, held), steps=2)
    got = run_5b.ours(apply(run_5b.text, run_5b.net, video[:6], hold_last_frame=True), steps=2)
    assert torch.equal(got, want)
    steps_run = []
    model = run_5b.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: steps_run.append(1) or args["denoised"])
    for count, found in ((6, "6 frames"), (1, "1 frame")):
        short = apply(run_5b.text, run_5b.net, video[:count], start_percent=0.9)
        with pytest.raises(errors.UserError, match=f"has {found}; the video to generate has 9.*hold_last_frame"):
            run_5b.ours(short, model=model)
    assert not steps_run
    with pytest.raises(errors.UserError, match="no picture"):
        apply(run_5b.text, run_5b.net, video[:0], hold_last_frame=True)


@pytest.mark.parametrize("variant", ("5b-I2V", "1.5-5B", "2b"))
def test_models_it_is_not_for_are_refused(run_5b: Run, tiny_pipelines: dict[str, Path], variant: str) -> None:
    """On another model the outputs are noise, or an error about shapes from deep inside."""
    model = load_model(tiny_pipelines[variant], "fp32").model
    with pytest.raises(errors.UserError, match=r"is for CogVideoX-5b and .* width 64.*the model is CogVideoX"):
        check_model(run_5b.net.patcher.model.config, model)


def test_refusals_reach_the_user_before_the_first_step(run_5b: Run, tmp_path: Path) -> None:
    """A model of another width, through the sampler node."""
    folder = write_fp32(tmp_path / "wide", "5b", num_attention_heads=6)
    wide = load_model(folder, "fp32")
    with pytest.raises(errors.UserError, match="of width 64.*the model is CogVideoX-5b of width 96"):
        run_5b.ours(apply(run_5b.text, run_5b.net), model=wide)
    another_model: Any = SimpleNamespace()
    with pytest.raises(errors.UserError, match="the model is SimpleNamespace"):
        check_model(run_5b.net.patcher.model.config, another_model)
    with pytest.raises(errors.UserError, match="is a ControlBase, not a CogVideoX control net"):
        apply(run_5b.text, comfy.controlnet.ControlBase())


def prepared(run: Run, frames: int = FRAMES, net: CogVideoXControl | None = None) -> Any:
    """A control as it is after pre_run."""
    control = apply(run.text, net or run.net, control_video(frames))[0][0][1]["control"]
    control.pre_run(run.model.model, run.model.model.model_sampling.percent_to_sigma)
    return control


def step(control: Any, run: Run, latent_frames: int = 3) -> list[torch.Tensor]:
    """What `control` gives for one step."""
    x = torch.randn(1, 16, latent_frames, 8, 12, generator=torch.Generator().manual_seed(1))
    return control.get_control(x, torch.tensor([2.0]), {"c_crossattn": run.text[0][0][0]}, 1, {})["input"]


def test_windows_see_their_part_of_the_guide(run_5b: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In long videos each context window must follow the control video's own frames, encoded once."""
    control, net = prepared(run_5b, 21), run_5b.net.patcher.model
    calls = []
    encode = net.encode_control
    monkeypatch.setattr(net, "encode_control", lambda frames: calls.append(frames.shape[1]) or encode(frames))
    cond = {"c_crossattn": run_5b.text[0][0][0]}
    x = torch.randn(1, 16, 6, 8, 12, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([2.0])
    whole = encode(pixels(control_video(21))[None])
    sampling = run_5b.model.model.model_sampling
    for indices, anchor in (([2, 3, 4], None), ([0, 1], None), ([3, 4, 5], 0)):
        window = comfy.context_windows.IndexListContextWindow(indices, dim=2, total_frames=6)
        seen = indices
        if anchor is not None:
            setattr(window, "causal_anchor_index", anchor)  # noqa: B010 - an attribute that only newer ComfyUIs have
            seen = [anchor, *indices]
        got = control.get_control(x[:, :, seen], sigma, cond, 1, {"context_window": window})["input"]
        scaled = sampling.calculate_input(sigma, x[:, :, seen])
        want = net(scaled, whole[:, :, seen], sampling.timestep(sigma).float(), cond["c_crossattn"])
        assert len(got) == 1 and relative_error(got[0], want[0]) < 1e-6
    assert calls == [21]
    with pytest.raises(errors.UserError, match="has 21 frames; the video to generate has 25"):
        window = comfy.context_windows.IndexListContextWindow([0, 1], dim=2, total_frames=7)
        control.get_control(x[:, :, :2], sigma, cond, 1, {"context_window": window})


def test_run_in_context_windows(run_5b: Run) -> None:
    """ComfyUI's context windows node and a control net must work together in a whole run."""
    model = run_5b.model.clone()
    options: dict[str, Any] = model.model_options
    options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        comfy.context_windows.get_matching_context_schedule("standard_static"),
        comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=3,
        context_overlap=1,
        dim=2,
    )
    plain = run_5b.ours(run_5b.text, frames=21, model=model, steps=3)
    guided = run_5b.ours(apply(run_5b.text, run_5b.net, control_video(21)), frames=21, model=model, steps=3)
    assert torch.isfinite(guided).all() and relative_error(guided, plain) > 1e-2


def test_interrupted_run_leaves_nothing_to_the_next(run_5b: Run) -> None:
    """ComfyUI does not clean up after Cancel: the next run must start as if there had been none."""
    conditioning = apply(run_5b.text, run_5b.net)
    control = conditioning[0][0][1]["control"]
    want = run_5b.ours(conditioning, steps=2)
    assert not control.guides and control.model_sampling is None and control.timestep_range is None
    model = run_5b.model.clone()

    def interrupt(args: dict) -> None:
        raise comfy.model_management.InterruptProcessingException

    model.set_model_sampler_post_cfg_function(interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_5b.ours(conditioning, model=model)
    assert control.guides
    control.cond_hint_original = control_video(seed=9).movedim(-1, 1)
    other = run_5b.ours(conditioning, steps=2)
    assert torch.equal(other, run_5b.ours(apply(run_5b.text, run_5b.net, control_video(seed=9)), steps=2))
    assert not torch.equal(other, want)


def test_comfyui_manages_its_memory(run_5b: Run, nets: dict[str, Path]) -> None:
    """On a small card the control net is streamed like the model; a plain torch leaf would stay on the card."""
    patcher = run_5b.net.patcher
    conditioning = apply(apply(run_5b.text, run_5b.net), run_5b.net)
    control = conditioning[0][0][1]["control"]
    assert control.get_models() == [patcher, patcher]
    assert control.inference_memory_requirements(torch.float32) == 2 * (2 * 1 * 3 * 4 * 6 * 64 * 4)
    plain = [
        name
        for name, module in patcher.model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not hasattr(module, "comfy_cast_weights")
    ]
    assert not plain and not any(p.is_meta for p in patcher.model.parameters())
    control.pre_run(run_5b.model.model, run_5b.model.model.model_sampling.percent_to_sigma)
    (want,) = step(control, run_5b)
    fresh = load_controlnet(nets["5b"], "fp32").patcher
    fresh.partially_load(torch.device("cpu"), extra_memory=fresh.model_size() // 3)
    assert [m for m in fresh.model.modules() if hasattr(m, "prev_comfy_cast_weights")], "nothing was streamed"
    control.patcher = control.previous_controlnet.patcher = fresh
    control.pre_run(run_5b.model.model, run_5b.model.model.model_sampling.percent_to_sigma)
    assert torch.equal(step(control, run_5b)[0], want)


def test_a_clone_for_another_device_computes_the_same(run_5b: Run) -> None:
    """ComfyUI's multi-GPU nodes give each device a control net of its own."""
    control = prepared(run_5b)
    if not hasattr(control, "multigpu_clones"):
        pytest.skip(host_lacks("multi-GPU nodes"))
    clone = control.deepclone_multigpu(torch.device("cpu"), autoregister=True)
    assert control.get_instance_for_device(torch.device("cpu")) is clone
    assert clone.patcher.model is not control.patcher.model
    clone.pre_run(run_5b.model.model, run_5b.model.model.model_sampling.percent_to_sigma)
    (ours,), (theirs,) = step(control, run_5b), step(clone, run_5b)
    assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("variant", ("2b", "5b"))
@torch.no_grad()
def test_no_tensor_is_left_on_the_wrong_device(
    nets: dict[str, Path], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint, table or index left on the CPU works in every test without a card and fails on every card."""
    card = torch.device("cuda:0")
    monkeypatch.setattr(attention, "attention_for", lambda device: attention_pytorch)
    # for 2b the lean mode
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 0 if variant == "2b" else 1 << 40)
    from cogvideox.transformer import positions

    # tables are cached by device: none of this test's fakes may reach another
    for name in ("rotary_table", "sincos_table"):
        monkeypatch.setattr(controlnet_module, name, getattr(positions, name).__wrapped__.__wrapped__)
    control: Any = load_controlnet(nets[variant], "fp32")
    control.set_cond_hint(control_video(21).movedim(-1, 1))
    control.model_sampling = SimpleNamespace(timestep=lambda t: t, calculate_input=lambda t, x: x)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in control.patcher.model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fake_weight = fake.from_tensor(weight.data).to(card)
                    module._parameters[name] = torch.nn.Parameter(fake_weight, requires_grad=False)
        x, sigma = torch.randn(1, 16, 2, 8, 12, device=card), torch.full((1,), 2.0, device=card)
        window = comfy.context_windows.IndexListContextWindow([3, 5], dim=2, total_frames=6)
        for options in ({}, {"context_window": window}):
            out = control.get_control(x, sigma, {"c_crossattn": torch.zeros(1, 226, 32)}, 1, options)
            assert out["input"][0].device == card and out["input"][0].shape == (1, 2 * 4 * 6, 64)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("default", 1e-2), ("bf16", 1e-2), ("fp16", 2e-3), ("fp8_e4m3fn", 1e-1)]
)
def test_precisions(run_5b: Run, nets: dict[str, Path], dtype: str, tolerance: float) -> None:
    """Each weight_dtype of the loader must run and stay as near full precision as its numbers are."""
    net = load_controlnet(nets["5b"], dtype)
    weights = {name: p.dtype for name, p in net.patcher.model.named_parameters()}
    if dtype == "fp8_e4m3fn":
        assert weights["transformer_blocks.0.attn1.to_q.weight"] == torch.float8_e4m3fn
        assert weights["controlnet_encode_first.0.weight"] != torch.float8_e4m3fn
    outputs = [step(prepared(run_5b, net=n), run_5b)[0] for n in (net, run_5b.net)]
    assert relative_error(*outputs) < tolerance
    assert torch.isfinite(run_5b.ours(apply(run_5b.text, net), steps=2)).all()
