"""The same tasks with other nodes around them: reroutes, Set and Get, other loaders, second passes, other packs."""

import copy
import json

import pytest

from cogvideox.devtools.workflow import convert_to_api
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.tests.migration.graph_checks import check_runs, migrated, only, refused, schemas, source
from cogvideox.tests.migration.wrapper_flows import Flow, Slot, fun_inpaint, text_to_video, video_to_video

T2V, I2V, INP = "THUDM/CogVideoX-5b", "THUDM/CogVideoX-5b-I2V", "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP"


def test_set_and_get_and_reroutes_lead_to_the_new_loader() -> None:
    """Many workflows carry MODEL and VAE through them; what only carried the wrapper's goes with it."""
    flow = Flow()
    loader = flow.loader(T2V)
    flow.add("SetNode", "VAE", VAE=(loader, 1))
    vae: Slot = (flow.add("GetNode", "VAE"), 0)
    model = flow.add("Reroute", **{"": (loader, 0)})
    frames: Slot = (flow.add("INTConstant", 49), 0)
    sampled = flow.sample(model, flow.prompts(), samples=flow.empty(720, 480), num_frames=frames)
    flow.save(sampled, vae)
    api, _ = migrated(flow)
    assert source(api, only(api, "CogVideoXSample")["model"]) == "CogVideoXLoadModel"
    assert source(api, only(api, "CogVideoXDecode")["vae"]) == "CogVideoXLoadVAE"
    assert source(api, only(api, "CogVideoXEmptyLatent")["frames"]) == "INTConstant", "a number's link stays"
    document, _ = migrate_workflow(flow.document(), Options())
    assert document is not None
    assert not {"SetNode", "GetNode", "Reroute"} & {node["type"] for node in document["nodes"]}


def test_number_from_another_node_is_rounded_where_it_has_to_be() -> None:
    """A link to 48 frames would stop the run here."""
    flow = Flow()
    loader, frames = flow.loader(T2V), (flow.add("INTConstant", 48), 0)
    flow.save(flow.sample(loader, flow.prompts(), samples=flow.empty(722, 480), num_frames=frames), (loader, 1))
    api, work = migrated(flow)
    assert only(api, "CogVideoXEmptyLatent") == {"width": 720, "height": 480, "frames": 45, "batch_size": 1}
    assert sum("48 frames become 45" in line or "722 becomes 720" in line for line in work.of("changed")) == 2


@pytest.mark.parametrize("keeps, width", [(False, 704), (True, "ImageResizeKJ")])
def test_size_comes_from_what_resizes_the_image(keeps: bool, width: int | str) -> None:
    """The wrapper has the size of the image's latents; here a widget says it, or the link to what measures it."""
    flow = Flow()
    loader = flow.loader(I2V)
    picture = (flow.add("LoadImage", "example.png", "image"), 0)
    resized = (flow.add("ImageResizeKJ", 719, 480, "lanczos", keeps, 16, 0, 0, "disabled", image=picture), 0)
    counted = (flow.add("GetImageSizeAndCount", image=resized), 0)
    image = flow.encode((loader, 1), counted)
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), (loader, 1))
    api, _ = migrated(flow)
    node = only(api, "CogVideoXImageToVideo")
    if keeps:
        assert source(api, node["width"]) == "GetImageSizeAndCount" and node["width"][1:] == [1]
    else:
        assert (node["width"], node["height"]) == (width, 480)


def test_size_is_measured_where_nothing_says_it() -> None:
    """A picture as it is: ComfyUI's own node measures it in the run."""
    flow = Flow()
    loader = flow.loader(I2V)
    image = flow.encode((loader, 1), (flow.add("LoadImage", "example.png", "image"), 0))
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), (loader, 1))
    api, work = migrated(flow)
    node = only(api, "CogVideoXImageToVideo")
    assert source(api, node["width"]) == source(api, node["height"]) == "GetImageSize"
    assert [node["width"][1], node["height"][1]] == [0, 1]
    assert any("multiples of 16" in line for line in work.of("changed"))


