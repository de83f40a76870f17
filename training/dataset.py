"""Datasets for training: clips and captions, encoded once and kept on disk."""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import comfy.sd
import torch

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..media.pictures import augment_pictures
from ..sockets.clip import require_finite_text
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import CHANNELS, SPATIAL, latent_frames
from . import cache
from .clips import CACHE, Clip, DatasetSpec, UnusableClipError, check_spec, find_clips
from .objective import Sample
from .segments import Segment, cut_segments, probe_clip, read_segment

_FILES_IN_MEMORY = 16
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class CachedSample:
    """A segment of a clip. path: its file in the cache. latent_shape: (16, T, h, w). text_path: its caption's."""

    name: str
    caption: str
    path: Path
    latent_shape: tuple[int, int, int, int]
    text_path: Path


@dataclass(frozen=True)
class Dataset:
    """samples: sorted by shape, then by name. report: sentences for the user. hash: of the contents of all samples."""

    samples: tuple[CachedSample, ...]
    empty_text_path: Path
    report: tuple[str, ...]
    hash: str

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def empty_text(self) -> torch.Tensor:
        """The empty caption, [1, L, D], which replaces a dropped one."""
        return _read(self.empty_text_path)["text"][None]

    def shapes(self) -> tuple[Hashable, ...]:
        """What samples must share to be in one batch; each sample's."""
        return tuple(sample.latent_shape for sample in self.samples)

    def load(self, index: int) -> Sample:
        """A sample's tensors in fp32. Do not change them in place: later calls may return the same ones.

        latents, std: mean and standard deviation of the VAE's posterior, unscaled. images: the first frame's latents,
        clean (the posterior's mode), then with noise on the pixels (a sample of the posterior); None unless the
        dataset is for image to video.
        """
        sample = self.samples[index]
        cached = _read(sample.path)
        return {
            "latents": cached["latents"],
            "std": cached["std"],
            "text": _read(sample.text_path)["text"],
            "images": cached.get("images"),
        }


@dataclass(frozen=True)
class _Planned:
    clip: Clip
    number: int  # of the segment in its clip
    segment: Segment
    content: str  # hash of the clip's bytes
    path: Path


@dataclass
class _Progress:
    """What a build has done so far. edited: clips whose bytes or caption have changed since the build before."""

    skipped: list[str] = field(default_factory=list)
    encoded: dict[str, int] = field(default_factory=lambda: {"clip": 0, "caption": 0})
    edited: set[str] = field(default_factory=set)


def build_dataset(
    folder: Path,
    spec: DatasetSpec,
    vae: comfy.sd.VAE,
    clip: comfy.sd.CLIP,
    report: Callable[[str], object] = lambda sentence: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
    cache_folder: Path | None = None,
) -> Dataset:
    """The dataset in `folder`, as `spec` asks for it; what the cache does not hold yet is encoded.

    vae: a CogVideoXVAE. report(sentence) is called for each clip that is left out, and at the end with what was done.
    progress(done, total) is called after each caption and segment of a clip. cache_folder: default
    `folder`/.cogvideox_cache.

    Raises UserError where no clip can be used, the cache cannot be written, there is no such folder, or `spec` has a
    setting outside its limits. Interrupted, it keeps what is encoded.
    """
    check_spec(spec)
    clips, skipped = find_clips(folder)
    so_far = _Progress(skipped=skipped)
    if cache_folder is None and (folder / CACHE).is_symlink():
        raise UserError(f"The cache {folder / CACHE} is a link, and may lead anywhere. Delete it.")
    store = _open_store(cache_folder or folder / CACHE)
    planned = _plan(clips, spec, cache.identify_vae(vae), store, so_far)
    known = cache.read_index(store)
    index = {p.clip.name: [p.content, hashlib.sha256(p.clip.caption.encode()).hexdigest()] for p in planned}
    so_far.edited = {name for name in index if name in known and known[name] != index[name]}
    texts = _text_paths([p.clip.caption for p in planned], clip, store)
    # First all captions, then all clips: each model is loaded once. In turns, T5 and the VAE would push each other out
    # of a card that has no room for both, clip after clip.
    total = len(texts) + len(planned)
    for done, (caption, path) in enumerate(texts.items() if planned else (), 1):
        throw_if_interrupted()
        _cache_text_embedding(caption, path, clip, so_far)
        progress(done, total)
    kept = []
    for done, plan in enumerate(planned, len(texts) + 1):
        throw_if_interrupted()
        if _cache_segment(plan, spec, vae, so_far):
            kept.append(plan)
        progress(done, total)
    if not kept:
        raise UserError(_none_usable(folder, spec, so_far.skipped))
    # Only a build that has come to its end: after one that was interrupted, what was edited is still reported.
    cache.write_index(store, index)
    # The hash and the order of a training go by this order, which must not be that in which a disk lists files.
    samples = sorted((_sample(plan, texts) for plan in kept), key=lambda s: (s.latent_shape, s.name))
    sentences = _summary_lines(samples, so_far, texts, clip)
    for sentence in sentences:
        report(sentence)
    digests = [(cache.read_digest(sample.path), cache.read_digest(sample.text_path)) for sample in samples]
    return Dataset(tuple(samples), texts[""], tuple(sentences), cache.key_of(digests))


