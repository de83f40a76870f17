"""CogVideoX-nano's text encoder: a small T5 with a tokenizer of whole words, trained to tell apart what captions say.

It learns from captions alone: one attention pool an attribute reads the shape, colour, size, motion and background off
its output. The pools are thrown away; what they could read, the transformer can attend to.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]  # made when it is imported
from transformers.models.t5 import T5Config, T5EncoderModel

from . import world
from .captions import caption, vocabulary

MAX_TOKENS = 32
WIDTH = 64
STEPS, BATCH = 1500, 128
_NONE = "none"
# known as words of their own and never seen in training: for LoRAs to teach
SPARE_WORDS = ("pink", "brown", "gray", "black", "heart", "diamond", "cross", "ring", "an", "the", "and")
_COLOURS = (*world.COLOURS, _NONE)
# what is read from a caption, and the values it can have
ATTRIBUTES = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "size": tuple(world.SIZES),
    "motion": world.MOTIONS,
    "top": _COLOURS,
    "bottom": _COLOURS,
}


def build_tokenizer() -> T5TokenizerFast:
    """Words of the captions as one token each, anything else letter by letter; </s> = 1 and <pad> = 0 as in T5."""
    letters = string.ascii_letters + string.digits + ".,!?-'():;\"/"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -8.0)]
    vocab += [(letter, -10.0) for letter in letters]
    words = {*vocabulary(), *SPARE_WORDS} - {","}
    vocab += [("\u2581" + word, -2.0) for word in sorted(words)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, additional_special_tokens=[])


def build_encoder(vocab_size: int) -> T5EncoderModel:
    config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": WIDTH,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    return T5EncoderModel(T5Config(**config))


def token_ids(tokenizer: T5TokenizerFast, captions: Sequence[str]) -> torch.Tensor:
    """[B, 32], padded as CogVideoX pads."""
    return tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids


class TrainedText(torch.nn.Module):
    """The encoder and its pools, with the training loss as forward."""

    def __init__(self, encoder: T5EncoderModel):
        super().__init__()
        self.encoder = encoder
        self.queries = torch.nn.Parameter(torch.randn(len(ATTRIBUTES), WIDTH) * WIDTH**-0.5)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, len(values)) for values in ATTRIBUTES.values())

    def read(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Scores of every attribute's values, [B, values] each. No token is masked, as in CogVideoX."""
        states = self.encoder(input_ids=ids).last_hidden_state
        weights = (states @ self.queries.T).softmax(dim=1)  # [B, tokens, attributes]
        pooled = weights.transpose(1, 2) @ states
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]

    def forward(self, ids: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """ids: [B, tokens]; truth: [B, attributes]. Returns the loss."""
        losses = [F.cross_entropy(scores, truth[:, i]) for i, scores in enumerate(self.read(ids))]
        return torch.stack(losses).sum()


def truth_of(scene: world.Scene) -> list[int]:
    """The index of each attribute's value."""
    bottom = scene.background[1] if len(scene.background) == 2 else _NONE
    told = (scene.shape, scene.colour, scene.size, scene.motion, scene.background[0], bottom)
    return [values.index(value) for values, value in zip(ATTRIBUTES.values(), told)]


def draw_captions(seed: int, indices: Sequence[int], held_out: bool = False) -> tuple[list[str], torch.Tensor]:
    """Captions and their attributes [B, attributes]."""
    captions, truth = [], []
    for index in indices:
        rng = np.random.default_rng([seed, index])
        scene = world.draw_scene(rng, held_out)
        captions.append(caption(scene, rng))
        truth.append(truth_of(scene))
    return captions, torch.tensor(truth)


def loss_of(tokenizer: T5TokenizerFast, seed: int) -> Callable[[torch.nn.Module, Sequence[int]], torch.Tensor]:
    """The loss of samples by their indices, as training.loop asks for it."""

    def loss(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        captions, truth = draw_captions(seed, indices)
        return model(token_ids(tokenizer, captions), truth)

    return loss


@torch.inference_mode()
def read_share(model: TrainedText, tokenizer: T5TokenizerFast, seed: int, count: int = 500) -> float:
    """The share of captions of held-out scenes whose every attribute is read right."""
    captions, truth = draw_captions(seed, range(count), held_out=True)
    found = torch.stack([scores.argmax(1) for scores in model.read(token_ids(tokenizer, captions))], dim=1)
    return float((found == truth).all(dim=1).float().mean())