def test_single_file_and_its_own_vae() -> None:
    """CogVideoXModelLoader and CogVideoXVAELoader: the same names in the same folders of models."""
    flow = Flow()
    values = ("CogVideoX\\5b_1.5_I2V.safetensors", "bf16", "fp8_e4m3fn_fast", "main_device", False, "sdpa")
    loader = flow.add("CogVideoXModelLoader", *values, lora=None)
    vae = (flow.add("CogVideoXVAELoader", "cogvideox_vae.safetensors", "fp32", compile_args=None), 0)
    image = flow.encode(vae, flow.picture(1360, 768))
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), vae)
    api, _ = migrated(flow)
    model = only(api, "CogVideoXLoadModel")
    assert (model["model_name"], model["weight_dtype"]) == ("CogVideoX/5b_1.5_I2V.safetensors", "fp8_e4m3fn_fast")
    vae_inputs = only(api, "CogVideoXLoadVAE")
    assert (vae_inputs["vae_name"], vae_inputs["weight_dtype"]) == ("cogvideox_vae.safetensors", "fp32")
    assert only(api, "CogVideoXImageToVideo")["image_scale"] == "unscaled", "the wrapper goes by the file's name"


def test_file_that_does_not_say_1_5_is_scaled_as_the_wrapper_does() -> None:
    """It divides the scale out by the name alone; this pack would take the convention of the weights."""
    flow = Flow()
    loader = flow.add(
        "CogVideoXModelLoader", "my_i2v_I2V.safetensors", "bf16", "disabled", "main_device", False, "sdpa"
    )
    vae = (flow.add("CogVideoXVAELoader", "cogvideox_vae.safetensors", "bf16"), 0)
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=flow.encode(vae, flow.picture(720, 480))), vae)
    api, _ = migrated(flow)
    assert only(api, "CogVideoXImageToVideo")["image_scale"] == "multiplied"


def test_latents_for_a_node_of_comfyui_are_others() -> None:
    """The wrapper's are of another layout and scale; what a saved one was read with would not fit."""
    flow = text_to_video(T2V)
    sampler = next(node["id"] for node in flow.nodes if node["type"] == "CogVideoSampler")
    flow.add("SaveLatent", "latent", samples=(sampler, 0))
    api, work = migrated(flow)
    assert source(api, only(api, "SaveLatent")["samples"]) == "CogVideoXSample"
    assert any("SaveLatent" in line and "[B, T, C, H, W]" in line for line in work.of("changed"))


def test_gguf() -> None:
    flow = Flow()
    values = ("CogVideoX_5b_GGUF_Q4_0.safetensors", "bf16", False, "main_device", False, "sdpa")
    loader = flow.add("DownloadAndLoadCogVideoGGUFModel", *values, block_edit=None)
    flow.save(flow.sample(loader, flow.prompts(), samples=flow.empty(720, 480)), (loader, 1))
    api, _ = migrated(flow)
    model = only(api, "CogVideoXLoadModel")
    assert (model["model_name"], model["weight_dtype"]) == (values[0], "default")
    assert only(api, "CogVideoXLoadVAE")["vae_name"] == "cogvideox_vae.safetensors"


def test_img2vid_is_named_to_the_loader() -> None:
    """NimVideo's model cannot be told from Fun-2b-Control by its shapes."""
    flow = Flow()
    loader = flow.loader("NimVideo/cogvideox-2b-img2vid")
    image = flow.encode((loader, 1), flow.picture(720, 480))
    flow.save(flow.sample(loader, flow.prompts(), image_cond_latents=image), (loader, 1))
    api, _ = migrated(flow)
    assert only(api, "CogVideoXLoadModel")["family"] == "CogVideoX-2b-img2vid"


def test_prompt_weights_only_where_there_are_brackets() -> None:
    """The wrapper's tokenizer reads (word:1.2) as a weight, this pack's does so where it is asked."""
    for text, expected in (("a (red:1.3) fox", True), ("a red fox: running", False)):
        flow = Flow()
        loader = flow.loader(T2V)
        flow.save(flow.sample(loader, flow.prompts(text), samples=flow.empty(720, 480)), (loader, 1))
        api, _ = migrated(flow)
        nodes = [node["inputs"] for node in api.values() if node["class_type"] == "CogVideoXEncodeText"]
        assert {node["text"]: node["prompt_weights"] for node in nodes} == {text: expected, "": False}


