"""ComfyUI's own nodes on this pack's MODEL, CLIP, VAE and LATENT: nothing special is needed to use them."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import (
    DECODE,
    HEIGHT,
    NEGATIVE,
    PIPELINE,
    PROMPT,
    SAMPLE,
    WIDTH,
    custom_sampling,
    patched,
    replaced,
    text_to_video,
    with_inputs,
    with_ksampler,
)
from cogvideox.tests.support import TEXT_TO_VIDEO, relative_error
from cogvideox.tests.tiers import long_after, long_rows_after

STOCK = (("euler", "simple"), ("dpmpp_2m", "karras"), ("uni_pc", "normal"), ("ddim", "ddim_uniform"))


@pytest.mark.parametrize(
    ("variant", "sampler"),
    long_rows_after(
        3, [("2b", "dpm"), ("5b", "ddim"), ("1.5-5B", "dpm"), ("2b", "ddim"), ("5b", "dpm"), ("1.5-5B", "ddim")]
    ),
)
def test_custom_sampling_is_the_sampler_node(comfyui, variant, sampler):
    """Who takes the sampler node apart to change one piece expects the same video as long as nothing is changed."""
    graph = text_to_video(folder_name(variant), sampler=sampler, steps=4)
    whole, apart = comfyui.make(graph), comfyui.make(custom_sampling(graph))
    assert torch.equal(apart.latent, whole.latent)
    assert np.array_equal(apart.frames, whole.frames)


def test_explicit_timesteps_of_an_even_schedule(comfyui):
    """Who writes out the timesteps of a run expects its video."""
    graph = text_to_video(sampler="dpm", steps=4, cfg=1.0)
    apart = custom_sampling(graph)
    inputs = {"model": apart["sigmas"]["inputs"]["model"], "preset": "custom", "timesteps": "[999, 749, 499, 249]"}
    apart = replaced(apart, "sigmas", "CogVideoXTimesteps", **inputs)
    latents = [comfyui.latent(each) for each in (graph, apart)]
    assert torch.equal(*latents)


def test_custom_sampling_below_full_denoise(comfyui):
    """The schedule's length must survive the way through SIGMAS: 2 of 5 steps are not 2 of 2."""
    start = text_to_video(seed=5)
    graph = start | {"first": start[SAMPLE]}
    graph = with_inputs(graph, SAMPLE, latent_image=["first", 0], steps=2, denoise=0.4)
    assert torch.equal(comfyui.latent(custom_sampling(graph)), comfyui.latent(graph))


@pytest.mark.parametrize(
    ("variant", "names"),
    long_rows_after(
        3, [("2b", STOCK[:2]), ("5b", STOCK[2:]), ("1.5-5B", STOCK[1:3]), *itertools.product(TEXT_TO_VIDEO, [STOCK])]
    ),
)
def test_ksampler(comfyui, variant, names):
    """Every workflow on the web has a KSampler: its samplers and schedulers must run, each in its own way."""
    latents = {}
    for name in names:
        made = comfyui.make(with_ksampler(text_to_video(folder_name(variant), steps=6), *name))
        assert made.latent.isfinite().all(), name
        assert made.frames.std() > 10, name
        assert all(relative_error(made.latent, other) > 0.01 for other in latents.values()), name
        latents[name] = made.latent


def test_text_encode_is_the_packs(comfyui):
    """A stock prompt node must not turn on weights or attention masks that CogVideoX never saw."""
    graph = text_to_video()
    stock = graph
    for id_ in (PROMPT, NEGATIVE):
        stock = replaced(stock, id_, "CLIPTextEncode", **{**graph[id_]["inputs"]})
    assert torch.equal(comfyui.latent(stock), comfyui.latent(graph))


@pytest.mark.parametrize(
    ("variant", "frames"), long_rows_after(2, [("2b", 9), ("1.5-5B", 13), ("2b", 13), ("1.5-5B", 9)])
)
def test_vae_decode_is_the_packs(comfyui, variant, frames):
    """The stock node must give the same frames, and as many: an even number of latents (13 frames) is the hard one."""
    graph = text_to_video(folder_name(variant), frames)
    stock = replaced(graph, DECODE, "VAEDecode", vae=[PIPELINE, 2], samples=[SAMPLE, 0])
    ours, theirs = comfyui.make(graph).frames, comfyui.make(stock).frames
    assert ours.shape == (frames, HEIGHT, WIDTH, 3)
    assert np.array_equal(theirs, ours)


