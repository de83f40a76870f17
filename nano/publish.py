"""Make CogVideoX-nano's checkpoint of what nano.train has left in WORK: python -m nano.publish WORK."""

import json
import shutil
import sys
from pathlib import Path

import torch

from . import transformer
from .folders import PIPELINES, WEIGHTS


def publish(work: Path) -> None:
    """Write what all variants share and a transformer each below WEIGHTS, in fp16, and the logs."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from transformers import T5EncoderModel, T5TokenizerFast

    shutil.rmtree(WEIGHTS, ignore_errors=True)
    AutoencoderKLCogVideoX.from_pretrained(work / "decoder" / "trained").half().save_pretrained(WEIGHTS / "vae")
    T5EncoderModel.from_pretrained(work / "text" / "trained").half().save_pretrained(WEIGHTS / "text_encoder")
    T5TokenizerFast.from_pretrained(work / "text" / "tokenizer").save_pretrained(WEIGHTS / "tokenizer")
    CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    ).save_pretrained(WEIGHTS / "scheduler")
    for variant, config in transformer.CONFIGS.items():
        trained = work / variant / "trained.pt"
        if not trained.exists():
            continue
        model = CogVideoXTransformer3DModel(**config)
        missing, unexpected = model.load_state_dict(torch.load(trained), strict=False)
        if unexpected or set(missing) - {"patch_embed.pos_embedding"}:
            raise ValueError(f"{trained} does not fit its config: {missing}, {unexpected}")
        torch.nn.Module.to(model, torch.float16).save_pretrained(WEIGHTS / variant / "transformer")
        (WEIGHTS / variant / "model_index.json").write_text(json.dumps(_index(variant), indent=2) + "\n")


def _index(variant: str) -> dict:
    return {
        "_class_name": PIPELINES[variant],
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }


if __name__ == "__main__":
    publish(Path(sys.argv[1]))
