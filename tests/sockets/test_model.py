"""The MODEL inside ComfyUI's own management: memory, patches, caches, stock samplers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.precision import choose_dtypes
from cogvideox.sockets.families import FAMILIES
from cogvideox.tests.support import TEXT_TO_VIDEO, reference_transformer, relative_error, write_fp32
from cogvideox.tests.tiers import long_but_one_in

CPU = torch.device("cpu")


def load(folder: Path, dtype: str = "fp32") -> ModelPatcher:
    return load_model(folder, dtype)


def inputs(model: ModelPatcher, dtype: torch.dtype = torch.float32) -> tuple:
    generator = torch.Generator().manual_seed(2)
    config = model.model.diffusion_model.config
    latents = torch.randn(1, config.in_channels, 2, 8, 12, generator=generator)
    context = torch.randn(1, 226, config.text_embed_dim, generator=generator)
    return latents.to(dtype), torch.tensor([500.0]), context.to(dtype)


@torch.inference_mode()
def forward(model: ModelPatcher, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    latents, timestep, context = inputs(model, dtype)
    return model.model.diffusion_model(latents, timestep, context=context).float()


def conditioning(width: int = 32, seed: int = 0) -> list:
    return [[torch.randn(1, 226, width, generator=torch.Generator().manual_seed(seed)), {}]]


def latent(latent_frames: int = 2, channels: int = 16) -> torch.Tensor:
    return torch.zeros(1, channels, latent_frames, 8, 12)


def ksample(
    model: ModelPatcher, sampler: str = "euler", scheduler: str = "simple", steps: int = 4, **more: Any
) -> torch.Tensor:
    """What the stock KSampler node runs."""
    common_ksampler = comfyui_nodes().common_ksampler

    arguments: dict[str, Any] = {
        "positive": conditioning(seed=1),
        "negative": conditioning(seed=2),
        "latent": {"samples": latent()},
    }
    return common_ksampler(
        model, seed=7, steps=steps, cfg=6.0, sampler_name=sampler, scheduler=scheduler, **arguments | more
    )[0]["samples"]


@pytest.mark.parametrize("with_lora", (False, True))
@pytest.mark.parametrize("variant", TEXT_TO_VIDEO)
def test_partial_loading_is_bit_equal(tiny_pipelines: dict[str, Path], variant: str, with_lora: bool) -> None:
    """On a small card ComfyUI streams weights; the video must not depend on how many."""
    model = load(tiny_pipelines[variant])
    if with_lora:
        key = "diffusion_model.transformer_blocks.1.ff.net.2.weight"
        generator = torch.Generator().manual_seed(4)
        model.add_patches({key: ("diff", (torch.randn(64, 256, generator=generator),))}, 0.7)
    model.patch_model(device_to=CPU)
    whole = forward(model)
    model.unpatch_model(CPU)
    size = model.model_size()
    for share in (0.0001, 0.3, 0.7):
        model.partially_load(CPU, extra_memory=int(size * share))
        streamed = [m for m in model.model.modules() if hasattr(m, "prev_comfy_cast_weights")]
        assert streamed, "nothing was streamed: this test would show nothing"
        assert torch.equal(forward(model), whole)
        model.partially_unload(CPU, memory_to_free=size // 4)
        assert torch.equal(forward(model), whole)
        model.detach()


@pytest.mark.parametrize("variant", TEXT_TO_VIDEO)
def test_every_weight_is_in_comfyui_s_hands(tiny_pipelines: dict[str, Path], variant: str) -> None:
    """A plain torch leaf is not streamed, and loses LoRA patches under dynamic VRAM without a word."""
    model = load(tiny_pipelines[variant]).model.diffusion_model
    plain = [
        name
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and not hasattr(module, "comfy_cast_weights")
    ]
    assert not plain
    assert not any(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(("variant", "dtype"), long_but_one_in(2, TEXT_TO_VIDEO, ("bf16", "fp16")))
def test_half_precision_rounds_only_the_weights(tmp_path: Path, variant: str, dtype: str) -> None:
    """Stored in half precision and computed as the device can, the result is that of the rounded weights."""
    folder = write_fp32(tmp_path, variant)
    storage = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    model = load(folder, dtype)
    assert model.model.diffusion_model.proj_out.weight.dtype == storage
    compute = model.model.get_dtype_inference()
    theirs = reference_transformer(folder).to(storage).to(compute)
    ours = forward(model, compute)
    rounded = load(folder)
    torch.nn.Module.load_state_dict(
        rounded.model.diffusion_model, {k: v.float() for k, v in theirs.state_dict().items() if "pos_emb" not in k}
    )
    # bf16 arithmetic itself is good to 2^-8
    assert relative_error(ours, forward(rounded)) <= (2e-6 if compute == torch.float32 else 2e-2)


def test_default_precision_is_the_trained_one(tmp_path: Path) -> None:
    """2b was trained in fp16, the others and its Fun fine-tunes in bf16: the other type gives noise or black frames."""
    of_official = [f.trained_dtype for f in FAMILIES]
    assert of_official == [torch.float16] + [torch.bfloat16] * 11
    storage, compute = choose_dtypes("default", torch.bfloat16, torch.bfloat16, 10**6, CPU)
    assert compute or storage in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler", "simple"), ("dpmpp_2m", "sgm_uniform"), ("uni_pc", "normal"), ("ddim", "ddim_uniform"), ("lcm", "beta")],
)
@pytest.mark.parametrize("variant", TEXT_TO_VIDEO)
def test_stock_samplers(tiny_pipelines: dict[str, Path], variant: str, sampler: str, scheduler: str) -> None:
    """Every sampler that users know must run and give a video of finite numbers."""
    out = ksample(load(tiny_pipelines[variant]), sampler, scheduler, latent={"samples": latent(3)})
    assert out.shape == (1, 16, 3, 8, 12)
    assert torch.isfinite(out).all() and out.std() > 0


def test_stock_euler_equals_our_ddim(tiny_pipelines: dict[str, Path]) -> None:
    """Euler and DDIM are the same formula on the same noise levels: apart, KSampler would see the wrong ones. What is
    left is ComfyUI's stand-in for infinite noise at the first step."""
    from comfy.samplers import sampler_object
    from comfy_extras.nodes_custom_sampler import CFGGuider, RandomNoise, SamplerCustomAdvanced

    model = load(tiny_pipelines["5b"])
    from cogvideox.nodes import sample as nodes

    guider = CFGGuider.execute(model, conditioning(seed=1), conditioning(seed=2), 6.0).args[0]
    sigmas = nodes.CogVideoXScheduler.execute(model, 20, 1.0).args[0]
    noise = RandomNoise.execute(7).args[0]
    ours, stock = (
        SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, {"samples": latent()}).args[0]["samples"]
        for sampler in (nodes.CogVideoXSampler.execute("ddim").args[0], sampler_object("euler"))
    )
    assert relative_error(stock, ours) < 2e-3


