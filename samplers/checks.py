"""Checks of a run before its first step: each raises UserError for what the model cannot be run with."""

import math
from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.utils import get_attr

from ..errors import UserError
from ..host.messages import Notify
from ..host.protocols import BaseModel, ContextHandler
from ..keys import Concat, read_concat
from ..video_limits import check_latent_amount
from .conditioning import TASKS

# The task that a number of concatenated channels is for, where the conditioning does not say. 16 channels may be those
# of an image or of a control video: they are called an image's in messages, and a model of either kind takes them.
TASK_OF_CHANNELS = {task.channels: name for name, task in TASKS.items() if name != "control"}


def check_latent(model: BaseModel, latent_image: torch.Tensor) -> None:
    """Raises UserError unless the latent is [B, 16, T, H, W] of which the videos can be made."""
    channels = model.latent_format.latent_channels
    if latent_image.ndim != 5 or latent_image.shape[1] != channels or 0 in latent_image.shape:
        raise UserError(
            f"The latent has shape {list(latent_image.shape)}; CogVideoX needs [batch, {channels}, frames, height / 8, "
            "width / 8].",
            advice="make a latent",
        )
    check_latent_amount(latent_image.shape)


def check_size(model: BaseModel, latent_size: tuple[int, int, int], model_options: dict[str, Any]) -> set[int]:
    """The numbers of video tokens that the model is called with for latents of this (T, H, W).

    Under ComfyUI's context windows the size is that of each window.

    Raises UserError unless the model has positions for them. The model's forward calls the same method, but only after
    the weights were loaded.
    """
    handler = model_options.get("context_handler")
    options = model_options.get("transformer_options", {})
    lengths = _window_lengths(latent_size[0], handler)
    return {math.prod(model.diffusion_model.token_grid((n, *latent_size[1:]), options)) for n in lengths}


def _window_lengths(frames: int, handler: ContextHandler | None) -> set[int]:
    """The numbers of latent frames that the model is called with for a video of `frames`, under ComfyUI's context
    `handler`; none for a handler of another pack that does not say, whose windows the model's forward checks."""
    if handler is None:
        return {frames}
    if not isinstance(length := getattr(handler, "context_length", None), int):
        return set()
    if frames <= length:
        return {frames}
    lengths = {length}
    # The schedule called "batched" ends with a shorter window. The others move the last window back, so that it
    # overlaps the one before.
    schedule = getattr(getattr(handler, "context_schedule", None), "name", "")
    if schedule == "batched" and frames % length:
        lengths.add(frames % length)
    # This option puts one more frame in front of every window but the first.
    if getattr(handler, "causal_window_fix", False):
        lengths |= {count + 1 for count in lengths}
    return lengths


def check_sampler(sampler: comfy.samplers.Sampler) -> None:
    """Raises UserError for the sampler of ComfyUI's own CogVideoX code.

    VOID_DDIM hands the model samples of unit variance, which ComfyUI's own CogVideoX class takes as they are. A model
    of this pack divides its input by sqrt(1 + sigma^2), as ComfyUI's other samplers expect: by 4500 at the first step.

    The class is found by its name: importing its module, comfy_extras.nodes_void, fails in versions without it.
    """
    if type(sampler).__name__ == "VOID_DDIM":
        raise UserError(
            "This sampler belongs to ComfyUI's own CogVideoX loader, whose models take another input.",
            advice="sample VOID with this pack",
        )


def check_mask(denoise_mask: torch.Tensor | None, goes_on: bool) -> None:
    """Raises UserError for a run that goes on from a noisy latent and has a mask that keeps some of it.

    ComfyUI keeps the masked part of the run's own latent. That is clean only where a run begins: the second part of a
    run that was cut in two gets a noisy one, and would keep its noise (KSamplerX0Inpaint of comfy/samplers.py). What
    was kept in the first part is no longer known.

    denoise_mask: 1 where the video is regenerated. goes_on: the run adds no noise, or its latent carries the frame in
    front that an earlier part has left (samplers.front), over which ComfyUI has stretched the mask as well.
    """
    if denoise_mask is not None and bool((denoise_mask < 1).any()) and goes_on:
        raise UserError(
            "This run goes on from the noisy latent of an earlier one, and its mask would keep the noise where it is "
            "black.",
            advice="sample a mask in one run",
        )


