"""A model on two ranks against the same model in one process."""

import gc
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.keys import Latent, with_positions
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.nodes.compile import CogVideoXCompile
from cogvideox.nodes.controlnet import CogVideoXApplyControlNet
from cogvideox.nodes.long import CogVideoXContextWindows, CogVideoXPositions
from cogvideox.parallel.remote_model import spread
from cogvideox.parallel.team import Team
from cogvideox.tests.layout_files import write_gguf
from cogvideox.tests.lora_files import ATTENTION, random_factors, save, write_dialect
from cogvideox.tests.support import ALL_VARIANTS, check_parity, relative_error, write_fp32
from cogvideox.tests.tasks import pictures
from cogvideox.tests.tiers import long_after

pytestmark = pytest.mark.usefixtures("inference", "two_ranks")
WHAT = "two ranks against one process"


def text(seed: int, tokens: int = 226) -> list:
    return [[torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(seed)), {}]]


def run(
    model: ModelPatcher, size: tuple[int, int, int] = (2, 8, 12), conditioning: Any = None, **inputs: Any
) -> torch.Tensor:
    """Latents of CogVideoXSample."""
    from cogvideox.nodes.sample import CogVideoXSample

    positive, negative = conditioning or (text(3), text(4))
    latent: Latent = {"samples": torch.zeros(1, 16, *size)}
    given: Any = {"seed": 7, "steps": 3, "cfg": 6.0, "sampler": "dpm", "dynamic_cfg": False, "denoise": 1.0} | inputs
    return CogVideoXSample.execute(model, positive, negative, latent, **given).args[0]["samples"]


def on_two(model: ModelPatcher, split: str = "auto", goes_on_alone: bool = False) -> ModelPatcher:
    return spread(model, 2, split, "", goes_on_alone)


def forward(model: ModelPatcher, size: tuple[int, int, int], tokens: int = 226, positions: Any = None) -> torch.Tensor:
    """One call of the network for two prompts."""
    mm.load_models_gpu([model])
    dit, generator = model.model.diffusion_model, torch.Generator().manual_seed(1)
    x = torch.randn(2, dit.config.in_channels, *size, generator=generator)
    context = torch.randn(2, tokens, dit.config.text_embed_dim, generator=generator)
    ofs = torch.full((2,), 2.0) if dit.config.ofs_embed_dim else None
    options = {} if positions is None else with_positions({}, positions)
    return dit(x, torch.tensor([500.0, 500.0]), context, ofs=ofs, transformer_options=options)


@pytest.fixture(scope="module")
def near(tiny_pipelines: Mapping[str, Path]) -> ModelPatcher:
    with torch.inference_mode():
        return load_model(tiny_pipelines["5b"], "fp32")


@pytest.mark.parametrize("variant", long_after(3, ("5b", "1.5-5B-I2V", "2b", *ALL_VARIANTS)))
def test_every_family(tiny_pipelines: Mapping[str, Path], variant: str) -> None:
    """Positions, control channels, ofs and 1.5's pairs of frames all depend on which tokens a rank holds. The 1.5
    models get an odd count of latents here, whose first frame they repeat."""
    model = load_model(tiny_pipelines[variant], "fp32")
    native = model.model.diffusion_model.native_size()
    size = native if model.model.diffusion_model.config.use_learned_positional_embeddings else (3, 8, 12)
    check_parity(WHAT, forward(on_two(model), size), forward(model, size), 5e-6)


@pytest.mark.parametrize("size, tokens", [((1, 2, 6), 7), ((3, 6, 10), 226), ((1, 14, 26), 1)])
def test_any_count_of_tokens_and_heads(tmp_path: Path, size: tuple[int, int, int], tokens: int) -> None:
    """Counts that divide by nothing, and three heads for two ranks."""
    model = load_model(write_fp32(tmp_path / "5b", "5b", num_attention_heads=3), "fp32")
    check_parity(WHAT, forward(on_two(model), size, tokens), forward(model, size, tokens), 5e-6)


def test_runs(near: ModelPatcher, two_ranks: ModelPatcher) -> None:
    """Our sampler and KSampler, with guidance and without."""
    cases: list[dict[str, Any]] = [{}, {"cfg": 1.0}, {"dynamic_cfg": True, "sampler": "ddim"}, {"denoise": 0.6}]
    for inputs in cases:
        check_parity(WHAT, run(two_ranks, **inputs), run(near, **inputs), 5e-6)

    def k_sampled(model: ModelPatcher) -> torch.Tensor:
        latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
        sample = comfyui_nodes().common_ksampler
        return sample(model, 7, 6, 6.0, "euler", "normal", text(3), text(4), latent)[0]["samples"]

    check_parity(WHAT, k_sampled(two_ranks), k_sampled(near), 5e-6)


def guided_or_not(controlled: Any) -> list[dict[str, Any]]:
    return [{}, {"cfg": 1.0}, {"conditioning": controlled}]


