"""Decode latents to frames."""

from comfy_api.latest import io

from ..keys import Latent
from ..sockets.vae import CogVideoXVAE
from .input_checks import check_vae, checked
from .inputs import FRAMES_OUT, vae_input
from .search_words import SEARCH_WORDS

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
            search_aliases=SEARCH_WORDS["CogVideoXDecode"],
            description="Decode a video latent exactly as diffusers does, in the same chunks of frames.",
            inputs=[
                vae_input(),
                io.Latent.Input("samples", tooltip="The video latent, from a sampler."),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY_MODES),
                    default="auto",
                    tooltip="The result is the same with each. fast keeps everything in the GPU's memory; low keeps "
                    "most of it in main memory; auto takes the fastest mode that the GPU's memory holds once ComfyUI "
                    "has unloaded other models.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Compile norm and SiLU with torch.compile; the result is the same within rounding. The "
                    "first run waits for the compiler and shows how long it took. Needs Triton on a GPU, or a C++ "
                    "compiler on the CPU, where it gains little.",
                ),
            ],
            outputs=[io.Image.Output(tooltip=FRAMES_OUT)],
        )

    @classmethod
    def execute(cls, vae: CogVideoXVAE, samples: Latent, memory: str, compile: bool = False) -> io.NodeOutput:
        frames = vae.decode(samples["samples"], vae_options={"memory": memory, "compile": compile})
        # [B, T, H, W, C] -> [B * T, H, W, C]
        return io.NodeOutput(frames.flatten(0, 1))
