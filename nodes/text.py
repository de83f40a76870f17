"""Prompts."""

import comfy.sd
from comfy_api.latest import io

from ..host.messages import show_on_node
from ..sockets.clip import require_finite_text
from ..sockets.tokenizer import CogVideoXTokenizer, check_length
from .input_checks import checked
from .inputs import clip_input
from .search_words import SEARCH_WORDS


@checked(check_length)
class CogVideoXEncodeText(io.ComfyNode):
    """CONDITIONING out: [1, 226, text width]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXEncodeText",
            display_name="CogVideoX Text Encode",
            category="CogVideoX/text",
            search_aliases=SEARCH_WORDS["CogVideoXEncodeText"],
            description="Encode a prompt exactly as diffusers does: 226 tokens; parentheses and colons are plain text.",
            inputs=[
                clip_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="A long, descriptive English prompt works best.",
                ),
                io.Boolean.Input(
                    "prompt_weights",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Read (word:1.2) as a weight, as ComfyUI does for other models. CogVideoX was not trained "
                    "for it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For positive or negative of a sampler, or of a node that adds images.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip: comfy.sd.CLIP, text: str, prompt_weights: bool = False) -> io.NodeOutput:
        tokens = clip.tokenize(text, prompt_weights=prompt_weights)
        # A CLIP of a stock loader has another tokenizer, which cannot say what it cuts off.
        if isinstance(clip.tokenizer, CogVideoXTokenizer) and (notes := clip.tokenizer.notes(text, prompt_weights)):
            show_on_node("\n\n".join(notes), cls.hidden.unique_id, is_warning=True)
        conditioning = clip.encode_from_tokens_scheduled(tokens)
        require_finite_text(conditioning)
        return io.NodeOutput(conditioning)
