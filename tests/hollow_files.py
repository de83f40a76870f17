"""Files of the real checkpoints' full size with true headers and holes instead of numbers: they take no disk."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cogvideox.tests import layout_files

OFFICIAL = {  # name -> what tells it from diffusers' defaults, at full size
    "CogVideoX-2b": {},
    "CogVideoX-5b": {"use_rotary_positional_embeddings": True},
    "CogVideoX-5b-I2V": {
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        "in_channels": 32,
    },
    "CogVideoX1.5-5B": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
    "CogVideoX1.5-5B-I2V": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 32,
        "ofs_embed_dim": 512,
    },
    "CogVideoX-Fun-2b-InP": {"in_channels": 33},
    "CogVideoX-Fun-5b-InP": {"use_rotary_positional_embeddings": True, "in_channels": 33},
    "CogVideoX-Fun-V1.5-5b-InP": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 33,
    },
    "CogVideoX-Fun-2b-Control": {"in_channels": 32},
    "CogVideoX-Fun-5b-Control": {"use_rotary_positional_embeddings": True, "in_channels": 32},
    "CogVideoX-Fun-V1.5-5b-Control": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 32,
    },
    "VOID": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False, "in_channels": 48},
}


@cache
def official_weights(name: str) -> dict[str, torch.Tensor]:
    """The full-size transformer's names and shapes, on the meta device: no memory behind them."""
    from diffusers import CogVideoXTransformer3DModel

    config = dict(OFFICIAL[name])
    if "2b" not in name:
        config |= {"num_layers": 42, "num_attention_heads": 48}
    if config.get("patch_size_t"):
        config |= {"sample_width": 300, "sample_height": 300, "sample_frames": 81}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**config)
    return {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}


def hollow_model(name: str) -> Any:
    """The official MODEL in bf16 as load_model builds it, with weights of a shape and without values."""
    import comfy.model_patcher

    from cogvideox.sockets.families import FAMILIES
    from cogvideox.sockets.model import CogVideoXConfig, CogVideoXModel

    (family,) = (family for family in FAMILIES if family.name == name)
    config: dict[str, Any] = {"in_channels": family.in_channels}
    config |= {"num_layers": family.layers, "num_attention_heads": family.heads} | OFFICIAL[name]
    if family.patch_size_t:
        config |= {"sample_width": 300, "sample_height": 300, "sample_frames": 81}
    model_config = CogVideoXConfig(config, family, family.vae_scaling_factor, family.snr_shift_scale)
    model_config.set_inference_dtype(torch.bfloat16, None)
    cpu = torch.device("cpu")
    model = CogVideoXModel(model_config)
    for module in model.modules():  # tables come in the type of the file, which is fp64 in diffusers
        for key, table in module._buffers.items():
            if table is not None and table.is_meta:
                module._buffers[key] = table.to(torch.bfloat16)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def write_hollow(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A .safetensors file of full size with a true header and a hole instead of the numbers: it takes no disk."""
    header, end = {}, 0
    names = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.uint8: "U8"}
    names[torch.int8] = "I8"
    for name, weight in weights.items():
        size = weight.numel() * weight.element_size()
        header[name] = {"dtype": names[weight.dtype], "shape": list(weight.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_hollow_sat(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """As write_hollow, in SAT's file. weights: under SAT's names."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # of which torch.save leaves the bytes out
        empty = {name: torch.empty(weight.shape, dtype=weight.dtype) for name, weight in weights.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        return layout_files.write_sat(path, empty)


def quantized_names(weights: dict[str, torch.Tensor], dtype: torch.dtype, scale: str) -> dict[str, torch.Tensor]:
    """What a quantised file of these weights names, on the meta device."""
    out = {}
    for name, weight in weights.items():
        out[name] = weight.to(dtype) if layout_files.is_matrix(name) else weight
        if layout_files.is_matrix(name) and scale:
            rows = weight.shape[0] if dtype == torch.int8 else 1
            out[name.removesuffix("weight") + scale] = torch.empty(rows, 1, device="meta")
    return out


def torchao_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {}
    for name, weight in quantized_names(weights, torch.int8, "_weight_scale").items():
        is_data = weight.dtype == torch.int8
        out[name.removesuffix("weight") + "_weight_qdata" if is_data else name] = weight
    return out


FULL_SIZE_LAYOUTS = {
    "diffusers": lambda w: w,
    "ComfyUI": layout_files.comfyui_names,
    "ComfyUI, prefixed": lambda w: layout_files.prefixed("model.diffusion_model.", layout_files.comfyui_names(w)),
    "SAT": lambda w: layout_files.prefixed("model.diffusion_model.", layout_files.sat_names(w)),
    "plain fp8": lambda w: quantized_names(w, torch.float8_e4m3fn, ""),
    "scaled fp8": lambda w: quantized_names(w, torch.float8_e4m3fn, "scale_weight"),
    "int8, ComfyUI": lambda w: quantized_names(w, torch.int8, "weight_scale"),
    "int8, torchao": torchao_names,
}


@cache
def official_vae() -> dict[str, torch.Tensor]:
    """The full-size VAE's names and shapes, on the meta device."""
    from diffusers import AutoencoderKLCogVideoX

    with torch.device("meta"):
        weights = AutoencoderKLCogVideoX().state_dict()
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items()}


@cache
def official_t5() -> dict[str, torch.Tensor]:
    """T5-XXL v1.1's encoder, on the meta device."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
    )
    with torch.device("meta"):
        weights = T5EncoderModel(config).state_dict()
    embedding = "encoder.embed_tokens.weight"  # a second name of shared.weight
    return {name: weight.to(torch.bfloat16) for name, weight in weights.items() if name != embedding}


def write_hollow_gguf(path: Path, weights: dict[str, torch.Tensor], kind: str) -> Path:
    """As write_hollow, in GGUF: matrices in blocks of `kind`, everything else as fp16."""
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "cogvideox")
    for name, weight in weights.items():
        shape, size, blocks = list(weight.shape), weight.numel() * 2, None
        if layout_files.is_packed(name) and weight.ndim == 2:
            blocks = GGMLQuantizationType[kind]
            columns, block_bytes = GGML_QUANT_SIZES[blocks]
            size = weight.numel() // columns * block_bytes
        elif weight.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
            shape = [shape[0], weight.numel() // shape[0]]
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float16), size, raw_dtype=blocks)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sizes = [writer.ggml_pad(info.nbytes, writer.data_alignment) for info in writer.tensors[0].values()]
    assert writer.fout is not None
    start = writer.ggml_pad(writer.fout[0].tell(), writer.data_alignment)
    writer.fout[0].truncate(start + sum(sizes))
    writer.close()
    return path
