"""Graphs whose model, text encoder and VAE come from files of every kind, with LoRAs on the model."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from cogvideox.tests.graphs import (
    DECODE,
    LATENTS,
    NEGATIVE,
    PROMPT,
    SAMPLE,
    VIDEO,
    node,
    text_to_video,
    with_inputs,
    without,
)

LOADERS = {  # a part's socket -> its loader, the loader's name input, the list of files, who takes the part
    "model": ("CogVideoXLoadModel", "model_name", "diffusion_models", (SAMPLE,)),
    "clip": ("CogVideoXLoadTextEncoder", "text_encoder_name", "text_encoders", (PROMPT, NEGATIVE)),
    "vae": ("CogVideoXLoadVAE", "vae_name", "vae", (DECODE,)),
}
PARTS = {"model": "transformer", "vae": "vae", "clip": "text_encoder"}  # a part's socket -> its folder on disk
OURS, STOCK = "CogVideoXApplyLora", "LoraLoaderModelOnly"


def short(folder: str, weight_dtype: str = "fp32", **sample: object) -> dict:
    """Text to video in two steps; it saves the frames and the latent, and makes no mp4."""
    graph = text_to_video(folder, weight_dtype=weight_dtype, **{"steps": 2, **sample})
    return without(without(graph, VIDEO), "create")


def with_part(graph: dict, part: str, name: str | list, weight_dtype: str = "fp32") -> dict:
    """`graph` with its "model", "clip" or "vae" loaded from a file or folder of its own."""
    loader, name_input, _, takers = LOADERS[part]
    graph = graph | {part: node(loader, **{name_input: name}, weight_dtype=weight_dtype)}
    for taker in takers:
        graph = with_inputs(graph, taker, **{part: [part, 0]})
    return graph


def with_lora(graph: dict, name: str, strength: float = 1.0, class_type: str = OURS, node_id: str = "lora") -> dict:
    """`graph` with a LoRA on what the sampler takes, by our node or by ComfyUI's."""
    key = "strength" if class_type == OURS else "strength_model"
    lora = node(class_type, model=graph[SAMPLE]["inputs"]["model"], lora_name=name, **{key: strength})
    return with_inputs(graph | {node_id: lora}, SAMPLE, model=[node_id, 0])


def only(graph: dict, *node_ids: str) -> dict:
    """These nodes of `graph` and what they need, with none of its other outputs."""
    kept: dict = {}
    waiting = list(node_ids)
    while waiting:
        node_id = waiting.pop()
        kept[node_id] = graph[node_id]
        waiting += [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
    return kept


def latent_only(graph: dict) -> dict:
    """`graph` without decoding."""
    return only(graph, LATENTS)


def component_weights(pipeline: Path, component: str) -> dict[str, torch.Tensor]:
    """A component's tensors in diffusers' names, read without the pack."""
    merged: dict[str, torch.Tensor] = {}
    for file in sorted((pipeline / component).glob("*.safetensors")):
        merged |= load_file(file)
    return merged
