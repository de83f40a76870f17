"""Load CogVideoX's tiny decoder (taecvx) from its file as a module or a ModelPatcher."""

import logging
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch

from ..errors import UserError
from ..host.compat import model_patcher_class
from ..host.folders import find, list_files
from ..host.ops import adopt_ops
from ..vae.tiny_decoder import TinyDecoder, build_tiny_decoder
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.torch_files import looks_like_torch, open_torch

TINY_FOLDER, TINY_PREFIX = "vae_approx", "taecvx"  # the names of the files in the repository madebyollin/taehv


def open_tiny_decoder(path: Path, device: torch.device, one_per_latent: bool = False) -> TinyDecoder:
    """The tiny decoder in a .safetensors or PyTorch file, in host memory, in ComfyUI's VAE dtype of `device`.

    one_per_latent: see build_tiny_decoder.

    Raises UserError where the file is damaged or is not the tiny decoder.
    """
    dtype = mm.vae_dtype(device, [torch.float16, torch.bfloat16, torch.float32])
    decoder, weights = build_tiny_decoder(_read(path), str(path), one_per_latent)
    # Not manual_cast: the weights have the dtype that callers give the latents, so that no layer has to cast.
    adopt_ops(decoder, comfy.ops.disable_weight_init)
    decoder.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return decoder.eval().requires_grad_(False)


def list_tiny_decoders() -> list[str]:
    """The tiny decoder's files in models/vae_approx."""
    return [name for name in list_files(TINY_FOLDER) if name.rsplit("/", 1)[-1].startswith(TINY_PREFIX)]


def first_tiny_decoder(device: torch.device) -> TinyDecoder | None:
    """The first tiny decoder in models/vae_approx that can be loaded, on `device`, for previews; None, with a warning,
    without one."""
    names = list_tiny_decoders()
    if not names:
        logging.warning(
            f"Previews of method taesd need {TINY_PREFIX}.pth or {TINY_PREFIX}.safetensors (repository "
            f"madebyollin/taehv) in models/{TINY_FOLDER}; without it, CogVideoX's previews are coarse."
        )
        return None
    problem: Exception | None = None
    for name in names:
        try:
            return open_tiny_decoder(find(name, TINY_FOLDER), device, one_per_latent=True).to(device)
        # A preview must not end the run. RuntimeError includes torch's out of memory.
        except (UserError, OSError, RuntimeError) as error:
            problem = problem or error
    logging.warning(f"The tiny decoder cannot be loaded, so CogVideoX's previews are coarse: {problem}")
    return None


def check_tiny_decoder(path: Path) -> None:
    """Raises UserError for a file that load_tiny_decoder would refuse."""
    build_tiny_decoder(_read(path), str(path))


def load_tiny_decoder(path: Path) -> comfy.model_patcher.ModelPatcher:
    """The tiny decoder for `decode_draft`, under ComfyUI's memory management.

    Raises UserError: see open_tiny_decoder.
    """
    device = mm.vae_device()
    decoder = open_tiny_decoder(path, device)
    # Dynamic VRAM is disabled: 20 MB fit on every card.
    return model_patcher_class(True)(decoder, load_device=device, offload_device=mm.vae_offload_device())


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(f"There is no file {path}. Choose another one from the list.")
    if looks_like_safetensors(path):
        read_safetensors_header(path)  # refuses a file that is cut short
        return open_safetensors(path)
    if looks_like_torch(path):
        return open_torch(path)
    raise UserError(
        f"{path} ({path.stat().st_size} bytes) is not a weight file (safetensors or PyTorch), or only the beginning of "
        "one. Download it again."
    )
