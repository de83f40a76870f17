"""CLIP: a T5 encoder behind ComfyUI's socket."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import torch

from ..errors import UserError
from .tokenizer import CLIP_NAME, CogVideoXTokenizer


class CogVideoXT5(comfy.sd1_clip.SDClipModel):
    """T5 without attention masks: padding is attended to, as in diffusers' pipelines.

    With masks, as ComfyUI uses them for other models with T5, every token's embedding would differ from those that
    CogVideoX was trained with.
    """

    def __init__(self, config: dict[str, Any], device: Any, dtype: torch.dtype | None, model_options: dict[str, Any]):
        """config: the encoder's config.json. device: a torch.device or its name, as ComfyUI passes it."""
        t5: Any = comfy.text_encoders.t5.T5
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=dict(config),
            # T5's ids. ComfyUI builds the empty prompt from them against which it weighs tokens.
            special_tokens={"end": 1, "pad": 0},
            model_class=t5,
            enable_attention_masks=False,
            return_attention_masks=False,
            model_options={**model_options, "model_name": CLIP_NAME},
        )


class CogVideoXTextModel(comfy.sd1_clip.SD1ClipModel):
    """What comfy.sd.CLIP calls: ComfyUI's wrapper around one encoder, which picks the encoder's tokens out of those of
    all encoders by CLIP_NAME."""

    def __init__(
        self,
        config: dict[str, Any],
        device: Any = None,
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] = {},
    ):
        encoder: Any = partial(CogVideoXT5, config)
        super().__init__(
            device=device,
            dtype=dtype,
            name=CLIP_NAME,
            clip_model=encoder,
            model_options=model_options,
        )


class CogVideoXClip(comfy.sd.CLIP):
    """CLIP whose model is always that of its patcher.

    ComfyUI's Select CLIP Device exchanges the patcher alone. A plain CLIP would go on encoding with the weights that it
    had, copy them to the chosen card at each prompt, and leave out what was patched since.
    """

    patcher: Any = None

    @property
    def cond_stage_model(self) -> Any:
        """The encoder, which ComfyUI assigns before it makes the patcher."""
        return self._first_model if self.patcher is None else self.patcher.model

    @cond_stage_model.setter
    def cond_stage_model(self, model: Any) -> None:
        self._first_model = model if self.patcher is None else None

    def clone(self, *arguments: Any, **options: Any) -> "CogVideoXClip":
        """As ComfyUI's, which makes a plain CLIP."""
        plain = super().clone(*arguments, **options)
        cloned = CogVideoXClip(no_init=True)
        vars(cloned).update({name: value for name, value in vars(plain).items() if name != "cond_stage_model"})
        return cloned


class TextEncoderTarget:
    """What comfy.sd.CLIP asks for: how to make the model and its tokenizer."""

    params: dict[str, Any] = {}

    def __init__(self, config: dict[str, Any], tokenizer: CogVideoXTokenizer):
        self.clip = partial(CogVideoXTextModel, config)
        # comfy.sd.CLIP calls it with embedding_directory and tokenizer_data, which a T5 of diffusers has no use for.
        self.tokenizer = lambda **_: tokenizer


def require_finite_text(conditioning: Sequence[Sequence[Any]]) -> None:
    """Raises UserError where an encoded prompt in a CONDITIONING contains NaN or Inf."""
    if not all(torch.isfinite(text).all() for text, _ in conditioning):
        raise UserError(
            "The text encoder's output contains NaN or Inf. Load it with weight_dtype bf16 or fp32; if that is set "
            "already, its file is damaged: download it again."
        )