def encode_segment(vae: comfy.sd.VAE, frames: torch.Tensor, spec: DatasetSpec, seed: int) -> dict[str, torch.Tensor]:
    """What is cached of a segment of a clip, in the precision that the VAE computes in.

    frames: [F, H, W, 3] in 0 .. 1. seed: of the noise on the first frame.
    Returns latents, std [16, T, h, w] and for image to video images [1 + V, 16, 1, h, w], see Dataset.load.

    Source: diffusers examples/cogvideo/train_cogvideox_image_to_video_lora.py: exp(N(-3, 0.5)) noise on pixels in
    -1 .. 1, a sample of the posterior.
    """
    with torch.inference_mode():
        mean, std = cast(CogVideoXVAE, vae).encode_posterior(frames)
        kept = {"latents": mean[0], "std": std[0]}
        if spec.image_to_video:
            generator = torch.Generator().manual_seed(seed)
            images = [vae.encode(frames[:1])]
            for variant in range(spec.image_variants):
                noised = augment_pictures(frames[:1], None, generator)
                # + 1: `seed` itself has drawn the noise on the pixels, and the same numbers must not come again.
                posterior_seed = (seed + variant + 1) % 2**63
                images.append(cast(CogVideoXVAE, vae).encode(noised, posterior_seed=posterior_seed))
            kept["images"] = torch.cat(images)
        return {name: tensor.to("cpu", vae.vae_dtype) for name, tensor in kept.items()}


def _open_store(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The cache {folder} cannot be made: {error}. Choose another folder for it.") from error
    return folder


def _plan(clips: list[Clip], spec: DatasetSpec, vae_id: str, store: Path, so_far: _Progress) -> list[_Planned]:
    """What will be taken of each clip; the others are named in so_far.skipped."""
    planned = []
    for clip in clips:
        throw_if_interrupted()
        try:
            content = cache.hash_clip(clip.path)  # by its bytes: copying and renaming change a file's time and name
            source = probe_clip(clip.path)
            # A generator for each clip: the crops of the others stay the same, and in the cache, when clips are added.
            rng = random.Random(f"{spec.seed} {clip.name}")
            crop_offset = (rng.random(), rng.random()) if spec.crop == "random" else (0.5, 0.5)
            segments = cut_segments(spec, source, crop_offset)
        except OSError as error:
            so_far.skipped.append(f"{clip.name}: it cannot be read ({error}).")
            continue
        except UnusableClipError as error:
            so_far.skipped.append(f"{clip.name}: {error}")
            continue
        if not segments:
            so_far.skipped.append(f"{clip.name}: {_too_short(spec, source.frames)}")
        images = (spec.image_variants, spec.seed) if spec.image_to_video else None
        for number, segment in enumerate(segments, 1):
            size = segment.width, segment.height
            key = cache.key_of(content, vae_id, segment.indices, *size, segment.crop_offset, images)
            planned.append(_Planned(clip, number, segment, content, store / f"clip-{key}.safetensors"))
    return planned


def _too_short(spec: DatasetSpec, frames: int) -> str:
    asked = min(size[2] for size in spec.sizes())
    at = f" at {spec.fps:g} frames a second" if spec.fps else ""
    advice = "" if spec.shorter == "bucket" else ', or set shorter to "bucket"'
    return f"it has {frames} frames, too few for {asked}{at}. Take a longer clip, ask for fewer frames{advice}."


def _text_paths(captions: Iterable[str], clip: comfy.sd.CLIP, store: Path) -> dict[str, Path]:
    """Caption -> its file. The empty caption is always among them, first; equal captions share a file."""
    text_id = cache.identify_text_encoder(clip)
    return {c: store / f"text-{cache.key_of(text_id, c)}.safetensors" for c in ("", *captions)}


def _cache_text_embedding(caption: str, path: Path, clip: comfy.sd.CLIP, so_far: _Progress) -> None:
    if cache.is_complete(path):
        return
    with torch.inference_mode():
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(caption))
        require_finite_text(conditioning)
        text = conditioning[0][0][0]  # CONDITIONING is [[text [1, L, D], dictionary]]
        cache.write_cached(path, {"text": text.to("cpu", cache.text_dtype(text))})
    so_far.encoded["caption"] += 1


