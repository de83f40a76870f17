"""The steps of a run as explicit timesteps, for weights that were distilled for a few of them."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..host.messages import show_on_node
from ..samplers.comfy_sampler import timestep_sigmas
from ..samplers.few_steps import CUSTOM, PRESETS, chosen_timesteps
from ..sockets.model import require_cogvideox_model
from .input_checks import checked
from .inputs import model_input
from .sample import noise_levels
from .search_words import SEARCH_WORDS


@checked(chosen_timesteps, require_cogvideox_model)
class CogVideoXTimesteps(io.ComfyNode):
    """SIGMAS out: [timesteps + 1]."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXTimesteps",
            display_name="CogVideoX Timesteps",
            category="CogVideoX/sample",
            search_aliases=SEARCH_WORDS["CogVideoXTimesteps"],
            description="The noise levels at given timesteps, for few-step (distilled) weights such as TDM's and "
            "BLADE's. The node says which sampler and cfg belong to a preset.",
            inputs=[
                model_input(),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=next(iter(PRESETS)),
                    tooltip="The timesteps that the authors of these weights published. custom takes those in "
                    "timesteps.",
                ),
                io.String.Input(
                    "timesteps",
                    default="",
                    tooltip="For custom: where each step begins, from 999 (noise) down, such as 999, 856, 665, 399. "
                    "The last step ends at the clean video.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom. One noise level more than steps.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, preset: str, timesteps: str) -> io.NodeOutput:
        sigmas = timestep_sigmas(noise_levels(model), chosen_timesteps(timesteps, preset))
        if preset != CUSTOM:
            show_on_node(describe(preset, model.model.model_config.family.name), cls.hidden.unique_id)
        return io.NodeOutput(sigmas)


def describe(preset: str, family: str) -> str:
    """What belongs to a preset besides its timesteps, and where `family`, the model's, is not the one it is for."""
    settings = PRESETS[preset]
    text = (
        f"{preset}: set the sampler to {settings.sampler} and cfg to {settings.cfg:g}, as its authors do, and load "
        "their weights."
    )
    if family != settings.family:
        text += f" They are for {settings.family}, and this model is {family}."
    return text
