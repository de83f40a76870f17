"""Write weights as the layouts found in the wild hold them, from diffusers' names; the way back is the pack's to find.

The spelling of each layout is written out here once more, from the same sources, and shares no code with the pack.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

StateDict = dict[str, torch.Tensor]
MATRIX = re.compile(r"transformer_blocks\.\d+\.(attn1\.to_\w+(\.0)?|ff\.net\.(0\.proj|2))\.weight$")
T5_MATRIX = re.compile(r"\.(SelfAttention\.[qkvo]|DenseReluDense\.w\w+)\.weight$")


def is_matrix(name: str) -> bool:
    """Whether quantised files quantise this tensor."""
    return bool(MATRIX.search(name) or T5_MATRIX.search(name))


def is_packed(name: str) -> bool:
    """Whether GGUF files hold this tensor in blocks; T5's matrices have llama.cpp's names there."""
    return is_matrix(name) or bool(re.search(r"\.(attn_[qkvo]|ffn_\w+)\.weight$", name))


def comfyui_names(weights: StateDict) -> StateDict:
    """ComfyUI's own module tree (comfy/ldm/cogvideo/model.py)."""
    words = {
        "transformer_blocks.": "blocks.",
        "time_embedding.linear_": "time_embedding_linear_",
        "ofs_embedding.linear_": "ofs_embedding_linear_",
        "attn1.norm_": "norm_",
        "attn1.to_out.0.": "attn_out.",
        "attn1.to_": "",
        "ff.net.0.proj.": "ff_proj.",
        "ff.net.2.": "ff_out.",
    }
    return {_replace(name, words): weight for name, weight in weights.items()}


def diffsynth_names(weights: StateDict) -> StateDict:
    """DiffSynth-Studio's module tree (diffsynth/models/cog_dit.py), whose patch embedding is a 3-D convolution."""
    words = {
        "transformer_blocks.": "blocks.",
        "patch_embed.proj.": "patchify.proj.",
        "patch_embed.text_proj.": "context_embedder.",
        "time_embedding.linear_1.": "time_embedder.timestep_embedder.0.",
        "time_embedding.linear_2.": "time_embedder.timestep_embedder.2.",
        "attn1.norm_": "norm_",
        "attn1.to_out.0.": "attn1.to_out.",
        "ff.net.0.proj.": "ff.0.",
        "ff.net.2.": "ff.2.",
    }
    out = {_replace(name, words): weight for name, weight in weights.items()}
    return {name: w.unsqueeze(2) if name == "patchify.proj.weight" else w for name, w in out.items()}


def sat_names(weights: StateDict) -> StateDict:
    """THUDM's own training code: q, k, v in one matrix, both modulations of a block in one."""
    out: StateDict = {}
    words = {
        "norm_final.": "transformer.final_layernorm.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "ofs_embedding.linear_1.": "ofs_embed.0.",
        "ofs_embedding.linear_2.": "ofs_embed.2.",
        "patch_embed.pos_embedding": "mixins.pos_embed.pos_embedding",
        "patch_embed.": "mixins.patch_embed.",
        "norm_out.norm.": "mixins.final_layer.norm_final.",
        "norm_out.linear.": "mixins.final_layer.adaLN_modulation.1.",
        "proj_out.": "mixins.final_layer.linear.",
    }
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    for layer in range(layers):
        block, sat = f"transformer_blocks.{layer}.", f"transformer.layers.{layer}."
        for kind in ("weight", "bias"):
            out[f"{sat}attention.query_key_value.{kind}"] = torch.cat(
                [weights[f"{block}attn1.to_{part}.{kind}"] for part in "qkv"]
            )
            one, two = (weights[f"{block}norm{n}.linear.{kind}"].chunk(2) for n in (1, 2))
            # video of attention, video of feed-forward, then the text's
            out[f"mixins.adaln_layer.adaLN_modulations.{layer}.1.{kind}"] = torch.cat([one[0], two[0], one[1], two[1]])
            out[f"{sat}attention.dense.{kind}"] = weights[f"{block}attn1.to_out.0.{kind}"]
            out[f"{sat}mlp.dense_h_to_4h.{kind}"] = weights[f"{block}ff.net.0.proj.{kind}"]
            out[f"{sat}mlp.dense_4h_to_h.{kind}"] = weights[f"{block}ff.net.2.{kind}"]
            out[f"{sat}input_layernorm.{kind}"] = weights[f"{block}norm1.norm.{kind}"]
            out[f"{sat}post_attention_layernorm.{kind}"] = weights[f"{block}norm2.norm.{kind}"]
            for word, norm in (("query", "norm_q"), ("key", "norm_k")):
                name = f"mixins.adaln_layer.{word}_layernorm_list.{layer}.{kind}"
                out[name] = weights[f"{block}attn1.{norm}.{kind}"]
    rest = {name: weight for name, weight in weights.items() if not name.startswith("transformer_blocks.")}
    out |= {_replace(name, words, once=True): weight for name, weight in rest.items()}
    out["mixins.pos_embed.freqs_sin"] = torch.zeros(1, device=next(iter(weights.values())).device)  # computed elsewhere
    return out


