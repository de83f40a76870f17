"""Files with more entries than any model has: they are counted before they are read.

ComfyUI reads the headers that a prompt names on the event loop that serves every client, again at each try.
"""

import functools
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.files import torch_files, zip_guard
from cogvideox.model_loaders.files.headers import MAX_TENSORS, MAX_VALUES, check_amount
from cogvideox.tests.guard import bounded


def safetensors(folder: Path, header: bytes) -> Path:
    path = folder / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def many_tensors(folder: Path) -> Path:
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return safetensors(folder, ("{" + ",".join(f'"t{n}":{entry}' for n in range(200_000)) + "}").encode())


def many_notes(folder: Path) -> Path:
    return safetensors(folder, ('{"__metadata__":{' + ",".join(f'"k{n}":""' for n in range(1_000_000)) + "}}").encode())


def many_sides(folder: Path) -> Path:
    return safetensors(folder, b'{"a":{"dtype":"U8","shape":[' + b"1," * 8_000_000 + b'1],"data_offsets":[0,0]}}')


def many_objects(folder: Path) -> Path:
    return safetensors(folder, b'{"a":[' + b"{}," * 5_000_000 + b"{}]}")


@functools.cache
def zip_of_many_records() -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for number in range(70_000):  # more than 65,535, so that the end has its larger form
            archive.writestr(zipfile.ZipInfo(str(number)), b"")
    return written.getvalue()


def many_records(folder: Path) -> Path:
    (folder / "a.pt").write_bytes(zip_of_many_records())
    return folder / "a.pt"


def many_shards(folder: Path) -> Path:
    names = {f"t{n}": f"{n}.safetensors" for n in range(30_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def many_names_in_an_index(folder: Path) -> Path:
    text = '{"weight_map":{' + ",".join(['"t":"a"'] * 700_000) + "}}"
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def many_settings(folder: Path) -> Path:
    (folder / "model_index.json").write_text("{" + ",".join(['"k":0'] * 700_000) + "}")
    for name in ("transformer", "vae", "text_encoder"):
        (folder / name).mkdir()
    return folder


CASES: dict[str, Callable[[Path], Path]] = {
    "tensors": many_tensors,
    "notes": many_notes,
    "sides of a tensor": many_sides,
    "objects": many_objects,
    "records of a zip file": many_records,
    "shards": many_shards,
    "names in an index": many_names_in_an_index,
}


@pytest.mark.parametrize("what", CASES)
def test_more_than_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Two to four seconds for each, in which no client got an answer."""
    path = CASES[what](tmp_path)

    def read_small_ones(loads: Callable[..., Any]) -> Callable[..., Any]:
        def call(text: Any, **options: Any) -> Any:
            assert what == "shards", "parses them"
            return loads(text, **options)

        return call

    monkeypatch.setattr(json, "loads", read_small_ones(json.loads))
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("makes an object of each"))
    monkeypatch.setattr(os.path, "isfile", lambda _: pytest.fail("looks for each"))
    with bounded(1.0), pytest.raises(UserError, match="(allowed|more than).*[Dd]ownload"):
        checkpoints.check_component(path, "transformer")


def test_a_pipelines_index(tmp_path: Path) -> None:
    folder = many_settings(tmp_path)
    with bounded(1.0), pytest.raises(UserError, match="model_index.json cannot be read as JSON: .* values, where"):
        checkpoints.require_pipeline(folder)


def test_as_many_as_allowed() -> None:
    """The largest header that check_names lets through, with five sides a tensor."""
    entry = {"dtype": "BF16", "shape": [1, 2, 3, 4, 5], "data_offsets": [0, 0]}
    header = json.dumps({f"t{n}": entry for n in range(MAX_TENSORS)})
    check_amount(header)
    check_amount(header.encode())
    with pytest.raises(ValueError, match="values, where"):
        check_amount("," * (MAX_VALUES + 1))


@pytest.mark.parametrize("count", [1, 1000, 20_000])
def test_zip_files_of_torch(tmp_path: Path, count: int) -> None:
    """torch writes the larger form of the end, too; a comment may follow it."""
    path = tmp_path / "a.pt"
    torch.save({f"t{n}": torch.zeros(1) for n in range(count)}, path)
    zip_guard.check_directory(path)
    assert len(torch_files._zip_records(path)) > count
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK" + b"x" * 60_000
    zip_guard.check_directory(path)


@pytest.mark.parametrize("what", ["end", "larger end", "length"])
def test_zip_files_whose_end_lies(tmp_path: Path, what: str) -> None:
    """An end that is read in two ways would be counted in one and followed in the other."""
    path = many_records(tmp_path)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x05\x06")
    if what == "end":
        data = data[:at]
    elif what == "larger end":
        data[at - 20 - 56 : at - 20 - 52] = b"none"
    else:
        struct.pack_into("<Q", data, at - 20 - 56 + 40, 1 << 40)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="directory"):
        zip_guard.check_directory(path)
