"""Quantised tensors that files store under several names: which names belong together, and how to assemble them.

Sources: ComfyUI comfy/ops.py (`weight_scale`, `comfy_quant`) and comfy/utils.py convert_old_quants (`scale_weight`),
torchao prototype/safetensors (`_weight_qdata`, `_weight_scale`), MinusZoneAI/ComfyUI-CogVideoX-MZ mz_gguf_loader.py
(`Q4_0_qweight`).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ...errors import UserError, quoted
from ...host.quantized import dequantized, fp8_tensor, has_int8, int8_tensor
from .gguf_blocks import BLOCK_FORMATS, gguf_tensor
from .headers import Entry, Header, json_metadata, json_object

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("weight_scale", "scale_weight")
# Entries of a quantised layer that are no weights of their own. The scales belong to the weight; comfy_quant is read by
# check_quantization_notes. input_scale is not used: a fixed scale of the activations is less exact than a measured one.
_IGNORED = ("input_scale", "scale_input", "comfy_quant", *_SCALES)
_MAX_NOTE_BYTES = 1 << 12  # of comfy_quant; ComfyUI writes less than a hundred
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
# torchao's names: "layer._weight_qdata" now, "layer.weight:qdata" in its older versions
_TORCHAO = r"^(?P<module>.+?)\.(?:_weight_|weight:)(?P<part>qdata|int_data|scale|zero_point)$"
_BLOCKS = r"^(?P<module>.+)\.(?P<kind>\w+)_qweight$"


class TensorSpec(NamedTuple):
    """One logical tensor, and the names of the file's tensors that it consists of.

    block_type: of GGUF, where a safetensors file contains such blocks as bytes.
    """

    entry: Entry
    data: str
    scale: str | None = None
    zero_point: str | None = None
    block_type: str | None = None


def collect_specs(header: Header, source: str) -> dict[str, TensorSpec]:
    """The logical tensors of a file by name.

    source: path for messages.

    Raises UserError for a kind of quantisation that this version does not read.
    """
    entries = header.entries
    found: dict[str, TensorSpec] = {}
    for name, entry in entries.items():
        module, _, leaf = name.rpartition(".")
        # "scaled_fp8" marks a file as a whole, for ComfyUI's convert_old_quants. The dtypes say as much.
        if leaf in _IGNORED or leaf == "scaled_fp8":
            continue
        if match := re.match(_TORCHAO, name):
            # Scale and zero point are found together with the codes that they belong to.
            if match["part"] in ("qdata", "int_data"):
                found[match["module"] + ".weight"] = _torchao(entries, name, match)
        elif (match := re.match(_BLOCKS, name)) and match["kind"] in BLOCK_FORMATS and len(entry.shape) == 2:
            # Bytes [rows, bytes per row] -> the logical shape. 0 columns where the last block is not complete: no model
            # has such a shape, so that require_fit names the tensor.
            shape = (entry.shape[0], BLOCK_FORMATS[match["kind"]].row_columns(entry.shape[1]) or 0)
            found[match["module"] + ".weight"] = TensorSpec(
                entry=Entry(shape, match["kind"]), data=name, block_type=match["kind"]
            )
        else:
            scales = [f"{module}.{scale}" for scale in _SCALES] if leaf == "weight" else []
            found[name] = TensorSpec(entry, name, next(filter(entries.__contains__, scales), None))
    _refuse_unknown(header, found, source)
    return found


def _torchao(entries: Mapping[str, Entry], name: str, match: re.Match[str]) -> TensorSpec:
    stem = name[: match.start("part")]
    scale, zero_point = f"{stem}scale", f"{stem}zero_point"
    return TensorSpec(
        entry=entries[name],
        data=name,
        scale=scale if scale in entries else None,
        zero_point=zero_point if zero_point in entries else None,
    )


def _refuse_unknown(header: Header, found: Mapping[str, TensorSpec], source: str) -> None:
    # Unread kinds have to be found by their traces, or their codes would be taken for weights: formats that ComfyUI's
    # header names, int8 without a scale, and the second scale of NVFP4 (whose codes are uint8).
    layers = json_metadata(header.metadata, "_quantization_metadata", source).get("layers")
    layers = layers.values() if isinstance(layers, dict) else ()
    formats = {quoted(str(layer.get("format"))) for layer in layers if isinstance(layer, dict)}
    unknown = sorted(formats - set(_FORMATS))
    unknown += [str(s.entry.dtype) for s in found.values() if s.entry.dtype == torch.int8 and s.scale is None][:1]
    unknown += [quoted(name) for name in header.entries if name.endswith(".weight_scale_2")][:1]
    if unknown:
        raise UserError(
            f"{source} is quantised in a way that this version does not read ({', '.join(unknown[:3])}). It reads "
            "bf16, fp16, fp32, fp8 with and without scales, int8 with one scale per tensor or per row, and GGUF. "
            "Choose another file of this model."
        )


def check_quantization_notes(specs: Mapping[str, TensorSpec], tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises UserError for a quantisation format that this version does not read.

    ComfyUI writes the format of each quantised layer as a tensor "comfy_quant", the bytes of a JSON object, which the
    header alone does not show. "convrot": weights that were rotated before quantisation, and would have to be rotated
    back.
    """
    for name in specs:
        note = tensors.get(name.removesuffix(".weight") + ".comfy_quant")
        if note is None or not name.endswith(".weight"):
            continue
        # A note as large as a model would be made into as many Python numbers.
        text = bytes(note.flatten().to(torch.uint8).tolist()) if note.numel() <= _MAX_NOTE_BYTES else b""
        layer = json_object(text) or {}
        if layer.get("format") not in _FORMATS or layer.get("convrot") or layer.get("params"):
            kind = quoted(str(layer.get("format"))) + (" with rotation" if layer.get("convrot") else "")
            raise UserError(
                f"{source} stores {quoted(name)} as {kind}, which this version does not read. It "
                f"reads {', '.join(_FORMATS)}. Choose another file of this model."
            )


