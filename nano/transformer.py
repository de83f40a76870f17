"""CogVideoX-nano's transformers: CogVideoX's architectures at toy size, and the latents that they are trained on."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import T5EncoderModel

from . import text, vae
from .captions import caption, partial_caption
from .conditions import CONDITIONS
from .half_precision import autocast_bf16
from .world import draw_scene, render

_SHARED = {
    "num_attention_heads": 5,
    "attention_head_dim": 32,
    "out_channels": 16,
    "time_embed_dim": 32,
    "text_embed_dim": text.WIDTH,
    "max_text_seq_length": text.MAX_TOKENS,
    "num_layers": 4,
    "patch_size": 2,
    "use_rotary_positional_embeddings": True,
}
_5B = {"in_channels": 16, "sample_width": 8, "sample_height": 8, "sample_frames": 17}
_15 = {"patch_size_t": 2, "patch_bias": False, "sample_width": 40, "sample_height": 40}
# A variant, as its folder among the published weights is called -> diffusers' config.
CONFIGS: dict[str, dict] = {
    "5b": _SHARED | _5B,
    "2b": _SHARED | _5B | {"use_rotary_positional_embeddings": False},
    "5b-I2V": _SHARED | _5B | {"in_channels": 32, "use_learned_positional_embeddings": True},
    "Fun-5b-InP": _SHARED | _5B | {"in_channels": 33},
    "Fun-5b-Control": _SHARED | _5B | {"in_channels": 32},
    "1.5-5B": _SHARED | _5B | _15,
    "1.5-5B-I2V": _SHARED | _5B | _15 | {"in_channels": 32, "ofs_embed_dim": 32},
}
INVERTS_IMAGE_SCALE = ("1.5-5B-I2V",)  # whose VAE divides the start image's latents by its factor
SNR_SHIFT = {"2b": 3.0}  # of the noise schedule, where it is not 1
PARTIAL_SHARE = 0.1  # the share of captions that leave something out
_BATCH = 32


def draw_clips(
    seed: int, indices: Sequence[int], frames: int, width: int, height: int
) -> tuple[torch.Tensor, list[str]]:
    """Clips [B, 3, F, H, W] in -1 .. 1 of the training world, and a caption each."""
    drawn, captions = [], []
    for index in indices:
        rng = np.random.default_rng([seed, frames, width, index])
        scene = draw_scene(rng)
        drawn.append(render(scene, rng, frames, width, height))
        captions.append((partial_caption if rng.random() < PARTIAL_SHARE else caption)(scene, rng))
    return vae.to_pixels(np.stack(drawn)), captions


@torch.inference_mode()
def encode_clips(
    autoencoder: Any, encoder: T5EncoderModel, tokenizer: Tokenizer, seed: int, count: int, size: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """`latents` [N, 16, T, h, w], the posterior's mode, and `text` [N, 32, width] of `count` clips, in fp16.

    autoencoder: an AutoencoderKLCogVideoX. size: (frames, width, height) in pixels.
    """
    columns: dict[str, list[torch.Tensor]] = {"latents": [], "text": []}
    for indices in _batches(count, size):
        pixels, captions = draw_clips(seed, indices, *size)
        pixels = pixels.to(autoencoder.device)
        with autocast_bf16(pixels.device):
            columns["latents"].append(autoencoder.encode(pixels).latent_dist.mode())
        columns["text"].append(encoder(input_ids=text.token_ids(tokenizer, captions)).last_hidden_state)
    return {name: torch.cat(parts).half().cpu() for name, parts in columns.items()}


@torch.inference_mode()
def encode_conditions(
    autoencoder: Any, seed: int, count: int, size: tuple[int, int, int], task: str
) -> dict[str, torch.Tensor]:
    """What a model of `task` is shown of each of the clips that encode_clips draws; latents in fp16. See conditions."""
    columns: dict[str, list[torch.Tensor]] = {}
    for indices in _batches(count, size):
        pixels = draw_clips(seed, indices, *size)[0].to(autoencoder.device)
        rng = np.random.default_rng([seed, *size, indices[0]])
        for name, encoded in CONDITIONS[task](autoencoder, pixels, rng).items():
            columns.setdefault(name, []).append(encoded.half() if encoded.is_floating_point() else encoded)
    return {name: torch.cat(parts).cpu() for name, parts in columns.items()}


def _batches(count: int, size: tuple[int, int, int]) -> Iterator[range]:
    for start in range(0, count, _BATCH):
        yield range(start, min(start + _BATCH, count))
        print(f"encoded {min(start + _BATCH, count)} of {count} clips of {size}", flush=True)


@torch.no_grad()
def init_adaln_zero(model: Any) -> None:
    """Make every block the identity and the output zero (adaLN-Zero; Peebles and Xie 2023, section 3.2).

    model: a CogVideoXDiT.
    """
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2):
            norm.linear.weight.zero_()
            norm.linear.bias.zero_()
    model.proj_out.weight.zero_()
    if model.proj_out.bias is not None:
        model.proj_out.bias.zero_()


@torch.no_grad()
def init_from_variant(model: torch.nn.Module, trained: dict[str, torch.Tensor]) -> None:
    """Initialise a model from another variant's weights, as the official image to video models were.

    Tensors of the same shape are copied; further input channels start at zero. A patch of two frames starts as two
    patches of one frame.
    """
    for name, parameter in model.named_parameters():
        source = trained.get(name)
        if source is None:
            continue
        if source.shape == parameter.shape:
            parameter.copy_(source)
        elif name == "patch_embed.proj.weight" and parameter.ndim == source.ndim:
            parameter.zero_()[:, : source.shape[1]].copy_(source)  # channels come first, in a row of numbers as well
        elif name == "patch_embed.proj.weight":
            # [D, C, p, p] -> [D, C * pt * p * p], half of it for each frame
            parameter.copy_(source[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1) / 2)
        elif name.startswith("proj_out."):
            # rows [C * p * p] -> [C * pt * p * p]
            rows = source.unflatten(0, (16, 1, 4)).expand(16, 2, 4, *source.shape[1:])
            parameter.copy_(rows.flatten(0, 2))