@pytest.mark.long  # ranks of their own
def test_prompts_are_divided(near: ModelPatcher, controlled: Any) -> None:
    """One card for each prompt; without guidance there is one, whose tokens are divided."""
    far = on_two(near, "cfg")
    for inputs in guided_or_not(controlled):
        check_parity(WHAT, run(far, **inputs), run(near, **inputs), 5e-6)


def some_lora(model: ModelPatcher, folder: Path) -> Path:
    """A LoRA's file for the attention of `model`."""
    shapes = {n.removesuffix(".weight"): tuple(w.shape) for n, w in model.model.diffusion_model.state_dict().items()}
    files, header, _ = write_dialect("diffusers", random_factors(shapes, ATTENTION))
    return save(folder / "lora.safetensors", files, header)


def test_lora_before_and_after(near: ModelPatcher, two_ranks: ModelPatcher, tmp_path: Path) -> None:
    """The ranks have the patches of the run, whichever node has put them on, and none of the run before."""
    path = some_lora(near, tmp_path)
    patched, plain = apply_lora(near, path, 0.8)[0], run(near)
    want = run(patched)
    assert relative_error(want, plain) > 1e-3
    check_parity(WHAT, run(apply_lora(two_ranks, path, 0.8)[0]), want, 5e-6)
    check_parity(WHAT, run(two_ranks), plain, 5e-6)
    check_parity(WHAT, run(on_two(patched)), want, 5e-6)


def test_masks(near: ModelPatcher, two_ranks: ModelPatcher) -> None:
    """Prompts for a part of the picture each are a batch of three, and a masked start is put back at every step."""
    set_mask = comfyui_nodes().ConditioningSetMask()
    left = torch.zeros(1, 64, 96)
    left[:, :, :48] = 1.0
    masked = set_mask.append(text(5), left, "default", 1.0)[0]
    mask = torch.zeros(1, 1, 2, 8, 12)
    mask[..., 3:] = 1.0
    start = torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(9))

    def k_sampled(model: ModelPatcher, positive: Any, latent: dict[str, torch.Tensor]) -> torch.Tensor:
        sample = comfyui_nodes().common_ksampler
        return sample(model, 7, 4, 6.0, "euler", "normal", positive, text(4), latent, denoise=0.8)[0]["samples"]

    plain = k_sampled(near, text(3), {"samples": start})
    for positive, latent in (
        ([*text(3), *masked], {"samples": start}),
        (text(3), {"samples": start, "noise_mask": mask}),
    ):
        want = k_sampled(near, positive, latent)
        assert relative_error(want, plain) > 1e-3
        check_parity(WHAT, k_sampled(two_ranks, positive, latent), want, 5e-6)


def test_what_works_around_the_model(near: ModelPatcher, two_ranks: ModelPatcher) -> None:
    """RIFLEx, context windows and EasyCache change what the model is asked, or how often."""

    def changed(model: ModelPatcher) -> list[ModelPatcher]:
        return [
            CogVideoXPositions.execute(model, True, False).args[0],
            CogVideoXContextWindows.execute(model, 9, 4, "standard_static", "pyramid", False).args[0],
            EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0],
        ]

    for far, here in zip(changed(two_ranks), changed(near)):
        check_parity(WHAT, run(far, (5, 8, 12), steps=6), run(here, (5, 8, 12), steps=6), 5e-6)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Prompts with two control nets, of which one acts in a part of the run."""
    root = tmp_path_factory.mktemp("control nets")
    with torch.inference_mode():
        conditioning: Any = text(3), text(4)
        for seed, strength, end in ((7, 0.9, 1.0), (8, 0.4, 0.6)):
            net = load_controlnet(write_controlnet(root / str(seed), "5b", seed, torch.float32), "fp32")
            given = {"control_net": net, "control_video": pictures(5), "strength": strength, "start_percent": 0.0}
            conditioning = CogVideoXApplyControlNet.execute(
                positive=conditioning[0], negative=conditioning[1], end_percent=end, **given
            ).args
    return conditioning


def test_control_nets(near: ModelPatcher, two_ranks: ModelPatcher, controlled: Any) -> None:
    """Their weights are in the ranks too."""
    want = run(near, conditioning=controlled)
    assert relative_error(want, run(near)) > 1e-3
    check_parity(WHAT, run(two_ranks, conditioning=controlled), want, 5e-6)


def test_another_control_net_takes_no_ones_place(near: ModelPatcher, two_ranks: ModelPatcher, tmp_path: Path) -> None:
    """Where one of two is changed for a third, the ranks must not ask the third in the place of the second."""
    nets: list[Any] = [
        load_controlnet(write_controlnet(tmp_path / str(seed), "5b", seed, torch.float32), "fp32") for seed in range(3)
    ]

    def led_by(*numbers: int) -> Any:
        conditioning: Any = text(3), text(4)
        for number in numbers:
            given = {"control_net": nets[number], "control_video": pictures(5), "strength": 0.9}
            conditioning = CogVideoXApplyControlNet.execute(
                positive=conditioning[0], negative=conditioning[1], start_percent=0.0, end_percent=1.0, **given
            ).args
        return conditioning

    run(two_ranks, conditioning=led_by(0, 1))
    nets[1] = None  # the ranks have loaded the last one first
    gc.collect()
    for numbers in ((2, 0), (0, 2)):
        want = run(near, conditioning=led_by(*numbers))
        check_parity(WHAT, run(two_ranks, conditioning=led_by(*numbers)), want, 5e-6)


def test_another_model_goes_in_the_middle_of_a_run(near: ModelPatcher, two_ranks: ModelPatcher) -> None:
    """It is collected at any moment. The ranks keep the prompts that this run has sent them."""
    far: Any = two_ranks.clone()
    team = far.weights.team

    def forget(args: dict[str, Any]) -> torch.Tensor:
        team.tell("forget", "another model")
        return args["denoised"]

    far.set_model_sampler_post_cfg_function(forget)
    check_parity(WHAT, run(far), run(near), 5e-6)


def test_a_control_net_gets_the_latents_of_the_model(
    two_ranks: ModelPatcher, controlled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They travel once, and not once more for each control net."""
    asked, questions = Team.ask, list[Any]()

    def ask(self: Team, method: str, *arguments: Any, **options: Any) -> list[Any]:
        questions.extend(arguments[:1] if method == "predict" else ())
        return asked(self, method, *arguments, **options)

    monkeypatch.setattr(Team, "ask", ask)
    run(two_ranks, conditioning=controlled)
    assert questions[0].x is not None and [each.x for each in questions[0].controls] == [None, None]


