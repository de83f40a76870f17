"""The parts that a stage of CogVideoX-nano's training builds on: what WORK holds, else the published weights."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from safetensors.torch import load_file

from . import text
from .folders import WEIGHTS


def load_vae(work: Path) -> Any:
    """The AutoencoderKLCogVideoX in fp32, before its decoder was sharpened where `work` holds that."""
    trained = work / "vae" / "trained"
    return AutoencoderKLCogVideoX.from_pretrained(trained if trained.exists() else WEIGHTS / "vae").float()


@cache
def load_encoders(work: Path) -> tuple[Any, Any, Any]:
    """(AutoencoderKLCogVideoX, on a card where there is one, T5EncoderModel, tokenizers.Tokenizer), in fp32."""
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel

    text_encoder = work / "text" / "trained"
    tokenizer = work / "text" / "tokenizer"
    return (
        load_vae(work).eval().to("cuda" if torch.cuda.is_available() else "cpu"),
        T5EncoderModel.from_pretrained(
            text_encoder if text_encoder.exists() else WEIGHTS / "text_encoder", dtype=torch.float32
        ).eval(),
        Tokenizer.from_file(str((tokenizer if tokenizer.exists() else WEIGHTS / "tokenizer") / "tokenizer.json")),
    )


@torch.inference_mode()
def empty_text(work: Path) -> torch.Tensor:
    """The embedding of the empty caption, [1, 32, width]."""
    _, encoder, tokenizer = load_encoders(work)
    return encoder(input_ids=text.token_ids(tokenizer, [""])).last_hidden_state.clone()


def load_transformer(work: Path, stage: str) -> dict[str, torch.Tensor]:
    """The weights that `stage` has left in `work`, or those that are published under its name, in fp32."""
    trained = work / stage / "trained.pt"
    if trained.exists():
        return torch.load(trained)
    published = (
        WEIGHTS
        / stage.removesuffix("-short").removesuffix("-first")
        / "transformer"
        / "diffusion_pytorch_model.safetensors"
    )
    return {name: tensor.float() for name, tensor in load_file(published).items()}
