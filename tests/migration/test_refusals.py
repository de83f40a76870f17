"""What has no counterpart is refused by name or left out with a word, never guessed."""

from collections.abc import Callable

import pytest

from cogvideox.tests.migration.graph_checks import migrated, only, refused, source
from cogvideox.tests.migration.wrapper_flows import (
    Flow,
    Slot,
    fun_control,
    fun_inpaint,
    image_to_video,
    noise_warp,
    text_to_video,
    video_to_video,
)

T2V, I2V, INP, POSE = (
    "THUDM/CogVideoX-5b",
    "THUDM/CogVideoX-5b-I2V",
    "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP",
    "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose",
)


def flow_with(model: str = T2V, text: str = "a bear", strength: float = 1.0, **sampler: object) -> Flow:
    """Text to video, or whatever else the sampler is given."""
    flow = Flow()
    loader = flow.loader(model)
    clip = (flow.add("CLIPLoader", "t5.safetensors", "sd3"), 0)
    prompts = [(flow.add("CogVideoTextEncode", t, strength, True, clip=clip), 0) for t in (text, "")]
    inputs = {"samples": flow.empty(720, 480)} | sampler
    flow.save(flow.sample(loader, (prompts[0], prompts[1]), **inputs), (loader, 1))  # type: ignore[arg-type]
    return flow


def with_extra(type_: str, name: str, *widgets: object) -> Flow:
    """Text to video with something more at the sampler's input `name`."""
    flow = flow_with()
    extra = flow.add(type_, *widgets)
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    flow.links.append([len(flow.links) + 1, extra, 0, sampler["id"], len(sampler["inputs"]), "*"])
    sampler["inputs"].append({"name": name, "type": "*", "link": len(flow.links)})
    return flow


def latent_file() -> Flow:
    """A .latent of the wrapper, changed by 0.5."""
    flow = Flow()
    loader = flow.loader(T2V)
    sampled = flow.sample(loader, flow.prompts(), denoise=0.5, samples=(flow.add("LoadLatent", "x.latent"), 0))
    flow.save(sampled, (loader, 1))
    return flow


def encoded_for_another_node() -> Flow:
    """The wrapper's latents in a node of ComfyUI."""
    flow = image_to_video(I2V)
    encode = next(node["id"] for node in flow.nodes if node["type"] == "CogVideoImageEncode")
    flow.add("SaveLatent", "latent", samples=(encode, 0))
    return flow


def cfg_list() -> Flow:
    flow = flow_with()
    cfgs = (flow.add("CreateCFGScheduleFloatList", 50, 6, 1), 0)
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    flow.links.append([len(flow.links) + 1, cfgs[0], 0, sampler["id"], len(sampler["inputs"]), "FLOAT"])
    sampler["inputs"].append({"name": "cfg", "type": "FLOAT", "link": len(flow.links)})
    return flow


def edited_blocks() -> Flow:
    flow = Flow()
    blocks = (flow.add("CogVideoTransformerEdit", "15, 25"), 0)
    loader = flow.loader(T2V, block_edit=blocks)
    flow.save(flow.sample(loader, flow.prompts(), samples=flow.empty(720, 480)), (loader, 1))
    return flow


def image_range() -> Flow:
    flow = Flow()
    loader = flow.loader(I2V)
    image = flow.encode((loader, 1), flow.picture(720, 480), False, 0, 1.0, 0.0, 0.5)
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), (loader, 1))
    return flow


# What is refused -> the node and the word of the sentence. Those of the first part work with --leave-out.
LEFT_OUT: dict[str, tuple[Callable[[], Flow], str, str]] = {
    "strength of a prompt": (lambda: flow_with(strength=1.5), "CogVideoTextEncode", "strength 1.5"),
    "a cfg for each step": (cfg_list, "CogVideoSampler", "cfg"),
    "PNDM": (lambda: flow_with(scheduler="PNDM"), "CogVideoSampler", "PNDM"),
    "DDIM with 2b": (lambda: flow_with("THUDM/CogVideoX-2b", scheduler="DDIM"), "CogVideoSampler", "DDIM"),
    "removed blocks": (edited_blocks, "DownloadAndLoadCogVideoModel", "blocks"),
    "fp6": (lambda: text_to_video(T2V, quantization="torchao_fp6"), "DownloadAndLoadCogVideoModel", "torchao_fp6"),
    "range of a start image": (image_range, "CogVideoImageEncode", "end_percent 0.5"),
}
REFUSED: dict[str, tuple[Callable[[], Flow], str, str]] = {
    "warped noise": (noise_warp, "CogVideoSampler", "GetWarpedNoiseFromVideo"),
    "a saved latent": (latent_file, "CogVideoSampler", "x.permute(0, 2, 1, 3, 4) / scaling_factor"),
    "latents elsewhere": (encoded_for_another_node, "CogVideoImageEncode", "[B, T, C, H, W]"),
    "a preview of latents": (lambda: with_extra("CogVideoLatentPreview", "x", 0), "CogVideoLatentPreview", "previews"),
    "Tora's weights": (lambda: flow_with("kijai/CogVideoX-5b-Tora"), "DownloadAndLoadCogVideoModel", "Tora"),
    "an unknown checkpoint": (lambda: flow_with("someone/else"), "DownloadAndLoadCogVideoModel", "someone/else"),
    "no size": (lambda: flow_with(samples=None), "CogVideoSampler", "no size"),
    "no image": (lambda: flow_with(I2V), "CogVideoSampler", "needs an image"),
    "no control video": (lambda: flow_with(POSE), "CogVideoSampler", "needs a control video"),
    "an image for a text model": (lambda: image_to_video(T2V), "CogVideoSampler", "takes no image"),
    "an image for InP": (lambda: image_to_video(INP), "CogVideoSampler", "CogVideoImageEncodeFunInP"),
    "InP's image for I2V": (lambda: fun_inpaint(I2V), "CogVideoSampler", "CogVideoImageEncode"),
    "no step": (lambda: video_to_video(T2V, steps=4, denoise=0.2), "CogVideoSampler", "less than a step"),
    "samples at strength 1": (lambda: video_to_video(T2V, denoise=1), "CogVideoSampler", "denoise_strength 1"),
}


