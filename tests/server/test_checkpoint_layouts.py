"""Weights as users have them on disk, on the real server: every layout makes the video that diffusers' folder makes,
whatever its files are called, and every precision one near it."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideox.tests import layout_files as layouts
from cogvideox.tests.graphs import PIPELINE, Made, with_inputs
from cogvideox.tests.part_graphs import LOADERS, PARTS, component_weights, latent_only, short, with_part
from cogvideox.tests.quantized_models import needs_int8, needs_int8_matmul
from cogvideox.tests.support import relative_error, write_fp32
from cogvideox.tests.tiers import long_rows_after

Write = Callable[[Path, layouts.StateDict], Path]
# how far a run's latent may be from fp32's: about twice what was measured; another seed is 1.1 away
BOUNDS = {
    "bf16": 8e-3,
    "fp16": 1e-3,
    "plain fp8": 4e-2,
    "scaled fp8": 4e-2,
    "int8": 1e-2,
    "GGUF BF16": 2e-3,
    "GGUF Q8_0": 7e-3,
    "GGUF Q5_1": 5e-2,
    "GGUF Q4_0": 0.1,
    "blocks": 0.1,
}
T5_LAYOUTS: dict[str, tuple[Write, float]] = {  # and the bound of each; T5 is 32 wide here: nothing averages out
    "one file": (lambda folder, w: layouts.write_safetensors(folder / "t.safetensors", w), 0),
    ".bin": (lambda folder, w: layouts.write_sat(folder / "pytorch_model.bin", w, "state_dict"), 0),
    "scaled fp8": (lambda folder, w: layouts.write_safetensors(folder / "t.safetensors", layouts.scaled_fp8(w)), 4e-2),
    "int8": (lambda folder, w: layouts.write_safetensors(folder / "t.safetensors", layouts.comfyui_int8(w)), 1e-2),
    "GGUF Q8_0": (
        lambda folder, w: layouts.write_gguf(folder / "t.gguf", layouts.gguf_t5_names(w), "Q8_0", "t5encoder"),
        1e-2,
    ),
}
VAE_LAYOUTS: dict[str, Write] = {
    "one file": lambda folder, w: layouts.write_safetensors(folder / "v.safetensors", w),
    "prefixed": lambda folder, w: layouts.write_safetensors(
        folder / "v.safetensors", layouts.prefixed("first_stage_model.", w)
    ),
    "SAT .pt": lambda folder, w: layouts.write_sat(folder / "3d-vae.pt", layouts.sat_vae_names(w), "state_dict"),
    "GGUF": lambda folder, w: layouts.write_gguf(folder / "v.gguf", w, "Q8_0"),
}


WEIGHT_DTYPES = "default", "fp32"


def marked(names: Iterable[str]) -> list:
    """The cases that this ComfyUI can run."""
    return [pytest.param(name, marks=needs_int8 if "int8" in name else ()) for name in names]


# Each layout in every run, kept as it is or unpacked in turn; both of all in the long tier.
TRANSFORMERS = [
    pytest.param(
        *case, marks=[*([needs_int8] if "int8" in case[0] else []), *([pytest.mark.long] if number % 2 else [])]
    )
    for number, case in enumerate(
        case
        for layout, dtypes in zip(layouts.TRANSFORMER_LAYOUTS, itertools.cycle((WEIGHT_DTYPES, WEIGHT_DTYPES[::-1])))
        for case in itertools.product([layout], dtypes)
    )
]
RENAMED = long_rows_after(
    4,
    [
        ("SAT .pt", ".safetensors"),
        ("GGUF Q8_0", ".bin"),
        ("ComfyUI", ".gguf"),
        ("ComfyUI", ".pt"),
        *itertools.product(["SAT .pt"], [".bin", ".pt", ".gguf"]),
        *itertools.product(["GGUF Q8_0"], [".safetensors", ".pt", ".gguf"]),
        *itertools.product(["ComfyUI"], [".safetensors", ".bin"]),
    ],
)


@pytest.fixture(scope="module")
def plain(comfyui, exact) -> Made:
    """What the pipeline's own folder makes."""
    return comfyui.make(short(exact))


@pytest.fixture
def written(comfyui, exact) -> Callable[..., str]:
    """written(part, write): the name of a folder with that part of `exact` as `write` writes it, the config
    beside it, both under names of other models."""

    def write_part(part: str, write: Write, suffix: str = "") -> str:
        component, category = PARTS[part], LOADERS[part][2]
        pipeline, root = comfyui.pipelines / exact, comfyui.base / "models" / category
        folder = root / f"wan2.2_flux_{len(list(root.iterdir()))}"
        folder.mkdir()
        shutil.copy(pipeline / component / "config.json", folder)
        if part == "clip":
            shutil.copytree(pipeline / "tokenizer", root / "tokenizer", dirs_exist_ok=True)
        file = write(folder, component_weights(pipeline, component))
        file.rename(folder / f"hunyuan_i2v_Q2_K{suffix or file.suffix}")
        return folder.name

    return write_part