@pytest.mark.parametrize(
    "mode, ratio, kind", [("average", 0.9, 0.5), ("weighted_average", 0.25, 0.25), ("concatenate", 0.5, None)]
)
def test_combined_prompts(mode: str, ratio: float, kind: float | None) -> None:
    """theirs: c1 (1 - r) + c2 r. ComfyUI's: to r + from (1 - r)."""
    flow = Flow()
    loader, prompts = flow.loader(T2V), flow.prompts("first")
    second = (flow.add("CogVideoTextEncode", "second", 1, True, clip=(2, 0)), 0)
    both = {"conditioning_1": prompts[0], "conditioning_2": second}
    combined = (flow.add("CogVideoTextEncodeCombine", mode, ratio, **both), 0)
    sampled = flow.sample(loader, (combined, prompts[1]), samples=flow.empty(720, 480))
    flow.save(sampled, (loader, 1))
    api, _ = migrated(flow)
    node = only(api, "ConditioningConcat" if kind is None else "ConditioningAverage")
    to, from_ = (api[node[name][0]]["inputs"]["text"] for name in ("conditioning_to", "conditioning_from"))
    assert (to, from_) == (("first", "second") if kind is None else ("second", "first"))
    assert node.get("conditioning_to_strength") == kind


@pytest.mark.parametrize(
    "theirs, ours", [("DPM++", "dpmpp_2m"), ("UniPCMultistepScheduler", "uni_pc"), ("Euler A", "euler_ancestral")]
)
def test_other_schedulers_are_comfyui_s_samplers(theirs: str, ours: str) -> None:
    api, work = migrated(text_to_video(T2V, scheduler=theirs))
    node = only(api, "KSampler")
    assert (node["sampler_name"], node["scheduler"], node["seed"], node["steps"]) == (ours, "simple", 42, 50)
    assert any("not the same numbers" in line for line in work.of("changed"))


def test_second_pass_over_the_first_ones_latent() -> None:
    """Both samplers are this pack's, and so is the latent between them."""
    flow = Flow()
    loader, prompts = flow.loader(T2V), flow.prompts()
    first = flow.sample(loader, prompts, samples=flow.empty(720, 480))
    flow.save(flow.sample(loader, prompts, steps=10, denoise=0.5, samples=(first, 0)), (loader, 1))
    api, _ = migrated(flow)
    second = next(
        n["inputs"] for n in api.values() if n["class_type"] == "CogVideoXSample" and n["inputs"]["steps"] == 5
    )
    assert source(api, second["latent_image"]) == "CogVideoXSample" and second["denoise"] == 0.5


def test_dynamic_guidance_of_a_part_of_the_schedule() -> None:
    """The wrapper's formula goes by all 25 steps where 20 are run, a sampler's dynamic_cfg by those that are run."""
    flow = video_to_video(T2V)
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    sampler["widgets_values"][5] = "CogVideoXDPMScheduler"
    api, _ = migrated(flow)
    sample, patch = only(api, "CogVideoXSample"), only(api, "CogVideoXDynamicCFG")
    assert (sample["sampler"], sample["dynamic_cfg"], sample["steps"]) == ("dpm", False, 20)
    assert (patch["steps"], patch["cfg"]) == (25, 6)
    assert source(api, sample["model"]) == "CogVideoXDynamicCFG"


def test_no_dynamic_guidance_in_windows() -> None:
    from cogvideox.tests.migration.wrapper_flows import context_windows

    api, _ = migrated(context_windows(T2V, scheduler="CogVideoXDPMScheduler"))
    sample = only(api, "CogVideoXSample")
    assert (sample["sampler"], sample["dynamic_cfg"]) == ("dpm", False)


def test_strength_without_a_video_has_no_effect() -> None:
    """The wrapper runs all steps then; here the beginning of the run would be missing."""
    flow = text_to_video(T2V)
    sampler = next(node for node in flow.nodes if node["type"] == "CogVideoSampler")
    sampler["widgets_values"][-1] = 0.5
    api, work = migrated(flow)
    assert (only(api, "CogVideoXSample")["steps"], only(api, "CogVideoXSample")["denoise"]) == (50, 1.0)
    assert any("ignores denoise_strength" in line for line in work.of("changed"))


def test_inp_without_a_picture_gets_its_node() -> None:
    """The wrapper gives an InP model zeros then; a model without its channels is refused here."""
    api, work = migrated(text_to_video(INP))
    node = only(api, "CogVideoXFunInpaint")
    assert (node["width"], node["frames"]) == (720, 49) and not {"video", "start_image", "mask"} & set(node)
    assert source(api, only(api, "CogVideoXSample")["latent_image"]) == "CogVideoXFunInpaint"
    assert any("Fun Inpaint" in line for line in work.of("changed"))


def test_lora_that_is_not_fused_keeps_its_scale() -> None:
    """The wrapper scales by 1 / rank only what it fuses."""
    from cogvideox.tests.migration.wrapper_flows import ORBIT, loras

    api, _ = migrated(loras(T2V, [(ORBIT, 1, False)]))
    assert only(api, "CogVideoXApplyLora")["scale"] == "as trained"
    api, _ = migrated(loras(T2V, [("style.safetensors", 1, True)]))
    assert only(api, "CogVideoXApplyLora")["scale"] == "as trained"


