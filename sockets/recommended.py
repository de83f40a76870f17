"""What a run says where its settings are not those with which the checkpoint was published."""

from functools import partial
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch

from ..host.messages import Notify
from ..host.protocols import Guider, GuiderExecutor
from ..host.running_graph import frame_rates_after, running_graph
from ..keys import read_positions
from ..official_settings import OFFICIAL, Settings
from ..samplers.comfy_sampler import sample_along
from ..vae.geometry import SPATIAL, video_frames
from .families import Family

# The checkpoints of which a run is told where its settings differ. A Fun model takes many sizes.
RECOMMENDED = {
    name: settings for name, settings in OFFICIAL.items() if settings.task in ("text", "image") and not settings.family
}
_HIGHEST = 1 - 1e-5  # of the largest sigma: a run that begins there begins with noise


def recommended_for(family: Family, transformer_config: dict[str, Any]) -> Settings | None:
    """The settings of a checkpoint of `family`; None for a model of another size, such as a toy, or without any.

    transformer_config: its config.json."""
    size = transformer_config.get("num_layers", 30), transformer_config.get("num_attention_heads", 30)
    return RECOMMENDED.get(family.name) if size == (family.layers, family.heads) else None


def describe(settings: Settings) -> str:
    """The settings as a list for people."""
    frames = f"{settings.frames} frames"
    if settings.most_frames > settings.frames:
        frames += f" (at most {settings.most_frames})"
    return (
        f"sampler {settings.sampler}, {settings.steps} steps, cfg {settings.cfg:g}, "
        f"{settings.width} × {settings.height}, {frames}, {settings.fps:g} fps"
    )


def hint(name: str, settings: Settings, used: dict[str, Any]) -> str:
    """A sentence on the settings in `used` that are not the recommended ones, "" where all are.

    used: any of sampler, steps, cfg, size (width, height), frames, and fps (all that the video is played at)."""
    differences = []
    if used.get("sampler", settings.sampler) != settings.sampler:
        differences.append(f"sampler {settings.sampler} (here {used['sampler']})")
    if used.get("steps", settings.steps) != settings.steps:
        differences.append(f"{settings.steps} steps (here {used['steps']})")
    if used.get("cfg", settings.cfg) != settings.cfg:
        differences.append(f"cfg {settings.cfg:g} (here {used['cfg']:g})")
    if "size" in used and not settings.takes_size(*used["size"]):
        wanted = f"{settings.width} × {settings.height}"
        if settings.any_aspect:
            wanted = f"a shorter side of {settings.height} and a longer one of at most {settings.width} pixels"
        differences.append(f"{wanted} (here {used['size'][0]} × {used['size'][1]})")
    if used.get("frames", 1) > settings.most_frames:
        differences.append(f"at most {settings.most_frames} frames (here {used['frames']})")
    if wrong := sorted(set(used.get("fps", ())) - {settings.fps}):
        differences.append(f"{settings.fps:g} fps (here {', '.join(f'{rate:g}' for rate in wrong)})")
    if not differences:
        return ""
    return f"The authors of {name} recommend {', '.join(differences)}. Other settings run, and may look worse."


def add_settings_hint(patcher: Any, name: str, settings: Settings, notify: Notify) -> None:
    """Have every run of this MODEL say where its settings are not the recommended ones.

    It goes around samplers.outer_sample.sample_checked, which gives CogVideoX 1.5 one more frame.
    """
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    patcher.add_wrapper_with_key(kind, "cogvideox settings", partial(_tell_settings, notify, name, settings))


def _tell_settings(
    notify: Notify,
    name: str,
    settings: Settings,
    executor: GuiderExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper. The arguments are those of comfy.samplers.CFGGuider.outer_sample."""
    if latent_image.ndim == 5 and len(sigmas) > 1:
        used = _used(executor.class_obj, latent_image.shape, sampler, sigmas)
        if running := running_graph():
            used["fps"] = frame_rates_after(*running)
        if message := hint(name, settings, used):
            notify(message)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def _used(guider: Guider, shape: torch.Size, sampler: comfy.samplers.Sampler, sigmas: torch.Tensor) -> dict[str, Any]:
    """The settings of a run, for `hint`, without those that differ for a reason: another sampler than ours, a part of a
    run, a LoRA that may be made for few steps, windows and positions for longer or other videos."""
    used: dict[str, Any] = {}
    if getattr(sampler, "sampler_function", None) is sample_along:
        used["sampler"] = getattr(sampler, "extra_options", {}).get("name")
    patcher, options = guider.model_patcher, guider.model_options
    begins = float(sigmas[0]) >= float(patcher.get_model_object("model_sampling").sigma_max) * _HIGHEST
    if not patcher.patches:
        if begins and float(sigmas[-1]) == 0:
            used["steps"] = len(sigmas) - 1
        if isinstance(cfg := getattr(guider, "cfg", None), (int, float)):
            used["cfg"] = float(cfg)
    positions = read_positions(options.get("transformer_options", {}))
    if not positions["resample"]:
        used["size"] = SPATIAL * shape[4], SPATIAL * shape[3]
    # The second part of a run of CogVideoX 1.5 has two latent frames more (samplers.front).
    if begins and not positions["riflex"] and options.get("context_handler") is None:
        used["frames"] = video_frames(shape[2])
    return used
