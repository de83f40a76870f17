"""LATENT and CONDITIONING from ComfyUI's sockets as samples for a training, checked before any work."""

import logging
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import comfy.model_patcher
import torch

from ..errors import UserError
from ..keys import Latent, image_concat
from ..samplers.checks import check_conditioning, check_latent, check_size
from ..samplers.conditioning import image_scale
from . import cache
from .batches import check_micro_batch
from .config import TrainConfig
from .objective import Sample, cogvideox_inside


@dataclass(frozen=True)
class Samples:
    """Clips and captions in memory, as trainer.ClipSource asks for them.

    empty_text: what replaces a dropped caption, [1, L, D]. image_scale: what images are multiplied by, None for text to
    video. hash: of the contents of all samples.
    """

    entries: tuple[Sample, ...]
    empty_text: torch.Tensor
    image_scale: float | None
    hash: str

    def shapes(self) -> tuple[Hashable, ...]:
        """What samples must share to be in one batch; each sample's."""
        return tuple((tuple(e["latents"].shape), tuple(e["text"].shape)) for e in self.entries)

    def load(self, index: int) -> Sample:
        return self.entries[index]


def read_samples(
    model: comfy.model_patcher.ModelPatcher,
    latents: Sequence[Latent],
    positive: Sequence[list],
    caption_dropout: float = TrainConfig.caption_dropout,
    micro_batch_size: int = TrainConfig.micro_batch_size,
) -> Samples:
    """`latents` (LATENTs, each of one or more clips) and `positive` (CONDITIONINGs, one for all or one a clip) for
    training `model`, a MODEL of ours.

    Raises UserError for what the model cannot be trained with.
    """
    clips = [clip for latent in latents for clip in _clips_in(model, latent)]
    # A CONDITIONING is a list of [text, dictionary]: several where a user has combined prompts.
    captions = [entry for conditioning in positive for entry in conditioning]
    captions = captions * len(clips) if len(captions) == 1 else captions
    if not clips or len(captions) != len(clips):
        raise UserError(
            f"There are {len(clips)} clips in latents and {len(captions)} captions in positive: each clip needs its "
            "own caption, or all clips share one. Take both from the same dataset."
        )
    entries = tuple(_entry(model, *both, micro_batch_size) for both in enumerate(zip(clips, captions), 1))
    digests = [(_digest_of_clip(entry), cache.digest_of({"text": entry["text"]})) for entry in entries]
    empty = next((latent["cogvideox_empty_text"] for latent in latents if "cogvideox_empty_text" in latent), None)
    return Samples(
        entries, _empty_text(entries, empty, caption_dropout), _image_scale(model, captions), cache.key_of(digests)
    )


def _digest_of_clip(entry: Sample) -> str:
    """The digest that the header of a dataset's file in the cache holds: it is how a training that was begun with the
    dataset from the command line is recognised in the graph."""
    return cache.digest_of({name: entry.get(name) for name in ("latents", "std", "images")})


def _empty_text(entries: Sequence[Sample], given: torch.Tensor | None, caption_dropout: float) -> torch.Tensor:
    """The empty caption, [1, L, D]; where no caption is ever dropped, any caption in its place.

    Raises UserError where it is needed and not there, or not as long as the captions.
    """
    if not caption_dropout:
        return entries[0]["text"][None]
    lengths = {entry["text"].shape[0] for entry in entries}
    if given is None or {given.shape[1]} != lengths:
        raise UserError(
            f"caption_dropout is {caption_dropout:g}, and there is no empty caption with as many tokens as the others "
            "to replace a caption with. Use latents that carry one, as datasets of this pack do, or set it to 0."
        )
    return given.float().cpu()


def _clips_in(model: comfy.model_patcher.ModelPatcher, latent: Latent) -> Iterator[dict[str, torch.Tensor | None]]:
    samples, std = latent["samples"], latent.get("cogvideox_std")
    check_latent(model.model, samples)
    # They are a first frame's variants of one clip [1 + V, 16, 1, h, w], without a batch dimension. A stock node that
    # joins latents to a batch passes on those of one clip, which must not become the others' first frame.
    images = latent.get("cogvideox_images") if len(samples) == 1 else None
    if std is not None and std.shape != samples.shape:
        raise UserError(
            f"The latent has shape {list(samples.shape)} and its standard deviation {list(std.shape)}. Something has "
            "changed one of them on the way: connect the dataset directly."
        )
    for index in range(len(samples)):
        yield {"latents": samples[index], "std": None if std is None else std[index], "images": images}


def _entry(
    model: comfy.model_patcher.ModelPatcher, number: int, both: tuple[dict, list], micro_batch_size: int
) -> Sample:
    """One sample, checked. number: what it is called in messages."""
    clip, (text, values) = both
    base, shape = cogvideox_inside(model), clip["latents"].shape
    is_image = base.model_config.family.task == "image"
    check_size(base, (shape[1], shape[2], shape[3]), model.model_options)
    check_micro_batch(shape, micro_batch_size, "batch_size")
    # A dataset's LATENT brings the first frame itself. It passes the same check as one in the CONDITIONING, whose own
    # entries are kept where it has them.
    if is_image and clip["images"] is not None:
        values = {**image_concat(clip["images"][:1], "checkpoint", has_end=False), **values}
    given = {**values, "cross_attn": text}
    check_conditioning(base, {f"positive (clip {number})": [given]}, torch.Size((1, *shape)), logging.warning)
    if text.shape[0] != 1:
        raise UserError(
            f"The caption of clip {number} is a batch of {text.shape[0]} texts. Encode one caption for each clip."
        )
    images = None
    if is_image:
        images = values["concat_latent_image"][:1, :, :1] if clip["images"] is None else clip["images"]
    for name, tensor in {"latents": clip["latents"], "std": clip["std"], "images": images, "text": text}.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise UserError(
                f"The {name} of clip {number} contain NaN or Inf: training would fail at once. Encode the clip again, "
                "with the VAE and the text encoder in bf16 or fp32."
            )
    return {
        "latents": clip["latents"].float().cpu(),
        "std": None if clip["std"] is None else clip["std"].float().cpu(),
        "images": None if images is None else images.float().cpu(),
        "text": text[0].float().cpu(),
    }


def _image_scale(model: comfy.model_patcher.ModelPatcher, captions: Sequence[list]) -> float | None:
    config = cogvideox_inside(model).model_config
    if config.family.task != "image":
        return None
    factor, inverted = config.latent_format.scale_factor, config.inverts_image_scale
    scales = {image_scale(values.get("cogvideox_scale", "checkpoint"), factor, inverted) for _, values in captions}
    if len(scales) > 1:
        raise UserError(
            "The clips' first frames are scaled in different ways. Use one scale for all of positive.",
            advice="scale first frames alike",
        )
    return scales.pop()
