"""What ComfyUI's sockets bring to a training: LATENT and CONDITIONING as samples, checked before any work."""

import hashlib
import random
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import comfy.model_patcher
import torch

from ..errors import GeometryError, TrainingError
from ..samplers.checks import check_conditioning, check_latent, check_size
from ..samplers.conditioning import image_scale

_HASHED = 4096  # numbers of each tensor


@dataclass(frozen=True)
class Samples:
    """Clips and captions, as objective.draw_batch takes them.

    entries: dicts of latents, std [16, T, h, w] or None, text [L, D], images [V, 16, 1, h, w] or None.
    empty_text: [1, L, D], None where nobody gave it. image_scale: what images are multiplied by, None for text to
    video. hash: of all that is in them.
    """

    entries: tuple[dict, ...]
    empty_text: torch.Tensor | None
    image_scale: float | None
    hash: str

    def shapes(self) -> tuple[Hashable, ...]:
        """What entries must share to be in one batch."""
        return tuple((tuple(e["latents"].shape), tuple(e["text"].shape)) for e in self.entries)


def read_samples(model: comfy.model_patcher.ModelPatcher, latents: Sequence[dict], positive: Sequence[list]) -> Samples:
    """`latents` (LATENTs, each of one or more clips) and `positive` (CONDITIONINGs, one for all or one a clip) for
    training `model`, a MODEL of ours.

    Raises TrainingError, GeometryError or ConditioningError for what the model cannot be trained with.
    """
    base = model.model
    if base.model_config.family.task not in ("text", "image"):
        raise TrainingError(
            f"{base.model_config.family.name} takes more than a prompt and a first frame, which this training does not "
            "prepare. Choose a text to video or an image to video model."
        )
    pieces = [piece for latent in latents for piece in _pieces(base, latent)]
    captions = [entry for conditioning in positive for entry in conditioning]
    captions = captions * len(pieces) if len(captions) == 1 else captions
    if not pieces or len(captions) != len(pieces):
        raise TrainingError(
            f"There are {len(pieces)} clips in latents and {len(captions)} captions in positive: each clip needs its "
            "own caption, or all of them one. Take both from the same CogVideoX Training Clips."
        )
    entries = tuple(_entry(model, *both) for both in enumerate(zip(pieces, captions), 1))
    empty = next((latent["cogvideox_empty_text"] for latent in latents if "cogvideox_empty_text" in latent), None)
    return Samples(entries, empty, _image_scale(base, captions), _hash(entries))


def require_empty_text(samples: Samples, caption_dropout: float) -> torch.Tensor:
    """The empty caption, [1, L, D]; where no caption is ever dropped, anything of that shape.

    Raises TrainingError where it is needed and not there, or not as long as the captions.
    """
    lengths = {entry["text"].shape[0] for entry in samples.entries}
    if not caption_dropout:
        return samples.entries[0]["text"][None]
    if samples.empty_text is None or {samples.empty_text.shape[1]} != lengths:
        raise TrainingError(
            f"caption_dropout is {caption_dropout:g} and there is no empty caption of the same number of tokens to put "
            "in a caption's place. Take latents and positive from CogVideoX Training Clips, or set it to 0."
        )
    return samples.empty_text


def batch_samples(shapes: tuple[Hashable, ...], number: int, count: int, seed: int) -> list[int]:
    """Which samples the batch `number` of a whole training takes: `count` of one shape.

    An epoch shows every sample once, and some twice where `count` does not divide how many there are of a shape.
    """
    batches = sum(-(-shapes.count(shape) // count) for shape in set(shapes))
    epoch, place = divmod(number, batches)
    return _epoch(shapes, count, seed, epoch)[place]


@lru_cache(4)
def _epoch(shapes: tuple[Hashable, ...], count: int, seed: int, epoch: int) -> list[list[int]]:
    chance = random.Random(f"{seed} {epoch}")
    batches = []
    for shape in dict.fromkeys(shapes):
        bucket = [index for index, other in enumerate(shapes) if other == shape]
        chance.shuffle(bucket)
        starts = range(0, len(bucket), count)
        batches += [[bucket[(start + i) % len(bucket)] for i in range(count)] for start in starts]
    chance.shuffle(batches)
    return batches


def _pieces(base: torch.nn.Module, latent: dict) -> Iterator[dict]:
    samples, std = latent["samples"], latent.get("cogvideox_std")
    check_latent(base, samples)
    images = latent.get("cogvideox_images") if len(samples) == 1 else None
    if std is not None and std.shape != samples.shape:
        raise GeometryError(
            f"The latent has shape {list(samples.shape)} and the deviation beside it {list(std.shape)}. Some node has "
            "changed one of them; connect CogVideoX Training Clips directly."
        )
    for index in range(len(samples)):
        yield {"latents": samples[index], "std": None if std is None else std[index], "images": images}


def _entry(model: comfy.model_patcher.ModelPatcher, number: int, both: tuple[dict, list]) -> dict:
    """One sample, checked. number: what it is called in messages."""
    piece, (text, values) = both
    base, shape = model.model, piece["latents"].shape
    is_image = base.model_config.family.task == "image"
    check_size(base, tuple(shape[1:]), model.model_options)
    if is_image and piece["images"] is not None:
        values = {"concat_latent_image": piece["images"][:1], "cogvideox_task": "image", **values}
    given = {**values, "cross_attn": text}
    check_conditioning(base, {f"positive (clip {number})": [given]}, torch.Size((1, *shape)))
    if text.shape[0] != 1:
        raise TrainingError(
            f"The caption of clip {number} is {text.shape[0]} texts in one. Encode one caption for each clip."
        )
    images = None
    if is_image:
        images = values["concat_latent_image"][:1, :, :1] if piece["images"] is None else piece["images"]
    entry = {**piece, "images": images, "text": text[0]}
    for name, tensor in entry.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise TrainingError(
                f"Clip {number} has NaN or infinity in its {name}: training would break at once. Encode it again, with "
                "the VAE and the text encoder in bf16 or fp32."
            )
    return {name: None if tensor is None else tensor.float().cpu() for name, tensor in entry.items()}


def _image_scale(base: torch.nn.Module, captions: Sequence[list]) -> float | None:
    config = base.model_config
    if config.family.task != "image":
        return None
    factor, inverted = config.latent_format.scale_factor, config.inverts_image_scale
    scales = {image_scale(values.get("cogvideox_scale", "checkpoint"), factor, inverted) for _, values in captions}
    if len(scales) > 1:
        raise TrainingError(
            "The clips' first frames are scaled in different ways (image_scale). Make all of positive with one setting."
        )
    return scales.pop()


def _hash(entries: Sequence[dict]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        for name, tensor in sorted(entry.items()):
            if tensor is None:
                continue
            flat = tensor.reshape(-1)
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(flat[:: max(1, flat.numel() // _HASHED)].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
