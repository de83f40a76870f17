"""Files and folders that are not what a loader wants, over the API: each ends in a message that says what was found,
what is expected and what to do, before anything is sampled, and leaves the server able to work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import DECODE, LATENTS, PROMPT, SAMPLE, node, replaced, text_to_video, with_inputs, without

LOADERS = {  # node id -> its name input
    "CogVideoXLoadPipeline": "folder",
    "CogVideoXLoadModel": "model_name",
    "CogVideoXLoadTextEncoder": "text_encoder_name",
    "CogVideoXLoadVAE": "vae_name",
}
OTHER_MODELS = {  # what its keys are -> keys that its single file has, as its publisher ships it
    "a Wan model": ("blocks.0.self_attn.q.weight", "patch_embedding.weight"),
    "a Flux or HunyuanVideo model": ("double_blocks.0.img_attn.qkv.weight", "img_in.weight"),
    "a Stable Diffusion 3 model": ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",),
    "an LTX-Video model": (
        "model.diffusion_model.transformer_blocks.0.attn1.k_norm.weight",
        "model.diffusion_model.patchify_proj.weight",
    ),
    "a complete Stable Diffusion checkpoint": ("model.diffusion_model.input_blocks.0.0.weight",),
    "a T5 text encoder": ("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"),
    "a LoRA": ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",),
}


@pytest.fixture
def damaged(comfyui, request) -> Callable[[Callable[[Path], object]], str]:
    """damaged(how) copies the 5b pipeline, calls how(folder) on the copy and returns its name."""

    def copy(how: Callable[[Path], object]) -> str:
        name = "bad-" + "".join(c if c.isalnum() else "-" for c in request.node.name)
        shutil.copytree(comfyui.pipeline(folder_name("5b")), comfyui.pipelines / name)
        how(comfyui.pipelines / name)
        return name

    return copy


def first_shard(component: Path) -> Path:
    return min(component.glob("*.safetensors"))


def test_folder_without_index(damaged, refused):
    """Someone who downloads the transformer alone would search the nodes for the fault."""
    name = damaged(lambda folder: (folder / "model_index.json").unlink())
    refused(text_to_video(name), "CogVideoXLoadPipeline", name, "has no model_index.json", "Put the whole repository")


def test_pipeline_of_another_family(damaged, refused):
    """A Wan folder would be opened and fail on some missing key."""

    def rename(folder: Path) -> None:
        index = folder / "model_index.json"
        index.write_text(index.read_text("utf-8").replace("CogVideoXPipeline", "WanPipeline"), "utf-8")

    name = damaged(rename)
    refused(text_to_video(name), "CogVideoXLoadPipeline", name, "is a WanPipeline, not a CogVideoX pipeline", "Choose")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_missing_component(damaged, refused, component):
    """A download that stopped between two folders would end in a path that does not exist."""
    name = damaged(lambda folder: shutil.rmtree(folder / component))
    refused(text_to_video(name), "CogVideoXLoadPipeline", f"lacks {component}", "Download the missing folders again")


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_missing_shard(damaged, refused, component):
    """Without the file's name someone fetches all 20 GB again."""
    missing = []

    def remove(folder: Path) -> None:
        missing.append(first_shard(folder / component))
        missing[0].unlink()

    name = damaged(remove)
    refused(
        text_to_video(name), "CogVideoXLoadPipeline", f"lacks {missing[0].name}", "Download the missing files again"
    )


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_file_cut_short(damaged, refused, component):
    """A download that stopped would load as garbage or end in an error of the mmap."""
    cut = []

    def shorten(folder: Path) -> None:
        file = first_shard(folder / component)
        cut.extend([file.name, file.stat().st_size])
        with file.open("r+b") as opened:
            opened.truncate(cut[1] - 1000)

    pipeline = damaged(shorten)
    name, size = cut
    words = f"has {size - 1000} bytes and should have {size}"
    refused(text_to_video(pipeline), "CogVideoXLoadPipeline", name, words, "Download it again")