def assemble(spec: TensorSpec, tensors: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
    """The logical tensor: a QuantizedTensor where a layer can compute with the file's codes, otherwise a plain one.

    tensors: those of the file, by their names there. source: path for messages.

    A quantised tensor gets fp32 as its logical dtype at first: the dtype in which the model computes depends on the
    device and is set later, by model_loaders.quantization.

    Raises UserError where scale and data do not fit.
    """
    data = tensors[spec.data]
    scale = tensors[spec.scale] if spec.scale is not None else None
    if spec.block_type is not None:
        if data.ndim < 2 or not data.numel():
            raise UserError(
                f"{quoted(spec.data)} in {source} holds blocks of {spec.block_type} in the shape {list(data.shape)}. "
                "Rows of blocks are expected: download the file again."
            )
        return gguf_tensor(data.reshape(data.shape[0], -1), spec.block_type, spec.entry.shape, torch.float32)
    if data.dtype not in (*_FP8, torch.int8):
        return data
    if scale is not None:
        scale = scale.to(torch.float32)
        zeros = tensors[spec.zero_point] if spec.zero_point is not None else scale
        if not _fits(scale, data) or zeros.numel() != scale.numel():
            raise UserError(
                f"The scale of {quoted(spec.data)} in {source} has shape {list(scale.shape)}, its weight "
                f"{list(data.shape)}. There should be one scale, one for each row, or one for each group of values "
                "in a row. Download the file again, or take one in another precision."
            )
    if data.dtype == torch.int8:
        zero_point = tensors[spec.zero_point] if spec.zero_point is not None else None
        # ComfyUI's int8 layout is symmetric: code 0 stands for 0. torchao also writes zero points that are all 0.
        is_centred = zero_point is None or torch.count_nonzero(zero_point) == 0
        # collect_specs has refused int8 without a scale.
        if has_int8() and scale is not None and data.ndim == 2 and scale.numel() in (1, data.shape[0]) and is_centred:
            return int8_tensor(data, scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()), torch.float32)
        return _unpacked(data, scale, zero_point)
    if data.ndim != 2 or (scale is not None and scale.numel() != 1):
        return _unpacked(data, scale, None)
    return fp8_tensor(data, None if scale is None else scale.reshape(()), torch.float32)


def _fits(scale: torch.Tensor, data: torch.Tensor) -> bool:
    """Whether `scale` has one value, one for each row of `data`, or [out, groups] that divide the rows evenly.

    Scales of square blocks, [out / 128, in / 128], are not among them: they may divide the number of values evenly as
    well, and would scale the wrong ones.
    """
    if scale.numel() == 1:
        return True
    if data.ndim == 0 or data.numel() == 0:
        return False
    rows = data.shape[0]
    if scale.numel() == rows and max(scale.shape) == rows:
        return True
    groups = scale.numel() // rows
    return data.ndim == 2 and scale.shape[0] == rows and groups > 0 and data.shape[1] % groups == 0


def _unpacked(data: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None) -> torch.Tensor:
    """The values in bf16, for what ComfyUI's quantised layouts cannot hold.

    That is a scale for each group within a row, a zero point, a tensor that is not a matrix, and all int8 in a ComfyUI
    that has no type for it.
    """
    values = data.to(torch.float32)
    # A matrix [out, in] with a scale for each group of neighbours in a row, [out, groups]: values as
    # [out, groups, in / groups], scales and zero points as [out, groups, 1]. One scale for each row is one group.
    if scale is not None:
        groups = scale.numel() // data.shape[0] if scale.numel() > 1 else 1
        values = values.reshape(data.shape[0], max(groups, 1), -1)
        if zero_point is not None:
            zeros = zero_point.to(torch.float32)
            values = values - (zeros.reshape(data.shape[0], -1, 1) if zeros.numel() > 1 else zeros)
        values = (values * (scale.reshape(data.shape[0], -1, 1) if scale.numel() > 1 else scale)).reshape(data.shape)
    return values.to(torch.bfloat16)


def split_fused_rows(tensor: torch.Tensor, parts: int, indices: tuple[int, ...]) -> torch.Tensor:
    """The rows of `tensor` are `parts` equal parts; those in `indices`, concatenated in this order.

    A quantised tensor is unpacked for it, to bf16.
    """
    if parts == 1:
        return tensor
    chunks = dequantized(tensor, torch.bfloat16 if type(tensor) is not torch.Tensor else tensor.dtype).chunk(parts)
    return chunks[indices[0]] if len(indices) == 1 else torch.cat([chunks[index] for index in indices])