def test_bypassed_lora_and_muted_branch() -> None:
    """A bypassed LoRA passes on the one before it; what is muted does not run and is not migrated."""
    from cogvideox.tests.migration.wrapper_flows import loras

    flow = loras(T2V, [("a.safetensors", 1, False), ("b.safetensors", 1, False)])
    next(n for n in flow.nodes if n["widgets_values"][:1] == ["b.safetensors"])["mode"] = 4
    loader = next(n["id"] for n in flow.nodes if n["type"] == "DownloadAndLoadCogVideoModel")
    flow.add("CogVideoDecode", True, 240, 360, 0.2, 0.2, True, vae=(loader, 1))
    flow.nodes[-1]["mode"] = 2
    api, work = migrated(flow)
    assert only(api, "CogVideoXApplyLora")["lora_name"] == "a.safetensors"
    assert any("muted" in line for line in work.of("left out"))


def test_what_is_not_the_wrapper_s_stays_as_it_is() -> None:
    """Groups, notes, positions, colours and third parties' nodes are the user's work."""
    flow = text_to_video(T2V)
    flow.add("MarkdownNote", "my note")
    document = flow.document()
    document["groups"] = [{"title": "mine", "bounding": [0, 0, 10, 10]}]
    document["nodes"][0]["color"] = "#233"
    before = copy.deepcopy(document)
    written, _ = migrate_workflow(document, Options())
    assert document == before and written is not None
    assert written["groups"] == document["groups"]
    save, note = (next(n for n in written["nodes"] if n["type"] == kind) for kind in ("SaveImage", "MarkdownNote"))
    assert (save["pos"], save["widgets_values"]) == (before["nodes"][-2]["pos"], ["cogvideo"])
    assert note == before["nodes"][-1]
    loader = next(n for n in written["nodes"] if n["type"] == "CogVideoXLoadModel")
    assert (loader["pos"], loader["color"]) == (before["nodes"][0]["pos"], "#233")
    assert len({n["id"] for n in written["nodes"]}) == len(written["nodes"])
    json.dumps(written)


def test_links_are_consistent() -> None:
    """The frontend drops a link that its two ends do not know."""
    written, _ = migrate_workflow(fun_inpaint(INP).document(), Options())
    assert written is not None
    nodes = {node["id"]: node for node in written["nodes"]}
    for number, origin, slot, target, entry, kind in written["links"]:
        assert number in nodes[origin]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][entry]["link"] == number
        assert kind == nodes[origin]["outputs"][slot]["type"]
    linked = [entry["link"] for node in nodes.values() for entry in node.get("inputs", []) if entry["link"] is not None]
    assert sorted(linked) == sorted(row[0] for row in written["links"])
    assert written["last_node_id"] == max(nodes) and written["last_link_id"] == max(linked)


def test_newer_file_format() -> None:
    """Version 1 has links as objects and its counters in `state`."""
    document = text_to_video(T2V).document()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    document["links"] = [dict(zip(names, row, strict=True)) for row in document["links"]]
    document |= {"version": 1, "state": {"lastNodeId": document.pop("last_node_id"), "lastLinkId": 9}}
    written, _ = migrate_workflow(document, Options())
    assert written is not None and all(isinstance(link, dict) for link in written["links"])
    assert written["state"]["lastNodeId"] == max(node["id"] for node in written["nodes"])
    check_runs(convert_to_api(written, schemas()))


def test_wrapper_in_a_subgraph_is_refused() -> None:
    """Half of a workflow would be migrated."""
    from cogvideox.errors import UserError

    document = text_to_video(T2V).document()
    document["definitions"] = {"subgraphs": [{"nodes": [{"id": 1, "type": "CogVideoDecode"}]}]}
    with pytest.raises(UserError, match="CogVideoDecode in a subgraph"):
        migrate_workflow(document, Options())


def test_two_set_nodes_of_one_name_are_refused() -> None:
    """Which of them is meant is a guess."""
    flow = Flow()
    loader = flow.loader(T2V)
    for _ in range(2):
        flow.add("SetNode", "VAE", VAE=(loader, 1))
    flow.save(flow.sample(loader, flow.prompts(), samples=flow.empty(720, 480)), (flow.add("GetNode", "VAE"), 0))
    assert any("2 SetNodes" in line for line in refused(flow))