@pytest.mark.parametrize(
    ("content", "looks_like"),
    [
        (b"", "is empty"),
        (b"\x07" * 5000, "is not a weight file that this version reads"),
        ((200).to_bytes(8, "little") + b"{not json" + b"." * 500, "has no valid safetensors header"),
        (b"<!DOCTYPE html><html><head><title>401</title></head></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 500, "cannot be read as a PyTorch file"),
    ],
    ids=["empty", "random", "broken-header", "web-page", "lfs-pointer", "pickle"],
)
def test_file_that_is_not_safetensors(damaged, refused, content, looks_like):
    """What a failed login or a clone without Git LFS leaves on the disk would be called a broken header."""
    pipeline = damaged(lambda folder: first_shard(folder / "transformer").write_bytes(content))
    refused(text_to_video(pipeline), "CogVideoXLoadPipeline", "-00001-of-", looks_like, "Download it again")


@pytest.mark.parametrize("file", ["model_index.json", "transformer/config.json"])
def test_broken_json(damaged, refused, file):
    """A config cut short would end in a JSON error without the file's name."""
    name = damaged(lambda folder: (folder / file).write_text('{"_class_name": ', "utf-8"))
    refused(
        text_to_video(name), "CogVideoXLoadPipeline", Path(file).name, "cannot be read as JSON", "Download it again"
    )


def test_config_of_another_size(damaged, refused):
    """A 2b config beside 5b weights would build a model that the weights do not fit, without saying why."""

    def widen(folder: Path) -> None:
        config = folder / "transformer" / "config.json"
        changed = json.loads(config.read_text("utf-8")) | {"num_attention_heads": 8}
        config.write_text(json.dumps(changed), "utf-8")

    refused(
        text_to_video(damaged(widen)), "CogVideoXLoadPipeline", "width 128 against 64", "Put the config.json of this"
    )


@pytest.mark.parametrize("looks_like", OTHER_MODELS)
def test_weights_of_another_family(comfyui, refused, looks_like):
    """Whoever picks another model's file from the list learns only that some key is missing."""
    name = looks_like.replace(" ", "-") + ".safetensors"
    file = comfyui.base / "models" / "diffusion_models" / name
    save_file({key: torch.ones(4, 4) for key in OTHER_MODELS[looks_like]}, file)
    graph = replaced(text_to_video(), "model", "CogVideoXLoadModel", model_name=name, weight_dtype="default")
    graph = with_inputs(graph, SAMPLE, model=["model", 0])
    refused(graph, "CogVideoXLoadModel", name, f"looks like {looks_like}", "not a CogVideoX transformer", "Choose")


@pytest.mark.parametrize(
    ("loader", "part", "looks_like"),
    [
        ("CogVideoXLoadVAE", "transformer", "a CogVideoX-like transformer, not a CogVideoX VAE"),
        ("CogVideoXLoadModel", "vae", "a CogVideoX VAE, not a CogVideoX transformer"),
        ("CogVideoXLoadModel", "text_encoder", "a T5 text encoder, not a CogVideoX transformer"),
        ("CogVideoXLoadTextEncoder", "vae", "a CogVideoX VAE, not a T5 text encoder"),
    ],
)
def test_one_part_given_to_the_loader_of_another(comfyui, refused, loader, part, looks_like):
    """All three parts are called diffusion_pytorch_model or model and are easily put into the wrong folder. A VAE is
    loaded last: found only then, it would cost a whole run."""
    models, taker, socket = {
        "CogVideoXLoadVAE": ("vae", DECODE, "vae"),
        "CogVideoXLoadModel": ("diffusion_models", SAMPLE, "model"),
        "CogVideoXLoadTextEncoder": ("text_encoders", PROMPT, "clip"),
    }[loader]
    name = f"misplaced-{part}"
    shutil.copytree(comfyui.pipeline(folder_name("5b")) / part, comfyui.base / "models" / models / name)
    graph = replaced(text_to_video(), "loader", loader, **{LOADERS[loader]: name}, weight_dtype="default")
    graph = with_inputs(graph, taker, **{socket: ["loader", 0]})
    refused(without(graph, LATENTS), loader, name, looks_like, "Choose the checkpoint's")


def test_text_encoder_of_the_wrong_width(comfyui, damaged, refused, wide):
    """A T5-base in the folder would end in a matrix product that does not fit, after it was loaded."""

    def swap(folder: Path) -> None:
        shutil.rmtree(folder / "text_encoder")
        shutil.copytree(comfyui.pipelines / wide / "text_encoder", folder / "text_encoder")

    refused(
        text_to_video(damaged(swap)),
        "CogVideoXLoadPipeline",
        "has width 48; the transformer reads width 32",
        "Download the checkpoint's own text_encoder",
    )


@pytest.mark.parametrize(
    ("weight_dtype", "words"),
    [
        ("fp8_e4m3fn", ("cannot run in fp8_e4m3fn", "Choose default, fp32")),
        ("int3", ("weight_dtype is 'int3': use default, fp32",)),
    ],
)
def test_vae_in_a_precision_without_kernels(refused, weight_dtype, words):
    """fp8 has no convolution: the decode would fail after the whole run."""
    graph = replaced(
        text_to_video(), "loader", "CogVideoXLoadVAE", vae_name=folder_name("5b"), weight_dtype=weight_dtype
    )
    graph = with_inputs(graph, DECODE, vae=["loader", 0])
    refused(without(graph, LATENTS), "CogVideoXLoadVAE", *words)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "name",
    ["../../secret", "..\\secret", "/etc", "C:\\models", "", "a\0b", "x" * 5000, 5, None],
    ids=["up", "up-windows", "root", "drive", "empty", "nul", "long", "number", "null"],
)
def test_names_that_lead_out_of_the_model_folders(refused, loader, name):
    """A shared workflow could make a server open any file it can read."""
    graph = {
        "loader": node(loader, **{LOADERS[loader]: name}, weight_dtype="default"),
        "show": node("PreviewAny", source=["loader", 0]),
    }
    refused(graph, loader, "from the list")


@pytest.mark.parametrize("loader", LOADERS)
def test_name_of_nothing(refused, loader):
    """A workflow from someone else names a checkpoint that is not here: where it was looked for helps."""
    graph = {
        "loader": node(loader, **{LOADERS[loader]: "not-here"}, weight_dtype="default"),
        "show": node("PreviewAny", source=["loader", 0]),
    }
    refused(graph, loader, "There is no 'not-here'. Choose another one from the list.", "It was looked for in /")


def test_server_works_after_all_of_it(comfyui, untouched):
    """A loader that failed halfway could leave a broken model behind, for which the next run would pay."""
    assert torch.equal(comfyui.make_again(text_to_video()).latent, untouched)