@pytest.mark.parametrize(("tile_size", "width", "height"), [(64, 128, 96), (128, 192, 64)])
def test_vae_decode_tiled(comfyui, tile_size, width, height):
    """Small cards need it: all frames, the full size, and the same picture but for the last bit of a pixel."""
    graph = with_inputs(text_to_video(frames=17), "latent", width=width, height=height)
    tiles = {"tile_size": tile_size, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    tiled = replaced(graph, DECODE, "VAEDecodeTiled", vae=[PIPELINE, 2], samples=[SAMPLE, 0], **tiles)
    whole, made = comfyui.make(graph).frames, comfyui.make(tiled).frames
    assert made.shape == whole.shape == (17, height, width, 3)
    assert np.abs(whole.astype(int) - made).max() <= 1


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_memory_modes_decode_the_same(comfyui, memory):
    """A choice about memory may not change the video."""
    graph = text_to_video(frames=17)
    chosen = comfyui.make(with_inputs(graph, DECODE, memory=memory)).frames
    assert np.array_equal(chosen, comfyui.make(graph).frames)


@pytest.fixture(scope="module")
def lora(comfyui) -> str:
    """A LoRA for every attention projection, with the keys that ComfyUI's own trainer writes."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for block in range(2):
        for matrix in ("to_q", "to_k", "to_v", "to_out.0"):
            key = f"diffusion_model.transformer_blocks.{block}.attn1.{matrix}"
            weights[f"{key}.lora_A.weight"] = torch.randn(4, 64, generator=generator) / 8
            weights[f"{key}.lora_B.weight"] = torch.randn(64, 4, generator=generator) / 2
    save_file(weights, comfyui.base / "models" / "loras" / "tiny.safetensors")
    return "tiny.safetensors"


@pytest.mark.parametrize(
    ("variant", "weight_dtype"),
    long_rows_after(
        3,
        [
            ("2b", "default"),
            ("5b", "fp8_e4m3fn"),
            ("1.5-5B", "default"),
            ("2b", "fp8_e4m3fn"),
            ("5b", "default"),
            ("1.5-5B", "fp8_e4m3fn"),
        ],
    ),
)
def test_lora(comfyui, lora, variant, weight_dtype):
    """A LoRA must act on the video, the more the stronger, and be gone without a trace when it is taken out."""
    graph = text_to_video(folder_name(variant), weight_dtype=weight_dtype)
    plain = comfyui.latent(graph)
    weak, strong = (
        comfyui.latent(patched(graph, "LoraLoaderModelOnly", lora_name=lora, strength_model=strength))
        for strength in (0.1, 1.0)
    )
    assert strong.isfinite().all()
    assert 0.001 < relative_error(weak, plain) < relative_error(strong, plain)
    # fp8 weights that were patched in place are rounded again when they come back
    assert torch.equal(comfyui.latent_again(graph), plain)
    unpatched = [line for line in comfyui.log().splitlines() if "lora key not loaded" in line]
    assert not unpatched, unpatched[:3]


def test_easy_cache(comfyui):
    """EasyCache must skip steps, and forget them when it is taken out."""
    graph = text_to_video(steps=10)
    plain = comfyui.latent(graph)
    limits = {"start_percent": 0.0, "end_percent": 1.0, "verbose": True}
    logged = len(comfyui.log())
    cached = comfyui.latent(patched(graph, "EasyCache", reuse_threshold=1.0, **limits))
    assert "EasyCache - skipped" in comfyui.log()[logged:]
    assert cached.isfinite().all() and relative_error(cached, plain) > 1e-4
    assert torch.equal(comfyui.latent_again(graph), plain)


def context_windows(graph: dict, length: int, **changes) -> dict:
    inputs = {
        "context_length": length,
        "context_overlap": 2,
        "context_schedule": "standard_static",
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 2,
        "freenoise": False,
        "cond_retain_index_list": "",
        "split_conds_to_windows": False,
        "latent_retain_index_list": "",
        "causal_window_fix": False,
    }
    return patched(graph, "ContextWindowsManual", **inputs | changes)


@pytest.mark.parametrize(
    ("variant", "freenoise"),
    long_rows_after(2, [("1.5-5B", True), ("5b", False), ("2b", True), ("2b", False), ("5b", True), ("1.5-5B", False)]),
)
def test_context_windows(comfyui, variant, freenoise):
    """Long videos on small cards: windows must cover every frame, and change nothing where one holds the video."""
    graph = text_to_video(folder_name(variant), frames=33)  # 9 latent frames
    plain = comfyui.latent(graph)
    windows = comfyui.latent(context_windows(graph, 4, freenoise=freenoise))
    assert windows.shape == plain.shape
    assert windows.isfinite().all() and (windows.std(dim=(1, 3, 4)) > 0).all()
    assert relative_error(windows, plain) > 0.01
    assert torch.equal(comfyui.latent(context_windows(graph, 10)), plain)


@pytest.mark.parametrize("variant", long_after(1, reversed(TEXT_TO_VIDEO)))  # 1.5, which takes frames in pairs
def test_context_windows_with_a_frame_in_front(comfyui, variant):
    """ComfyUI puts a frame in front of later windows by default, which makes them odd: CogVideoX 1.5, which takes
    frames in pairs, must still run, and differ from windows without it only a little."""
    graph = text_to_video(folder_name(variant), frames=33)
    fixed = comfyui.latent(context_windows(graph, 4, causal_window_fix=True))
    plain = comfyui.latent(context_windows(graph, 4))
    assert fixed.shape == plain.shape and fixed.isfinite().all()
    assert 0 < relative_error(fixed, plain) < 1


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.long  # in one process: tests/nodes/test_stock_patches.py, tests/transformer/test_compiled_blocks.py
@pytest.mark.parametrize(("node", "inputs"), [("TorchCompileModel", {"backend": "inductor"}), ("CogVideoXCompile", {})])
def test_torch_compile(comfyui, node, inputs):
    """The usual way to more speed must give the same video, and so must the pack's own node."""
    graph = text_to_video()
    compiled = comfyui.latent(patched(graph, node, **inputs))
    assert relative_error(compiled, comfyui.latent(graph)) < 1e-4
