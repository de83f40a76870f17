"""Models written by CogVideoXSaveModel on the real server: loaded again they make the video of what was saved."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cogvideox.devtools import client
from cogvideox.devtools.embedded_checkpoint import transformer_config
from cogvideox.tests import layout_files as layouts
from cogvideox.tests import lora_files as loras
from cogvideox.tests.graphs import SAMPLE, node
from cogvideox.tests.part_graphs import LOADERS, component_weights, latent_only, only, short, with_lora, with_part
from cogvideox.tests.quantized_models import needs_int8
from cogvideox.tests.support import relative_error

SAVE = "save"
NODE = "CogVideoXSaveModel"
LORA = "merged.safetensors"
# (loaded as, with a LoRA, saved as) -> how far the saved model's latent may be; another seed is 1.1 away
EXACT = {
    ("fp32", False, "as loaded"),
    ("fp32", False, "fp32"),
    ("bf16", False, "as loaded"),
    ("bf16", False, "bf16"),
    ("bf16", False, "fp32"),
    ("int8", False, "as loaded"),
    ("int8", False, "int8"),
    ("int8", False, "fp32"),
    ("fp8_e4m3fn", False, "as loaded"),
    ("fp8_e4m3fn", False, "fp32"),
    ("GGUF", False, "as loaded"),
    ("GGUF", False, "fp32"),
    ("fp32", True, "as loaded"),
    ("fp32", True, "fp32"),
    ("bf16", True, "as loaded"),
}
NEAR = {
    ("fp32", False, "bf16"): 8e-3,
    ("fp32", False, "fp16"): 1e-3,
    ("fp32", False, "int8"): 8e-3,
    ("fp32", False, "fp8_e4m3fn"): 4e-2,
    ("fp32", True, "bf16"): 8e-3,
    ("fp32", True, "int8"): 8e-3,
    ("bf16", True, "fp32"): 8e-3,  # merged in the model, the LoRA is rounded to bf16
    ("int8", True, "as loaded"): 1.5e-2,
    ("GGUF", True, "as loaded"): 8e-3,
    ("GGUF", True, "int8"): 8e-3,
}
BOUNDS = {**dict.fromkeys(sorted(EXACT), 0.0), **NEAR}
# In every run: each precision once on either side, packed and not, with a LoRA and without. All in the long tier.
ALWAYS = {
    ("fp32", False, "fp16"),
    ("fp32", False, "fp8_e4m3fn"),
    ("bf16", False, "as loaded"),
    ("int8", False, "fp32"),
    ("fp8_e4m3fn", False, "as loaded"),
    ("GGUF", False, "as loaded"),
    ("fp32", True, "bf16"),
    ("int8", True, "as loaded"),
    ("GGUF", True, "int8"),
}
assert ALWAYS <= BOUNDS.keys()
CASES = [
    pytest.param(*case, marks=[*([needs_int8] if "int8" in case else []), *([pytest.mark.long] * (case not in ALWAYS))])
    for case in BOUNDS
]


@pytest.fixture(scope="module", autouse=True)
def lora(comfyui, exact) -> None:
    weights = component_weights(comfyui.pipelines / exact, "transformer")
    shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}
    files = loras.write_dialect("diffusers", loras.random_factors(shapes, loras.LINEAR))[0]
    loras.save(comfyui.base / "models" / "loras" / LORA, files)


@pytest.fixture(scope="module")
def models(comfyui) -> Path:
    """models/diffusion_models."""
    return comfyui.base / "models" / LOADERS["model"][2]


@pytest.fixture(scope="module")
def packed(comfyui, exact, models) -> str:
    """The model of `exact` as a GGUF file's folder."""
    folder = models / "to-save"
    folder.mkdir()
    pipeline = comfyui.pipelines / exact
    shutil.copy(pipeline / "transformer" / "config.json", folder)
    layouts.write_gguf(folder / "a.gguf", component_weights(pipeline, "transformer"), "Q8_0")
    return folder.name


def saving(graph: dict, name: str, weight_dtype: str = "as loaded") -> dict:
    """A graph that saves the model which the sampler of `graph` takes."""
    model = graph[SAMPLE]["inputs"]["model"]
    return only(graph | {SAVE: node(NODE, model=model, name=name, weight_dtype=weight_dtype)}, SAVE)


