"""What a run is refused for, before any work."""

import torch

from ..errors import ConditioningError, GeometryError, ScheduleError
from ..host.messages import show_on_running_node
from .conditioning import TASKS

TASK_CHANNELS = {channels: task for task, (channels, _, _) in TASKS.items() if task != "control"}


def check_latent(model: torch.nn.Module, latent_image: torch.Tensor) -> None:
    """Raises GeometryError unless the latent is [B, 16, T, H, W]."""
    channels = model.latent_format.latent_channels
    if latent_image.ndim != 5 or latent_image.shape[1] != channels or 0 in latent_image.shape:
        raise GeometryError(
            f"The latent has shape {list(latent_image.shape)}; CogVideoX needs [batch, {channels}, frames, height / 8, "
            "width / 8]. Make it with Empty CogVideoX Latent or encode it with a CogVideoX VAE."
        )


def check_size(model: torch.nn.Module, latent_size: tuple[int, int, int], model_options: dict) -> None:
    """Raises GeometryError unless the model has positions for latents of this (T, H, W).

    Under ComfyUI's context windows the model sees one window at a time.
    """
    handler = model_options.get("context_handler")
    options = model_options.get("transformer_options", {})
    for frames in _lengths_seen(latent_size[0], handler):
        model.diffusion_model.token_grid((frames, *latent_size[1:]), options)


def _lengths_seen(frames: int, handler: object | None) -> set[int]:
    """How many latent frames the model sees at once of a video of `frames`, under ComfyUI's context `handler`."""
    length = getattr(handler, "context_length", frames)
    if frames <= length:
        return {frames}
    lengths = {length}
    if handler.context_schedule.name == "batched" and frames % length:
        lengths.add(frames % length)
    if getattr(handler, "causal_window_fix", False):
        lengths |= {count + 1 for count in lengths}
    return lengths


def check_sampler(sampler: object) -> None:
    """Raises ScheduleError for ComfyUI's VOIDSampler, which takes its own model's unscaled input for granted."""
    if type(sampler).__name__ == "VOID_DDIM":
        raise ScheduleError(
            "VOIDSampler belongs to ComfyUI's own CogVideoX loader. With this model take CogVideoX Sampler Select "
            "(ddim), which runs the same equations; the VOID conditioning and noise nodes stay as they are."
        )


def check_conditioning(model: torch.nn.Module, conds: dict[str, list[dict]], latent_shape: torch.Size) -> None:
    """Raises ConditioningError or GeometryError unless every entry has text of the model's width and, beside the
    video, what the model was trained with, at the size of the latent [B, 16, T, H, W]."""
    for name, entries in conds.items():
        for entry in entries:
            _check_text(model, name, entry)
            _check_area(name, entry)
            _check_task(model, name, entry)
            if entry.get("concat_latent_image") is not None:
                _check_channels(model, name, entry, latent_shape)
    ends = any(entry.get("cogvideox_end") for entries in conds.values() for entry in entries)
    if ends and model.model_config.family.task == "image":
        show_on_running_node(
            f"{model.model_config.family.name} was not trained for an end image: the video's end may turn grey or "
            "stand still. A Fun InP model takes start and end images."
        )


def _check_text(model: torch.nn.Module, name: str, entry: dict) -> None:
    width, text = model.diffusion_model.config.text_embed_dim, entry.get("cross_attn")
    if text is None or text.ndim != 3 or text.shape[-1] != width:
        found = "no text" if text is None else f"shape {list(text.shape)}"
        raise ConditioningError(
            f"The {name} conditioning has {found}; this model needs [batch, tokens, {width}], from the T5 "
            "text encoder of its own family. Encode the prompt with Load CogVideoX Text Encoder."
        )

    config = model.diffusion_model.config
    if config.use_learned_positional_embeddings and text.shape[1] > config.max_text_seq_length:
        raise ConditioningError(
            f"The {name} conditioning has {text.shape[1]} text tokens; {model.model_config.family.name} has positions "
            f"for {config.max_text_seq_length}. Join prompts with Conditioning (Combine) instead of Conditioning "
            "(Concat)."
        )


def _check_area(name: str, entry: dict) -> None:
    """ComfyUI's own code for areas of pictures fails on videos, with an error that names nothing."""
    area = entry.get("area")
    sides = () if area is None else tuple(side for side in area if side != "percentage")
    if (area is not None and len(sides) != 6) or entry.get("set_area_to_bounds"):
        raise ConditioningError(
            f"The {name} conditioning has an area of a picture; a video's has time as well. Use Conditioning (Set Area "
            "with Percentage for Video), or a mask with set_cond_area default."
        )


def _check_task(model: torch.nn.Module, name: str, entry: dict) -> None:
    family = model.model_config.family
    channels, shows, node = TASKS[family.task]
    latents, known = entry.get("concat_latent_image"), entry.get("cogvideox_known")
    found = sum(0 if part is None else part.shape[1] for part in (latents, known))
    made_for = entry.get("cogvideox_task", family.task if found == channels else TASK_CHANNELS.get(found))
    if found == channels and made_for == family.task:
        return
    if not found:
        raise ConditioningError(
            f"{family.name} takes {shows} beside the prompt, and the {name} conditioning has none. Pass positive and "
            f"negative through {node}, or choose a text to video model."
        )
    what = f"is made for {TASKS[made_for][1]}" if made_for else f"has {found} channels beside the video"
    raise ConditioningError(
        f"The {name} conditioning {what}; {family.name} takes {shows}. Use {node}, or choose the model that this "
        "conditioning is for."
    )


def _check_channels(model: torch.nn.Module, name: str, entry: dict, latent_shape: torch.Size) -> None:
    frames, height, width = latent_shape[2:]
    latents, known = entry["concat_latent_image"], entry.get("cogvideox_known")
    one_frame = model.model_config.family.task == "image" and latents.shape[2] == 1
    for part in (latents, latents if known is None else known):
        fits = part.ndim == 5 and part.shape[3:] == (height, width) and (one_frame or part.shape[2] == frames)
        if not fits:
            raise GeometryError(
                f"The {name} conditioning was made for {_describe(part.shape)}; the latent is "
                f"{_describe(latent_shape)}. Set the same width, height and frames in both, or take the latent from "
                "the node that made the conditioning."
            )


def _describe(shape: torch.Size) -> str:
    return f"{shape[-1] * 8} x {shape[-2] * 8} pixels and {4 * shape[-3] - 3} frames ({shape[-3]} latent frames)"
