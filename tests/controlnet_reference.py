"""TheDenk's control net as an independent reference: diffusers' modules, a forward written from its description, and
diffusers' own pipeline with the control outputs added to its transformer's blocks."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file

from cogvideox.devtools.embedded_checkpoint import empty_controlnet


class ReferenceControl:
    """The control net in `folder`, in fp32."""

    def __init__(self, folder: Path):
        self.config = json.loads((folder / "config.json").read_text())
        self.time = self.config.get("flip_sin_to_cos", True), self.config.get("freq_shift", 0)
        self.net: Any = empty_controlnet(self.config)
        self.net.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        self.net.float()

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """[B, F, 3, H, W] in -1 .. 1 -> [B, T, C, H / 8, W / 8]."""
        batch = frames.shape[0]
        x = self.net.controlnet_encode_first(F.pixel_unshuffle(frames.flatten(0, 1), 8))
        x = self.net.controlnet_encode_second(compress_time(x, batch))
        return compress_time(x, batch).unflatten(0, (batch, -1))

    def outputs(
        self,
        latents: torch.Tensor,
        context: torch.Tensor,
        frames: torch.Tensor,
        timestep: torch.Tensor,
        rotary: tuple | None,
    ) -> list[torch.Tensor]:
        """latents: [B, T, 16, H, W]. Returns the video tokens after each block, [B, N, D]."""
        dim = self.config["num_attention_heads"] * self.config["attention_head_dim"]
        embedding = self.net.time_embedding(get_timestep_embedding(timestep, dim, *self.time))
        tokens = self.net.patch_embed(context, torch.cat([latents, self.encode(frames)], dim=2))
        text, video = tokens[:, : context.shape[1]], tokens[:, context.shape[1] :]
        out = []
        for index, block in enumerate(self.net.transformer_blocks):
            video, text = block(video, text, embedding, rotary)
            out.append(self.net.out_projectors[index](video) if "out_proj_dim" in self.config else video)
        return out


def reference_rotary(transformer: Any, latent_size: tuple[int, int, int]) -> tuple | None:
    """What diffusers' pipeline hands `transformer` as rotary embedding; the control net gets the same."""
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    frames, height, width = latent_size
    pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=8, transformer=transformer)
    return CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, torch.device("cpu")
    )


def compress_time(x: torch.Tensor, batch: int) -> torch.Tensor:
    """[B * F, C, h, w] -> [B * ceil(F / 2), C, h, w] by average pooling over time; an odd count keeps its first."""
    channels, height, width = x.shape[1:]
    series = x.unflatten(0, (batch, -1)).permute(0, 3, 4, 2, 1).reshape(batch * height * width, channels, -1)
    if series.shape[-1] % 2:
        rest = series[..., 1:]
        rest = F.avg_pool1d(rest, 2, 2) if rest.shape[-1] else rest
        series = torch.cat([series[..., :1], rest], dim=-1)
    else:
        series = F.avg_pool1d(series, 2, 2)
    return series.reshape(batch, height, width, channels, -1).permute(0, 4, 3, 1, 2).flatten(0, 1)


class Controlled:
    """Within this context diffusers' `transformer` runs under `controls`: (ReferenceControl, control video
    [F, 3, H, W] in -1 .. 1, strength, (start, end)), each from its share of `steps` on, as TheDenk's pipeline does it:
    start < step / steps < end."""

    def __init__(self, transformer: Any, steps: int, controls: list[tuple]):
        self.transformer, self.steps, self.controls = transformer, steps, controls
        self.step, self.added, self.hooks = 0, {}, []

    def __enter__(self) -> "Controlled":
        self.hooks = [self.transformer.register_forward_pre_hook(self._compute, with_kwargs=True)]
        for index, block in enumerate(self.transformer.transformer_blocks):
            self.hooks.append(block.register_forward_hook(self._adder(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _compute(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.added = {}
        for control, video, strength, (start, end) in self.controls:
            if not start < self.step / self.steps < end:
                continue
            latents = kwargs["hidden_states"]
            frames = video[None].expand(latents.shape[0], -1, -1, -1, -1)
            states = control.outputs(
                latents, kwargs["encoder_hidden_states"], frames, kwargs["timestep"], kwargs["image_rotary_emb"]
            )
            for index, state in enumerate(states):
                self.added[index] = self.added.get(index, 0) + state * strength
        self.step += 1

    def _adder(self, index: int) -> object:
        def add(module: torch.nn.Module, args: tuple, output: tuple) -> tuple | None:
            return (output[0] + self.added[index], output[1]) if index in self.added else None

        return add
