"""What is known of each official checkpoint and of the fine-tunes that have a shape of their own.

Source of the numbers: the config.json files of the official repositories (THUDM, now zai-org).
"""

from typing import NamedTuple

import torch


class Family(NamedTuple):
    """One official checkpoint; a fine-tune or a smaller model of the same architecture belongs to it as well.

    layers, heads: of the transformer; a head is 64 wide. in_channels: the video's 16 latent channels and those
    concatenated with them. rotary: positions are rotations of queries and keys; otherwise a sincos table is added.
    learned_positions: a learned table is added as well. patch_size_t: latent frames in one token, None for one.
    ofs_embed_dim: width of the embedding of CogVideoX 1.5's `ofs` number, None where there is none.
    task: what the concatenated channels hold, a key of samplers.conditioning.TASKS.
    inverts_image_scale: the start image's latent is divided by the VAE's scaling factor, not multiplied.
    repeats_image: the start image is concatenated with every frame of the video, encoded as a video that stands still,
    and not with the first frame alone.
    """

    name: str
    layers: int
    heads: int
    in_channels: int
    rotary: bool
    trained_dtype: torch.dtype
    vae_scaling_factor: float
    snr_shift_scale: float
    learned_positions: bool = False
    patch_size_t: int | None = None
    ofs_embed_dim: int | None = None
    task: str = "text"
    inverts_image_scale: bool = False
    repeats_image: bool = False

    @property
    def stretches_positions(self) -> bool:
        """Whether a sincos table of the model's own size is stretched over the video, as CogVideoX-Fun does."""
        return self.task not in ("text", "image")


_2B = Family(
    name="CogVideoX-2b",
    layers=30,
    heads=30,
    in_channels=16,
    rotary=False,
    trained_dtype=torch.float16,
    vae_scaling_factor=1.15258426,
    snr_shift_scale=3.0,
)
_5B = Family(
    name="CogVideoX-5b",
    layers=42,
    heads=48,
    in_channels=16,
    rotary=True,
    trained_dtype=torch.bfloat16,
    vae_scaling_factor=0.7,
    snr_shift_scale=1.0,
)
_5B_V15 = _5B._replace(name="CogVideoX1.5-5B", patch_size_t=2)
# What the two Fun models of 2b share. Not a family: it was never published without a task.
_FUN_2B = _2B._replace(name="CogVideoX-Fun-2b", trained_dtype=torch.bfloat16)

FAMILIES = (
    _2B,
    _5B,
    _5B._replace(name="CogVideoX-5b-I2V", task="image", in_channels=32, learned_positions=True),
    _5B_V15,
    _5B_V15._replace(
        name="CogVideoX1.5-5B-I2V",
        task="image",
        in_channels=32,
        ofs_embed_dim=512,
        inverts_image_scale=True,
    ),
    # aigc-apps/CogVideoX-Fun: fine-tunes of the text to video models above. The source for what their further channels
    # hold is that repository's cogvideox/pipeline.
    _FUN_2B._replace(name="CogVideoX-Fun-2b-InP", task="inpaint", in_channels=33),
    _5B._replace(name="CogVideoX-Fun-5b-InP", task="inpaint", in_channels=33),
    _5B_V15._replace(name="CogVideoX-Fun-V1.5-5b-InP", task="inpaint", in_channels=33),
    _FUN_2B._replace(name="CogVideoX-Fun-2b-Control", task="control", in_channels=32),
    _5B._replace(name="CogVideoX-Fun-5b-Control", task="control", in_channels=32),
    _5B_V15._replace(name="CogVideoX-Fun-V1.5-5b-Control", task="control", in_channels=32),
    # Netflix/void-model: a fine-tune of CogVideoX-Fun-V1.5-5b-InP.
    _5B_V15._replace(name="VOID", task="void", in_channels=48),
)

# Fine-tunes with the very shape of another family: their weights cannot tell, so that the user or the pipeline's index
# has to (model_loaders.variants.detect_family). NimVideo/cogvideox-2b-img2vid runs on diffusers' transformer.
LOOKALIKES = (
    _2B._replace(
        name="CogVideoX-2b-img2vid",
        task="image",
        in_channels=32,
        trained_dtype=torch.bfloat16,
        repeats_image=True,
    ),
)
