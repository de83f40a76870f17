"""Weights, configs, indexes and tokenizers of a valid structure with wrong contents."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from cogvideox.errors import UserError
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.files.headers import Entry, Header
from cogvideox.model_loaders.files.tensor_specs import assemble, collect_specs
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.mutations import LEAST_REFUSED, MUTATIONS, SLOWEST_S, as_json, fuzz, mutate_tree, wrong
from cogvideox.tests.support import write_fp32

mutations = pytest.mark.parametrize("mutations", MUTATIONS)
LOADERS: dict[str, Callable[..., Any]] = {"transformer": load_model, "vae": load_vae, "text_encoder": load_text_encoder}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)
OTHER_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int32)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with one layer of width 32."""
    return write_fp32(tmp_path_factory.mktemp("smallest") / "5b", "5b", num_attention_heads=2, num_layers=1)


def mutate_weights(weights: dict[str, torch.Tensor], rng: random.Random) -> tuple[dict[str, torch.Tensor], str]:
    """Weights of other shapes, ranks, dtypes, names and numbers, as a valid file can hold them."""
    out = dict(weights)
    # Those by which a model is recognised and built count most.
    telling = [n for n in out if "embed" in n or "proj_out" in n or "conv_in" in n or ".0." in n or "shared" in n]
    name = rng.choice(telling if rng.random() < 0.7 else list(out))
    tensor, what = out[name], rng.randrange(9)
    if what == 0:
        del out[name]
    elif what == 1:
        out[rng.choice((f"{name}x", "", "x" * 3000, "\0", name.replace("0", "9"), f"module.{name}"))] = out.pop(name)
    elif what == 2:
        out[name] = rng.choice(_shapes(tensor, rng))
    elif what == 3:
        out[name] = tensor.to(rng.choice(DTYPES + OTHER_DTYPES))
    elif what == 4:
        out[name] = torch.full_like(tensor, rng.choice((float("nan"), float("inf"), 1e38, 0.0)))
    elif what == 5:
        out[name], out[other] = out[(other := rng.choice(list(out)))], tensor
    elif what == 6:
        out |= {f"{name.removesuffix('.weight')}{end}": _odd(rng) for end in rng.sample(ENDS, 2)}
    elif what == 7:
        out = {key: value.to(rng.choice(DTYPES)) for key, value in out.items()}
    else:
        out = {key: _odd(rng) if rng.random() < 0.3 else value for key, value in out.items()}
    return out, f"{what} {name}"


ENDS = (
    *(".weight_scale", ".scale_weight", ".comfy_quant", "._weight_qdata", "._weight_scale", ".weight:qdata"),
    *(".weight:scale", ".Q4_0_qweight", ".Q8_0_qweight", ".scale_input", ".weight.extra", ".zero_point"),
)


