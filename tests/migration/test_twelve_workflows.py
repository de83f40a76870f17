"""Twelve workflows of the wrapper, rebuilt: what they become, value by value where a value means something else."""

import pytest

from cogvideox.devtools.workflow import convert_to_api
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.migration.wrapper_nodes import NAMES, WRAPPER
from cogvideox.tests.migration.graph_checks import check_runs, migrated, only, refused, schemas, source
from cogvideox.tests.migration.wrapper_flows import EXAMPLES, ORBIT, T5, TWELVE, fun_inpaint

MIGRATED = [name for name in TWELVE if name != "tora"]


@pytest.mark.parametrize("name", MIGRATED)
def test_workflow_migrates(name: str) -> None:
    """A workflow with a node, an input or a link that ComfyUI does not take would not open or not run."""
    api, _ = migrated(TWELVE[name]())
    (end,) = (node for node in api.values() if node["class_type"] == "SaveImage")
    decode = api[end["inputs"]["images"][0]]
    assert decode["class_type"] == "CogVideoXDecode"
    assert source(api, decode["inputs"]["samples"]) == "CogVideoXSample"
    assert only(api, "CogVideoXLoadTextEncoder")["text_encoder_name"] == T5.replace("\\", "/")
    assert "CLIPLoader" not in {node["class_type"] for node in api.values()}, "it would load T5 for nobody"


@pytest.mark.parametrize("name", MIGRATED)
def test_workflow_in_api_format_migrates_to_the_same(name: str) -> None:
    """Whoever sends prompts to the API has no file of the frontend."""
    saved = TWELVE[name]().document()
    document, work = migrate_workflow(_as_api(saved), Options())
    assert document is not None, work.of("refused")
    check_runs(document)
    expected, _ = migrated(TWELVE[name]())
    assert _values(document) == _values(expected)


def _values(api: dict) -> list:
    """Every node with its values, and for each link the type that it comes from."""
    nodes = []
    for node in api.values():
        inputs = {n: source(api, v) if isinstance(v, list) else v for n, v in node["inputs"].items()}
        nodes.append((node["class_type"], sorted(inputs.items(), key=str)))
    return sorted(nodes, key=str)


def _as_api(saved: dict) -> dict:
    """A wrapper's workflow as the frontend sends it."""
    known = dict(schemas())
    for name in NAMES:
        inputs = {i.name: [i.kind, {"default": i.default}] for i in WRAPPER.get(name, ())}
        known[name] = {"input": {"required": inputs}}
    return convert_to_api(saved, known)


def test_2b() -> None:
    """2b from its own folder, or from the wrapper's, which is called CogVideo2B."""
    api, _ = migrated(TWELVE["t2v_2b"]())
    assert only(api, "CogVideoXLoadModel") == {"model_name": "CogVideoX-2b", "weight_dtype": "bf16", "family": "detect"}
    assert only(api, "CogVideoXEmptyLatent") == {"width": 720, "height": 480, "frames": 49, "batch_size": 1}
    sample = only(api, "CogVideoXSample")
    assert (sample["seed"], sample["steps"], sample["cfg"], sample["sampler"]) == (42, 50, 6, "ddim")
    assert (sample["dynamic_cfg"], sample["denoise"]) == (False, 1.0)
    api, _ = migrated(TWELVE["t2v_2b"](), wrapper_folder=True)
    assert only(api, "CogVideoXLoadModel")["model_name"] == only(api, "CogVideoXLoadVAE")["vae_name"] == "CogVideo2B"


def test_dpm_has_dynamic_guidance() -> None:
    """The wrapper always changes the guidance with its DPM scheduler, which its sampler does not say."""
    api, work = migrated(TWELVE["t2v_5b_dpm"]())
    sample = only(api, "CogVideoXSample")
    assert (sample["sampler"], sample["dynamic_cfg"]) == ("dpm", True)
    assert only(api, "CogVideoXLoadModel")["weight_dtype"] == "fp8_e4m3fn"
    assert only(api, "CogVideoXLoadVAE")["weight_dtype"] == "bf16"
    assert any("dynamic_cfg" in line for line in work.of("changed"))


