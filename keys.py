"""Every entry of ours that travels inside ComfyUI's sockets, and the functions that build and read them.

LATENT is a dictionary, CONDITIONING a list of [text, dictionary], and a model's options are a dictionary. Stock nodes
pass on the entries that they do not know, so that ours survive any graph. Names of ours begin with `cogvideox_`; the
others are ComfyUI's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypedDict, cast

import torch

ATTENTION_OVERRIDE = "optimized_attention_override"  # ComfyUI's attention functions look for it in transformer_options
FINITE_WATCH = "cogvideox_finite"  # in the transformer_options of a run: samplers.finite.FiniteWatch
POSITIONS = "cogvideox_positions"
SHARED_STEP = "cogvideox_shared_step"  # in the transformer_options of a step: samplers.shared_step.SharedStep
_COMPILED_BLOCKS = "cogvideox_compiled_blocks"
_SHARED_TOKENS = "cogvideox_shared_tokens"
RNG_OFFSET: Final = "cogvideox_drawn"  # in a LATENT: with_rng_offset
SERVED_PATCHES = "cogvideox_served_patches"  # what host.stock_patches.serve_patches has found


class Trajectory(TypedDict):
    """What an inversion leaves behind: the video at every noise level that it went through."""

    timesteps: list[int]  # ascending, -1 for the clean video
    samples: list[torch.Tensor]  # [B, 16, T, H, W] at each timestep, scaled, variance preserving


class _Samples(TypedDict):
    samples: torch.Tensor  # [B, 16, T, H / 8, W / 8], unscaled


class Latent(_Samples, total=False):
    """ComfyUI's LATENT."""

    noise_mask: torch.Tensor  # 1 where the video is regenerated, 0 where it stays
    batch_index: list[int]  # which members of a larger batch these are (LatentFromBatch)
    cogvideox_drawn: tuple[int, int]  # (seed, how many normal numbers of its stream are used up)
    cogvideox_trajectory: Trajectory
    # In a training set, for each clip:
    cogvideox_std: torch.Tensor  # the posterior's standard deviation, shaped like samples
    cogvideox_images: torch.Tensor  # [1 + V, 16, 1, h, w], latents of its first frame: clean, and V times with noise
    cogvideox_empty_text: torch.Tensor  # [1, L, D], the encoded empty caption
    cogvideox_dataset: str  # a hash of all clips and captions


class Concat(TypedDict, total=False):
    """What a CONDITIONING entry holds for models that take channels concatenated with the noisy video."""

    concat_latent_image: torch.Tensor  # [B, 16 or 32, n, h, w], unscaled; n: the clip's latent frames, or 1, the first
    cogvideox_task: str  # a key of samplers.conditioning.TASKS; ComfyUI's own VOID nodes leave it out
    cogvideox_known: torch.Tensor  # [B, 1, n, h, w] in 0 .. 1, inpainting only: 1 where the video stays
    cogvideox_scale: str  # a key of samplers.conditioning.IMAGE_SCALES, image to video only
    cogvideox_end: bool  # an end image is among the latents
    cogvideox_repeated: Callable[[int], torch.Tensor]  # latent frames -> the start image's latents in every frame
    cogvideox_range: tuple[float, float]  # start and end in the run, 0 .. 1; before and after it the channels are zero


class PositionOptions(TypedDict):
    """How positions differ from those that a model was trained with."""

    riflex: bool  # transformer.positions.slow_repetition
    resample: bool  # transformer.positions.resampled_table


def with_rng_offset(latent: Latent, seed: int, count: int) -> Latent:
    """`latent` with a note that `count` numbers of the stream of `seed` are used up; without one for a count of 0."""
    out = without_rng_offset(latent)
    if count:
        out[RNG_OFFSET] = seed, count
    return out


def without_rng_offset(latent: Latent) -> Latent:
    """`latent` without the note of with_rng_offset: the next run on it draws its noise from the stream's beginning."""
    return cast(Latent, {key: value for key, value in latent.items() if key != RNG_OFFSET})


def rng_offset(latent: Latent, seed: int) -> int:
    """How many numbers of the stream of `seed` are used up before the noise is drawn.

    diffusers draws a sample of the VAE's posterior from the run's generator before it draws the noise. Here another
    node has drawn it: without the offset the noise would repeat its numbers, and the video would differ from the one
    that diffusers makes with this seed.
    """
    # A run with another seed has a stream of its own, of which nothing is used up.
    drawn_seed, count = latent.get(RNG_OFFSET, (None, 0))
    return count if drawn_seed == seed else 0


