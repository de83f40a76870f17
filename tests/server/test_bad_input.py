"""Values and connections that do not fit, over the API: each ends in a message that says what was found, what is
expected and what to do, before anything is sampled, and leaves the server able to work."""

import json
import urllib.error

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogvideox.devtools.embedded_checkpoint import write_pipeline
from cogvideox.devtools.server import request
from cogvideox.migration.replacements import REPLACEMENTS
from cogvideox.tests.graphs import (
    DECODE,
    LATENT,
    PIPELINE,
    PROMPT,
    SAMPLE,
    custom_sampling,
    node,
    patched,
    replaced,
    text_to_video,
    with_inputs,
    with_ksampler,
)
from cogvideox.tests.tiers import long_rows_after

SAMPLERS = {  # node id -> the graph sampled by it
    "CogVideoXSample": lambda graph: graph,
    "KSampler": with_ksampler,
    "SamplerCustomAdvanced": custom_sampling,
}
SIZES = [
    ({"width": 100}, "width 100", "96 or 112"),
    ({"height": 72}, "height 72", "64 or 80"),
    ({"frames": 10}, "frames 10", "9 or 17"),
    ({"frames": 48}, "frames 48", "41 or 49"),
]


@pytest.mark.parametrize(("wrong", "found", "nearest"), SIZES)
def test_size_that_does_not_fit(refused, wrong, found, nearest):
    """Every odd size would otherwise be cut to another without a word, or fail inside the transformer."""
    refused(with_inputs(text_to_video(), LATENT, **wrong), "CogVideoXEmptyLatent", found, f"use {nearest}")


@pytest.mark.parametrize(
    ("wrong", "found", "nearest"),
    [*SIZES, ({"width": 0}, "width is 0", "use 16 to"), ({"frames": -3}, "frames is -3", "use 1 to")],
)
def test_linked_size_that_does_not_fit(refused, wrong, found, nearest):
    """A value from another node is unknown while ComfyUI checks the workflow, and has no limits."""
    (name, value), *_ = wrong.items()
    graph = with_inputs(text_to_video(), LATENT, **{name: ["number", 0]})
    refused(graph | {"number": node("PrimitiveInt", value=value)}, "CogVideoXEmptyLatent", found, nearest)


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("width", 32768, 16384), ("height", 32768, 16384), ("frames", 1029, 1025), ("batch_size", 65, 64)],
)
def test_size_beyond_every_limit(refused, name, value, most, linked):
    """A slip of the hand must not take all memory of the machine, and the server with it."""
    graph = with_inputs(text_to_video(), LATENT, **{name: ["number", 0] if linked else value})
    graph |= {"number": node("PrimitiveInt", value=value)} if linked else {}
    refused(graph, "CogVideoXEmptyLatent", name, str(most))


def test_batch_of_none(refused):
    """A linked 0 would end somewhere in the model."""
    graph = with_inputs(text_to_video(), LATENT, batch_size=["number", 0])
    refused(graph | {"number": node("PrimitiveInt", value=0)}, "CogVideoXEmptyLatent", "batch_size is 0: use 1 to 64")


@pytest.mark.parametrize(
    ("node_id", "wrong", "words"),
    [
        (SAMPLE, {"dynamic_cfg": "false"}, "dynamic_cfg is false: use true or false."),
        (LATENT, {"frames": 9.5}, "frames is 9.5: use 1 to 1025."),
        (SAMPLE, {"cfg": float("nan")}, "cfg is nan: use"),
        (PROMPT, {"text": None}, "text is None: use a text."),
    ],
)
def test_a_value_that_comfyui_would_convert(refused, node_id, wrong, words):
    """Without a word "false" was true, 9.5 frames were 9, and a prompt of null read "None"."""
    graph = with_inputs(text_to_video(), node_id, **wrong)
    refused(graph, graph[node_id]["class_type"], words)


@pytest.mark.parametrize("old", REPLACEMENTS)
def test_a_node_of_the_wrapper_without_what_the_browser_adds(comfyui, old):
    """ComfyUI answered with an error 500 where a script leaves out `_meta` or an input."""
    graph = {"1": {"class_type": old, "inputs": {}}, "2": node("PreviewAny", source=["1", 0])}
    with pytest.raises(urllib.error.HTTPError) as error:
        request(f"{comfyui.url}/prompt", {"prompt": graph})
    assert error.value.code == 400
    found = json.loads(error.value.read())["node_errors"]["1"]
    assert found["class_type"] == REPLACEMENTS[old].new
    missing = {each["extra_info"]["input_name"] for each in found["errors"]}
    assert missing == set(REPLACEMENTS[old].inputs)


