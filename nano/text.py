"""CogVideoX-nano's text encoder: a small T5 with a tokenizer of whole words, trained to represent what captions say.

It learns from captions alone: from its output, one attention pool for each attribute predicts the shape, colour, size,
motion and background. The pools are discarded; what they could predict from, the transformer can attend to.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import T5Config, T5EncoderModel

from . import toy_tokenizer, world
from .captions import caption, vocabulary

MAX_TOKENS = 32
WIDTH = 64
STEPS, BATCH = 1500, 128
_NONE = "none"
# Single tokens that no training caption has, for LoRAs to teach.
SPARE_WORDS = ("pink", "brown", "gray", "black", "heart", "diamond", "cross", "ring", "an", "the", "and")
_COLOURS = (*world.COLOURS, _NONE)
# An attribute that is predicted from a caption -> its possible values.
ATTRIBUTES = {
    "shape": world.SHAPES,
    "colour": tuple(world.COLOURS),
    "size": tuple(world.SIZES),
    "motion": world.MOTIONS,
    "top": _COLOURS,
    "bottom": _COLOURS,
}


def build_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each word of the captions, letters for the rest; </s> = 1, <pad> = 0 as in T5."""
    letters = string.ascii_letters + string.digits + ".,!?-'():;\"/"
    tokens = [(toy_tokenizer.SPACE, -8.0), *((letter, -10.0) for letter in letters)]
    words = {*vocabulary(), *SPARE_WORDS} - {","}
    tokens += [(toy_tokenizer.SPACE + word, -2.0) for word in sorted(words)]
    tokenizer = toy_tokenizer.build_tokenizer(tokens)
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS, pad_id=0, pad_token=toy_tokenizer.PAD)
    return tokenizer


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


def token_ids(tokenizer: Tokenizer, captions: Sequence[str]) -> torch.Tensor:
    """[B, 32], padded as CogVideoX pads."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])


class TrainedText(torch.nn.Module):
    """The encoder and its pools, with the training loss as forward."""

    def __init__(self, encoder: T5EncoderModel):
        super().__init__()
        self.encoder = encoder
        self.queries = torch.nn.Parameter(torch.randn(len(ATTRIBUTES), WIDTH) * WIDTH**-0.5)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, len(values)) for values in ATTRIBUTES.values())

    def read(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Logits of every attribute's values, [B, values] each. No token is masked, as in CogVideoX."""
        states = self.encoder(input_ids=ids).last_hidden_state
        weights = (states @ self.queries.T).softmax(dim=1)  # [B, tokens, attributes]
        pooled = weights.transpose(1, 2) @ states
        return [head(pooled[:, i]) for i, head in enumerate(self.heads)]

    def forward(self, ids: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """ids: [B, tokens]; truth: [B, attributes]. Returns the loss."""
        losses = [F.cross_entropy(logits, truth[:, i]) for i, logits in enumerate(self.read(ids))]
        return torch.stack(losses).sum()


def truth_of(scene: world.Scene) -> list[int]:
    """The index of each attribute's value."""
    bottom = scene.background[1] if len(scene.background) == 2 else _NONE
    shown = (scene.shape, scene.colour, scene.size, scene.motion, scene.background[0], bottom)
    return [values.index(value) for values, value in zip(ATTRIBUTES.values(), shown)]


def draw_captions(seed: int, indices: Sequence[int], held_out: bool = False) -> tuple[list[str], torch.Tensor]:
    """Captions and their attributes [B, attributes]."""
    captions, truth = [], []
    for index in indices:
        rng = np.random.default_rng([seed, index])
        scene = world.draw_scene(rng, held_out)
        captions.append(caption(scene, rng))
        truth.append(truth_of(scene))
    return captions, torch.tensor(truth)


def loss_of(tokenizer: Tokenizer, seed: int) -> Callable[[torch.nn.Module, Sequence[int]], torch.Tensor]:
    """The loss of samples by their indices, as training.loop asks for it."""

    def loss(model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        captions, truth = draw_captions(seed, indices)
        return model(token_ids(tokenizer, captions), truth)

    return loss


@torch.inference_mode()
def read_share(model: TrainedText, tokenizer: Tokenizer, seed: int, count: int = 500) -> float:
    """The share of captions of held-out scenes whose attributes are all predicted correctly."""
    captions, truth = draw_captions(seed, range(count), held_out=True)
    found = torch.stack([logits.argmax(1) for logits in model.read(token_ids(tokenizer, captions))], dim=1)
    return float((found == truth).all(dim=1).float().mean())