def quantised(path: Path, folder: Path, weights: str) -> ModelPatcher:
    """The model at `path` with weights of this type, from a file in `folder` where it is one of GGUF's."""
    if weights == "Q8_0":
        state = load_model(path, "fp32").model.diffusion_model.state_dict()
        shutil.copy(path / "transformer" / "config.json", folder)
        path, weights = write_gguf(folder / "model.gguf", state, weights), "default"
    return load_model(path, weights)


@pytest.mark.parametrize("weights", ["fp8_e4m3fn", "int8", "Q8_0"])
def test_lora_on_quantised_weights(
    tiny_pipelines: Mapping[str, Path], two_ranks: ModelPatcher, tmp_path: Path, weights: str
) -> None:
    """The ranks load the file in the same type, and patch it as one process does."""
    near = quantised(tiny_pipelines["5b"], tmp_path, weights)
    lora = some_lora(near, tmp_path)
    want = run(apply_lora(near, lora, 0.8)[0])
    assert relative_error(want, run(near)) > 1e-3
    check_parity("two ranks, quantised weights", run(apply_lora(on_two(near), lora, 0.8)[0]), want, 5e-6)


def test_what_cannot_be_sent_is_named(two_ranks: ModelPatcher, near: ModelPatcher) -> None:
    """Left out in silence, a patch would be missing from the video."""
    slg = SkipLayerGuidanceDiT.execute(
        model=two_ranks,
        double_layers="1",
        single_layers="",
        scale=3.0,
        start_percent=0.01,
        end_percent=0.99,
        rescaling_scale=0,
    ).args[0]
    with pytest.raises(UserError, match="dit in place of a block"):
        run(slg)
    with pytest.raises(UserError, match="CogVideoX Compile"):
        run(CogVideoXCompile.execute(two_ranks).args[0])
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    with pytest.raises(UserError, match=r"conditioning has hooks \(weight\): a LoRA"):
        run(two_ranks, conditioning=(comfy.hooks.set_hooks_for_conditioning(text(3), hooks), text(4)))
    with pytest.raises(UserError, match="divided over cards already"):
        on_two(two_ranks)
    with pytest.raises(UserError, match="before CogVideoX Parallel"):
        comfyui_nodes()  # ComfyUI's own nodes, of which the merge reads weights
        two_ranks.get_key_patches("diffusion_model.")


def test_cancel_takes_a_moment(two_ranks: ModelPatcher, near: ModelPatcher) -> None:
    """The ranks finish the step that they compute, and the next run is as good as any."""
    want, seen = run(near), []

    def cancel(*_: Any) -> None:
        seen.append(time.monotonic())
        mm.interrupt_current_processing(True)

    model = two_ranks.clone()
    model.set_model_sampler_post_cfg_function(lambda args: (cancel(), args["denoised"])[1])
    with pytest.raises(mm.InterruptProcessingException):
        run(model, steps=50)
    assert time.monotonic() - seen[0] < 1
    check_parity(WHAT, run(two_ranks), want, 5e-6)