@pytest.mark.parametrize("what", [*LEFT_OUT, *REFUSED])
def test_what_has_no_counterpart_is_refused(what: str) -> None:
    """Left out without a word, the workflow would run and make another video."""
    build, node, word = (LEFT_OUT | REFUSED)[what]
    lines = refused(build())
    assert any(line.startswith(node) and word in line for line in lines), lines


@pytest.mark.parametrize("what", LEFT_OUT)
def test_left_out_when_asked(what: str) -> None:
    """Who knows that it is missing may have the rest; the report still says it."""
    build, node, word = LEFT_OUT[what]
    _, work = migrated(build(), leave_out=True)
    assert any(line.startswith(node) and word in line for line in work.of("left out"))


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_left_out_stays_refused(what: str) -> None:
    """A workflow without it would not run."""
    if what != "a preview of latents":
        refused(REFUSED[what][0](), leave_out=True)


@pytest.mark.parametrize(
    "type_, name, word",
    [
        ("CogVideoXTeaCache", "teacache_args", "TeaCache"),
        ("CogVideoXFasterCache", "fastercache", "FasterCache"),
        ("CogVideoEnhanceAVideo", "feta_args", "Enhance-A-Video"),
    ],
)
def test_speed_ups_are_left_out_with_a_word(type_: str, name: str, word: str) -> None:
    """A workflow does not depend on them."""
    _, work = migrated(with_extra(type_, name))
    assert any(word in line for line in work.of("left out"))


def test_memory_and_attention_are_comfyui_s() -> None:
    """What a loader says of offloading, attention and torch.compile is told, and of the last the backend is kept."""
    flow = Flow()
    compiled = (flow.add("CogVideoXTorchCompileSettings", "inductor", True, "max-autotune", False, 64), 0)
    sockets = {"lora": None, "compile_args": compiled}
    values = (T2V, "fp32", "disabled", True, "sageattn", "offload_device")
    loader = flow.add("DownloadAndLoadCogVideoModel", *values, **sockets)
    flow.save(flow.sample(loader, flow.prompts(), samples=flow.empty(720, 480)), (loader, 1))
    api, work = migrated(flow)
    left = " ".join(work.of("left out"))
    assert "offloading" in left and "--use-sage-attention" in left and "torch.compile" in left
    assert only(api, "TorchCompileModel")["backend"] == "inductor"
    assert source(api, only(api, "CogVideoXSample")["model"]) == "TorchCompileModel"
    assert not any("seed" in line for line in work.of("changed")), "fp32 draws the same noise"


def test_unconnected_input_is_named() -> None:
    """The wrapper would stop at it as well."""
    flow = flow_with()
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    for entry in sampler["inputs"]:
        if entry["name"] == "positive":
            entry["link"] = None
    lines = refused(flow)
    assert any("positive" in line for line in lines)


def test_other_version_of_the_wrapper_is_named() -> None:
    """Its values stand at other places: read as those of the last version, they would be wrong numbers."""
    flow = Flow()
    loader = flow.loader(I2V)
    image: Slot = flow.encode((loader, 1), flow.picture(720, 480), 16, False)  # chunk_size, enable_tiling
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), (loader, 1))
    (line,) = refused(flow)
    assert "16 at enable_tiling" in line and "another version" in line


def test_every_refusal_is_reported_at_once() -> None:
    """Who repairs one thing after the other would begin five times."""
    flow = flow_with(strength=2.0, scheduler="PNDM")
    assert len(refused(flow)) == 3  # both prompts and the scheduler


def test_quantization_becomes_the_nearest() -> None:
    """torchao's int8 and fp8 multiply in that type, and so do the _fast ones."""
    for theirs, ours in (("torchao_int8dq", "int8_fast"), ("fp8_e4m3fn_fastmode", "fp8_e4m3fn_fast")):
        api, work = migrated(text_to_video(T2V, quantization=theirs))
        assert only(api, "CogVideoXLoadModel")["weight_dtype"] == ours
        assert any(theirs in line for line in work.of("changed"))


def test_control_models_have_no_noise_on_the_video() -> None:
    flow = fun_control(POSE)
    encode = next(node for node in flow.nodes if node["type"] == "CogVideoImageEncode")
    encode["widgets_values"][1] = 0.05
    assert any("noise_aug_strength" in line for line in refused(flow))


def test_values_of_any_kind_are_shown_in_plain_words() -> None:
    """A link was shown as Link(node='3', slot=0), and a widget of a thousand entries whole."""
    flow = video_to_video(T2V)
    number = (flow.add("CreateCFGScheduleFloatList", 50, 6, 1), 0)
    encode = next(node for node in flow.nodes if node["type"] == "CogVideoImageEncode")
    flow.links.append([len(flow.links) + 1, number[0], 0, encode["id"], len(encode["inputs"]), "FLOAT"])
    encode["inputs"].append({"name": "strength", "type": "FLOAT", "link": len(flow.links)})
    (line,) = refused(flow)
    assert "strength from another node has no counterpart" in line
    flow = flow_with()
    empty = next(node for node in flow.nodes if node["type"] == "EmptyLatentImage")
    empty["widgets_values"][0] = {f"{number}": number for number in range(2000)}
    assert any("is not a size of a video" in line and len(line) < 500 for line in refused(flow))