@pytest.mark.parametrize("sampler", ["CogVideoXSample", "KSampler"])
def test_size_from_another_packs_latent(refused, sampler):
    """The stock empty latents know nothing of patches of 16 pixels."""
    graph = replaced(text_to_video(), LATENT, "EmptyHunyuanLatentVideo", width=104, height=64, length=9, batch_size=1)
    graph = with_ksampler(graph) if sampler == "KSampler" else graph
    refused(graph, sampler, "width of 104 pixels does not divide by 16", "use 96 or 112")


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize("node_type", ["CogVideoXSample", "CogVideoXScheduler"])
@pytest.mark.parametrize(
    ("steps", "denoise", "found", "advice"),
    [
        (600, 0.5, "600 steps at denoise 0.5", "Use denoise 0.6 or more, or fewer steps"),
        (0, 1.0, "steps is 0", "use 1 to 1000."),
        (1001, 1.0, "steps is 1001", "use 1 to 1000."),
        (5, 1.5, "denoise is 1.5", "use 0 to 1."),
        (5, -0.5, "denoise is -0.5", "use 0 to 1."),
    ],
)
def test_schedule_that_cannot_be(refused, linked, node_type, steps, denoise, found, advice):
    """More steps than the model has timesteps would repeat some of them; none would end in a division by zero."""
    graph = custom_sampling(text_to_video()) if node_type == "CogVideoXScheduler" else text_to_video()
    place = SAMPLE if node_type == "CogVideoXSample" else "sigmas"
    if linked:
        graph = with_inputs(graph, place, steps=["steps", 0], denoise=["denoise", 0])
        graph |= {"steps": node("PrimitiveInt", value=steps), "denoise": node("PrimitiveFloat", value=denoise)}
    else:
        graph = with_inputs(graph, place, steps=steps, denoise=denoise)
    refused(graph, node_type, found, advice)


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
def test_timesteps_that_rise(refused, linked):
    """A word, or a step to more noise, must not reach the sampler."""
    inputs = {"model": [PIPELINE, 0], "preset": "custom", "timesteps": ["list", 0] if linked else "399, 665"}
    graph = replaced(custom_sampling(text_to_video()), "sigmas", "CogVideoXTimesteps", **inputs)
    graph |= {"list": node("PrimitiveString", value="399, 665")} if linked else {}
    refused(graph, "CogVideoXTimesteps", "Timestep 665 comes after 399", "such as 999, 856, 665, 399")


def test_dynamic_guidance_over_no_steps(refused):
    """Linked steps have no limits: 0 would end in a division by zero in the middle of a run."""
    graph = patched(text_to_video(), "CogVideoXDynamicCFG", steps=["steps", 0], cfg=6.0)
    refused(graph | {"steps": node("PrimitiveInt", value=0)}, "CogVideoXDynamicCFG", "steps is 0: use 1 to 1000.")


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_type", ["CogVideoXEncodeText", "CLIPTextEncode"])
def test_long_prompt_is_cut_with_a_warning(comfyui, node_type):
    """A prompt whose end has no effect looks like a model that does not listen."""
    kept, lost = "panda " * 45, f"the lost {node_type} end"  # one token a character
    graph = replaced(text_to_video(), PROMPT, node_type, clip=[PIPELINE, 1], text=kept + lost)
    result = comfyui.run(graph)
    assert result.error is None, str(result.error)
    logged = [line for line in comfyui.log().splitlines() if lost in line and "226 tokens" in line]
    assert len(logged) == 1, logged
    assert "Shorten the prompt" in logged[0]
    if node_type == "CogVideoXEncodeText":
        shown = [text for node_id, text in result.texts if node_id == PROMPT]
        assert shown and "226 tokens" in shown[0] and lost in shown[0], result.texts
        assert "panda" not in shown[0]


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_conditioning_of_the_wrong_width(refused, wide, sampler, side):
    """A prompt encoded by another model's text encoder would end in a matrix product that does not fit."""
    graph = text_to_video() | {
        "other": node("CogVideoXLoadTextEncoder", text_encoder_name=wide, weight_dtype="default"),
        "text": node("CLIPTextEncode", clip=["other", 0], text="A panda"),
    }
    graph = SAMPLERS[sampler](with_inputs(graph, SAMPLE, **{side: ["text", 0]}))
    refused(graph, sampler, f"The {side} conditioning", "48]", "needs [batch, tokens, 32]", "encode the prompt with")


