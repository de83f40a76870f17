"""What the pack relies on in objects that have no class to name: ComfyUI makes their attributes as it goes, or the room
that needs them is below the one that defines them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch


class PromptServer(Protocol):
    """server.PromptServer: ComfyUI's connection to the browsers."""

    last_node_id: str | None  # the node that runs
    client_id: str | None  # of the browser that queued the prompt which runs
    sockets_metadata: dict[str, Any]
    sockets: dict[str, Any]  # by client_id: aiohttp.web.WebSocketResponse
    user_manager: Any  # app.user_manager.UserManager

    on_prompt_handlers: list[Callable[[dict[str, Any]], dict[str, Any]]]

    def add_on_prompt_handler(self, handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None: ...

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None: ...

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None: ...


class LatentFormat(Protocol):
    """comfy.latent_formats.LatentFormat."""

    latent_channels: int
    scale_factor: float
    latent_rgb_factors: Any  # one row a latent channel, one column a colour
    latent_rgb_factors_bias: Any  # added to each colour; None for nothing

    def process_out(self, latent: torch.Tensor) -> torch.Tensor: ...


class ModelSampling(Protocol):
    """The noise levels of a model, sockets.model.CogVideoXSampling. Models of other packs have no `alphas`."""

    sigmas: torch.Tensor  # [1000], ascending; the last one, 4518.7, stands for infinity
    alphas: torch.Tensor  # [1000], float64 on the CPU, cumulative products, descending to 0 (zero terminal SNR)

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor: ...

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor: ...


class TransformerConfig(Protocol):
    """A transformer's config.json. Sizes are those of latents; sample_frames counts frames of the video."""

    num_attention_heads: int
    attention_head_dim: int
    in_channels: int
    out_channels: int
    patch_size: int
    patch_size_t: int | None
    text_embed_dim: int
    max_text_seq_length: int
    sample_width: int
    sample_height: int
    sample_frames: int
    temporal_compression_ratio: int
    spatial_interpolation_scale: float
    temporal_interpolation_scale: float
    use_rotary_positional_embeddings: bool
    use_learned_positional_embeddings: bool


class Transformer(Protocol):
    """transformer.dit.CogVideoXDiT, whose module imports diffusers."""

    config: TransformerConfig
    has_weights: bool
    transformer_blocks: torch.nn.ModuleList

    def token_grid(
        self, latent_size: tuple[int, int, int], transformer_options: dict[str, Any] = ...
    ) -> tuple[int, int, int]: ...

    def forget_run(self) -> None: ...


class Family(Protocol):
    """sockets.families.Family."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def repeats_image(self) -> bool: ...


class ModelConfig(Protocol):
    """sockets.model.CogVideoXConfig."""

    @property
    def family(self) -> Family: ...


class BaseModel(Protocol):
    """A MODEL's inner model: sockets.model.CogVideoXModel. The lower rooms only read what it has."""

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def latent_format(self) -> LatentFormat: ...

    @property
    def model_sampling(self) -> ModelSampling: ...

    @property
    def diffusion_model(self) -> Transformer: ...

    def get_dtype_inference(self) -> torch.dtype: ...


class Guider(Protocol):
    """comfy.samplers.CFGGuider in a run."""

    model_patcher: Any
    model_options: dict[str, Any]
    conds: dict[str, list[dict[str, Any]]]


class GuiderExecutor(Protocol):
    """comfy.patcher_extension.WrapperExecutor around a method of a guider: the next wrapper, or the method itself."""

    class_obj: Guider

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class ContextWindow(Protocol):
    """comfy.context_windows.IndexListContextWindow: the frames that the model gets of a long video."""

    dim: int
    index_list: list[int]


class ContextHandler(Protocol):
    """comfy.context_windows.IndexListContextHandler."""

    context_length: int
    context_schedule: Any


# ComfyUI calls it as f(step, x0, x, total_steps)
StepCallback = Callable[[int, torch.Tensor, torch.Tensor, int], object]
