"""Files that somebody made to do harm, or that went wrong in every way we know: refused in one sentence, never run."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogvideox.errors import UserError
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.files.headers import Entry
from cogvideox.model_loaders.files.tensor_specs import TensorSpec, assemble
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.text import CogVideoXEncodeText
from cogvideox.tests import layout_files as layouts


@pytest.fixture
def folder(tiny_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """A transformer's folder with its config and without weights."""
    shutil.copy(tiny_pipelines["5b"] / "transformer" / "config.json", tmp_path)
    return tmp_path


@pytest.fixture
def weights(tiny_pipelines: dict[str, Path]) -> dict[str, torch.Tensor]:
    return checkpoints.open_component(tiny_pipelines["5b"], "transformer").state_dict


class Harm:
    """What pickle runs when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", (torch.save, lambda obj, path: Path(path).write_bytes(pickle.dumps(obj, protocol=2))))
def test_code_in_a_pickle_is_never_run(folder: Path, weights: dict, write: Callable) -> None:
    """A .pt file from a stranger is a program; it must stay unread."""
    harm = folder / "harm"
    write({"state_dict": weights, "extra": Harm(harm)}, folder / "a.pt")
    for call in (lambda: checkpoints.check_component(folder, "transformer"), lambda: load_model(folder)):
        with pytest.raises(UserError, match="can run code. Nothing of it was executed"):
            call()
    assert not harm.exists()


def test_a_zip_bomb(folder: Path, weights: dict) -> None:
    """A small file that unpacks to a disk full of zeros."""
    layouts.write_sat(folder / "plain.pt", weights)
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in plain.infolist():
            bomb.writestr(record.filename, plain.read(record))
        bomb.writestr("archive/data/999", b"\0" * 50_000_000)
    (folder / "plain.pt").unlink()
    with pytest.raises(UserError, match="compressed zip file"):
        checkpoints.check_component(folder, "transformer")


def test_a_tensor_larger_than_its_file(folder: Path, weights: dict) -> None:
    """One number spread over a terabyte by its strides costs nothing until it is copied."""
    name = "proj_out.weight"
    layouts.write_sat(folder / "a.pt", weights | {name: torch.zeros(1).expand(2**20, 2**20)})
    with pytest.raises(UserError, match="a tensor of 1099511627776 values, of which the file has 1"):
        load_model(folder, "fp32")


HEADERS = {
    "header longer than the file": (2**40).to_bytes(8, "little") + b"{" + b" " * 100,
    "header of no length": bytes(8) + b"{}",
    "header that nests without end": (200_000).to_bytes(8, "little") + b'{"a":' * 40_000,
    "not JSON": (20).to_bytes(8, "little") + b"{" + b"\xff" * 19,
    "a list": (20).to_bytes(8, "little") + b"{".ljust(20),
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers(folder: Path, what: str) -> None:
    (folder / "a.safetensors").write_bytes(HEADERS[what])
    with pytest.raises(UserError, match="Download it again"):
        checkpoints.check_component(folder, "transformer")


def crafted(entries: dict[str, dict], data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(first: float, last: float, shape: list[int] | list[str], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "entries",
    (
        {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])},
        {"a": entry(4, 12, [2])},
        {"a": entry(0, 8, [3])},
        {"a": entry(8, 0, [-2])},
        {"a": entry(0, 8, [2**40])},
        {"a": entry(0, 8, [2], "F7")},
        {"a": entry(0, 8, ["2"])},
        {"a": entry(0.0, 8.5, [2])},
        {"a": {"dtype": "F32"}},
        {"a": [1]},
        {"__metadata__": {"a": {"b": 1}}},
        {"__metadata__": 3},
    ),
)
def test_headers_that_lie(folder: Path, entries: dict) -> None:
    """Offsets that overlap or leave the file would read another tensor's bytes, or the process's memory."""
    (folder / "a.safetensors").write_bytes(crafted(entries, bytes(12)))
    with pytest.raises(UserError, match="header|should have"):
        checkpoints.check_component(folder, "transformer")


def test_a_name_that_stands_twice(folder: Path) -> None:
    one, two = (json.dumps({"a": entry(first, first + 4, [1])})[1:-1] for first in (0, 4))
    text = f"{{{one},{two}}}".encode()
    (folder / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match="a name occurs twice"):
        checkpoints.check_component(folder, "transformer")


def test_two_shards_with_one_name(tiny_pipelines: dict[str, Path], folder: Path) -> None:
    """Which of the two is the weight would depend on the order of reading."""
    shards = sorted((tiny_pipelines["5b"] / "transformer").glob("*.safetensors"))
    for number in (1, 2):
        shutil.copy(shards[0], folder / f"m-0000{number}-of-00002.safetensors")
    with pytest.raises(UserError, match="of another shard"):
        checkpoints.check_component(folder, "transformer")


@pytest.mark.parametrize(
    "shape", ([9] * 100_000, [-1], [True], [1.0], ["1"]), ids=["long", "-1", "true", "1.0", "text"]
)
def test_impossible_shapes(folder: Path, shape: list) -> None:
    """The product of a shape with a hundred thousand sides held up the server while the prompt was queued."""
    (folder / "a.safetensors").write_bytes(crafted({"a": entry(0, 4, shape)}, bytes(4)))
    with pytest.raises(UserError, match="header"):
        checkpoints.check_component(folder, "transformer")


def test_a_dict_that_contains_itself(folder: Path) -> None:
    """The way through the wrappers had no end; the server answered nobody."""
    circle: dict = {}
    circle["state_dict"] = circle
    torch.save(circle, folder / "a.pt")
    with pytest.raises(UserError):
        checkpoints.check_component(folder, "transformer")


def test_an_index_with_a_name_that_no_file_can_have(folder: Path) -> None:
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "y" * 5000}}))
    with pytest.raises(UserError, match="download is not complete") as caught:
        checkpoints.check_component(folder, "transformer")
    assert len(str(caught.value)) < 500


def test_a_set_of_no_shards(tiny_pipelines: dict[str, Path], folder: Path) -> None:
    """A name that announces nothing is a file like any other."""
    weights = load_file(sorted((tiny_pipelines["5b"] / "transformer").glob("*.safetensors"))[0])
    save_file(weights, folder / "m-00001-of-00000.safetensors")
    with pytest.raises(UserError, match="incomplete"):
        load_model(folder, "fp32")


def test_a_pointer_out_of_the_folder(tiny_pipelines: dict[str, Path], folder: Path) -> None:
    """DeepSpeed's file "latest" names a folder below its own and never the one above."""
    (folder / "inside").mkdir()
    (folder / "inside" / "latest").write_text("..")
    shutil.copy(folder / "config.json", folder / "inside")
    for shard in (tiny_pipelines["5b"] / "transformer").glob("*.safetensors*"):
        shutil.copy(shard, folder)
    with pytest.raises(UserError, match="inside contains no weights"):
        checkpoints.check_component(folder / "inside", "transformer")