# --- latents and models ----------------------------------------------------------------------------------------------


def write_latent(comfyui, name: str, latent: torch.Tensor) -> str:
    """A file for the stock LoadLatent; returns its name."""
    save_file({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}, comfyui.base / "input" / name)
    return name


@pytest.mark.parametrize("shape", [(1, 4, 8, 12), (1, 4, 3, 8, 12), (1, 32, 3, 8, 12)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_a_latent_of_other_channels(comfyui, refused, sampler, shape):
    """The latent of another model would end in an error of some convolution."""
    name = write_latent(comfyui, f"channels-{len(shape)}-{shape[1]}.latent", torch.ones(shape))
    graph = SAMPLERS[sampler](replaced(text_to_video(denoise=0.5), LATENT, "LoadLatent", latent=name))
    refused(graph, sampler, f"{shape[1]}, ", "needs [batch, 16, frames", "Empty CogVideoX Latent")


@pytest.mark.parametrize("shape", [(1, 4, 8, 12), (1, 4, 3, 8, 12), (1, 16, 8, 12)])
@pytest.mark.parametrize("decoder", ["CogVideoXDecode", "VAEDecode", "VAEDecodeTiled"])
def test_decoding_a_latent_of_other_channels(comfyui, refused, decoder, shape):
    """The wrong VAE is easily wired to a sampler when a workflow holds two models."""
    name = write_latent(comfyui, f"decode-{len(shape)}-{shape[1]}.latent", torch.ones(shape))
    graph = replaced(text_to_video(), SAMPLE, "LoadLatent", latent=name)
    links = {"vae": [PIPELINE, 2], "samples": [SAMPLE, 0]}
    tiles = {"tile_size": 64, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    more = {"CogVideoXDecode": {"memory": "auto"}, "VAEDecode": {}, "VAEDecodeTiled": tiles}[decoder]
    graph = replaced(graph, DECODE, decoder, **links, **more)
    refused(graph, decoder, "The latent has shape", "[batch, 16, frames", "Use the VAE that belongs to the model")


def test_schedule_of_a_repatched_model(refused):
    """The stock ModelSamplingDiscrete drops CogVideoX's noise schedule, and the video would be grey."""
    graph = patched(text_to_video(), "ModelSamplingDiscrete", sampling="v_prediction", zsnr=True)
    refused(graph, "CogVideoXSample", "samples with ModelSampling", "without a ModelSampling patch")


@pytest.mark.parametrize(
    ("sampler", "value"),
    long_rows_after(
        3,
        [
            ("CogVideoXSample", float("nan")),
            ("KSampler", float("inf")),
            ("SamplerCustomAdvanced", float("nan")),
            ("CogVideoXSample", float("inf")),
            ("KSampler", float("nan")),
            ("SamplerCustomAdvanced", float("inf")),
        ],
    ),
)
def test_prediction_that_is_not_a_number(comfyui, sampler, value):
    """Without a check a black video comes out an hour later, and nobody knows why."""
    name = f"broken-{value}"
    if not (comfyui.pipelines / name).exists():
        file = next((write_pipeline(comfyui.pipelines / name, "5b") / "transformer").glob("*-00001-of-*.safetensors"))
        weights = load_file(file)
        weights["patch_embed.proj.weight"][0, 0] = value
        save_file(weights, file)
    result = comfyui.run(SAMPLERS[sampler](text_to_video(name, steps=4, weight_dtype="fp32")))
    assert result.error is not None, "the run succeeded"
    assert result.error.node_type == sampler, str(result.error)
    for words in (
        "contains NaN or Inf",
        "weights of the model: patch_embed.proj.weight",
        "Download the checkpoint again",
    ):
        assert words in result.error.message, result.error.message
    assert not result.progress, "the first step was counted as done"


def test_latent_that_is_not_a_number(comfyui, refused):
    """A NaN that comes in through the latent is not the precision's fault alone, but ends as soon."""
    name = write_latent(comfyui, "nan.latent", torch.full((1, 16, 3, 8, 12), float("nan")))
    graph = replaced(text_to_video(denoise=0.5), LATENT, "LoadLatent", latent=name)
    refused(graph, "CogVideoXSample", "contains NaN or Inf")


def test_server_works_after_all_of_it(comfyui, untouched):
    """A run that failed halfway could leave state behind, for which the next one would pay."""
    assert torch.equal(comfyui.make_again(text_to_video()).latent, untouched)