def sat_vae_names(weights: StateDict) -> StateDict:
    """The VAE as THUDM trained it: blocks of the decoder numbered in reverse order, the loss in the same file."""
    words = {
        "mid_block.resnets.0.": "mid.block_1.",
        "mid_block.resnets.1.": "mid.block_2.",
        "down_blocks.": "down.",
        "resnets.": "block.",
        "downsamplers.0.": "downsample.",
        "upsamplers.0.": "upsample.",
        "conv_shortcut.": "nin_shortcut.",
    }
    turned = {re.sub(r"up_blocks\.(\d)", lambda m: f"up.{3 - int(m[1])}", name): w for name, w in weights.items()}
    out = {_replace(name, words): weight for name, weight in turned.items()}
    out["loss.logvar"] = torch.zeros(1, device=next(iter(weights.values())).device)
    return out


def gguf_t5_names(weights: StateDict) -> StateDict:
    """llama.cpp's names of an encoder."""
    words = {
        "encoder.final_layer_norm.": "enc.output_norm.",
        "encoder.block.": "enc.blk.",
        "layer.0.SelfAttention.relative_attention_bias.": "attn_rel_b.",
        "layer.0.SelfAttention.": "attn_",
        "layer.0.layer_norm.": "attn_norm.",
        "layer.1.DenseReluDense.wi_0.": "ffn_gate.",
        "layer.1.DenseReluDense.wi_1.": "ffn_up.",
        "layer.1.DenseReluDense.wo.": "ffn_down.",
        "layer.1.layer_norm.": "ffn_norm.",
        "shared.": "token_embd.",
    }
    return {_replace(name, words): weight for name, weight in weights.items() if name != "encoder.embed_tokens.weight"}


def _replace(name: str, words: dict[str, str], once: bool = False) -> str:
    for old, new in words.items():
        if old in name:
            name = name.replace(old, new, 1)
            if once:
                break
    return name


def prefixed(prefix: str, weights: StateDict) -> StateDict:
    """The same weights behind a prefix."""
    return {prefix + name: weight for name, weight in weights.items()}


def plain_fp8(weights: StateDict) -> StateDict:
    """Matrices cast to fp8 as they are, as most fp8 files of CogVideoX hold them."""
    return {n: w.to(torch.float8_e4m3fn) if is_matrix(n) else w.to(torch.bfloat16) for n, w in weights.items()}


