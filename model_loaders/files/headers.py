"""The header of a weight file, in the same terms for every format."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import UserError, quoted

# Characters in the name of a tensor; the longest of any dialect has about 120. Regular expressions are tried on names,
# and some take the square of their length.
MAX_NAME = 1000
# Tensors in a file; a 5b model that is quantised by torchao has 3,000. Each is looked at several times.
MAX_TENSORS = 1 << 15
# Of a header: a tensor has about twelve, with each side of its shape.
MAX_VALUES = 20 * MAX_TENSORS


class Entry(NamedTuple):
    """One tensor of a file: its logical shape, and its torch dtype or the name of its GGUF block type."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


class Header(NamedTuple):
    """The tensors of a file by name, and the strings of its metadata."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


class LimitError(ValueError):
    """A file announces more than any checkpoint has, or makes its reader work far more than its size is worth."""


def damaged(path: Path, what: str, cause: Exception | None = None) -> UserError:
    """The error for a file that is incomplete or damaged, or, where `cause` is a LimitError, that is not read.

    what: continues the sentence that begins with the path.
    """
    if isinstance(cause, LimitError):
        return UserError(
            f"{path} {what}: that is more than any checkpoint needs, so the pack does not read it. Download it again, "
            "or save its weights alone in a .safetensors file."
        )
    return UserError(f"{path} {what}: the download was cut short or the file is damaged. Download it again.")


def check_amount(text: str | bytes) -> None:
    """Raises LimitError for a JSON text with more values than the header, the index or the config of any model has.

    They are counted before the text is parsed: a million of them take seconds, in which ComfyUI answers nobody.
    """
    marks = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    values = sum(text.count(mark) for mark in marks)  # type: ignore[arg-type]
    if values > MAX_VALUES:
        raise LimitError(f"{values} values, where {MAX_VALUES} are allowed")


def check_count(tensors: int) -> None:
    """Raises LimitError for more tensors than any model has."""
    if tensors > MAX_TENSORS:
        raise LimitError(f"{tensors} tensors, where {MAX_TENSORS} are allowed")


def check_names(names: Collection[str]) -> None:
    """Raises LimitError for more or longer names of tensors than any model has."""
    check_count(len(names))
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME:
        raise LimitError(f"a tensor's name of {longest} characters, where {MAX_NAME} are allowed")


def json_metadata(metadata: Mapping[str, str], key: str, source: str) -> dict[str, Any]:
    """The JSON object under `key` of a header's metadata, {} where there is none. source: beginning of the message.

    Raises UserError where something else is there: whatever stands in it would be lost without a word.
    """
    text = metadata.get(key) or "null"
    value = json_object(text)
    if value is None and text.strip() != "null":
        raise UserError(
            f"{source} has {quoted(text)!r} under {key} in its header, which is not a JSON object: the file is "
            "damaged. Download it again, or save it again with the program that wrote it."
        )
    return value or {}


def json_object(text: str | bytes) -> dict[str, Any] | None:
    """The JSON object that `text` is, None where it is something else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