def _cache_segment(plan: _Planned, spec: DatasetSpec, vae: comfy.sd.VAE, so_far: _Progress) -> bool:
    """Whether the segment is in the cache now; a clip that turns out to be damaged is named in so_far.skipped."""
    if cache.is_complete(plan.path):
        return True
    try:
        frames = read_segment(plan.clip.path, plan.segment)
    except UnusableClipError as error:
        so_far.skipped.append(f"{_name(plan)}: {error}")
        return False
    seed = int(cache.key_of(plan.content, plan.number, spec.seed)[:15], 16)
    cache.write_cached(plan.path, encode_segment(vae, frames, spec, seed))
    so_far.encoded["clip"] += 1
    return True


def _name(plan: _Planned) -> str:
    return plan.clip.name if plan.number == 1 else f"{plan.clip.name} (segment {plan.number})"


def _sample(plan: _Planned, texts: dict[str, Path]) -> CachedSample:
    segment = plan.segment
    shape = (CHANNELS, latent_frames(len(segment.indices)), segment.height // SPATIAL, segment.width // SPATIAL)
    return CachedSample(_name(plan), plan.clip.caption, plan.path, shape, texts[plan.clip.caption])


def _summary_lines(
    samples: list[CachedSample], so_far: _Progress, texts: dict[str, Path], clip: comfy.sd.CLIP
) -> list[str]:
    """What was left out, what was cut, what was edited, and what there is now."""
    said = [f"Left out: {reason}" for reason in so_far.skipped]
    tokenizer: Any = clip.tokenizer
    lost = [caption for caption in texts if getattr(tokenizer, "lost_text", lambda caption: "")(caption)]
    if lost:
        verb = "is" if len(lost) == 1 else "are"
        said.append(
            f"{_count(len(lost), 'caption')} {verb} longer than {tokenizer.max_tokens} tokens and cut there: "
            f"{lost[0][:60]}..."
        )
    if so_far.edited:
        names = ", ".join(sorted(so_far.edited)[:_REASONS_SHOWN])
        said.append(f"{_count(len(so_far.edited), 'clip')} edited since the last time (file or caption): {names}.")
    shapes: dict[tuple, int] = {}
    for sample in samples:
        shapes[sample.latent_shape] = shapes.get(sample.latent_shape, 0) + 1
    sizes = ", ".join(
        f"{count} of {SPATIAL * w} x {SPATIAL * h} with {4 * t - 3} frames" for (_, t, h, w), count in shapes.items()
    )
    said.append(f"{_count(len(samples), 'sample')}: {sizes}. {_count(len(so_far.skipped), 'clip')} left out.")
    encoded = so_far.encoded
    said.append(
        f"Encoded now: {_count(encoded['clip'], 'sample')} and {_count(encoded['caption'], 'caption')} (the empty one "
        f"counts); from the cache: {len(samples) - encoded['clip']} and {len(texts) - encoded['caption']}."
    )
    return said


def _count(number: int, what: str) -> str:
    """Each noun stands in a text of its own: what is put together of words cannot be translated."""
    ending = "" if number == 1 else "s"
    counted = {
        "clip": f"{number} clip{ending}",
        "caption": f"{number} caption{ending}",
        "sample": f"{number} sample{ending}",
    }
    return counted[what]


def _none_usable(folder: Path, spec: DatasetSpec, reasons: list[str]) -> str:
    more = f" And {len(reasons) - _REASONS_SHOWN} more." if len(reasons) > _REASONS_SHOWN else ""
    return (
        f"None of the clips in {folder} ({len(reasons)} found) can be used for training. "
        f"{' '.join(reasons[:_REASONS_SHOWN])}{more} Each clip needs a caption and at least "
        f"{min(size[2] for size in spec.sizes())} frames. Correct the clips, or change the settings."
    )


# A path never stands for other contents: its name is their hash.
@lru_cache(_FILES_IN_MEMORY)
def _read(path: Path) -> dict[str, torch.Tensor]:
    return cache.read_cached(path)