def check_finite(latent_image: torch.Tensor, noise: torch.Tensor, denoise_mask: torch.Tensor | None) -> None:
    """Raises UserError for what a run begins with where it contains NaN or Inf: the model's first prediction would,
    and its weights would be suspected."""
    for name, tensor in {"latent": latent_image, "noise": noise, "mask of the latent": denoise_mask}.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise UserError(
                f"The {name} contains NaN or Inf before the first step. Check the node that it comes from: this run "
                "has not changed it yet."
            )


def check_merge(patcher: Any, notify: Notify) -> None:
    """Raises UserError for a model into which another of a different size was merged (ModelMergeSimple and the like).

    ComfyUI leaves weights of another shape out and says so in the log alone. Where most were left out the model is
    refused; where only some were, as between text and image to video, `notify` gets a sentence.

    patcher: the run's comfy.model_patcher.ModelPatcher.
    """
    merged, left_out = 0, []
    for name, patches in patcher.patches.items():
        for _, value, *_ in patches:
            # ModelPatcher.get_key_patches gives a list that begins with (weight, function); a LoRA's is no list.
            if not isinstance(value, list):
                continue
            ours, theirs = get_attr(patcher.model, name).shape, value[0][0].shape
            merged += ours == theirs
            if ours != theirs:
                left_out.append(f"{name.removeprefix('diffusion_model.')} {list(ours)} and {list(theirs)}")
    if not left_out:
        return
    found = f"{len(left_out)} of {merged + len(left_out)} weights have other shapes in the two models that were merged"
    if len(left_out) > merged:
        raise UserError(
            f"{found} ({left_out[0]}), and ComfyUI leaves those out. Merge models of one family, such as two "
            "fine-tunes of 5b."
        )
    notify(f"{found} and were left out of the merge: {', '.join(left_out[:3])}{' …' if len(left_out) > 3 else ''}.")


def check_conditioning(
    model: BaseModel,
    conds: dict[str, list[dict[str, Any]]],
    latent_shape: Sequence[int],
    notify: Notify,
) -> None:
    """Raises UserError unless every entry has text of the model's width and the channel-concatenated conditioning that
    the model was trained with, at the size of the latent [B, 16, T, H, W].

    conds: ComfyUI's, by name ("positive", "negative"). notify: gets a sentence about what the model was not trained for
    and can still be run with.
    """
    for name, entries in conds.items():
        for entry in entries:
            concat = read_concat(entry)
            _check_text(model, name, entry)
            _check_finite_entry(name, "text", entry["cross_attn"])
            _check_area(name, entry)
            _check_task(model, name, concat)
            if "concat_latent_image" in concat:
                parts = [concat["concat_latent_image"], concat.get("cogvideox_known", concat["concat_latent_image"])]
                for part in parts:
                    _check_finite_entry(name, "latent of a picture or a video", part)
                _check_concat_size(model, name, parts, latent_shape)
                _check_concat_batch(parts[0].shape[0], latent_shape[0], notify)
    has_end = any(entry.get("cogvideox_end") for entries in conds.values() for entry in entries)
    if has_end and model.model_config.family.task == "image":
        notify(
            f"{model.model_config.family.name} was not trained for an end image: the end of the video may turn grey or "
            "freeze. A Fun InP model takes start and end images."
        )


def _check_text(model: BaseModel, name: str, entry: dict[str, Any]) -> None:
    config, text = model.diffusion_model.config, entry.get("cross_attn")
    width = config.text_embed_dim
    if text is None or text.ndim != 3 or text.shape[-1] != width:
        found = "no text" if text is None else f"text of shape {list(text.shape)}"
        raise UserError(
            f"The {name} conditioning has {found}; this model needs [batch, tokens, {width}], from the T5 text encoder "
            "of its own family.",
            advice="encode the prompt",
        )
    # A learned table has rows for the text's positions as well.
    if config.use_learned_positional_embeddings and text.shape[1] > config.max_text_seq_length:
        raise UserError(
            f"The {name} conditioning has {text.shape[1]} text tokens; {model.model_config.family.name} has positions "
            f"for {config.max_text_seq_length}.",
            advice="combine prompts",
        )