def test_1_5_gets_real_noise_in_front_from_stock_samplers_too(tiny_pipelines: dict[str, Path]) -> None:
    """An odd count of latents through KSampler must be sampled in pairs and come back odd."""
    model = load(tiny_pipelines["1.5-5B"])
    seen = []

    def watch(apply: Callable, args: Any) -> torch.Tensor:
        seen.append(args["input"].shape[2])
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watch)
    out = ksample(model, latent={"samples": latent(3)})
    assert set(seen) == {4} and out.shape[2] == 3


def test_easy_cache_and_context_windows(tiny_pipelines: dict[str, Path]) -> None:
    """Core's caches and context windows wrap the model from outside and must find what they expect inside."""
    import comfy_extras.nodes_context_windows as windows
    import comfy_extras.nodes_easycache as easycache

    model = load(tiny_pipelines["5b"])
    long = {"samples": latent(6)}
    plain = ksample(model, steps=8, latent=long)
    cached = easycache.EasyCacheNode.execute(model, 5.0, 0.15, 0.95, False).args[0]
    skipped = ksample(cached, steps=8, latent=long)
    assert torch.isfinite(skipped).all() and not torch.equal(skipped, plain)
    assert torch.equal(ksample(model, steps=8, latent=long), plain), "the cache leaked into the next run"

    def windowed(length: int) -> torch.Tensor:
        node: Any = windows.ContextWindowsManualNode
        patched = node.execute(model, length, 1, "standard_static", 1, False, "pyramid", 2, False).args[0]
        return ksample(patched, steps=4, latent=long)

    whole = ksample(model, steps=4, latent=long)
    assert relative_error(windowed(6), whole) <= 2e-6  # one window is no window
    assert relative_error(windowed(4), whole) > 1e-3 and windowed(4).shape == whole.shape


def test_stock_lora_loader(tiny_pipelines: dict[str, Path]) -> None:
    """LoraLoaderModelOnly's patches must change the weights by exactly strength * up @ down."""
    from comfy.sd import load_lora_for_models

    model = load(tiny_pipelines["5b"])
    name = "transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(64, 4, generator=generator)
    lora = {f"diffusion_model.{name}.lora_down.weight": down, f"diffusion_model.{name}.lora_up.weight": up}
    patched, _ = load_lora_for_models(model, None, lora, 0.5, 0)
    assert patched is not None
    before = model.model.diffusion_model.get_submodule(name).weight.clone()
    patched.patch_model(CPU)
    after = patched.model.diffusion_model.get_submodule(name).weight.clone()
    patched.unpatch_model(CPU)
    torch.testing.assert_close(after, before + 0.5 * up @ down)
    assert torch.equal(model.model.diffusion_model.get_submodule(name).weight, before)


