"""How files spread one quantised tensor over several names, and how to put it together again.

Sources: ComfyUI comfy/ops.py (`weight_scale`, `comfy_quant`) and comfy/utils.py convert_old_quants (`scale_weight`),
torchao prototype/safetensors (`_weight_qdata`, `_weight_scale`), MinusZoneAI/ComfyUI-CogVideoX-MZ mz_gguf_loader.py
(`Q4_0_qweight`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...errors import UserError
from ...host.quantized import dequantized, fp8_tensor, int8_tensor
from .gguf_blocks import BLOCK_FORMATS, gguf_tensor
from .headers import Entry, Header

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("weight_scale", "scale_weight")
# what belongs to a quantised layer and is not needed: fixed scales for activations are worse than measured ones
_IGNORED = ("input_scale", "scale_input", "comfy_quant", *_SCALES)
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
# torchao, as it is now and as it was; the old spelling put a colon after the name
_TORCHAO = re.compile(r"^(?P<module>.+?)\.(?:_weight_|weight:)(?P<part>qdata|int_data|scale|zero_point)$")
_BLOCKS = re.compile(r"^(?P<module>.+)\.(?P<kind>\w+)_qweight$")


@dataclass(frozen=True)
class Stored:
    """One logical tensor: its entry, and the names in the file that hold it."""

    entry: Entry
    data: str
    scale: str | None = None
    zero_point: str | None = None
    blocks: str | None = None  # GGUF block type, where a safetensors file holds such blocks as bytes


def collect(header: Header, source: str) -> dict[str, Stored]:
    """The logical tensors of a file by name.

    source: path for messages.

    Raises UserError for a quantisation that this version does not read.
    """
    entries = header.entries
    found: dict[str, Stored] = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        if leaf in _IGNORED or leaf == "scaled_fp8":
            continue
        if match := _TORCHAO.match(name):
            if match["part"] in ("qdata", "int_data"):
                found[match["module"] + ".weight"] = _torchao(entries, name, match)
        elif (match := _BLOCKS.match(name)) and match["kind"] in BLOCK_FORMATS and len(entry.shape) == 2:
            shape = (entry.shape[0], BLOCK_FORMATS[match["kind"]].row_columns(entry.shape[1]) or 0)
            found[match["module"] + ".weight"] = Stored(Entry(shape, match["kind"]), name, blocks=match["kind"])
        else:
            scale = next((f"{module}.{s}" for s in _SCALES if leaf == "weight" and f"{module}.{s}" in entries), None)
            found[name] = Stored(entry, name, scale)
    _refuse_unknown(header, found, source)
    return found


def _torchao(entries: Mapping[str, Entry], name: str, match: re.Match) -> Stored:
    stem = name[: match.start("part")]
    scale, zero_point = f"{stem}scale", f"{stem}zero_point"
    return Stored(
        entries[name],
        name,
        scale if scale in entries else None,
        zero_point if zero_point in entries else None,
    )


def _refuse_unknown(header: Header, found: Mapping[str, Stored], source: str) -> None:
    layers = _json(header.metadata.get("_quantization_metadata")).get("layers", {})
    formats = {str(layer.get("format")) for layer in layers.values() if isinstance(layer, dict)}
    unknown = sorted(formats - set(_FORMATS))
    unknown += [str(s.entry.dtype) for s in found.values() if s.entry.dtype == torch.int8 and s.scale is None][:1]
    unknown += [name for name in header.entries if name.endswith(".weight_scale_2")][:1]
    if unknown:
        raise UserError(
            f"{source} is quantised in a way that this version does not read ({', '.join(unknown)}). It reads bf16, "
            "fp16, fp32, fp8 with and without scales, int8 with a scale a tensor or a row, and GGUF."
        )


def check_formats(stored: Mapping[str, Stored], tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """The notes that ComfyUI leaves beside each quantised layer are tensors; they can be read only now.

    Raises UserError for a format that this version does not read.
    """
    for name in stored:
        note = tensors.get(name.removesuffix(".weight") + ".comfy_quant")
        if note is None or not name.endswith(".weight"):
            continue
        layer = _json(bytes(note.flatten().to(torch.uint8).tolist()))
        if layer.get("format") not in _FORMATS or layer.get("convrot") or layer.get("params"):
            raise UserError(
                f"{source} holds {name} as {layer.get('format')}{' with rotation' if layer.get('convrot') else ''}, "
                f"which this version does not read. It reads {', '.join(_FORMATS)}; choose another file of this model."
            )


def put_together(stored: Stored, tensors: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
    """The tensor itself, quantised where the file holds it quantised and a layer can use that.

    Raises UserError where scale and data do not fit.
    """
    data = tensors[stored.data]
    scale = tensors[stored.scale] if stored.scale is not None else None
    if stored.blocks is not None:
        return gguf_tensor(data.reshape(data.shape[0], -1), stored.blocks, stored.entry.shape, torch.float32)
    if data.dtype not in (*_FP8, torch.int8):
        return data
    if scale is not None:
        scale = scale.to(torch.float32)
        rows = data.shape[0]
        if scale.numel() not in (1, rows) and (data.ndim != 2 or data.numel() % scale.numel()):
            raise UserError(
                f"The scale of {stored.data} in {source} has shape {list(scale.shape)}, its weight {list(data.shape)}: "
                "they do not belong together. Fetch the file again."
            )
    if data.dtype == torch.int8:
        zero_point = tensors[stored.zero_point] if stored.zero_point is not None else None
        is_centred = zero_point is None or torch.count_nonzero(zero_point) == 0
        if data.ndim == 2 and scale.numel() in (1, data.shape[0]) and is_centred:
            return int8_tensor(data, scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()), torch.float32)
        return _unpacked(data, scale, zero_point)
    if data.ndim != 2 or (scale is not None and scale.numel() != 1):
        return _unpacked(data, scale, None)
    return fp8_tensor(data, None if scale is None else scale.reshape(()), torch.float32)


def _unpacked(data: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None) -> torch.Tensor:
    """Groups of a row with a scale of their own, or what is no matrix: values in bf16."""
    values = data.to(torch.float32)
    if scale is not None:
        groups = scale.numel() // data.shape[0] if scale.numel() > 1 else 1
        values = values.reshape(data.shape[0], max(groups, 1), -1)
        if zero_point is not None:
            values = values - zero_point.to(torch.float32).reshape(data.shape[0], -1, 1)
        values = (values * (scale.reshape(data.shape[0], -1, 1) if scale.numel() > 1 else scale)).reshape(data.shape)
    return values.to(torch.bfloat16)


def take_rows(tensor: torch.Tensor, parts: int, taken: tuple[int, ...]) -> torch.Tensor:
    """Of `parts` equal parts of the rows those numbered in `taken`, joined; a quantised tensor is unpacked for it."""
    if parts == 1:
        return tensor
    pieces = dequantized(tensor, torch.bfloat16 if type(tensor) is not torch.Tensor else tensor.dtype).chunk(parts)
    return pieces[taken[0]] if len(taken) == 1 else torch.cat([pieces[index] for index in taken])


def _json(text: str | bytes | None) -> dict:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
