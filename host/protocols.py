"""What the pack relies on in ComfyUI's objects, where there is no class to name or a lower room must not import it."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch


class LatentFormat(Protocol):
    """comfy.latent_formats.LatentFormat."""

    latent_channels: int
    scale_factor: float

    def process_out(self, latent: torch.Tensor) -> torch.Tensor: ...


class Noise(Protocol):
    """A NOISE."""

    seed: int

    def generate_noise(self, input_latent: Any) -> torch.Tensor: ...


class ModelSampling(Protocol):
    """The noise levels of a model; `alphas` only CogVideoX's has (sockets.model.CogVideoXSampling)."""

    sigmas: torch.Tensor  # [1000], ascending
    alphas: torch.Tensor  # [1000], float64 on the CPU, cumulative products, descending to 0

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor: ...


class Family(Protocol):
    """What a run has to know of a model's family; see sockets.families."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...


class ModelConfig(Protocol):
    """sockets.model.CogVideoXConfig."""

    family: Family


class BaseModel(Protocol):
    """A MODEL's inner model: sockets.model.CogVideoXModel."""

    model_config: ModelConfig
    latent_format: LatentFormat
    model_sampling: ModelSampling
    diffusion_model: Any  # transformer.dit.CogVideoXDiT, importing which loads diffusers


class Guider(Protocol):
    """comfy.samplers.CFGGuider in a run."""

    model_patcher: Any
    model_options: dict[str, Any]
    conds: dict[str, list[dict[str, Any]]]


class ContextWindow(Protocol):
    """comfy.context_windows.IndexListContextWindow: the frames of a video that the model sees at once."""

    dim: int
    index_list: list[int]


class ContextHandler(Protocol):
    """comfy.context_windows.IndexListContextHandler."""

    context_length: int
    context_schedule: Any


Options = Mapping[str, Any]