@pytest.mark.parametrize("shape", ((4, 2), (8, 3), (2, 8), (8, 0)), ids=str)
@pytest.mark.parametrize("dtype", (torch.int8, torch.float8_e4m3fn), ids=str)
def test_weights_without_rows(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Scales for nothing, or for a single number, ended in an error about an index or a division by zero."""
    for data in (torch.zeros(()), torch.zeros(0, 4), torch.zeros(8, 16)):
        tensors = {"a": data.to(dtype), "scale": torch.ones(shape), "zero": torch.zeros(7)}
        spec = TensorSpec(Entry(tuple(data.shape), dtype), "a", "scale", "zero" if data.numel() > 1 else None)
        with pytest.raises(UserError, match="There should be one scale, one for each row"):
            assemble(spec, tensors, "a.safetensors")


@pytest.mark.parametrize("shape", ((4, 2), (8, 3), (2, 8), (8, 0)), ids=str)
@pytest.mark.parametrize("dtype", (torch.int8, torch.float8_e4m3fn), ids=str)
def test_scales_of_another_layout(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Scales of square blocks would multiply the wrong values; others ended in an error about reshaping."""
    tensors = {"a.weight": torch.zeros(8, 16).to(dtype), "a.weight_scale": torch.ones(shape)}
    entries = {name: Entry(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    spec = TensorSpec(entries["a.weight"], "a.weight", "a.weight_scale")
    with pytest.raises(UserError, match="There should be one scale, one for each row"):
        assemble(spec, tensors, "a.safetensors")


@pytest.mark.parametrize("name", ("../../secret.safetensors", "/etc/passwd", "a\\..\\b.safetensors", "", "."))
def test_an_index_that_leads_out_of_its_folder(folder: Path, name: str) -> None:
    """A downloaded index must not name files elsewhere."""
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="not a file of its own folder|download is not complete"):
        checkpoints.check_component(folder, "transformer")


@pytest.mark.parametrize("index", ({}, {"weight_map": []}, {"weight_map": {"x": None}}, {"weight_map": {"x": {}}}))
def test_an_index_of_nothing(folder: Path, index: dict) -> None:
    (folder / "a.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="download is not complete|not a file of its own folder"):
        checkpoints.check_component(folder, "transformer")


def test_links(folder: Path, weights: dict) -> None:
    """A link to another disk is how many people keep their models; one that leads nowhere is named."""
    elsewhere = folder / "other disk"
    elsewhere.mkdir()
    layouts.write_safetensors(elsewhere / "real.safetensors", weights)
    (folder / "a.safetensors").symlink_to(elsewhere / "real.safetensors")
    assert checkpoints.open_component(folder, "transformer").state_dict.keys() == weights.keys()
    (elsewhere / "real.safetensors").unlink()
    with pytest.raises(UserError, match="is a link to .* which does not exist"):
        checkpoints.check_component(folder / "a.safetensors", "transformer")
    with pytest.raises(UserError, match="cannot be opened"):
        checkpoints.check_component(folder, "transformer")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang_the_server(folder: Path) -> None:
    """Opening a pipe that nobody writes to waits for ever."""
    os.mkfifo(folder / "a.safetensors")
    with pytest.raises(UserError, match="is not a regular file"):
        checkpoints.check_component(folder, "transformer")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        checkpoints.check_component(folder / "a.safetensors", "transformer")


def test_mixed_precisions(folder: Path, weights: dict) -> None:
    """Merges often leave some tensors in another type; each is read as what it is."""
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    mixed = {name: weight.to(types[number % 4]) for number, (name, weight) in enumerate(weights.items())}
    layouts.write_safetensors(folder / "a.safetensors", mixed)
    loaded = load_model(folder, "fp32").model.diffusion_model.state_dict()
    assert all(torch.equal(loaded[name], mixed[name].float()) for name in mixed)


def test_weights_with_nan_are_named(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A bad disk or a diverged training: an error that names the tensor, not a black video an hour later."""
    pipeline = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "pipeline"))
    broken = {
        "transformer": "transformer_blocks.1.ff.net.2.weight",
        "vae": "decoder.conv_in.conv.weight",
        "text_encoder": "encoder.block.0.layer.0.SelfAttention.v.weight",
    }
    for component, name in broken.items():
        for file in (pipeline / component).glob("*.safetensors"):
            held = load_file(file)
            if name in held:
                held[name].view(-1)[5] = float("nan")
                layouts.write_safetensors(file, held)
    model = load_model(pipeline, "fp32")
    with pytest.raises(
        UserError, match=f"timestep 999 contains NaN or Inf. So do weights of the model: {broken['transformer']}"
    ):
        model.model.apply_model(
            torch.zeros(1, 16, 3, 8, 12),
            model.model.model_sampling.sigma_max.reshape(1),
            c_crossattn=torch.zeros(1, 226, 32),
            transformer_options={},
        )
    vae = load_vae(pipeline, "fp32")
    with pytest.raises(UserError, match=f"contains NaN or Inf, and so do its weights: {broken['vae']}"):
        vae.decode(torch.zeros(1, 16, 1, 8, 12))
    clip = load_text_encoder(pipeline, "fp32")
    with pytest.raises(UserError, match="text encoder's output contains NaN or Inf"):
        CogVideoXEncodeText.execute(clip, "a cat")


def test_missing_and_extra_names(folder: Path, weights: dict) -> None:
    """Half a model must not load as noise, nor a fine-tune's new layer be left out in silence."""
    some = dict(weights)
    del some["transformer_blocks.1.ff.net.2.bias"]
    layouts.write_safetensors(folder / "a.safetensors", some | {"camera_embed.weight": torch.zeros(3)})
    with pytest.raises(UserError, match="missing transformer_blocks.1.ff.net.2.bias; unknown camera_embed"):
        load_model(folder)


@pytest.mark.parametrize("size", (0, 1, 7, 8, 9))
@pytest.mark.parametrize("suffix", (".safetensors", ".pt", ".gguf", ".bin"))
def test_files_of_hardly_any_bytes(folder: Path, size: int, suffix: str) -> None:
    (folder / f"a{suffix}").write_bytes(bytes(size))
    with pytest.raises(UserError, match="Download it again"):
        checkpoints.check_component(folder, "transformer")


def test_a_gguf_that_promises_the_world(folder: Path) -> None:
    """A count of tensors or of notes that no file could hold would keep the reader busy for hours."""
    for counts in ((2**60, 0), (0, 2**60), (2**63, 2**63)):
        head = b"GGUF" + (3).to_bytes(4, "little") + b"".join(n.to_bytes(8, "little") for n in counts)
        (folder / "a.gguf").write_bytes(head + bytes(5000))
        with pytest.raises(UserError, match="more than any checkpoint needs"):
            checkpoints.check_component(folder, "transformer")
