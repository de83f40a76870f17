"""A CogVideoX VAE as ComfyUI's VAE."""

import logging
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import torch

from ..host.compat import is_dynamic, model_patcher_class
from ..host.errors import CheckpointError, NumericsError
from ..host.ops import adopt_ops
from ..vae.geometry import CHANNELS, SPATIAL, TEMPORAL, latent_frames, video_frames
from .checkpoints import open_component
from .model import assign_weights, non_finite_weights
from .precision import WEIGHT_DTYPES

VAE_DTYPES = tuple(name for name in WEIGHT_DTYPES if name != "fp8_e4m3fn")
# Bytes that the untiled decode holds at its peak, per pixel of its first chunk and byte of the type: 14.7 GiB for
# 49 frames of 480 x 720 in bf16, measured on diffusers' decoder.
DECODE_PEAK, ENCODE_PEAK, FIRST_CHUNK_FRAMES = 2600, 1500, 9


class CogVideoXVAE(comfy.sd.VAE):
    """Stock VAE socket over CogVideoXAutoencoder."""

    def __init__(
        self, state_dict: dict[str, torch.Tensor], config: dict, weight_dtype: str, source: str, disable_dynamic: bool
    ):
        _set_host_defaults(self)
        self.latent_channels, self.latent_dim = CHANNELS, 3
        self.upscale_ratio = (video_frames, SPATIAL, SPATIAL)
        self.downscale_ratio = (latent_frames, SPATIAL, SPATIAL)
        self.upscale_index_formula = self.downscale_index_formula = (TEMPORAL, SPATIAL, SPATIAL)
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        self.not_video, self.handles_tiling = False, True
        self.memory_used_decode, self.memory_used_encode = decode_bytes, encode_bytes
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.vae_dtype = WEIGHT_DTYPES[weight_dtype] or mm.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = build_autoencoder(config, self.vae_dtype)
        mm.archive_model_dtypes(self.first_stage_model)
        self.patcher = model_patcher_class(disable_dynamic)(
            self.first_stage_model, load_device=self.device, offload_device=mm.vae_offload_device()
        )
        assign_weights(self.first_stage_model, state_dict, cast=not is_dynamic(self.patcher), source=source)
        self.size = None
        self.model_size()

    def encode(self, pixel_samples: torch.Tensor, posterior_seed: int | None = None) -> torch.Tensor:
        """Frames [F, H, W, 3] in 0 .. 1 -> [1, 16, T, H / 8, W / 8], unscaled.

        posterior_seed: take a sample of the posterior, drawn as a CPU generator with this seed does in diffusers,
        instead of its mode.
        """
        network = self.first_stage_model
        network.posterior_generator = None if posterior_seed is None else torch.Generator().manual_seed(posterior_seed)
        try:
            return self._checked(super().encode(pixel_samples), "encoded")
        finally:
            network.posterior_generator = None

    def decode(self, samples_in: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        """As comfy.sd.VAE's. Raises NumericsError instead of returning black frames."""
        return self._checked(super().decode(samples_in, *args, **options), "decoded")

    def _checked(self, result: torch.Tensor, what: str) -> torch.Tensor:
        if torch.isfinite(result).all():
            return result
        broken = non_finite_weights(self.first_stage_model)
        if broken:
            raise NumericsError(
                f"What the VAE {what} is not a number (NaN or infinity), nor are its weights: {', '.join(broken[:3])}. "
                "Fetch the VAE again."
            )
        raise NumericsError(
            f"What the VAE {what} is not a number (NaN or infinity). It computes in {self.vae_dtype}: load it with "
            "weight_dtype bf16 or fp32; if that is set already, what it was given is not a number."
        )


def _set_host_defaults(vae: comfy.sd.VAE) -> None:
    """comfy.sd.VAE given no weights sets every attribute that this host version has, warns and returns."""
    logging.disable(logging.WARNING)
    try:
        comfy.sd.VAE.__init__(vae, sd={})
    finally:
        logging.disable(logging.NOTSET)


def decode_bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    """Peak of decoding latents of `shape` [B, 16, n, h, w]: activations of one chunk, and all frames."""
    frames = video_frames(shape[2])
    pixels = shape[-2] * shape[-1] * SPATIAL**2
    return shape[0] * (DECODE_PEAK * min(FIRST_CHUNK_FRAMES, frames) + 3 * frames) * pixels * mm.dtype_size(dtype)


def encode_bytes(shape: torch.Size, dtype: torch.dtype) -> int:
    """Peak of encoding frames of `shape` [B, 3, t, H, W]: activations of one chunk, and all frames."""
    frames, pixels = shape[2], shape[-2] * shape[-1]
    return shape[0] * (ENCODE_PEAK * min(FIRST_CHUNK_FRAMES, frames) + 3 * frames) * pixels * mm.dtype_size(dtype)


def build_autoencoder(config: dict, dtype: torch.dtype) -> torch.nn.Module:
    """An empty CogVideoXAutoencoder on the meta device, every leaf a ComfyUI operation."""
    from ..vae.network import CogVideoXAutoencoder

    with torch.device("meta"):
        model = CogVideoXAutoencoder.from_config(config)
    torch.nn.Module.to(model, dtype)  # ModelMixin.to warns at every cast
    adopt_ops(model, comfy.ops.disable_weight_init)
    return model.eval()


def check_vae_dtype(weight_dtype: str) -> None:
    """Raises CheckpointError for a precision that a VAE cannot have."""
    if weight_dtype not in VAE_DTYPES:
        raise CheckpointError(
            f"A CogVideoX VAE cannot run in {weight_dtype}: its convolutions have kernels for fp32, bf16 and fp16 "
            f"only. Choose {', '.join(VAE_DTYPES)}."
        )


def load_vae(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False) -> CogVideoXVAE:
    """Load the VAE at `path` (see checkpoints.open_component).

    weight_dtype: "default" lets ComfyUI choose for the device; fp8 is refused.

    Raises CheckpointError where the weights are not a CogVideoX VAE.
    """
    check_vae_dtype(weight_dtype)
    weights = open_component(path, "vae")
    config = {k: v for k, v in (weights.config or {}).items() if not k.startswith("_")}
    vae = CogVideoXVAE(weights.state_dict, config, weight_dtype, str(weights.path), disable_dynamic)
    vae.patcher.cached_patcher_init = (_load_vae_patcher, (path, weight_dtype))
    return vae


def _load_vae_patcher(path: Path, weight_dtype: str, disable_dynamic: bool = False) -> object:
    return load_vae(path, weight_dtype, disable_dynamic).patcher