def _check_finite_entry(name: str, what: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"The {name} conditioning has a {what} that contains NaN or Inf. Encode it again, with the text encoder "
            "and the VAE in bf16 or fp32."
        )


def _check_area(name: str, entry: dict[str, Any]) -> None:
    """Raises UserError for areas of a picture, which have no duration.

    ComfyUI's own code, comfy.samplers.resolve_areas_and_cond_masks_multidim, fails on those in percent with an
    IndexError and on set_area_to_bounds with a ValueError, neither of which names the area.
    """
    area = entry.get("area")
    # Of a video: (duration, height, width, then the start of each) in latents, or in fractions after "percentage".
    sides = () if area is None else tuple(side for side in area if side != "percentage")
    if (area is not None and len(sides) != 6) or entry.get("set_area_to_bounds"):
        raise UserError(
            f"The {name} conditioning has an area of a picture; an area of a video has a duration as well.",
            advice="set an area of a video",
        )


def _check_task(model: BaseModel, name: str, concat: Concat) -> None:
    family = model.model_config.family
    task = TASKS[family.task]
    parts = (concat.get("concat_latent_image"), concat.get("cogvideox_known"))
    found = sum(part.shape[1] for part in parts if part is not None)
    # ComfyUI's own VOID nodes name no task: then the channels are taken for the model's own, if their number fits.
    made_for = concat.get("cogvideox_task", family.task if found == task.channels else TASK_OF_CHANNELS.get(found))
    if found == task.channels and made_for == family.task:
        return
    if not found:
        raise UserError(
            f"{family.name} takes {task.shows} in addition to the prompt, and the {name} conditioning has none.",
            advice=f"condition for {family.task}",
        )
    # NimVideo's model of this task has the shapes of Fun's, and its weights cannot tell (sockets.families.LOOKALIKES).
    if made_for == "image" and family.name == "CogVideoX-Fun-2b-Control":
        raise UserError(
            f"The {name} conditioning is made for {TASKS[made_for].shows}; {family.name} takes {task.shows}.",
            advice="say the family",
        )
    what = f"is made for {TASKS[made_for].shows}" if made_for else f"has {found} concatenated channels"
    raise UserError(
        f"The {name} conditioning {what}; {family.name} takes {task.shows}.", advice=f"condition for {family.task}"
    )


def _check_concat_size(model: BaseModel, name: str, parts: list[torch.Tensor], latent_shape: Sequence[int]) -> None:
    frames, height, width = latent_shape[2:]
    # A single start image fits any number of frames: conditioning.fit_frames adds zeros.
    is_one_frame = model.model_config.family.task == "image" and parts[0].shape[2] == 1
    for part in parts:
        has_frames = part.ndim == 5 and (is_one_frame or part.shape[2] == frames)
        has_size = part.ndim == 5 and part.shape[3:] == (height, width)
        if not (has_frames and has_size):
            raise UserError(
                f"The {name} conditioning was made for {_describe(part.shape)}; the latent is "
                f"{_describe(latent_shape)}. {_set_the_same(has_frames, has_size)} in both, or take the latent from "
                "the node that made the conditioning."
            )


def _set_the_same(has_frames: bool, has_size: bool) -> str:
    """What is to be set: no more than is wrong."""
    if has_size:
        return "Set the same number of frames"
    return "Set the same width and height" if has_frames else "Set the same width, height and frames"


def _check_concat_batch(made_for: int, batch_size: int, notify: Notify) -> None:
    """A batch whose members have samples of their own of the VAE's posterior is run as a whole: a part of its LATENT
    does not say which samples are its own."""
    if batch_size % made_for:
        notify(
            f"The conditioning has samples for {made_for} videos and the latent is of {batch_size}: it gets the first "
            "ones. Sample the whole batch, or make the conditioning for this batch size."
        )


def _describe(shape: Sequence[int]) -> str:
    return f"{shape[-1] * 8} x {shape[-2] * 8} pixels and {4 * shape[-3] - 3} frames ({shape[-3]} latent frames)"
