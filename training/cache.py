"""A dataset as the VAE and the text encoder have encoded it, on disk: a file for each segment of a clip and caption.

A file's name is the hash of all that decides its contents: a file that exists is up to date, whatever was edited.
Latents are kept in the precision that the VAE computes in, which loses nothing. Texts are kept in fp32 up to 1 MiB,
above that in fp16 (T5's last norm bounds them; the official trainer keeps bf16, which is coarser).

Each file's header holds a digest of its numbers: the same that samples.py takes of tensors that came through ComfyUI's
sockets, so that a training begun with the one can go on with the other.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..host.quantized import is_quantized
from ..model_loaders.files.safetensors_writer import write_tensors
from ..system.complete_file import write_complete_text
from ..system.small_files import read_small_text
from .caption_lists import MAX_LIST_BYTES
from .clips import pictures_in

_FORMAT = "1"  # part of every file's name: raise it when the contents of the files change, and older ones are unused
_INDEX = "clips.json"
_BLOCK_BYTES = 1 << 22
_SAMPLED_WEIGHTS, _SAMPLED_NUMBERS = 64, 4096  # how many values are hashed of a weight, of a tensor of a sample
_DIGEST = "digest"  # its key in a file's header
_SMALL_TEXT_BYTES = 1 << 20


def key_of(*parts: object) -> str:
    """A hash of numbers and strings, in lists and tuples as well."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()[:32]


def hash_clip(path: Path) -> str:
    """Of a file's bytes, or of every picture's of a folder. Raises OSError."""
    digest = hashlib.sha256()
    for file in pictures_in(path) if path.is_dir() else [path]:
        # The names of a folder's pictures decide their order. That of a file does not matter: a renamed clip stays
        # encoded.
        digest.update(file.name.encode(errors="backslashreplace") if path.is_dir() else b"")
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                throw_if_interrupted()
                digest.update(block)
    return digest.hexdigest()


def identify_vae(vae: comfy.sd.VAE) -> str:
    """A hash of the VAE's weights and of the precision that it computes in."""
    model: Any = vae.first_stage_model
    return key_of(str(vae.vae_dtype), weights_hash(model, vae.patcher))


def identify_text_encoder(clip: comfy.sd.CLIP) -> str:
    """A hash of the text encoder's weights, what patches them, and how many words and tokens its tokenizer has."""
    words, tokens = (getattr(clip.tokenizer, name, 0) for name in ("vocab_size", "max_tokens"))
    return key_of(words, tokens, weights_hash(clip.cond_stage_model, clip.patcher))


def text_dtype(text: torch.Tensor) -> torch.dtype:
    """What an embedding [L, D] is kept in."""
    return torch.float32 if text.numel() * 4 <= _SMALL_TEXT_BYTES else torch.float16


def is_complete(path: Path) -> bool:
    """Whether a file of the cache is there and has the length that its header announces."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_cached(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `path` under another name and rename it: it is there complete or not at all.

    Raises UserError where the disk is full or cannot be written to.
    """
    if is_complete(path):  # another process was faster, and its file is in use
        return
    try:
        path.unlink(missing_ok=True)  # it is broken, and write_tensors replaces no file
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(path, contiguous, {"format": "pt", _DIGEST: digest_of(contiguous)})
    except (OSError, UserError) as error:
        # write_tensors also raises where the file exists: another process has then written the same contents first.
        if not is_complete(path):
            raise UserError(
                f"The encoded dataset cannot be written to {path.parent}: {error} What was written before is kept and "
                "will be used. Free some space, or choose another folder for the cache."
            ) from error


def read_cached(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors in fp32, on the CPU. Raises UserError where it is gone or broken."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # ComfyUI runs nodes in inference mode, and autograd refuses tensors that were made in it.
        with torch.inference_mode(False):
            return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read any more ({error}). Encode the dataset again; only what is missing is encoded."
        ) from error


def digest_of(tensors: Mapping[str, torch.Tensor | None]) -> str:
    """A hash of some values of each tensor, equal for tensors of equal values in different dtypes: a file holds bf16 or
    fp16 where ComfyUI's sockets hold the same numbers in fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor is not None:
            flat = tensor.reshape(-1)
            numbers = flat[:: max(1, flat.numel() // _SAMPLED_NUMBERS)].to("cpu", torch.float32)
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:32]


def read_digest(path: Path) -> str:
    """digest_of a file's tensors; from its header, or computed where an older version of the pack has written it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            known = (file.metadata() or {}).get(_DIGEST)
    except (OSError, SafetensorError):
        known = None  # read_cached says it in a sentence
    return known or digest_of(read_cached(path))


def read_index(folder: Path) -> dict[str, list[str]]:
    """Clip -> hashes of its bytes and its caption when the cache was last filled; empty where that is not known."""
    try:
        index = json.loads(read_small_text(folder / _INDEX, MAX_LIST_BYTES))
    except (OSError, ValueError, RecursionError, UserError):
        return {}
    return index if isinstance(index, dict) else {}


def write_index(folder: Path, index: Mapping[str, Iterable[str]]) -> None:
    """Raises UserError where it cannot be written."""
    write_complete_text(folder / _INDEX, json.dumps(index, indent=0))


def weights_hash(model: torch.nn.Module, patcher: comfy.model_patcher.ModelPatcher) -> str:
    """Of a model's weights and of the LoRAs on it: names, shapes, types and some numbers of each tensor.

    All numbers of a T5 (9 GB) would take longer to hash than a dataset to encode.
    """
    digest = hashlib.sha256()
    _update(digest, model.state_dict())
    _update(digest, patcher.patches)
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", value: Any) -> None:
    # A quantised tensor passes for one of the dtype that it stands for: the parts that it is stored in are hashed.
    if isinstance(value, torch.Tensor) and is_quantized(value):
        parts: Any = value
        for name in parts.__tensor_flatten__()[0]:
            _update(digest, getattr(value, name))
    elif isinstance(value, torch.Tensor):
        flat = value.detach().reshape(-1)
        numbers = flat[:: max(1, flat.numel() // _SAMPLED_WEIGHTS)][: 2 * _SAMPLED_WEIGHTS].to("cpu", torch.float32)
        digest.update(f"{tuple(value.shape)} {value.dtype} ".encode() + numbers.numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _update(digest, value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _update(digest, item)
    elif hasattr(value, "weights"):  # comfy.weight_adapter's LoRAs, LoHas and the like
        _update(digest, value.weights)
    elif isinstance(value, (str, int, float, type(None))):
        digest.update(repr(value).encode())