def bound(layout: str) -> float:
    """0 where the layout keeps fp32."""
    return next((error for kind, error in BOUNDS.items() if kind in layout), 0)


def assert_near(what: str, error: float, most: float) -> None:
    """Equal where `most` is 0; else neither further than that, nor so near that nothing was quantised."""
    assert error <= most and (error > 0) == (most > 0), f"{what}: {error:.1e}, allowed {most:.0e}"


@pytest.mark.parametrize(("layout", "weight_dtype"), TRANSFORMERS)
def test_transformer(comfyui, exact, plain, written, layout, weight_dtype):
    """What is on disk must run, kept as it is or unpacked: a tensor in the wrong place shows as another video."""
    name = written("model", layouts.TRANSFORMER_LAYOUTS[layout])
    graph = with_part(short(exact), "model", name, weight_dtype)
    assert_near(layout, relative_error(comfyui.latent(latent_only(graph)), plain.latent), bound(layout))


@pytest.mark.parametrize("layout", marked(T5_LAYOUTS))
def test_text_encoder(comfyui, exact, plain, written, layout):
    """T5 is half of the download: most people have it already, for another model and packed."""
    write, most = T5_LAYOUTS[layout]
    graph = with_part(short(exact), "clip", written("clip", write), "default")
    assert_near(f"T5, {layout}", relative_error(comfyui.latent(latent_only(graph)), plain.latent), most)


@pytest.mark.parametrize("layout", VAE_LAYOUTS)
def test_vae(comfyui, exact, plain, written, layout):
    """THUDM's own 3d-vae.pt gives the frames of diffusers' folder, pixel by pixel."""
    made = comfyui.make(with_part(short(exact), "vae", written("vae", VAE_LAYOUTS[layout])))
    assert np.array_equal(made.frames, plain.frames)


@pytest.mark.parametrize(("layout", "suffix"), RENAMED)
def test_suffix_of_another_format(comfyui, exact, plain, written, layout, suffix):
    """A file that was renamed on its way loads the same: what it is stands in it."""
    name = written("model", layouts.TRANSFORMER_LAYOUTS[layout], suffix)
    latent = comfyui.latent(latent_only(with_part(short(exact), "model", name)))
    assert_near(layout, relative_error(latent, plain.latent), bound(layout))


def test_every_part_in_another_layout(comfyui, exact, plain, written):
    """THUDM's files and a T5 as .bin, all together and without anything of diffusers' folder."""
    graph = short(exact)
    for part, write in {
        "model": layouts.TRANSFORMER_LAYOUTS["SAT .pt"],
        "clip": T5_LAYOUTS[".bin"][0],
        "vae": VAE_LAYOUTS["SAT .pt"],
    }.items():
        graph = with_part(graph, part, written(part, write))
    del graph[PIPELINE]
    assert np.array_equal(comfyui.make(graph).frames, plain.frames)


def test_lists_offer_every_format(comfyui, exact, written):
    """A GGUF that is not in the list cannot be chosen; ComfyUI's own lists leave it out."""
    gguf = written("model", layouts.TRANSFORMER_LAYOUTS["GGUF Q8_0"])
    sat = written("model", layouts.TRANSFORMER_LAYOUTS["SAT .pt"])
    t5 = written("clip", T5_LAYOUTS["GGUF Q8_0"][0])
    vae = written("vae", VAE_LAYOUTS["SAT .pt"])
    offered = {part: comfyui.offered(loader, name) for part, (loader, name, *_) in LOADERS.items()}
    assert {gguf, f"{gguf}/hunyuan_i2v_Q2_K.gguf", sat, f"{sat}/hunyuan_i2v_Q2_K.pt", exact} <= set(offered["model"])
    assert {t5, f"{t5}/hunyuan_i2v_Q2_K.gguf", exact} <= set(offered["clip"])
    assert {vae, f"{vae}/hunyuan_i2v_Q2_K.pt", exact} <= set(offered["vae"])


