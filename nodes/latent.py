"""Empty latents."""

from comfy_api.latest import io

from ..vae.geometry import empty_latent
from .input_checks import check_all_sizes, checked
from .inputs import size_inputs
from .search_words import SEARCH_WORDS


@checked(check_all_sizes)
class CogVideoXEmptyLatent(io.ComfyNode):
    """LATENT out: samples [B, 16, (frames - 1) / 4 + 1, height / 8, width / 8], zeros."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXEmptyLatent",
            display_name="Empty CogVideoX Latent",
            category="CogVideoX/latent",
            search_aliases=SEARCH_WORDS["CogVideoXEmptyLatent"],
            description="An empty video latent: 720 x 480 with 49 frames for CogVideoX, 1360 x 768 with 81 for 1.5.",
            inputs=size_inputs(),
            outputs=[io.Latent.Output(tooltip="Zeros, for latent_image of a sampler.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, frames: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": empty_latent(width, height, frames, batch_size)})
