"""CLIP: a T5 encoder behind ComfyUI's socket."""

from functools import partial

import comfy.sd1_clip
import comfy.text_encoders.t5
import torch

from ..errors import UserError
from .tokenizer import CLIP_NAME, CogVideoXTokenizer


class CogVideoXT5(comfy.sd1_clip.SDClipModel):
    """T5 without attention masks: padding is attended to, as in diffusers' pipelines."""

    def __init__(self, config: dict, device: torch.device, dtype: torch.dtype, model_options: dict):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(config),
            special_tokens={"end": 1, "pad": 0},
            model_class=comfy.text_encoders.t5.T5,
            enable_attention_masks=False,
            return_attention_masks=False,
            model_options={**model_options, "model_name": CLIP_NAME},
        )


class CogVideoXTextModel(comfy.sd1_clip.SD1ClipModel):
    """The one-encoder wrapper that comfy.sd.CLIP drives."""

    def __init__(self, config: dict, device: torch.device = None, dtype: torch.dtype = None, model_options: dict = {}):
        super().__init__(
            device=device,
            dtype=dtype,
            name=CLIP_NAME,
            clip_model=partial(CogVideoXT5, config),
            model_options=model_options,
        )


class TextEncoderTarget:
    """comfy.sd.CLIP's recipe: how to build the model and its tokenizer."""

    params: dict = {}

    def __init__(self, config: dict, tokenizer: CogVideoXTokenizer):
        self.clip = partial(CogVideoXTextModel, config)
        self.tokenizer = lambda **_: tokenizer


def require_finite_text(conditioning: list) -> None:
    """Raises UserError where an encoded prompt is not a number, before anything is sampled with it."""
    if not all(torch.isfinite(text).all() for text, _ in conditioning):
        raise UserError(
            "The text encoder's output contains NaN or Inf. Load it with weight_dtype bf16 or fp32; if that is set "
            "already, its file is damaged: download it again."
        )
