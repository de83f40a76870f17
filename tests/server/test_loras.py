"""LoRAs on the real server: every dialect makes one video, ComfyUI's own node the same, and the node says what fits."""

import inspect
import shutil
import uuid
from collections.abc import Callable

import comfy.sd
import pytest
import torch

from cogvideox.devtools.client import RunResult
from cogvideox.tests import layout_files as layouts
from cogvideox.tests import lora_files as loras
from cogvideox.tests.graphs import PIPELINE, SAMPLE, node, with_inputs
from cogvideox.tests.part_graphs import OURS, STOCK, component_weights, latent_only, only, short, with_lora, with_part
from cogvideox.tests.quantized_models import needs_int8
from cogvideox.tests.support import relative_error
from cogvideox.tests.tiers import long_after, long_rows_after

ALL, ATTENTION, OTHER = "all.safetensors", "attention.safetensors", "other.safetensors"  # as diffusers writes them
SAVE = "save"
STOCK_READS_HEADERS = "lora_metadata" in inspect.signature(comfy.sd.load_lora_for_models).parameters


@pytest.fixture(scope="module")
def shapes(comfyui, exact) -> dict[str, tuple[int, ...]]:
    weights = component_weights(comfyui.pipelines / exact, "transformer")
    return {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}


@pytest.fixture(scope="module")
def written(comfyui, shapes) -> Callable[..., str]:
    """written(name, dialect, layers, alpha, seed) puts a LoRA into the server's folder and returns its name."""

    def write(name: str, dialect: str, layers: tuple[str, ...], alpha: str = "none", seed: int = 0) -> str:
        files, header, _ = loras.write_dialect(dialect, loras.random_factors(shapes, layers, seed=seed), alpha)
        loras.save(comfyui.base / "models" / "loras" / name, files, header)
        return name

    return write


@pytest.fixture(scope="module", autouse=True)
def three_loras(written) -> None:
    written(ALL, "diffusers", loras.LINEAR)
    written(ATTENTION, "diffusers", loras.ATTENTION)
    written(OTHER, "diffusers", loras.LINEAR[3:], seed=1)


@pytest.fixture(scope="module")
def packed(comfyui, exact) -> str:
    """The model of `exact` as a GGUF file's folder."""
    folder = comfyui.base / "models" / "diffusion_models" / "packed"
    folder.mkdir()
    pipeline = comfyui.pipelines / exact
    shutil.copy(pipeline / "transformer" / "config.json", folder)
    layouts.write_gguf(folder / "a.gguf", component_weights(pipeline, "transformer"), "Q8_0")
    return folder.name


def loaded(exact: str, packed: str, kind: str) -> dict:
    """A graph that samples with the model in a weight_dtype, or from the GGUF file."""
    if kind == "GGUF":
        return latent_only(with_part(short(exact), "model", packed, "default"))
    return latent_only(with_part(short(exact), "model", exact, kind))


@pytest.fixture
def latent(comfyui, exact, packed) -> Callable[..., torch.Tensor]:
    """latent(*LoRAs, kind): the latent with these one after the other, each (name, strength, node)."""

    def run(*chain: tuple, kind: str = "fp32") -> torch.Tensor:
        graph = loaded(exact, packed, kind)
        for number, lora in enumerate(chain):
            graph = with_lora(graph, *lora, node_id=f"lora{number}")
        return comfyui.latent(graph)

    return run


def texts(result: RunResult, node_id: str) -> str:
    """What a node showed on itself in a run that succeeded."""
    assert result.error is None, str(result.error)
    assert node_id in result.executed
    return "\n".join(text for shown_on, text in result.texts if shown_on == node_id)


@pytest.mark.parametrize("dialect", long_after(3, loras.DIALECTS))
def test_dialect(comfyui, exact, latent, written, dialect):
    """Whoever trained it, a LoRA makes the one video in either node, and ours tells how much of it fits."""
    layers = loras.DIALECTS[dialect][1]
    name = written(f"dialect {dialect}.safetensors", dialect, layers)
    expected = latent((ALL if layers is loras.LINEAR else ATTENTION, 0.7))
    assert relative_error(expected, latent()) > 0.1
    assert torch.equal(latent((name, 0.7, STOCK)), expected)
    result = comfyui.run(with_lora(latent_only(short(exact)), name, 0.7))
    count = len(layers)
    assert f"{2 * count} of {2 * count} keys matched: {count} layers, LoRA, rank 4" in texts(result, "lora")
    assert torch.equal(latent((name, 0.7)), expected)


