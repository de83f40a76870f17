"""Paint prompts with CogVideoX-nano through the pack's own loaders, text encoder, sampler and decoder, in batches.

Call host.standalone.use_comfyui first: the functions import ComfyUI's modules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .captions import caption
from .world import Scene, draw_scene, render

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

BATCH = 25


@dataclass(frozen=True)
class Pipeline:
    """ComfyUI's MODEL, CLIP and VAE."""

    model: "ModelPatcher"
    clip: "CLIP"
    vae: "VAE"


@dataclass(frozen=True)
class Request:
    """A prompt, the scene it asks for, and a clip of that scene, [F, H, W, 3] in 0 .. 255."""

    scene: Scene
    prompt: str
    truth: np.ndarray


@dataclass(frozen=True)
class Settings:
    """The settings of CogVideoX Sampler, and the size of a clip in pixels."""

    frames: int = 17
    width: int = 64
    height: int = 64
    steps: int = 50
    cfg: float = 6.0
    sampler: str = "ddim"
    dynamic_cfg: bool = False
    seed: int = 42


def load_pipeline(folder: Path, weight_dtype: str = "default") -> Pipeline:
    """All parts of a pipeline folder; weight_dtype is the transformer's."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.model_loaders.load_text_encoder import load_text_encoder
    from cogvideox.model_loaders.load_vae import load_vae

    return Pipeline(
        load_model(folder, weight_dtype),
        load_text_encoder(folder),
        load_vae(folder),
    )


def held_out_requests(seed: int, count: int, settings: Settings) -> list[Request]:
    """Scenes of combinations held out from training, each with one of its captions. seed: of the scenes."""
    requests = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scene = draw_scene(rng, held_out=True)
        prompt = caption(scene, rng)
        requests.append(Request(scene, prompt, render(scene, rng, settings.frames, settings.width, settings.height)))
    return requests


@torch.inference_mode()
def paint(pipeline: Pipeline, requests: Sequence[Request], settings: Settings, from_image: bool = False) -> np.ndarray:
    """The clips of `requests`: [B, F, H, W, 3] in 0 .. 1. from_image: give the model the truth's first frame."""
    painted = []
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        latents = sample(pipeline, batch, settings, from_image, settings.seed + start)
        painted += [pipeline.vae.decode(one[None])[0].float().numpy() for one in latents]
    return np.stack(painted)


def sample(
    pipeline: Pipeline, batch: Sequence[Request], settings: Settings, from_image: bool, seed: int
) -> torch.Tensor:
    """The latents of one batch, [B, 16, T, h, w], from the negative prompt "" and the noise of `seed`."""
    from cogvideox.nodes.latent import CogVideoXEmptyLatent
    from cogvideox.nodes.sample import CogVideoXSample

    positive = encode(pipeline, [request.prompt for request in batch])
    negative = encode(pipeline, [""] * len(batch))
    if from_image:
        first = torch.cat([_encode_image(pipeline, request.truth[0]) for request in batch])
        for conditioning in (positive, negative):
            conditioning[0][1] |= {"concat_latent_image": first, "cogvideox_task": "image"}
    empty = CogVideoXEmptyLatent.execute(settings.width, settings.height, settings.frames, len(batch))
    sampled = CogVideoXSample.execute(
        pipeline.model,
        positive,
        negative,
        empty.args[0],
        seed,
        settings.steps,
        settings.cfg,
        settings.sampler,
        settings.dynamic_cfg,
        1.0,
    )
    return sampled.args[0]["samples"]


def encode(pipeline: Pipeline, prompts: Sequence[str]) -> list:
    """One CONDITIONING for a batch of prompts, text [B, tokens, width]."""
    texts = [pipeline.clip.encode_from_tokens_scheduled(pipeline.clip.tokenize(p))[0] for p in prompts]
    return [[torch.cat([text for text, _ in texts]), dict(texts[0][1])]]


def _encode_image(pipeline: Pipeline, picture: np.ndarray) -> torch.Tensor:
    """[H, W, 3] in 0 .. 255 -> [1, 16, 1, h, w]."""
    return pipeline.vae.encode(torch.from_numpy(picture)[None].float() / 255)
