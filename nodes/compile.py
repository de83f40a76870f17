"""The transformer's blocks compiled by torch.compile."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..host.messages import show_on_running_node
from ..keys import with_compiled_blocks
from ..sockets.model import require_cogvideox_model
from .input_checks import checked
from .inputs import model_input
from .search_words import SEARCH_WORDS


@checked(require_cogvideox_model)
class CogVideoXCompile(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXCompile",
            display_name="CogVideoX Compile",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXCompile"],
            description="Compile the transformer's block with torch.compile, once for all blocks, sizes and LoRAs; the "
            "result is the same within rounding. The first step waits for the compiler, and the sampler's node says "
            "how long it took. On NVIDIA cards with Triton the pack's own kernels are faster: leave it out there. "
            "Needs Triton on a GPU, or a C++ compiler on the CPU.",
            inputs=[model_input()],
            outputs=[io.Model.Output(tooltip="A copy of the model with compiled blocks, for any sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        # Not at the top: it imports diffusers, which whoever has a model has imported.
        from ..transformer.compiled_blocks import CompiledBlocks

        patched = model.clone()
        options = patched.model_options.get("transformer_options", {})
        compiled = with_compiled_blocks(options, CompiledBlocks(show_on_running_node))
        patched.model_options["transformer_options"] = compiled
        return io.NodeOutput(patched)
