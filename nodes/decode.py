"""From latents to frames."""

import comfy.model_management as mm
from comfy_api.latest import io

from ..vae.geometry import check_latent_channels
from .validation import require_vae

MEMORY_MODES = ("auto", "fast", "low")


class CogVideoXDecode(io.ComfyNode):
    """IMAGE out: [B * (4 n - 3), H, W, 3] in 0 .. 1 for n latent frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDecode",
            display_name="CogVideoX Decode",
            category="CogVideoX/decode",
            search_aliases=["vae decode", "latent to video"],
            description="Decode a video latent exactly as diffusers does, in its own chunks of frames.",
            inputs=[
                io.Vae.Input("vae"),
                io.Latent.Input("samples"),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY_MODES),
                    default="auto",
                    tooltip="fast keeps everything on the card; low keeps the convolutions' caches and the finished "
                    "frames in host memory, with the same result; auto takes fast where it fits.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, vae: object, samples: dict, memory: str) -> io.NodeOutput:
        require_vae(vae)
        latent = samples["samples"]
        check_latent_channels(latent)
        if memory == "auto":
            fits = vae.memory_used_decode(latent.shape, vae.vae_dtype) <= mm.get_free_memory(vae.device)
            memory = "fast" if fits else "low"
        # [B, T, H, W, C] -> [B * T, H, W, C]
        return io.NodeOutput(vae.decode(latent, vae_options={"memory": memory}).flatten(0, 1))
