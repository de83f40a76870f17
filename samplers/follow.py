"""Attention shared with another video: a run attends to its own tokens and to those of an inverted video.

At each step the model computes the run's sample and the inverted video's, at about the same noise level, in one batch.
The run takes over layout and motion through the keys and values of the video; the video's own result is thrown away.

Source: THUDM/CogVideo inference/ddim_inversion.py, whose second run does this with an attention processor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ..errors import UserError
from ..host.async_copies import upload
from ..host.protocols import GuiderExecutor
from ..keys import ATTENTION_OVERRIDE, Latent
from .comfy_sampler import require_cogvideox
from .inversion import CLEAN
from .schedule import TRAIN_TIMESTEPS

KEY = "cogvideox_follow"  # of the wrappers on a MODEL


@dataclass(frozen=True)
class Followed:
    """An inverted video, and the part of a run in which it is followed."""

    timesteps: tuple[int, ...]  # ascending
    samples: tuple[torch.Tensor, ...]  # [B, 16, T, H, W] at each of them, scaled, variance preserving
    first: float  # timestep from which it is followed
    last: float  # timestep until which it is followed, below `first`

    def nearest(self, timestep: float) -> int:
        """Index of the samples whose noise level is nearest."""
        return min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - timestep))

    def is_followed(self, timestep: float) -> bool:
        return self.last <= timestep <= self.first


def read_trajectory(latent: Latent, start_percent: float, end_percent: float) -> Followed:
    """The inverted video in the LATENT of an inversion.

    start_percent, end_percent: the part of a run in which it is followed, 0 .. 1, the end after the start.

    Raises UserError where the latent has no trajectory.
    """
    trajectory = latent.get("cogvideox_trajectory")
    if trajectory is None:
        raise UserError(
            "This latent has no trajectory to follow: it does not come from an inversion, or was saved to a file in "
            "between, which loses the trajectory.",
            advice="connect an inverted latent",
        )
    last = TRAIN_TIMESTEPS - 1
    # As comfy.model_sampling.ModelSamplingDiscrete.percent_to_sigma: 0 is the start of a run at denoise 1, and percents
    # count timesteps, not steps.
    bounds = last * (1 - start_percent), last * (1 - end_percent)
    return Followed(*_checked_trajectory(trajectory), *bounds)


def _checked_trajectory(trajectory: Any) -> tuple[tuple[int, ...], tuple[torch.Tensor, ...]]:
    """The timesteps and samples of a Trajectory. Raises UserError for what no inversion has left."""
    match trajectory:
        case {"timesteps": [*timesteps], "samples": [*samples]} if (
            len(timesteps) == len(samples) > 0
            and all(type(t) is int for t in timesteps)
            and all(isinstance(x, torch.Tensor) and x.ndim == 5 and x.shape == samples[0].shape for x in samples)
        ):
            return tuple(timesteps), tuple(samples)
    raise UserError(
        "The latent's trajectory is not that of an inversion: a node in between has changed it.",
        advice="connect an inverted latent",
    )


def follow_video(model: comfy.model_patcher.ModelPatcher, followed: Followed) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` whose runs follow the inverted video, instead of one that `model` may follow already.

    Raises UserError where the model's noise levels are not CogVideoX's. Its runs raise UserError where check_run does.
    """
    model_sampling: Any = model.get_model_object("model_sampling")
    require_cogvideox(model_sampling)
    patched = model.clone()
    # Without the patch of a video that `model` follows already: on top of it memory would be doubled twice. What is
    # found then is the model's own method, even while that patch is applied (ModelPatcher.object_patches_backup).
    patched.object_patches.pop("memory_required", None)
    memory_required: Any = patched.get_model_object("memory_required")

    # The inverted video doubles the batch inside the model, which ComfyUI does not see. It asks memory_required at two
    # places: once when it loads the model, and at every step, to decide how many conditions fit into one batch.
    def doubled(input_shape: list[int], cond_shapes: dict[str, Any] = {}) -> float:
        return memory_required([2 * input_shape[0], *input_shape[1:]], cond_shapes=cond_shapes)

    def prepare(executor: Callable[..., tuple], patcher: Any, shape: list[int], *args: Any, **kwargs: Any) -> tuple:
        # ComfyUI applies an object patch when it loads the model, and asks for the memory before. Where the patch is
        # missing, the shape is doubled here instead; where it is applied, both would reserve four times as much.
        if patcher.model.memory_required is not doubled:
            shape = [2 * shape[0], *shape[1:]]
        return executor(patcher, shape, *args, **kwargs)

    patched.add_object_patch("memory_required", doubled)
    # A wrapper of an earlier video would stay beside the new one: the batch would be doubled by each of them.
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, partial(_sample_following, followed)),
        (WrappersMP.PREPARE_SAMPLING, prepare),
        (WrappersMP.DIFFUSION_MODEL, partial(_forward_following, followed)),
    ):
        patched.remove_wrappers_with_key(kind, KEY)
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def _sample_following(
    followed: Followed,
    executor: GuiderExecutor,
    noise: torch.Tensor,
    latent_image: torch.Tensor,
    sampler: comfy.samplers.Sampler,
    sigmas: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper within outer_sample.sample_checked, which has added CogVideoX 1.5's frame in front."""
    guider = executor.class_obj
    if guider.model_options.get("context_handler") is not None:
        raise UserError(
            "Following a video needs all of its frames at once and cannot be combined with context windows. Remove the "
            "context windows, or follow a shorter video."
        )
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    timesteps = [float(t) for t in model_sampling.timestep(sigmas.cpu())]
    # For a sigma of 0 ComfyUI finds timestep 0.
    if sigmas[-1] == 0:
        timesteps[-1] = CLEAN
    check_run(followed, latent_image.shape, timesteps)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def check_run(followed: Followed, shape: torch.Size, timesteps: list[float]) -> None:
    """Raises UserError where a run on latents of `shape` through `timesteps` (-1 for a clean sample) cannot follow: the
    video has another size, length or batch, or at some step its nearest noise level is more than half a step away."""
    known = followed.samples[0].shape
    if shape[1:] != known[1:] or known[0] not in (1, shape[0]):
        wrong = ["width and height"] if shape[3:] != known[3:] else []
        wrong += ["number of frames"] if shape[2] != known[2] else []
        wrong += ["batch size"] if known[0] not in (1, shape[0]) else []
        raise UserError(
            f"The video to follow is {_describe(known)}; this run's latent is {_describe(shape)}. Set the same "
            f"{', '.join(wrong)}, or invert a video that has this run's."
        )
    if timesteps[-1] > timesteps[0]:
        raise UserError(
            "This run adds noise, as an inversion does, and its model follows another video.",
            advice="invert with the plain model",
        )
    # Half of the mean distance between two steps of this run. The 0.5 below is for timesteps that were rounded.
    half_step = (timesteps[0] - timesteps[-1]) / (2 * max(1, len(timesteps) - 1))
    for timestep in timesteps[:-1]:
        found = followed.timesteps[followed.nearest(timestep)]
        if followed.is_followed(timestep) and abs(found - timestep) > half_step + 0.5:
            raise UserError(
                f"The run stops at timestep {timestep:g}, and the nearest of the {len(followed.timesteps) - 1} steps "
                f"that the video was inverted in is {found}. Invert it in as many steps as the sampler runs (at "
                "denoise below 1: steps / denoise)."
            )


def _describe(shape: torch.Size) -> str:
    batch, _, frames, height, width = shape
    return f"{width * 8} x {height * 8} pixels, {frames} latent frames, batch {batch}"


def _forward_following(
    followed: Followed,
    executor: Callable[..., torch.Tensor],
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    ofs: torch.Tensor | None = None,
    transformer_options: dict[str, Any] = {},
    control: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """DIFFUSION_MODEL wrapper: the model gets the run and the inverted video as one batch, [run, video].

    x: [B * conditions, in_channels, T, H, W]; both halves get the run's concatenated channels.
    """
    now = float(timestep[0])
    if not followed.is_followed(now):
        return executor(x, timestep, context, ofs, transformer_options, control=control, **kwargs)
    video = followed.samples[followed.nearest(now)]
    if video.shape[2:] != x.shape[2:] or x.shape[0] % video.shape[0]:
        raise UserError(
            f"The model is asked for a part of the video of {_describe(x.shape)}; the video to follow is "
            f"{_describe(video.shape)}. Following needs all of the video at once: remove areas from the conditioning."
        )
    # x is [condition, video of the batch], the conditions one after the other: the videos are repeated in that order.
    video = upload(video, x).repeat(x.shape[0] // video.shape[0], 1, 1, 1, 1)
    video = torch.cat([video, x[:, video.shape[1] :]], dim=1)
    if control is not None:
        control = {name: [_twice(value) for value in values] for name, values in control.items()}
    shared = partial(share_attention, transformer_options.get(ATTENTION_OVERRIDE))
    options = {**transformer_options, ATTENTION_OVERRIDE: shared}
    if "cond_or_uncond" in options:  # of the batch, which prompt each part has: read by patches such as NAG's
        options["cond_or_uncond"] = 2 * options["cond_or_uncond"]
    batch = torch.cat([x, video])
    out = executor(batch, _twice(timestep), _twice(context), _twice(ofs), options, control=control, **kwargs)
    return out[: x.shape[0]]


def _twice(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else torch.cat([x, x])


def share_attention(
    previous: Callable[..., torch.Tensor] | None,
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """ComfyUI's attention override: the first half of the batch attends to both halves, the second to itself.

    query, key, value: [2 B, heads, N, D] or [2 B, N, heads * D]. previous: an override that was there before.

    These are two calls of the attention function, because the two halves have different numbers of keys.
    """
    run = attend if previous is None else partial(previous, attend)
    (query, video_query), (key, video_key), (value, video_value) = (x.chunk(2) for x in (query, key, value))
    # In both layouts the tokens are the last axis but one.
    both_keys, both_values = torch.cat([key, video_key], dim=-2), torch.cat([value, video_value], dim=-2)
    following = run(query, both_keys, both_values, *args, **kwargs)
    return torch.cat([following, run(video_query, video_key, video_value, *args, **kwargs)])