@pytest.mark.parametrize(("loaded", "merged", "saved"), CASES)
def test_saved_model_makes_the_same_video(comfyui, exact, packed, models, loaded, merged, saved):
    """A conversion is done once and used for months: what it changes would never be looked for there."""
    name = f"saved/{loaded} {saved} {merged}"
    source, weight_dtype = (packed, "default") if loaded == "GGUF" else (exact, loaded)
    graph = latent_only(with_part(short(exact), "model", source, weight_dtype))
    if merged:
        graph = with_lora(graph, LORA, 0.7)
    expected = comfyui.latent(graph)
    result = comfyui.run(saving(graph, name, saved))
    assert result.error is None, str(result.error)
    assert any(text.startswith(f"Saved {name.split('/')[1]}.safetensors, ") for _, text in result.texts)
    # Some CPUs compute bf16 in bf16, which they are asked for: their default is fp32.
    again = "bf16" if (loaded, saved) == ("bf16", "as loaded") else "default"
    found = comfyui.latent(latent_only(with_part(short(exact), "model", f"{name}.safetensors", again)))
    error, most = relative_error(found, expected), BOUNDS[loaded, merged, saved]
    assert error <= most and (error > 0) == (most > 0), f"{error:.1e}, allowed {most:.0e}"


@needs_int8
def test_what_is_in_the_file(comfyui, exact, models):
    """Other programs read it too: plain names, int8 where it was asked for, and what it was made from."""
    result = comfyui.run(saving(short(exact), "what", "int8"))
    assert result.error is None, str(result.error)
    path = models / "what.safetensors"
    assert path.name in comfyui.offered("CogVideoXLoadModel", "model_name")
    with safe_open(path, "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        metadata = file.metadata()
    expected = component_weights(comfyui.pipelines / exact, "transformer")
    assert expected.keys() <= types.keys()
    assert all((types[name] == "I8") == layouts.is_matrix(name) for name in expected)
    assert metadata["modelspec.architecture"] == "CogVideoX-5b" and metadata["weight_dtype"] == "int8"
    assert json.loads(metadata["config"])["vae"]["scaling_factor"] == 0.7


def test_saved_and_loaded_in_one_graph(comfyui, exact, models):
    """The name goes on to the loader, so that converting and sampling are one click."""
    graph = latent_only(short(exact))
    save = node(NODE, model=graph[SAMPLE]["inputs"]["model"], name="one/click", weight_dtype="fp32")
    linked = with_part(graph | {SAVE: save}, "model", [SAVE, 0], "fp32")
    assert torch.equal(comfyui.latent(linked), comfyui.latent(graph))
    assert (models / "one" / "click.safetensors").is_file()


def test_nothing_is_overwritten(comfyui, exact, refused, models):
    """Known only after the conversion it would cost a quarter of an hour, or the older file."""
    assert comfyui.run(saving(short(exact), "taken")).error is None
    before = (models / "taken.safetensors").stat()
    for name in ("taken", "taken.safetensors", " taken "):
        error = refused(saving(with_lora(short(exact), LORA), name), NODE, "exists already", "Choose another name")
        assert error.kind == "rejected"
    assert (models / "taken.safetensors").stat() == before


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "", "out/", "C:\\out", "a\0b"])
def test_names_that_lead_out(exact, refused, name):
    """A shared workflow could make a server write anywhere."""
    assert refused(saving(short(exact), name), NODE, "is not a valid file name").kind == "rejected"


@pytest.fixture
def large(exact, comfyui, models) -> Iterator[str]:
    """The folder of a model whose conversion takes a second or more; its weights are zeros."""
    from diffusers import CogVideoXTransformer3DModel

    config = transformer_config("5b", num_attention_heads=32, attention_head_dim=32, num_layers=6)
    with torch.device("meta"):
        shapes = {n: w.shape for n, w in CogVideoXTransformer3DModel(**config).state_dict().items()}
    folder = models / "large"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    layouts.write_safetensors(folder / "a.safetensors", {n: torch.zeros(s).bfloat16() for n, s in shapes.items()})
    yield folder.name
    shutil.rmtree(folder)


def test_cancel_leaves_nothing(comfyui, exact, large, models):
    """Cancel in the middle of a save: neither half a model under the name, nor gigabytes under another."""
    before = {path.name for path in models.iterdir()}
    half_files = []

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == SAVE and data["value"] < data["max"]:
            half_files.extend({path.name for path in models.iterdir()} - before)
            client.interrupt(comfyui.url)

    graph = with_part(short(exact), "model", large, "default")
    for attempt in range(3):  # on a busy machine the save can be over before the server hears of it
        result = comfyui.run(saving(graph, f"cancelled-{attempt}", "fp8_e4m3fn"), stop)
        if result.error is not None:
            break
        (models / f"cancelled-{attempt}.safetensors").unlink()
    assert result.error is not None and result.error.kind == "interrupted" and result.error.node_id == SAVE
    assert half_files, "nothing had been written yet"
    assert {path.name for path in models.iterdir()} == before
