"""The pack's MODEL, CLIP, VAE and nodes on one tiny checkpoint, and diffusers' pipelines on the same weights."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae

WIDTH, HEIGHT, SEED = 96, 64, 42
PROMPT, NEGATIVE = "A panda plays a guitar (slowly: very slowly).", ""


def pictures(count: int, seed: int = 3, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Smooth moving pictures [count, height, width, 3] in 0 .. 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(2, count // 4), 4, 6, generator=generator)
    video = torch.nn.functional.interpolate(coarse, (count, height, width), mode="trilinear", align_corners=True)
    return video[0].permute(1, 2, 3, 0).contiguous()


def as_frames(images: torch.Tensor) -> list[torch.Tensor]:
    """[F, H, W, 3] as diffusers' pipelines take a video: frames [3, H, W], 0 .. 1."""
    return list(images.permute(0, 3, 1, 2))


class Task:
    """What the nodes of the contract make of one checkpoint folder."""

    _parts: Any = None  # of diffusers' pipeline, once one was asked for

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = load_model(folder, "fp32")
        self.vae = load_vae(folder, "fp32")
        clip = load_text_encoder(folder, "fp32")
        self.positive = self.node("text", "CogVideoXEncodeText", clip=clip, text=PROMPT)[0]
        self.negative = self.node("text", "CogVideoXEncodeText", clip=clip, text=NEGATIVE)[0]

    def node(self, module: str, name: str, **inputs: Any) -> tuple:
        """Run one node of the pack."""
        cls: Any = getattr(importlib.import_module(f"cogvideox.nodes.{module}"), name)
        return cls.execute(**inputs).args

    def sample(self, positive: Any, negative: Any, latent: Any, model: Any = None, **inputs: Any) -> torch.Tensor:
        """Latents [B, 16, T, h, w] of CogVideoXSample."""
        defaults = {"seed": SEED, "steps": 6, "cfg": 6.0, "sampler": "ddim", "dynamic_cfg": False, "denoise": 1.0}
        args = {"model": model or self.model, "positive": positive, "negative": negative, "latent_image": latent}
        return self.node("sample", "CogVideoXSample", **args, **defaults | inputs)[0]["samples"]

    def condition(self, module: str, name: str, frames: int, batch_size: int = 1, **inputs: Any) -> tuple:
        """positive, negative and latent of a conditioning node."""
        size = {"width": WIDTH, "height": HEIGHT, "frames": frames, "batch_size": batch_size}
        given = {"positive": self.positive, "negative": self.negative, "vae": self.vae}
        return self.node(module, name, **given, **size | inputs)

    def reference(self, pipeline: str, sampler: str, **arguments: Any) -> torch.Tensor:
        """Latents [B, 16, T, h, w] of a diffusers pipeline, unscaled; T includes CogVideoX 1.5's frames in front."""
        import diffusers

        pipe = self._reference_pipeline(getattr(diffusers, pipeline))
        scheduler = diffusers.CogVideoXDPMScheduler if sampler == "dpm" else diffusers.CogVideoXDDIMScheduler
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        defaults = {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "width": WIDTH,
            "height": HEIGHT,
            "guidance_scale": 6.0,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(SEED),
        }
        latents = pipe(**defaults | arguments).frames.transpose(1, 2)
        return latents / pipe.vae.config.scaling_factor

    def _reference_pipeline(self, kind: Any) -> Any:
        """diffusers' pipeline of this kind, its parts read from the folder once for all tests of this checkpoint."""
        if self._parts is None:
            self._parts = kind.from_pretrained(self.folder, torch_dtype=torch.float32).components
        pipe = kind(**self._parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@cache
def task_of(folder: Path) -> Task:
    """The task of one folder, once for all tests of a module that leave it as it is (tests/samplers/conftest.py)."""
    with torch.inference_mode():
        return Task(folder)


@pytest.fixture
def posterior_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers take the posterior's mode, as the pack does unless asked for a sample."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

    monkeypatch.setattr(Posterior, "sample", lambda self, generator=None: self.mode())