def _shapes(tensor: torch.Tensor, rng: random.Random) -> list[torch.Tensor]:
    """The numbers of a tensor in other shapes, and parts of them."""
    flat = tensor.reshape(-1)
    return [
        *(flat, flat[None], tensor[None], tensor[..., None], tensor.movedim(0, -1), flat[:1], flat[0], flat[:0]),
        *(tensor[:0], tensor[: len(tensor) // 2], torch.cat([tensor, tensor]), torch.cat([tensor, tensor], dim=-1)),
        tensor.reshape(*tensor.shape, *[1] * rng.randrange(1, 6)),
    ]


def _odd(rng: random.Random) -> torch.Tensor:
    shape = rng.choice(((), (0,), (1,), (7,), (32, 32), (0, 4), (2, 3, 4), (1, 1, 1, 1, 1), (1,) * 9))
    return torch.zeros(shape).to(rng.choice(DTYPES + OTHER_DTYPES))


def load_component(folder: Path, component: str) -> None:
    """As a loader node does it: the headers when the prompt is queued, then everything."""
    checkpoints.check_component(folder, component)
    LOADERS[component](folder, "fp32")


def prepared(smallest: Path, tmp_path: Path, component: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A pipeline whose `component` has no weights yet, and these."""
    pipeline = Path(shutil.copytree(smallest, tmp_path / "pipeline"))
    weights = checkpoints.open_component(smallest, component).state_dict
    for file in (pipeline / component).glob("*.safetensors*"):
        file.unlink()
    return pipeline / component, weights


# Of a VAE, which takes the longest to build, fewer; the long tier has the same number of all.
COMPONENTS = pytest.mark.parametrize(
    "mutations, component",
    [(25, "transformer"), (10, "vae"), (25, "text_encoder")]
    + [pytest.param(300, component, marks=pytest.mark.long) for component in LOADERS],
)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@COMPONENTS
def test_safetensors(smallest: Path, tmp_path: Path, component: str, mutations: int) -> None:
    """Headers that are valid JSON of wrong types, and valid files of wrong tensors."""
    folder, weights = prepared(smallest, tmp_path, component)

    def make(rng: random.Random) -> str:
        changed, what = mutate_weights(weights, rng)
        metadata = {"config": as_json(wrong(rng), rng)} if rng.random() < 0.2 else None
        data = save({name: t.contiguous().clone() for name, t in changed.items()}, _text_only(metadata))
        if rng.random() < 0.4:
            header, rest = header_of(save({name: t.contiguous() for name, t in weights.items()}))
            text = as_json(mutate_tree(header, rng), rng).encode("utf-8", "replace")
            data, what = struct.pack("<Q", len(text)) + text + rest, "header"
        (folder / "a.safetensors").write_bytes(data)
        return what

    outcome = fuzz(f"safetensors, {component}", mutations, make, lambda: load_component(folder, component))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


def _text_only(metadata: dict[str, str] | None) -> dict[str, str] | None:
    return metadata and {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()}


@COMPONENTS
def test_torch_files(smallest: Path, tmp_path: Path, component: str, mutations: int) -> None:
    """Pickles of plain data that are no dict of weights."""
    folder, weights = prepared(smallest, tmp_path, component)

    def make(rng: random.Random) -> str:
        changed, what = mutate_weights(weights, rng)
        whole: Any = changed
        if rng.random() < 0.5:
            whole = dict(changed)
            key = rng.choice((rng.choice(list(whole)), 3, None, ("a", 1), "module", "state_dict"))
            whole[key] = wrong(rng)
            what = "values"
        if rng.random() < 0.4:
            wrapper = rng.choice(("module", "state_dict", "model", "ema", "weights"))
            whole = {wrapper: rng.choice((whole, [whole], wrong(rng), {"module": whole})), "step": 1}
            what = f"{wrapper} of {what}"
        torch.save(whole, folder / "a.pt", _use_new_zipfile_serialization=rng.random() < 0.7)
        return what

    outcome = fuzz(f"torch, {component}", mutations, make, lambda: load_component(folder, component))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


NAMES = {"transformer": dict, "vae": dict, "text_encoder": layouts.gguf_t5_names}
GGUF_DTYPES = (torch.float32, torch.float16, torch.float64, torch.int8, torch.int64, torch.int32)


def write_mutated_gguf(path: Path, weights: dict[str, torch.Tensor], rng: random.Random) -> None:
    """`weights`, one of which may have another recorded shape or pass for blocks."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, rng.choice(("cogvideox", "t5encoder", "", "x" * 500)))
    special, what = rng.choice(list(weights)), rng.randrange(5)
    for name, tensor in weights.items():
        real = tensor.real if tensor.is_complex() else tensor
        values = real.to(real.dtype if real.dtype in GGUF_DTYPES else torch.float32).contiguous().numpy()
        shape: Any = list(values.shape)
        flat = values.reshape(len(values), values[:1].size) if values.ndim > 4 else values
        if name == special and what == 0:
            shape = rng.choice(([-1], [0], shape[::-1], [2**30, 2**30], [1] * 20, shape[1:] or [5], [*shape, 1]))
        if name == special and what == 1:
            writer.add_string(f"comfy.gguf.orig_shape.{name}", str(shape))
        elif shape != list(flat.shape):
            writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
        if name == special and what == 2:
            blocks = flat.reshape(-1).view("uint8")
            blocks = blocks[: blocks.size // 34 * 34].reshape(-1, 34)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, flat)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@COMPONENTS
def test_gguf(smallest: Path, tmp_path: Path, component: str, mutations: int) -> None:
    """Fields of other types, recorded shapes that do not fit, blocks of another number of rows."""
    folder, weights = prepared(smallest, tmp_path, component)

    def make(rng: random.Random) -> str:
        changed, what = mutate_weights(weights, rng) if rng.random() < 0.6 else (weights, "shapes")
        write_mutated_gguf(folder / "a.gguf", NAMES[component](changed), rng)
        return what

    outcome = fuzz(f"GGUF, {component}", mutations, make, lambda: load_component(folder, component))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


JSON_FILES = {
    "transformer/config.json": lambda pipeline: load_model(pipeline, "fp32"),
    "vae/config.json": lambda pipeline: load_vae(pipeline, "fp32"),
    "text_encoder/config.json": lambda pipeline: load_text_encoder(pipeline, "fp32"),
    "scheduler/scheduler_config.json": lambda pipeline: load_model(pipeline, "fp32"),
    "model_index.json": lambda pipeline: checkpoints.require_pipeline(pipeline),
}


@pytest.mark.parametrize("name", JSON_FILES)
@mutations
def test_configs(smallest: Path, tmp_path: Path, name: str, mutations: int) -> None:
    """Valid JSON of wrong types, NaN and numbers without end among them."""
    pipeline = Path(shutil.copytree(smallest, tmp_path / "pipeline"))
    tree = json.loads((pipeline / name).read_text())

    def make(rng: random.Random) -> str:
        text = as_json(mutate_tree(tree, rng, rng.choice((1, 1, 3))), rng)
        (pipeline / name).write_text(text, "utf-8", "replace")
        return text[:80]

    # Of T5's config only the number of layers is read, and of the index only the class.
    least = 0.02 if name.startswith(("text_encoder", "model_index", "scheduler")) else 0.15
    outcome = fuzz(name, mutations, make, lambda: JSON_FILES[name](pipeline))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= least, str(outcome)


@mutations
def test_control_net_configs(tmp_path: Path, mutations: int) -> None:
    from cogvideox.devtools.embedded_checkpoint import write_controlnet

    folder = tmp_path / "net"
    write_controlnet(folder, "5b")
    tree = json.loads((folder / "config.json").read_text())

    def make(rng: random.Random) -> str:
        text = as_json(mutate_tree(tree, rng), rng)
        (folder / "config.json").write_text(text, "utf-8", "replace")
        return text[:80]

    outcome = fuzz("control net, config.json", mutations, make, lambda: load_controlnet(folder, "fp32"))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= 0.1, str(outcome)


@mutations
def test_indexes(smallest: Path, tmp_path: Path, mutations: int) -> None:
    """weight_map of other types, names of shards that do not exist or lie elsewhere."""
    folder, weights = prepared(smallest, tmp_path, "transformer")
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        layouts.write_safetensors(folder / file, {name: weights[name] for name in held})
    tree = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, held in files.items() for name in held[:6]},
    }

    def make(rng: random.Random) -> str:
        text = as_json(mutate_tree(tree, rng, rng.choice((1, 3))), rng)
        (folder / "a.safetensors.index.json").write_text(text, "utf-8", "replace")
        return text[:80]

    outcome = fuzz("index.json", mutations, make, lambda: load_component(folder, "transformer"))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


@mutations
def test_tokenizer_folders(smallest: Path, tmp_path: Path, mutations: int) -> None:
    """tokenizer.json and the files beside it, then a prompt through what was loaded."""
    pipeline = Path(shutil.copytree(smallest, tmp_path / "pipeline"))
    folder = pipeline / "tokenizer"
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    trees = {name: json.loads(data) for name, data in whole.items() if name.endswith(".json")}

    def make(rng: random.Random) -> str:
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        name = "tokenizer.json" if rng.random() < 0.8 else rng.choice(sorted(whole))
        if name in trees:
            text = as_json(mutate_tree(trees[name], rng, rng.choice((1, 2))), rng)
            (folder / name).write_text(text, "utf-8", "replace")
            return f"{name} {text[:60]}"
        (folder / name).write_bytes(rng.choice((b"", b"x", rng.randbytes(500))))
        return name

    def load() -> None:
        clip = load_text_encoder(pipeline, "fp32")
        for text in ("A panda, (slowly:1.2) 熊猫\u2028", "", " "):
            clip.encode_from_tokens(clip.tokenize(text))

    outcome = fuzz("tokenizer", mutations, make, load)
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


@pytest.mark.parametrize("shape", [(0, 34), (34, 0)], ids=str)
def test_blocks_that_are_no_rows(shape: tuple[int, ...]) -> None:
    """GGUF blocks inside of a safetensors file: an error about reshaping, found by these mutations."""
    tensors = {"a.Q8_0_qweight": torch.zeros(shape, dtype=torch.uint8)}
    entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with pytest.raises(UserError, match="Rows of blocks are expected"):
        specs = collect_specs(Header(entries, {}), "a.safetensors")
        assemble(specs["a.weight"], tensors, "a.safetensors")