def configs(pipeline: Path, components: Iterable[str]) -> dict[str, str]:
    """The header of a lone file: what stands beside the weights in a folder."""
    found = {name: json.loads((pipeline / name / "config.json").read_text("utf-8")) for name in components}
    found["scheduler"] = json.loads((pipeline / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    return {"config": json.dumps(found)}


def test_one_file_alone(comfyui, exact, plain):
    """A file that somebody converted lies among others, with no folder of its own."""
    pipeline, name = comfyui.pipelines / exact, "sdxl_inpaint.safetensors"
    weights = layouts.comfyui_names(component_weights(pipeline, "transformer"))
    path = comfyui.base / "models" / "diffusion_models" / name
    layouts.write_safetensors(path, weights, configs(pipeline, ["transformer"]))
    assert_near("one file", relative_error(comfyui.latent(with_part(short(exact), "model", name)), plain.latent), 0)


def test_header_whose_length_begins_like_a_web_page(comfyui, exact, plain, written):
    """A length of 60 more than some multiple of 256 begins with "<": no reason to call the file a web page."""

    def write(folder: Path, weights: layouts.StateDict) -> Path:
        path = layouts.write_safetensors(folder / "a.safetensors", weights)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        padding = (ord("<") - length) % 256
        start = (length + padding).to_bytes(8, "little") + content[8 : 8 + length] + b" " * padding
        path.write_bytes(start + content[8 + length :])
        return path

    latent = comfyui.latent(latent_only(with_part(short(exact), "model", written("model", write))))
    assert torch.equal(latent, plain.latent)


@pytest.mark.parametrize(
    "prefixes",
    [
        ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.t5xxl.transformer."),
        ("transformer.", "vae.", "text_encoder."),
    ],
    ids=["ComfyUI", "diffusers"],
)
def test_all_in_one_file(comfyui, prefixes):
    """Transformer, VAE and T5 in one file, in the list of Load CogVideoX Pipeline; 2b's noise schedule with it."""
    pipeline = comfyui.pipelines / "CogVideoX-tiny-exact-2b"
    if not pipeline.exists():
        write_fp32(pipeline, "2b")
    weights: layouts.StateDict = {}
    for prefix, component in zip(prefixes, PARTS.values()):
        weights |= layouts.prefixed(prefix, component_weights(pipeline, component))
    checkpoints = comfyui.base / "models" / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    shutil.copytree(pipeline / "tokenizer", checkpoints / "tokenizer", dirs_exist_ok=True)
    name = f"v1-5-pruned_{prefixes[0]}safetensors"
    layouts.write_safetensors(checkpoints / name, weights, configs(pipeline, PARTS.values()))
    assert name in comfyui.offered("CogVideoXLoadPipeline", "folder")
    whole, one = comfyui.make(short(pipeline.name)), comfyui.make(short(name))
    assert np.array_equal(one.frames, whole.frames)
    assert relative_error(one.latent, whole.latent) == 0


@pytest.mark.parametrize(("weight_dtype", "most"), [pytest.param("int8", 1e-2, marks=needs_int8), ("fp8_e4m3fn", 4e-2)])
@pytest.mark.parametrize("part", [PIPELINE, "model", "clip"])
def test_conversion_to_eight_bits(comfyui, exact, plain, part, weight_dtype, most):
    """What makes 5b fit a small card must still make nearly the same video."""
    graph = short(exact)
    if part == PIPELINE:
        graph = with_inputs(graph, PIPELINE, weight_dtype=weight_dtype)
    else:
        graph = with_part(graph, part, exact, weight_dtype)
    error = relative_error(comfyui.latent(latent_only(graph)), plain.latent)
    assert_near(f"{weight_dtype} ({part})", error, most)


@needs_int8
@needs_int8_matmul
def test_int8_is_multiplied_on_a_cpu(comfyui, exact, plain):
    """On CPUs with the units int8_fast is the quickest choice there is; it may not cost the picture."""
    error = relative_error(
        comfyui.latent(latent_only(with_part(short(exact), "model", exact, "int8_fast"))), plain.latent
    )
    assert_near("int8_fast (model)", error, 3e-2)


@pytest.mark.parametrize("part", [PIPELINE, "model"])
def test_fast_fp8_needs_a_card(refused, exact, part):
    """Without the reason someone would search their installation for what no CPU has; found late, after T5's turn."""
    graph = with_inputs(short(exact), PIPELINE, weight_dtype="fp8_e4m3fn_fast")
    if part != PIPELINE:
        graph = with_part(short(exact), part, exact, "fp8_e4m3fn_fast")
    loader = graph[part]["class_type"]
    words = "fp8_e4m3fn_fast needs fp8 matmul support", "which this CPU does not have", "Choose fp8_e4m3fn:"
    assert refused(latent_only(graph), loader, *words).kind == "rejected"


def test_fast_modes_are_not_for_t5(refused, exact):
    """ComfyUI computes T5 in fp32: the choice would promise a speed that does not come."""
    graph = latent_only(with_part(short(exact), "clip", exact, "int8_fast"))
    words = "weight_dtype is 'int8_fast': use default, fp32", "fp8_e4m3fn or int8."
    assert refused(graph, LOADERS["clip"][0], *words).kind == "rejected"
