"""taecvx, CogVideoX's tiny decoder, from a file to pictures."""

from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch

from ..host.compat import model_patcher_class, throw_if_interrupted
from ..host.errors import CheckpointError, NumericsError
from ..host.ops import adopt_ops
from ..vae.geometry import SPATIAL, check_latents, video_frames
from ..vae.tiny import VALUES_PER_PIXEL, TinyDecoder, build_tiny_decoder
from .files.safetensors_files import looks_like_safetensors, open_safetensors, read_safetensors_header
from .files.torch_files import looks_like_torch, open_torch

TINY_PREFIX = "taecvx"  # as madebyollin/taehv names the files


def open_tiny_decoder(path: Path, device: torch.device, one_per_latent: bool = False) -> TinyDecoder:
    """The tiny decoder in a .safetensors or PyTorch file, in host memory, in the type that suits `device`.

    one_per_latent: see build_tiny_decoder.

    Raises CheckpointError where the file is damaged or holds something else.
    """
    dtype = mm.vae_dtype(device, [torch.float16, torch.bfloat16, torch.float32])
    decoder, weights = build_tiny_decoder(_read(path), str(path), one_per_latent)
    adopt_ops(decoder, comfy.ops.disable_weight_init)
    decoder.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return decoder.eval().requires_grad_(False)


def check_tiny_decoder(path: Path) -> None:
    """Raises CheckpointError for what load_tiny_decoder would refuse."""
    build_tiny_decoder(_read(path), str(path))


def load_tiny_decoder(path: Path) -> comfy.model_patcher.ModelPatcher:
    """The tiny decoder for `decode_draft`, under ComfyUI's memory management.

    Raises CheckpointError: see open_tiny_decoder.
    """
    device = mm.vae_device()
    decoder = open_tiny_decoder(path, device)
    # 20 MB need no loading on demand
    return model_patcher_class(True)(decoder, load_device=device, offload_device=mm.vae_offload_device())


def decode_draft(patcher: comfy.model_patcher.ModelPatcher, samples: torch.Tensor) -> torch.Tensor:
    """Unscaled latents [B, 16, n, h, w] to frames [B, 4 n - 3, 8 h, 8 w, 3] in 0 .. 1, one at a time.

    Raises GeometryError for another model's latent, NumericsError for one that is not a number.
    """
    check_latents(samples)
    decoder, device = patcher.model, patcher.load_device
    dtype = next(decoder.parameters()).dtype
    batch, _, count, height, width = samples.shape
    size = height * SPATIAL, width * SPATIAL
    mm.load_models_gpu([patcher], memory_required=VALUES_PER_PIXEL * size[0] * size[1] * dtype.itemsize)
    out = torch.empty((batch, video_frames(count), *size, 3), device=mm.intermediate_device())
    bar = comfy.utils.ProgressBar(batch * len(out[0]))
    with torch.no_grad():
        for video, latents in zip(out, samples.split(1)):
            for index, frame in enumerate(decoder.stream(latents.to(device, dtype))):
                throw_if_interrupted()
                video[index] = frame.movedim(0, -1)  # [3, H, W] -> [H, W, 3]
                bar.update(1)
    if not torch.isfinite(out).all():
        raise NumericsError(
            f"The draft is not a number (NaN or infinity) in {dtype}, though its latent is. Fetch the tiny decoder "
            "again, or decode with CogVideoX Decode."
        )
    return out


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Choose another from the list.")
    if looks_like_safetensors(path):
        read_safetensors_header(path)  # which refuses what is cut short
        return open_safetensors(path)
    if looks_like_torch(path):
        return open_torch(path)
    raise CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is no weight file (safetensors or PyTorch), or only the beginning of "
        "one. Fetch it again."
    )
