"""taecvx files of the real shapes with seeded random weights, and ComfyUI's own network for them."""

from pathlib import Path
from typing import Any

import torch
from comfy.taesd.taehv import TAEHV
from safetensors.torch import save_file

NAME = "taecvx.safetensors"


def reference() -> TAEHV:
    """ComfyUI's tiny decoder (and encoder) for 16 channels, weights small enough for pictures in 0 .. 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TAEHV(latent_channels=16, latent_format=None).eval().requires_grad_(False)
        for parameter in network.parameters():  # comfy.ops leaves them uninitialised
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else (1.5 / fan_in) ** 0.5))
        decoder: Any = network.decoder
        decoder[22].bias.fill_(0.5)
        decoder[22].weight.mul_(0.2)
    return network


def write_tiny_decoder(path: Path, dtype: torch.dtype = torch.float32, **replaced: torch.Tensor) -> Path:
    """The reference's weights as a file, .safetensors or .pth; replaced: tensors by name with _ for dots."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in reference().state_dict().items()}
    for name, tensor in replaced.items():
        tensors[name.replace("__", ".")] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path
