"""Paint prompts with CogVideoX-nano through the pack's own loaders, text encoder, sampler and decoder, in batches.

Call host.standalone.use_comfyui first: the functions import ComfyUI's modules.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from .captions import caption
from .toy_settings import TEXT
from .world import Scene, draw_scene, recolour, render

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

    from cogvideox.keys import Latent
    from cogvideox.sockets.vae import CogVideoXVAE

BATCH = 25


@dataclass(frozen=True)
class Pipeline:
    """ComfyUI's MODEL, CLIP and VAE."""

    model: "ModelPatcher"
    clip: "CLIP"
    vae: "CogVideoXVAE"


@dataclass(frozen=True)
class Request:
    """A prompt, the scene it asks for, and a clip of that scene, [F, H, W, 3] in 0 .. 255.

    other: the same clip with a shape of another colour, for tasks that change a video.
    """

    scene: Scene
    prompt: str
    truth: np.ndarray
    other: np.ndarray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Inputs:
    """What CogVideoX Sampler gets for one clip."""

    model: "ModelPatcher"
    positive: list
    negative: list
    latent: "Latent"


@dataclass(frozen=True)
class Settings:
    """The settings of CogVideoX Sampler, and the size of a clip in pixels: those for a text, but with 50 steps of
    ddim, as large models are compared."""

    frames: int = TEXT.frames
    width: int = TEXT.width
    height: int = TEXT.height
    steps: int = 50
    cfg: float = TEXT.cfg
    sampler: str = "ddim"
    dynamic_cfg: bool = False
    denoise: float = 1.0
    seed: int = 42


def load_pipeline(folder: Path, weight_dtype: str = "default", others: str = "default") -> Pipeline:
    """All parts of a pipeline folder. weight_dtype: the transformer's; others: the text encoder's and the VAE's."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.model_loaders.load_text_encoder import load_text_encoder
    from cogvideox.model_loaders.load_vae import load_vae

    return Pipeline(
        load_model(folder, weight_dtype),
        load_text_encoder(folder, others),
        load_vae(folder, others),
    )


def held_out_requests(seed: int, count: int, settings: Settings, first: int = 0) -> list[Request]:
    """Scenes of combinations held out from training, each with one of its captions. seed: of the scenes.

    first: the number of the first one; a request depends on the seed and its own number alone.
    """
    requests = []
    size = settings.frames, settings.width, settings.height
    for index in range(first, first + count):
        rng = np.random.default_rng([seed, index])
        scene = draw_scene(rng, held_out=True)
        prompt = caption(scene, rng)
        again = copy.deepcopy(rng)  # the same path for the clip of another colour
        truth = render(scene, rng, *size)
        requests.append(Request(scene, prompt, truth, render(recolour(scene, rng), again, *size)))
    return requests


Prepare = Callable[[Pipeline, Request, Settings], Inputs]


def from_text(pipeline: Pipeline, request: Request, settings: Settings) -> Inputs:
    """What text to video needs: the prompt, the negative prompt "", and the size."""
    from cogvideox.nodes.latent import CogVideoXEmptyLatent

    positive, negative = encode(pipeline, [request.prompt]), encode(pipeline, [""])
    latent = CogVideoXEmptyLatent.execute(settings.width, settings.height, settings.frames, 1).args[0]
    return Inputs(pipeline.model, positive, negative, latent)


@torch.inference_mode()
def paint(
    pipeline: Pipeline,
    requests: Sequence[Request],
    settings: Settings,
    prepare: Prepare = from_text,
    batch_size: int = BATCH,
) -> np.ndarray:
    """The clips of `requests`: [N, F, H, W, 3] in 0 .. 1."""
    painted = []
    for start in range(0, len(requests), batch_size):
        batch = [prepare(pipeline, request, settings) for request in requests[start : start + batch_size]]
        latents = sample(batch, settings, settings.seed + start)
        painted += [pipeline.vae.decode(one[None])[0].float().numpy() for one in latents]
    return np.stack(painted)


def sample(batch: Sequence[Inputs], settings: Settings, seed: int) -> torch.Tensor:
    """The latents of clips of one model and size, [B, 16, T, h, w], sampled together from the noise of `seed`."""
    from cogvideox.nodes.sample import CogVideoXSample

    sampled = CogVideoXSample.execute(
        batch[0].model,
        _together([inputs.positive for inputs in batch]),
        _together([inputs.negative for inputs in batch]),
        cast("Latent", _joined([dict(inputs.latent) for inputs in batch])),
        seed,
        settings.steps,
        settings.cfg,
        settings.sampler,
        settings.dynamic_cfg,
        settings.denoise,
    )
    return sampled.args[0]["samples"]


def _together(conditionings: Sequence[list]) -> list:
    """One CONDITIONING for a batch, of one for each clip: tensors are joined, everything else is the first's."""
    if len(conditionings) == 1:
        return conditionings[0]
    entries = [conditioning[0] for conditioning in conditionings]
    return [[torch.cat([text for text, _ in entries]), _joined([values for _, values in entries])]]


def _joined(values: Sequence[dict]) -> dict:
    first = values[0]
    return {
        key: torch.cat([one[key] for one in values]) if isinstance(first[key], torch.Tensor) else first[key]
        for key in first
    }


def encode(pipeline: Pipeline, prompts: Sequence[str]) -> list:
    """One CONDITIONING for a batch of prompts, text [B, tokens, width]."""
    return _together([pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(p)) for p in prompts])
