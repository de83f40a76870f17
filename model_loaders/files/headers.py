"""What a weight file's header says of a tensor, in words that every format shares."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import UserError


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its logical shape, and torch's type or the name of a GGUF block type."""

    shape: tuple[int, ...]
    dtype: torch.dtype | str


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, and the strings that stand beside them."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that is not whole."""
    return UserError(f"{path} {what}: the download was cut short or the file is damaged. Fetch it again.")


def json_metadata(metadata: Mapping[str, str], key: str) -> dict:
    """The JSON object under `key` of a header's strings, {} where there is none or it is something else."""
    try:
        value = json.loads(metadata.get(key) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