def test_1_5_names() -> None:
    """The wrapper keeps both 1.5 transformers in one folder, beside one VAE."""
    api, _ = migrated(TWELVE["t2v_1.5"]())
    assert only(api, "CogVideoXLoadModel")["model_name"] == "CogVideoX1.5-5B"
    api, _ = migrated(TWELVE["t2v_1.5"](), wrapper_folder=True)
    assert only(api, "CogVideoXLoadModel")["model_name"] == "CogVideoX-5b-1.5/transformer_T2V"
    assert only(api, "CogVideoXLoadVAE")["vae_name"] == "CogVideoX-5b-1.5"


@pytest.mark.parametrize("name, scale, width", [("i2v_5b", "checkpoint", 720), ("i2v_1.5", "unscaled", 1360)])
def test_image_latents_of_1_5_are_unscaled(name: str, scale: str, width: int) -> None:
    """The wrapper multiplies the image's latents by 0.7 and, for 1.5, divides by 0.7 again: with the checkpoint's own
    convention (divided) the picture would be twice as strong."""
    api, work = migrated(TWELVE[name]())
    image = only(api, "CogVideoXImageToVideo")
    assert (image["image_scale"], image["width"], image["frames"]) == (scale, width, 49)
    assert image["sample_posterior"] is False and "end_image" not in image
    assert any("posterior" in line for line in work.of("changed"))


def test_video_to_video_runs_the_same_steps() -> None:
    """25 steps at strength 0.8 are the last 20 of 25; a sampler here counts the steps that it runs."""
    api, _ = migrated(TWELVE["v2v_5b"]())
    sample = only(api, "CogVideoXSample")
    assert (sample["steps"], sample["denoise"]) == (20, 0.8)
    assert source(api, sample["latent_image"]) == "CogVideoXEncodeVideo"
    frames = only(api, "ImageFromBatch")
    assert (frames["batch_index"], frames["length"]) == (0, 33)


def test_fun_inpaint() -> None:
    """Start and end image of an InP model; the wrapper marks the first frame alone as known."""
    api, work = migrated(TWELVE["fun_inpaint"]())
    node = only(api, "CogVideoXFunInpaint")
    assert (node["noise_augmentation"], node["frames"]) == (0.03, 49)
    assert source(api, node["start_image"]) == source(api, node["end_image"]) == "ImageScale"
    assert any("last frame" in line for line in work.of("changed"))
    api, work = migrated(fun_inpaint("kijai/CogVideoX-Fun-5b", ends=False))
    assert only(api, "CogVideoXLoadModel")["model_name"] == "CogVideoX-Fun-5b-InP"
    assert not any("last frame" in line for line in work.of("changed"))


def test_fun_control() -> None:
    """Of the image encoder's strength and range, control models have a counterpart."""
    api, _ = migrated(TWELVE["fun_control"]())
    node = only(api, "CogVideoXFunControl")
    assert (node["strength"], node["start_percent"], node["end_percent"]) == (0.8, 0.0, 0.5)
    assert source(api, node["control_video"]) == "RepeatImageBatch"


def test_control_net() -> None:
    """The control net goes to the prompts, not to the sampler."""
    api, _ = migrated(TWELVE["control_net"]())
    node = only(api, "CogVideoXApplyControlNet")
    assert (node["strength"], node["start_percent"], node["end_percent"]) == (0.7, 0, 0.6)
    assert only(api, "CogVideoXLoadControlNet")["control_net_name"] == "cogvideox-2b-controlnet-hed-v1"
    sample = only(api, "CogVideoXSample")
    assert source(api, sample["positive"]) == source(api, sample["negative"]) == "CogVideoXApplyControlNet"


def test_loras() -> None:
    """The chain keeps its order; DimensionX's scale of 1 / rank, which the wrapper takes from a name, holds for all
    LoRAs that are fused together."""
    api, work = migrated(TWELVE["lora"]())
    last = api[only(api, "CogVideoXSample")["model"][0]]["inputs"]
    first = api[last["model"][0]]["inputs"]
    assert (first["lora_name"], first["strength"]) == ("style.safetensors", 0.8)
    assert (last["lora_name"], last["strength"]) == (ORBIT, 1)
    assert first["scale"] == last["scale"] == "1 / rank (DimensionX)"
    assert source(api, first["model"]) == "CogVideoXLoadModel"
    assert any("own rank" in line for line in work.of("changed"))


