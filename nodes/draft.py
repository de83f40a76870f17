"""Decode latents to frames with the tiny decoder: fast and approximate."""

from pathlib import Path

from comfy_api.latest import io

from ..keys import Latent
from ..model_loaders.load_tiny_decoder import TINY_FOLDER, check_tiny_decoder, list_tiny_decoders, load_tiny_decoder
from ..sockets.draft_decoder import decode_draft
from .file_inputs import reads_file
from .input_checks import checked
from .inputs import FRAMES_OUT
from .missing_models import find, offer
from .search_words import SEARCH_WORDS


def _find_decoder(name: str) -> Path:
    return find(name, "decoder")


def _check_decoder(decoder: str) -> None:
    check_tiny_decoder(_find_decoder(decoder))


@reads_file("decoder", _find_decoder)
@checked(_check_decoder)
class CogVideoXDraftDecode(io.ComfyNode):
    """IMAGE out: [B * (4 n - 3), H, W, 3] in 0 .. 1 for n latent frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDraftDecode",
            display_name="CogVideoX Draft Decode",
            category="CogVideoX/decode",
            search_aliases=SEARCH_WORDS["CogVideoXDraftDecode"],
            description="Decode a video latent with the tiny decoder taecvx: fast, small and close, but not exact.",
            inputs=[
                io.Latent.Input("samples", tooltip="From CogVideoX Sampler or any other sampler."),
                io.Combo.Input(
                    "decoder",
                    options=offer(list_tiny_decoders(), "decoder"),
                    tooltip=f"taecvx files in models/{TINY_FOLDER}, from the repository madebyollin/taehv on GitHub. "
                    "Press R after adding one.",
                ),
            ],
            outputs=[io.Image.Output(tooltip=FRAMES_OUT)],
        )

    @classmethod
    def execute(cls, samples: Latent, decoder: str) -> io.NodeOutput:
        patcher = load_tiny_decoder(_find_decoder(decoder))
        # [B, T, H, W, C] -> [B * T, H, W, C]
        return io.NodeOutput(decode_draft(patcher, samples["samples"]).flatten(0, 1))
