"""From latents to frames."""

from comfy_api.latest import io

from ..keys import Latent
from ..sockets.vae import CogVideoXVAE
from .checks import check_vae, checked

MEMORY_MODES = ("auto", "fast", "low")


@checked(check_vae)
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
                    tooltip="The result is the same in each. fast keeps everything on the card; low keeps most of it "
                    "in host memory; auto takes the fastest way that fits into the card's free memory.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Let torch.compile make the activation: within rounding the same. The first run waits for "
                    "it and shows how long. Needs Triton on a card and a C++ compiler on the CPU, where it gains next "
                    "to nothing.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, vae: CogVideoXVAE, samples: Latent, memory: str, compile: bool = False) -> io.NodeOutput:
        frames = vae.decode(samples["samples"], vae_options={"memory": memory, "compile": compile})
        # [B, T, H, W, C] -> [B * T, H, W, C]
        return io.NodeOutput(frames.flatten(0, 1))
