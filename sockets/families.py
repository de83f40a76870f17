"""What is known of each official checkpoint and of the fine-tunes that have a shape of their own.

Source of the numbers: the config.json files of the official repositories (THUDM, now zai-org).
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Family:
    """One official checkpoint; a fine-tune or a smaller model of the same architecture belongs to it as well.

    task: what its channels beyond the 16 of the video hold, see samplers.conditioning.TASKS.
    inverts_image_scale: its start image's latent is divided by the VAE's scaling factor, not multiplied.
    """

    name: str
    layers: int
    heads: int
    in_channels: int
    rotary: bool
    learned_positions: bool
    patch_size_t: int | None
    ofs_embed_dim: int | None
    trained_dtype: torch.dtype
    vae_scaling_factor: float
    snr_shift_scale: float
    task: str = "text"
    inverts_image_scale: bool = False


_FP16, _BF16 = torch.float16, torch.bfloat16
FAMILIES = (
    Family("CogVideoX-2b", 30, 30, 16, False, False, None, None, _FP16, 1.15258426, 3.0),
    Family("CogVideoX-5b", 42, 48, 16, True, False, None, None, _BF16, 0.7, 1.0),
    Family("CogVideoX-5b-I2V", 42, 48, 32, True, True, None, None, _BF16, 0.7, 1.0, "image"),
    Family("CogVideoX1.5-5B", 42, 48, 16, True, False, 2, None, _BF16, 0.7, 1.0),
    Family("CogVideoX1.5-5B-I2V", 42, 48, 32, True, False, 2, 512, _BF16, 0.7, 1.0, "image", True),
    # aigc-apps/CogVideoX-Fun: fine-tunes of the above, their channels from its pipelines
    Family("CogVideoX-Fun-2b-InP", 30, 30, 33, False, False, None, None, _BF16, 1.15258426, 3.0, "inpaint"),
    Family("CogVideoX-Fun-5b-InP", 42, 48, 33, True, False, None, None, _BF16, 0.7, 1.0, "inpaint"),
    Family("CogVideoX-Fun-V1.5-5b-InP", 42, 48, 33, True, False, 2, None, _BF16, 0.7, 1.0, "inpaint"),
    Family("CogVideoX-Fun-2b-Control", 30, 30, 32, False, False, None, None, _BF16, 1.15258426, 3.0, "control"),
    Family("CogVideoX-Fun-5b-Control", 42, 48, 32, True, False, None, None, _BF16, 0.7, 1.0, "control"),
    Family("CogVideoX-Fun-V1.5-5b-Control", 42, 48, 32, True, False, 2, None, _BF16, 0.7, 1.0, "control"),
    # Netflix/void-model: a fine-tune of CogVideoX-Fun-V1.5-5b-InP
    Family("VOID", 42, 48, 48, True, False, 2, None, _BF16, 0.7, 1.0, "void"),
)