def test_context_windows() -> None:
    """48 frames are 12 latents in the wrapper, and 12 latents are 45 frames; 49 would be one more."""
    api, _ = migrated(TWELVE["context_windows"]())
    node = only(api, "CogVideoXContextWindows")
    assert (node["context_frames"], node["overlap_frames"], node["schedule"]) == (45, 8, "standard_uniform")
    assert (node["fuse_method"], node["freenoise"], node["retain_start_image"]) == ("flat", True, False)
    assert source(api, only(api, "CogVideoXSample")["model"]) == "CogVideoXContextWindows"


def test_tora_is_refused_by_name() -> None:
    """A video without its trajectories would be another one."""
    lines = refused(TWELVE["tora"]())
    assert any("ToraEncodeTrajectory" in line for line in lines)
    assert any("CogVideoSampler" in line and "Tora" in line for line in lines)


def test_tora_without_its_trajectory_when_asked() -> None:
    """Image to video remains, which runs; the report says what is missing."""
    written, work = migrate_workflow(TWELVE["tora"]().document(), Options(leave_out=True))
    assert written is not None and sum("Tora" in line for line in work.of("left out")) == 3
    kinds = {node["type"] for node in written["nodes"]}
    assert {"CogVideoXImageToVideo", "CogVideoXSample"} <= kinds and not kinds & NAMES


# Of the wrapper's own examples: the nodes that stand for the task, or the node by which it is refused, and why.
BECOMES = {
    "cogvideox_1_0_5b_T2V_02": {"CogVideoXEmptyLatent"},
    "cogvideox_1_0_5b_I2V_02": {"CogVideoXImageToVideo"},
    "cogvideox_1_5_5b_I2V_01": {"CogVideoXImageToVideo"},
    "cogvideox_1_0_5b_interpolation_02": {"CogVideoXImageToVideo"},
    "cogvideox_1_0_5b_vid2vid_02": {"CogVideoXEncodeVideo", "ImageFromBatch"},
    "cogvideox_1_0_2b_controlnet_02": {"CogVideoXEmptyLatent", "CogVideoXApplyControlNet"},
    "cogvideox_Fun_I2V_02": {"CogVideoXFunInpaint"},
    "cogvideox_Fun_pose_02": {"CogVideoXFunControl"},
    "cogvideox_Fun_180_orbit_02": {"CogVideoXFunInpaint", "CogVideoXApplyLora"},
}
REFUSED_EXAMPLES = {
    "cogvideox_1_0_5b_I2V_noise_warp_01": ("CogVideoSampler", "GetWarpedNoiseFromVideo"),
    "cogvideox_1_0_5b_I2V_Tora_02": ("ToraEncodeTrajectory", "Tora"),
    "cogvideox_Fun_I2V_Tora": ("ToraEncodeTrajectory", "Tora"),
}
_TASK_NODES = set().union(*BECOMES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_wrapper_s_own_examples(name: str) -> None:
    """What most people have begun with, and have saved with their own prompt."""
    if name in REFUSED_EXAMPLES:
        node, word = REFUSED_EXAMPLES[name]
        assert any(line.startswith(node) and word in line for line in refused(EXAMPLES[name]()))
        return
    api, _ = migrated(EXAMPLES[name]())
    assert {node["class_type"] for node in api.values()} & _TASK_NODES == BECOMES[name]


def test_start_and_end_image_of_interpolation() -> None:
    """Its checkpoint is not to be downloaded here; both pictures are in the node."""
    api, work = migrated(EXAMPLES["cogvideox_1_0_5b_interpolation_02"]())
    node = only(api, "CogVideoXImageToVideo")
    assert source(api, node["start_image"]) == source(api, node["end_image"]) == "ImageScale"
    assert only(api, "CogVideoXLoadModel")["model_name"] == "CogvideoX-Interpolation"
    assert any("not in CogVideoX Download" in line for line in work.of("changed"))


def test_orbit_lora_of_an_inpaint_model() -> None:
    api, _ = migrated(EXAMPLES["cogvideox_Fun_180_orbit_02"]())
    lora = only(api, "CogVideoXApplyLora")
    assert (lora["lora_name"], lora["scale"]) == (ORBIT, "1 / rank (DimensionX)")
    assert only(api, "CogVideoXFunInpaint")["noise_augmentation"] == 0.03
