"""Load a VAE from disk as a VAE."""

import logging
from pathlib import Path

import comfy.model_patcher

from ..errors import UserError
from ..host.compat import is_dynamic
from ..host.messages import Notify
from ..sockets.vae import CogVideoXVAE
from .assign import assign_weights
from .checkpoints import open_component
from .file_stamps import if_unchanged
from .precision import WEIGHT_DTYPES

VAE_DTYPES = tuple(name for name in WEIGHT_DTYPES if name != "fp8_e4m3fn")


def check_vae_dtype(weight_dtype: str) -> None:
    """Raises UserError for a precision that VAEs do not support."""
    if weight_dtype not in VAE_DTYPES:
        raise UserError(
            f"A CogVideoX VAE cannot run in {weight_dtype}: its convolutions have kernels for fp32, bf16 and fp16 "
            f"only. Choose {', '.join(VAE_DTYPES)}."
        )


def load_vae(
    path: Path, weight_dtype: str = "default", notify: Notify = logging.warning, disable_dynamic: bool = False
) -> CogVideoXVAE:
    """Load the VAE at `path` (see checkpoints.open_component).

    weight_dtype: "default" lets ComfyUI choose for the device; fp8 is refused. notify: called with a sentence for the
    user when memory runs out and a mode that needs less takes over. disable_dynamic: without dynamic VRAM, see
    load_model.

    Raises UserError where the weights are not a CogVideoX VAE.
    """
    check_vae_dtype(weight_dtype)
    load_again = if_unchanged(_load_vae_patcher, path, "vae")  # before the files are opened
    weights = open_component(path, "vae")
    vae = CogVideoXVAE(weights.config or {}, WEIGHT_DTYPES[weight_dtype], notify, disable_dynamic)
    cast = not is_dynamic(vae.patcher)
    assign_weights(vae.first_stage_model, weights.state_dict, cast, str(weights.path))
    vae.weights_assigned()
    # The factory has to return a patcher, not a VAE; see load_model.
    vae.patcher.cached_patcher_init = (load_again, (path, weight_dtype, notify))
    return vae


def _load_vae_patcher(
    path: Path, weight_dtype: str, notify: Notify, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    return load_vae(path, weight_dtype, notify, disable_dynamic).patcher
