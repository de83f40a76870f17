"""Damaged and hostile files under every loader of the real server: one clear message each, nothing of them is run, and
the server goes on working."""

import json
import os
import pickle
import random
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cogvideox.tests import layout_files as layouts
from cogvideox.tests import lora_files as loras
from cogvideox.tests.graphs import IMAGES, text_to_video
from cogvideox.tests.part_graphs import (
    LOADERS,
    PARTS,
    STOCK,
    component_weights,
    latent_only,
    only,
    short,
    with_lora,
    with_part,
)

StateDict = layouts.StateDict
HARM = "harm"  # what the code in the pickles would leave beside the models


class Harm:
    """What pickle runs when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def entry(first: int, last: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def crafted(header: dict | str, data: bytes = bytes(12)) -> bytes:
    """A .safetensors file with any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


# name of the file -> all that is in it, and what the answer says of it
BYTES: dict[str, tuple[bytes, str]] = {
    "empty.safetensors": (b"", "is empty"),
    "eight-zeros.gguf": (bytes(8), "is not a weight file"),
    "noise.pt": (random.Random(0).randbytes(5000), "is not a weight file"),
    "lfs.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "is a Git LFS pointer, not the file that it points to",
    ),
    "page.ckpt": (b"<!DOCTYPE html><html><head><title>401</title></head></html>", "is a web page, not weights"),
    "long-header.safetensors": ((2**40).to_bytes(8, "little") + b"{" + b" " * 100, "only the beginning of one"),
    "deep-header.safetensors": (crafted('{"a":' * 40_000), "has no valid safetensors header"),
    "overlap.safetensors": (crafted({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}), "do not fit its shape"),
    "negative.safetensors": (crafted({"a": entry(8, 0, [-2])}), "has no valid shape"),
    "terabytes.safetensors": (crafted({"a": entry(0, 8, [2**40])}), "do not fit its shape"),
    "unknown-type.safetensors": (crafted({"a": entry(0, 8, [2], "F7")}), "has no valid safetensors header"),
    "twice.safetensors": (crafted('{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8, [2])),) * 2)), "a name occurs twice"),
    "promises.gguf": (
        b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2 + bytes(5000),
        "more than any checkpoint needs",
    ),
}


def cut(write: Callable[[Path, StateDict], object]) -> Callable[[Path, StateDict], None]:
    """What `write` writes, without its last third."""

    def write_part(path: Path, weights: StateDict) -> None:
        write(path, weights)
        os.truncate(path, path.stat().st_size * 2 // 3)

    return write_part


def zip_bomb(path: Path, weights: StateDict) -> None:
    plain = path.with_suffix(".plain")
    layouts.write_sat(plain, weights)
    with zipfile.ZipFile(plain) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for record in good.infolist():
            bomb.writestr(record.filename, good.read(record))
        bomb.writestr("archive/data/999", bytes(20_000_000))
    plain.unlink()


def changed(write: Callable[[Path, StateDict], object], tensor: torch.Tensor | None = None) -> Callable:
    """What `write` writes with the tensor in the middle replaced: by `tensor`, or by NaN."""

    def write_changed(path: Path, weights: StateDict) -> None:
        name = sorted(weights)[len(weights) // 2]
        new = torch.full_like(weights[name], float("nan")) if tensor is None else tensor
        write(path, weights | {name: new})

    return write_changed


def without_one(path: Path, weights: StateDict) -> None:
    """A whole file that lacks one tensor."""
    left_out = sorted(weights)[len(weights) // 2]
    layouts.write_safetensors(path, {name: weight for name, weight in weights.items() if name != left_out})


def harm_beside(path: Path) -> Harm:
    return Harm(next(parent for parent in path.parents if parent.name == "models") / HARM)


SAFETENSORS, SAT = layouts.write_safetensors, layouts.write_sat
CODE = "can run code. Nothing of it was executed"
# name of the file -> what makes it of good weights, and a pattern of the answer
WRITTEN: dict[str, tuple[Callable[[Path, StateDict], object], str]] = {
    "cut.safetensors": (cut(SAFETENSORS), r"has \d+ bytes and should have \d+"),
    "cut.pt": (cut(SAT), "cannot be read as a PyTorch file"),
    "cut.gguf": (cut(lambda path, w: layouts.write_gguf(path, w, "Q8_0")), "cannot be read as a GGUF file"),
    "code.pt": (lambda path, w: torch.save({"state_dict": w, "extra": harm_beside(path)}, path), CODE),
    "code.safetensors": (lambda path, w: torch.save([harm_beside(path)], path), CODE),
    "code.ckpt": (lambda path, w: path.write_bytes(pickle.dumps(harm_beside(path), protocol=2)), CODE),
    "bomb.pt": (zip_bomb, "is a compressed zip file"),
    "link.safetensors": (lambda path, w: path.symlink_to("/nowhere/a.safetensors"), "cannot be opened|There is no"),
    # only their numbers are wrong, or what the model wants of them
    "spread.pt": (
        changed(SAT, torch.zeros(1).expand(2**20, 2**20)),
        "a tensor of 1099511627776 values, of which the file has 1",
    ),
    "shape.safetensors": (changed(SAFETENSORS, torch.zeros(7, 11)), "of another shape|lora_down of rank"),
    "half.safetensors": (
        lambda path, w: SAFETENSORS(path, {name: w[name] for name in sorted(w)[::2]}),
        "looks like an unknown model|missing|lacks|without",
    ),
    "one-less.safetensors": (without_one, "missing|lacks"),
    "nan.safetensors": (changed(SAFETENSORS), "not a number|contains NaN or Inf"),
}
FOUND_LATER = {"shape.safetensors", "half.safetensors", "one-less.safetensors", "nan.safetensors"}


@pytest.fixture(scope="module")
def good(comfyui, exact) -> dict[str, StateDict]:
    """Whole weights for each place that takes a file."""
    pipeline = comfyui.pipelines / exact
    found = {part: component_weights(pipeline, component) for part, component in PARTS.items()}
    shapes = {n.removesuffix(".weight"): tuple(w.shape) for n, w in found["model"].items() if n.endswith(".weight")}
    found["lora"] = loras.write_dialect("diffusers", loras.random_factors(shapes, loras.LINEAR))[0]
    return found


@pytest.fixture
def graph_with(comfyui, exact) -> Callable[..., dict]:
    """graph_with(place, file, write): a graph that loads a file which write(path) writes; parts of a model lie in a
    folder with the good one's config."""

    def make(place: str, file: str, write: Callable[[Path], object]) -> dict:
        if place == "lora":
            write(comfyui.base / "models" / "loras" / f"bad-{file}")
            return latent_only(with_lora(short(exact), f"bad-{file}"))
        root, pipeline = comfyui.base / "models" / LOADERS[place][2], comfyui.pipelines / exact
        folder = root / f"bad-{file}"
        folder.mkdir()
        shutil.copy(pipeline / PARTS[place] / "config.json", folder)
        if place == "clip":
            shutil.copytree(pipeline / "tokenizer", root / "tokenizer", dirs_exist_ok=True)
        write(folder / file)
        return only(with_part(short(exact), place, folder.name), IMAGES)

    return make


def was_run(comfyui) -> bool:
    """Whether the code in a file was executed; what it left is taken away."""
    harm = comfyui.base / "models" / HARM
    found = harm.exists()
    shutil.rmtree(harm, ignore_errors=True)
    return found


# In every run: files with code in each place, the others in two of the four, taking turns.
CASES = [
    pytest.param(place, file, marks=[pytest.mark.long] * ((row + column) % 2 * (not file.startswith("code."))))
    for row, place in enumerate([*PARTS, "lora"])
    for column, file in enumerate([*BYTES, *WRITTEN])
]


@pytest.mark.parametrize(("place", "file"), CASES)
def test_file(comfyui, good, untouched, graph_with, place, file):
    """Whatever a stranger's file or a broken disk holds ends in one sentence that names it, and never in a crash."""
    if file in BYTES:
        content, words = BYTES[file]
        graph = graph_with(place, file, lambda path: path.write_bytes(content))
    else:
        make, words = WRITTEN[file]
        graph = graph_with(place, file, lambda path: make(path, good[place]))
    began = time.monotonic()
    error = comfyui.run(graph).error
    assert time.monotonic() - began < 5
    assert not was_run(comfyui)
    assert error is not None, "it was taken"
    # what the headers show is told before anything runs
    assert error.kind == "rejected" or file in FOUND_LATER, str(error)
    if error.kind == "failed":
        assert error.exception_type == "UserError", str(error)
    assert re.search(words, error.message), error.message
    assert re.search("[Dd]ownload|[Cc]hoose|Use a", error.message), f"no advice: {error.message}"
    assert "nan" in file or f"bad-{file}" in error.message, error.message
    assert len(error.message) < 1500 and "Traceback" not in error.message
    assert comfyui.server.process.poll() is None


def test_code_under_the_stock_lora_node(comfyui, exact, good, graph_with):
    """ComfyUI's own node reads the file in its own way; with this pack there it must still not run it."""
    make, _ = WRITTEN["code.pt"]
    graph = graph_with("lora", "stock-code.pt", lambda path: make(path, good["lora"]))
    graph = latent_only(with_lora(short(exact), graph["lora"]["inputs"]["lora_name"], 1.0, STOCK))
    assert comfyui.run(graph).error is not None
    assert not was_run(comfyui)


def test_server_works_after_all_of_it(comfyui, untouched, exact):
    """The lists still open, and a run gives what it gave before."""
    assert exact in comfyui.offered("CogVideoXLoadModel", "model_name")
    assert torch.equal(comfyui.make_again(text_to_video()).latent, untouched)
    assert "Traceback" not in comfyui.log().rpartition("got prompt")[2]