@pytest.mark.parametrize(
    ("dialect", "alpha"),
    long_rows_after(
        3,
        [
            ("Fun", "tensor"),
            ("diffusers", "header"),
            ("Fun", "kohya header"),
            ("diffusers", "tensor"),
            ("Fun", "header"),
            ("diffusers", "kohya header"),
        ],
    ),
)
def test_alpha(latent, written, dialect, alpha):
    """An alpha that is overlooked makes the LoRA half as strong, or many times too strong."""
    name = written(f"{dialect} {alpha}.safetensors", dialect, loras.LINEAR, alpha)
    expected = latent((ALL, 0.5 * loras.ALPHA / loras.RANK))
    assert torch.equal(latent((name, 0.5)), expected)
    if alpha == "tensor" or STOCK_READS_HEADERS:
        assert torch.equal(latent((name, 0.5, STOCK)), expected)


def test_one_over_rank(comfyui, exact, latent):
    """DimensionX's files need it; as trained they are as many times too strong as their rank."""
    graph = with_inputs(with_lora(latent_only(short(exact)), ALL), "lora", scale="1 / rank (DimensionX)")
    result = comfyui.run(graph)
    assert "1 / rank, as chosen" in texts(result, "lora")
    assert torch.equal(comfyui.latent(graph), latent((ALL, 1 / loras.RANK)))


def test_strength(comfyui, exact, latent):
    """0 is none, and -1 takes away what +1 gives."""
    plain = latent()
    result = comfyui.run(with_lora(latent_only(short(exact)), ALL, 0.0))
    assert "Strength is 0: the model stays as it is." in texts(result, "lora")
    assert torch.equal(latent((ALL, 0.0)), plain)
    turned = latent((ALL, -0.7))
    assert relative_error(turned, plain) > 0.1 and relative_error(turned, latent((ALL, 0.7))) > 0.1
    assert relative_error(latent((ALL, 0.7), (ALL, -0.7)), plain) < 1e-5


KINDS = {"fp32": 0.0, "fp8_e4m3fn": 4e-2, "int8": 1e-2, "GGUF": 1e-2}  # how far each may be from fp32's video


@pytest.mark.parametrize(
    "kind",
    [
        *("fp32", "fp8_e4m3fn"),
        pytest.param("int8", marks=(needs_int8, pytest.mark.long)),
        pytest.param("GGUF", marks=pytest.mark.long),
    ],
)
def test_stack_on_every_precision(latent, kind):
    """Two LoRAs add up, whichever nodes put them there, and on packed weights too: there other packs lose them."""
    chain = (ALL, 0.4), (OTHER, -0.3)
    both = latent(*chain, kind=kind)
    for nodes in ((STOCK, STOCK), (OURS, STOCK), (STOCK, OURS)):
        assert torch.equal(latent(*((*lora, name) for lora, name in zip(chain, nodes)), kind=kind), both)
    for other in (latent(kind=kind), latent(chain[0], kind=kind), latent(chain[1], kind=kind)):
        assert relative_error(both, other) > 0.1
    assert relative_error(both, latent(*chain)) <= KINDS[kind]
    plain = latent(kind=kind)
    assert torch.equal(latent((ALL, 0.0), kind=kind), plain), "the LoRA stayed in the weights"


def test_key_of_nothing_is_named(comfyui, exact, shapes, latent):
    """A LoRA that half fits must say which half: the video alone does not show it."""
    files = loras.write_dialect("diffusers", loras.random_factors(shapes, loras.ATTENTION))[0]
    files |= {f"transformer.camera_blocks.0.to_q.lora_{letter}.weight": torch.ones(4, 4) for letter in "AB"}
    loras.save(comfyui.base / "models" / "loras" / "camera.safetensors", files)
    text = texts(comfyui.run(with_lora(latent_only(short(exact)), "camera.safetensors")), "lora")
    assert "16 of 18 keys matched" in text and "Not in this model: transformer.camera_blocks.0.to_q" in text
    assert torch.equal(latent(("camera.safetensors", 1.0)), latent((ATTENTION, 1.0)))


def pairs(*layers: str, width: int = 16) -> loras.Files:
    tensors = {"lora_down.weight": torch.ones(4, width), "lora_up.weight": torch.ones(width, 4)}
    return {f"{layer}.{name}": tensor for layer in layers for name, tensor in tensors.items()}


