"""Steps of a run that are skipped, at a deviation that the user chooses."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..host.messages import show_on_running_node
from ..samplers.step_cache import step_cached
from ..sockets.model import require_cogvideox_model
from .input_checks import checked
from .inputs import model_input
from .search_words import SEARCH_WORDS


@checked(require_cogvideox_model)
class CogVideoXStepCache(io.ComfyNode):
    """MODEL out, a patched clone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXStepCache",
            display_name="CogVideoX Step Cache",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXStepCache"],
            description="Skip steps whose result can be extrapolated from those before. With ddim half of 50 steps can "
            "be skipped at a deviation that is hardly seen. With dpm, which adds noise in each step, take EasyCache.",
            inputs=[
                model_input(),
                io.Float.Input(
                    "deviation",
                    default=0.003,
                    min=0.0,
                    max=0.05,
                    step=0.001,
                    round=0.0001,
                    tooltip="How far the latents may be from those with all steps, as a part of their own size: an "
                    "estimate. 0.003 is hardly seen, 0 skips nothing. The sampler's node says what was skipped.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="A copy of the model that skips steps, for any sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, deviation: float) -> io.NodeOutput:
        return io.NodeOutput(step_cached(model, deviation, show_on_running_node))