def with_trajectory(latent: Latent, samples: torch.Tensor, trajectory: Trajectory) -> Latent:
    """`latent` with the noise that an inversion has ended at, and the way that led there."""
    return {**latent, "samples": samples, "cogvideox_trajectory": trajectory}


def training_latent(
    samples: torch.Tensor, std: torch.Tensor, images: torch.Tensor | None, empty_text: torch.Tensor, dataset: str
) -> Latent:
    """The LATENT of one clip of a training set, [1, 16, T, h, w]; see Latent for the rest. images: None for text to
    video."""
    latent: Latent = {
        "samples": samples,
        "cogvideox_std": std,
        "cogvideox_empty_text": empty_text,
        "cogvideox_dataset": dataset,
    }
    return latent if images is None else {**latent, "cogvideox_images": images}


def image_concat(
    latents: torch.Tensor, scale: str, has_end: bool, repeated: Callable[[int], torch.Tensor] | None = None
) -> Concat:
    """The entries of Concat for an image to video model: a start image, and an end image where `has_end`.

    repeated: for models that see the image in every frame, which only the run knows: latent frames -> latents
    [B, 16, T, h, w], unscaled. None where there is no single start image.
    """
    entries: Concat = {
        "concat_latent_image": latents,
        "cogvideox_task": "image",
        "cogvideox_scale": scale,
        "cogvideox_end": has_end,
    }
    return entries if repeated is None else {**entries, "cogvideox_repeated": repeated}


def inpaint_concat(latents: torch.Tensor, known: torch.Tensor) -> Concat:
    """The entries of Concat for a Fun InP model: a masked video."""
    return {"concat_latent_image": latents, "cogvideox_known": known, "cogvideox_task": "inpaint"}


def control_concat(latents: torch.Tensor, percent_range: tuple[float, float]) -> Concat:
    """The entries of Concat for a Fun Control model: a control video."""
    return {"concat_latent_image": latents, "cogvideox_task": "control", "cogvideox_range": percent_range}


def read_concat(entry: Mapping[str, Any]) -> Concat:
    """The entries of Concat in the dictionary of a CONDITIONING entry, or in the arguments that ComfyUI makes of it for
    BaseModel.extra_conds. Entries of None count as missing."""
    return cast(Concat, {key: entry[key] for key in Concat.__annotations__ if entry.get(key) is not None})


def with_positions(transformer_options: Mapping[str, Any], positions: PositionOptions) -> dict[str, Any]:
    """A copy of a model's transformer_options with `positions`, which replace earlier ones."""
    return {**transformer_options, POSITIONS: positions}


def read_positions(transformer_options: Mapping[str, Any]) -> PositionOptions:
    """What with_positions has stored; without it, positions as the model was trained."""
    return transformer_options.get(POSITIONS, {"riflex": False, "resample": False})


class BlockCompiler(Protocol):
    """transformer.compiled_blocks.CompiledBlocks, whose module imports diffusers."""

    def forward_of(self, config: Any, compute: Callable[..., Any]) -> Callable[..., Any]: ...


def with_compiled_blocks(transformer_options: Mapping[str, Any], blocks: BlockCompiler) -> dict[str, Any]:
    """A copy of a model's transformer_options whose steps compute their blocks by `blocks`."""
    return {**transformer_options, _COMPILED_BLOCKS: blocks}


def read_compiled_blocks(transformer_options: Mapping[str, Any]) -> BlockCompiler | None:
    """What with_compiled_blocks has stored."""
    return transformer_options.get(_COMPILED_BLOCKS)


class SharedTokens(Protocol):
    """parallel.token_ranks.TokenRanks: the processes of which each computes a part of the tokens."""

    size: int

    def share(
        self, text: torch.Tensor, video: torch.Tensor, rotary: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]: ...

    def gather(self, video: torch.Tensor) -> torch.Tensor: ...

    def agree(self, choice: int) -> int: ...

    def across(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]: ...


def with_shared_tokens(transformer_options: Mapping[str, Any], ranks: SharedTokens) -> dict[str, Any]:
    """A copy of a model's transformer_options for a process that computes its part of the tokens of `ranks`."""
    return {**transformer_options, _SHARED_TOKENS: ranks}


def read_shared_tokens(transformer_options: Mapping[str, Any]) -> SharedTokens | None:
    """What with_shared_tokens has stored; None where this process computes all tokens."""
    return transformer_options.get(_SHARED_TOKENS)