OTHER_MODELS = {  # name -> a LoRA for another model, and what of the answer must be there
    "flux": (pairs("lora_unet_double_blocks_0_img_attn_qkv"), "looks like a LoRA for Flux"),
    "wan": (
        pairs("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.0"),
        "looks like a LoRA for Wan",
    ),
    "text": (pairs("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "is for a text encoder only"),
    "unknown": (pairs("transformer.camera_blocks.0.to_q"), "names a layer of this CogVideoX model"),
    "larger": (pairs("transformer.transformer_blocks.0.attn1.to_q", width=3072), "is for layers of another size"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_lora_of_another_model(comfyui, exact, refused, name):
    """It would do nothing, and the user would look for the fault in the prompt."""
    files, reason = OTHER_MODELS[name]
    loras.save(comfyui.base / "models" / "loras" / f"{name}.safetensors", files)
    graph = with_lora(latent_only(short(exact)), f"{name}.safetensors")
    error = refused(graph, OURS, f"{name}.safetensors", reason, "hoose")
    assert error.exception_type.endswith("UserError")


def test_no_lora_at_all(comfyui, exact, refused):
    """A whole model in the wrong folder is told before anything is loaded."""
    weights = component_weights(comfyui.pipelines / exact, "vae")
    loras.save(comfyui.base / "models" / "loras" / "vae.safetensors", weights)
    graph = with_lora(latent_only(short(exact)), "vae.safetensors")
    assert refused(graph, OURS, "looks like a CogVideoX VAE, not a LoRA").kind == "rejected"


def saved_lora(comfyui, graph: dict, prefix: str, **inputs: object) -> str:
    """Save what the sampler's model carries; the new file's name in the list of the LoRA nodes."""
    save = node("CogVideoXSaveLora", model=graph[SAMPLE]["inputs"]["model"], filename_prefix=prefix, **inputs)
    before = offered(comfyui)
    # an input that no node has: without it a second save of the same is ComfyUI's cached one
    result = comfyui.run(with_inputs(only(graph | {SAVE: save}, SAVE), SAVE, run=uuid.uuid4().hex))
    assert texts(result, SAVE).startswith(f"Saved {prefix.split('/')[-1]}")
    new = offered(comfyui) - before
    assert len(new) == 1 and (comfyui.server.output / "loras" / min(new)).is_file()
    return min(new)


def offered(comfyui) -> set[str]:
    """The names in the list of LoRAs."""
    return set(comfyui.offered(OURS, "lora_name"))


@pytest.mark.parametrize(
    ("dialect", "class_type"),
    long_rows_after(
        2,
        [
            ("raw SAT", OURS),
            ("diffusers", STOCK),
            ("Fun", OURS),
            ("diffusers", OURS),
            ("raw SAT", STOCK),
            ("Fun", STOCK),
        ],
    ),
)
def test_saved_lora_makes_the_same_video(comfyui, exact, latent, written, dialect, class_type):
    """Any dialect becomes diffusers', in ComfyUI's output folder, and is offered by the LoRA nodes at once."""
    name = written(f"to save {dialect}.safetensors", dialect, loras.DIALECTS[dialect][1])
    saved = saved_lora(comfyui, with_lora(short(exact), name, 1.0, class_type), f"loras/{dialect.replace(' ', '-')}")
    expected = latent((name, 0.7))
    for again in (OURS, STOCK):
        assert torch.equal(latent((saved, 0.7, again)), expected)


def test_two_loras_saved_as_one(comfyui, exact, latent):
    """A stack that works becomes one file to give away, with the strengths in it."""
    graph = with_lora(with_lora(short(exact), ALL, 0.4), OTHER, -0.3, node_id="second")
    saved = saved_lora(comfyui, graph, "loras/two")
    assert relative_error(latent((saved, 1.0)), latent((ALL, 0.4), (OTHER, -0.3))) < 1e-5
    again = saved_lora(comfyui, graph, "loras/two")
    assert again != saved, "the first was overwritten"


def test_nothing_to_save(refused, exact):
    """A model without LoRAs would give an empty file that changes nothing."""
    save = {SAVE: node("CogVideoXSaveLora", model=[PIPELINE, 0], filename_prefix="loras/none")}
    refused(only(short(exact) | save, SAVE), "CogVideoXSaveLora", "LoRA")