@pytest.mark.long  # the node itself is run by tests/nodes/test_stock_patches.py
def test_torch_compile_node(tiny_pipelines: dict[str, Path]) -> None:
    """TorchCompileModel must trace the model without a graph that changes its numbers."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = load(tiny_pipelines["5b"]).clone()
    plain = ksample(model, steps=2)
    set_torch_compile_wrapper(model=model, backend="aot_eager")
    assert relative_error(ksample(model, steps=2), plain) <= 5e-6


def test_block_replacement_patches(tiny_pipelines: dict[str, Path]) -> None:
    """Packs that skip or alter blocks hook them as ("double_block", i), as in core's own models."""
    model = load(tiny_pipelines["5b"])
    plain, clone = ksample(model), model.clone()
    calls = []

    def passing(args: dict, extra: dict) -> dict:
        calls.append(args["img"].shape)
        return extra["original_block"](args)

    clone.set_model_patch_replace(passing, "dit", "double_block", 1)
    assert torch.equal(ksample(clone), plain) and calls


def test_clone_by_reloading(tiny_pipelines: dict[str, Path]) -> None:
    """Core's training and multi-GPU nodes reload the model through cached_patcher_init."""
    folder = tiny_pipelines["2b"]
    for patcher in (
        load(folder),
        load_text_encoder(folder, "fp32").patcher,
        load_vae(folder, "fp32").patcher,
    ):
        cached: Any = patcher.cached_patcher_init
        factory, arguments = cached[:2]
        again = factory(*arguments, disable_dynamic=True)
        assert again.model is not patcher.model
        for a, b in zip(again.model.parameters(), patcher.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_interrupt_leaves_the_next_run_right(tiny_pipelines: dict[str, Path]) -> None:
    """Stopping a run at any step must not change what the next run paints."""
    model = load(tiny_pipelines["1.5-5B"])
    latents = {"samples": latent(3)}
    plain = ksample(model, steps=4, latent=latents)
    for at_step in (0, 2):

        def stop(apply: Callable, args: Any, at_step: int = at_step, seen: list = []) -> torch.Tensor:
            seen.append(1)
            if len(seen) > at_step:
                comfy.model_management.interrupt_current_processing(True)
            return apply(args["input"], args["timestep"], **args["c"])

        interrupted = model.clone()
        interrupted.set_model_unet_function_wrapper(stop)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            ksample(interrupted, steps=4, latent=latents)
        comfy.model_management.interrupt_current_processing(False)
        assert torch.equal(ksample(model, steps=4, latent=latents), plain)


def test_cancel_is_heard_within_a_step(tiny_pipelines: dict[str, Path]) -> None:
    """A step of a large video takes ten minutes on a slow device, and the whole queue waits for it."""
    model, blocks = load(tiny_pipelines["5b"]), []

    def cancel(args: dict[str, Any]) -> dict[str, Any]:
        blocks.append(args["block_index"])
        comfy.model_management.interrupt_current_processing(True)
        return args

    cancelled = model.clone()
    cancelled.model_options["transformer_options"]["patches"] = {"double_block": [cancel]}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ksample(cancelled, steps=1, latent={"samples": latent(3)})
    comfy.model_management.interrupt_current_processing(False)
    assert blocks == [0]


def test_wrong_conditioning_is_refused_before_sampling(tiny_pipelines: dict[str, Path]) -> None:
    """Text from another model's encoder must be named, by stock samplers too."""
    model = load(tiny_pipelines["5b"])
    with pytest.raises(
        UserError, match=r"positive conditioning has text of shape \[1, 226, 48\].*\[batch, tokens, 32\]"
    ):
        ksample(model, positive=conditioning(48))
    with pytest.raises(UserError, match="takes a start image.*has none"):
        ksample(load(tiny_pipelines["5b-I2V"]))


def test_wrong_latent_is_refused_before_sampling(tiny_pipelines: dict[str, Path]) -> None:
    """A latent with something in it and 4 channels comes from another VAE; an empty one is repaired by ComfyUI."""
    model = load(tiny_pipelines["5b"])
    with pytest.raises(UserError, match=r"\[1, 4, 2, 8, 12\].*16"):
        ksample(model, latent={"samples": latent(channels=4) + 1})
    assert ksample(model, latent={"samples": latent(channels=4)}).shape[1] == 16
    with pytest.raises(UserError, match="height of 72 pixels does not divide by 16: use 64 or 80"):
        ksample(model, latent={"samples": torch.zeros(1, 16, 2, 9, 12)})


def test_nan_stops_with_the_likely_cause(tiny_pipelines: dict[str, Path]) -> None:
    """Fifty steps towards a black video are worse than a message after the first."""
    model = load(tiny_pipelines["5b"])
    model.model.diffusion_model.proj_out.weight.data.fill_(3e38)  # finite, but the output is not
    with pytest.raises(UserError, match="timestep 999 contains NaN or Inf.*float32.*bfloat16"):
        ksample(model)
