"""Read PyTorch's .pt, .pth, .bin and .ckpt files without executing the code that they may contain."""

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from .headers import Entry, Header, check_names, damaged
from .plain_numbers import alpha_metadata, as_tensor, tensors_of
from .torch_guard import walk_pickles
from .zip_guard import check_directory

# keys under which trainers save the weights: PyTorch Lightning, DeepSpeed (SAT's mp_rank_00_model_states.pt), others
_WRAPPERS = ("state_dict", "module", "model", "ema", "weights")
_MOST_LEVELS = 5  # of dicts in dicts
_MOST_PICKLE_BYTES = 1 << 26
_PICKLE_MAGIC = b"\x80\x02"  # of pickle's protocol 2, in which torch.save writes


def looks_like_torch(path: Path) -> bool:
    """Whether the file begins as torch.save's zip files or its older pickles do."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:2] == _PICKLE_MAGIC


def read_torch_header(path: Path) -> Header:
    """The tensors of a PyTorch file; their bytes are not read.

    Raises UserError where the file is damaged, is compressed, or holds objects other than tensors and plain data.
    """
    tensors, metadata = _load(path, "meta")
    return Header({name: Entry(tuple(t.shape), t.dtype) for name, t in tensors.items()}, metadata)


def open_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a PyTorch file, memory-mapped where the format allows it.

    Raises UserError as read_torch_header does.
    """
    return _load(path, "cpu")[0]


def _load(path: Path, device: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors by name, and a LoRA's alpha of all layers under the name that it has in a header's metadata."""
    is_zip = zipfile.is_zipfile(path)
    records = _zip_records(path) if is_zip else {}
    # Given a path that ends in .safetensors, torch.load reads safetensors whatever the file contains; given an open
    # file, it goes by the contents but cannot map. Pickles without a zip file around them (torch before 1.6) cannot be
    # mapped either.
    is_misnamed = path.suffix.lower() in (".safetensors", ".sft")
    try:
        _check_pickles(path, records)
        with path.open("rb") as file:
            source, can_map = (file, False) if is_misnamed else (path, is_zip)
            loaded = torch.load(source, map_location=device, weights_only=True, mmap=can_map)
        tensors, metadata = _unwrap(loaded)
        check_names(tensors)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} contains Python objects besides tensors{_refused_object(error)}, which can run code. Nothing of "
            "it was executed. Use a .safetensors file of these weights."
        ) from error
    except MemoryError as error:
        raise damaged(path, "needs more memory than this machine has") from error
    # A damaged pickle can make the parser raise nearly anything.
    except Exception as error:
        raise damaged(path, f"cannot be read as a PyTorch file ({_first_line(error)})", error) from error
    if not tensors:
        raise UserError(f"{path} is a PyTorch file without named tensors. Choose the file that contains the weights.")
    return tensors, metadata


def _zip_records(path: Path) -> dict[str, int]:
    """Record of a zip file -> its bytes.

    Raises UserError for a compressed zip file, which torch.save never writes and which could unpack to any size.
    """
    try:
        check_directory(path)
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise damaged(path, f"is a broken zip file ({error})", error) from error
    size = path.stat().st_size
    if any(record.compress_type != zipfile.ZIP_STORED or record.file_size > size for record in records):
        raise UserError(
            f"{path} is a compressed zip file. PyTorch writes its files uncompressed, so this is not a checkpoint. "
            "Unpack it if it is an archive of one, or download the checkpoint again."
        )
    found = {record.filename: record.file_size for record in records}
    if len(found) != len(records):
        raise damaged(path, "has two records of one name")
    return found


def _check_pickles(path: Path, records: Mapping[str, int]) -> None:
    """Follow the file's pickles on stand-ins; see torch_guard.py. records: of a zip file, {} for an older one.

    Raises nearly anything for a pickle that needs more than the file has.
    """
    size = path.stat().st_size
    if not records:
        with path.open("rb") as file:
            walk_pickles(file, size, in_zip=False)
        return
    pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or records[pickles[0]] > _MOST_PICKLE_BYTES:
        raise ValueError("no data.pkl, or one of no usual size")
    with zipfile.ZipFile(path) as archive:
        storages = walk_pickles(io.BytesIO(archive.read(pickles[0])), size, in_zip=True)
    folder = pickles[0].removesuffix("data.pkl")
    if any(records.get(f"{folder}data/{key}") != bytes_ for key, bytes_ in storages.items()):
        raise ValueError("tensors whose bytes are missing")


def _unwrap(loaded: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The named tensors of what a trainer saved, at any depth of nested dicts, and metadata as _load returns them."""
    metadata: dict[str, str] = {}
    # Three wrappers are the most that a trainer was seen to use. A dict may also contain itself.
    for _ in range(10):
        if not isinstance(loaded, Mapping):
            break
        metadata |= alpha_metadata(loaded)
        tensors = tensors_of(loaded)
        # Trainers wrap the weights, sometimes twice, next to optimizer state and counters. A wrapper is followed before
        # the tensors beside it are taken.
        inner = [loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if not inner:
            return tensors or _flattened(loaded), metadata
        loaded = inner[0]
    return {}, {}


def _flattened(loaded: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors of dicts in `loaded`, under the dicts' names and a dot: a trainer may save {"generator": {...}}."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # a dict may contain itself, or another one a thousand times
    waiting = [("", loaded, 0)]
    while waiting:
        prefix, level, depth = waiting.pop()
        if id(level) in seen or depth > _MOST_LEVELS:
            continue
        seen.add(id(level))
        for name, value in level.items():
            if not isinstance(name, str):
                continue
            if (tensor := as_tensor(prefix + name, value)) is not None:
                found[prefix + name] = tensor
            elif isinstance(value, Mapping):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
    return found


def _refused_object(error: BaseException) -> str:
    """The name of the object that torch refused to load. torch's message also advises to load it; that is left out."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" ({match[1]})" if match else ""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