def scaled_fp8(weights: StateDict, scale_name: str = "scale_weight") -> StateDict:
    """fp8 with a scale a tensor: "scale_weight" as ComfyUI's older files have it, "weight_scale" as its newer."""
    out: StateDict = {}
    for name, weight in weights.items():
        if not is_matrix(name):
            out[name] = weight.to(torch.bfloat16)
            continue
        module, scale = name.removesuffix(".weight"), weight.float().abs().max() / 448
        out[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        out[f"{module}.{scale_name}"] = scale
        if scale_name == "weight_scale":
            note = json.dumps({"format": "float8_e4m3fn"}).encode()
            out[f"{module}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    if scale_name == "scale_weight":
        out["scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return out


def rowwise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 [out, in], scale [out, 1])."""
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return (weight.float() / scale).round().to(torch.int8), scale


def comfyui_int8(weights: StateDict) -> StateDict:
    """int8 with a scale a row, as ComfyUI's `int8_tensorwise` files."""
    out: StateDict = {}
    for name, weight in weights.items():
        if not is_matrix(name):
            out[name] = weight.to(torch.bfloat16)
            continue
        module = name.removesuffix(".weight")
        out[name], out[f"{module}.weight_scale"] = rowwise_int8(weight)
        out[f"{module}.comfy_quant"] = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    return out


def torchao_int8(weights: StateDict, old: bool = False) -> tuple[StateDict, dict[str, str]]:
    """(tensors, metadata) as torchao's flatten_tensor_state_dict writes an Int8Tensor."""
    out: StateDict = {}
    metadata = {"tensor_names": json.dumps(list(weights))}
    stem = "{}.weight:{}" if old else "{}._weight_{}"
    for name, weight in weights.items():
        metadata[name] = json.dumps({"_type": "Int8Tensor" if is_matrix(name) else "Tensor"})
        if not is_matrix(name):
            out[name] = weight.to(torch.bfloat16)
            continue
        module = name.removesuffix(".weight")
        data, scale = rowwise_int8(weight)
        out[stem.format(module, "qdata")], out[stem.format(module, "scale")] = data, scale
    return out, metadata


def blocks_as_bytes(weights: StateDict, kind: str) -> StateDict:
    """GGUF blocks inside a safetensors file, as MinusZoneAI's packs and kijai's CogVideoX_GGUF files hold them."""
    from gguf import GGMLQuantizationType, quants

    out: StateDict = {}
    for name, weight in weights.items():
        if is_matrix(name):
            data = quants.quantize(weight.float().numpy(), GGMLQuantizationType[kind])
            out[f"{name.removesuffix('.weight')}.{kind}_qweight"] = torch.from_numpy(data)
        else:
            out[name] = weight.to(torch.float16)
    return out


def write_gguf(path: Path, weights: StateDict, kind: str, architecture: str = "cogvideox") -> Path:
    """A GGUF file: matrices in blocks of `kind`, everything else as fp32; five dimensions are flattened with a note."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    writer = GGUFWriter(path, architecture)
    for name, weight in weights.items():
        values = weight.float().contiguous().numpy()
        if is_packed(name) and values.ndim == 2:
            data = quants.quantize(values, GGMLQuantizationType[kind])
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
        elif values.ndim > 4:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            writer.add_tensor(name, values.reshape(values.shape[0], -1))
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(path: Path, weights: StateDict, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: weight.contiguous().clone() for name, weight in weights.items()}, path, metadata)
    return path


def write_sat(path: Path, weights: StateDict, wrapper: str = "module") -> Path:
    """A .pt file as DeepSpeed ("module") or Lightning ("state_dict") writes it."""
    torch.save({wrapper: weights, "iteration": 1}, path)
    return path


# layout -> write the transformer in it as one file in a folder; of the matrices it holds, what a reader must get
Writer = Callable[[Path, StateDict], Path]
TRANSFORMER_LAYOUTS: dict[str, Writer] = {
    "diffusers fp32": lambda folder, w: write_safetensors(folder / "a.safetensors", w),
    "diffusers bf16": lambda folder, w: write_safetensors(
        folder / "a.safetensors", {n: t.to(torch.bfloat16) for n, t in w.items()}
    ),
    "diffusers fp16": lambda folder, w: write_safetensors(
        folder / "a.safetensors", {n: t.to(torch.float16) for n, t in w.items()}
    ),
    "diffusers .bin": lambda folder, w: write_sat(folder / "diffusion_pytorch_model.bin", w, "state_dict"),
    "ComfyUI": lambda folder, w: write_safetensors(folder / "a.safetensors", comfyui_names(w)),
    "ComfyUI, prefixed": lambda folder, w: write_safetensors(
        folder / "a.sft", prefixed("model.diffusion_model.", comfyui_names(w))
    ),
    "SAT .pt": lambda folder, w: write_sat(folder / "a.pt", prefixed("model.diffusion_model.", sat_names(w))),
    "SAT, safetensors": lambda folder, w: write_safetensors(folder / "a.safetensors", sat_names(w)),
    "plain fp8": lambda folder, w: write_safetensors(folder / "a.safetensors", plain_fp8(w)),
    "scaled fp8": lambda folder, w: write_safetensors(folder / "a.safetensors", scaled_fp8(w)),
    "scaled fp8, ComfyUI": lambda folder, w: write_safetensors(
        folder / "a.safetensors", comfyui_names(scaled_fp8(w, "weight_scale"))
    ),
    "int8, ComfyUI": lambda folder, w: write_safetensors(folder / "a.safetensors", comfyui_int8(w)),
    "int8, torchao": lambda folder, w: write_safetensors(folder / "a.safetensors", *torchao_int8(w)),
    "int8, torchao old": lambda folder, w: write_safetensors(folder / "a.safetensors", *torchao_int8(w, old=True)),
    "GGUF BF16": lambda folder, w: write_gguf(folder / "a.gguf", w, "BF16"),
    "GGUF Q8_0": lambda folder, w: write_gguf(folder / "a.gguf", w, "Q8_0"),
    "GGUF Q4_0": lambda folder, w: write_gguf(folder / "a.gguf", w, "Q4_0"),
    "GGUF Q5_1, prefixed": lambda folder, w: write_gguf(
        folder / "a.gguf", prefixed("model.diffusion_model.", w), "Q5_1"
    ),
    "blocks in safetensors": lambda folder, w: write_safetensors(folder / "a.safetensors", blocks_as_bytes(w, "Q4_0")),
}
VAE_LAYOUTS: dict[str, Writer] = {
    "diffusers": lambda folder, w: write_safetensors(folder / "v.safetensors", w),
    "prefixed": lambda folder, w: write_safetensors(folder / "v.safetensors", prefixed("first_stage_model.", w)),
    "SAT .pt": lambda folder, w: write_sat(folder / "3d-vae.pt", sat_vae_names(w), "state_dict"),
    "SAT, safetensors": lambda folder, w: write_safetensors(folder / "v.sft", sat_vae_names(w)),
    "GGUF": lambda folder, w: write_gguf(folder / "v.gguf", w, "Q8_0"),
}
T5_LAYOUTS: dict[str, Writer] = {
    "diffusers fp32": lambda folder, w: write_safetensors(folder / "t.safetensors", w),
    "diffusers .bin": lambda folder, w: write_sat(folder / "pytorch_model.bin", w, "state_dict"),
    "diffusers fp16": lambda folder, w: write_safetensors(
        folder / "t.safetensors", {n: t.half() for n, t in w.items()} | {"decoder.x.weight": torch.zeros(1)}
    ),
    "plain fp8": lambda folder, w: write_safetensors(folder / "t.safetensors", plain_fp8(w)),
    "scaled fp8": lambda folder, w: write_safetensors(folder / "t.safetensors", scaled_fp8(w)),
    "int8, ComfyUI": lambda folder, w: write_safetensors(folder / "t.safetensors", comfyui_int8(w)),
    "GGUF Q8_0": lambda folder, w: write_gguf(folder / "t.gguf", gguf_t5_names(w), "Q8_0", "t5encoder"),
    "GGUF Q4_0": lambda folder, w: write_gguf(folder / "t.gguf", gguf_t5_names(w), "Q4_0", "t5encoder"),
}


def held_matrix(layout: str, weight: torch.Tensor) -> torch.Tensor:
    """What `layout` keeps of an fp32 matrix, in fp32."""
    if "GGUF" in layout or "blocks" in layout:
        from gguf import GGMLQuantizationType, quants

        kind = GGMLQuantizationType["Q4_0" if "blocks" in layout else layout.split()[1].rstrip(",")]
        return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind))
    if layout.startswith("int8"):
        data, scale = rowwise_int8(weight)
        return data.float() * scale
    if layout == "plain fp8":
        return weight.to(torch.float8_e4m3fn).float()
    if layout.startswith("scaled fp8"):
        scale = weight.abs().max() / 448
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale
    if layout == "diffusers bf16":
        return weight.to(torch.bfloat16).float()
    return weight.to(torch.float16).float() if layout == "diffusers fp16" else weight
