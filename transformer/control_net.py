"""The control net of TheDenk's checkpoints: the first blocks of a transformer, with a guide video as input."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

from ..host.compat import prefetched
from ..host.memory_rules import free_in_step
from ..keys import read_positions, read_shared_tokens
from .block import block_forward, has_lean_mode
from .memory_modes import DEFAULT, LADDER, Mode, modes_to_try, step_bytes
from .positions import rotary_table, sincos_table
from .token_passes import expects_kernels, may_overwrite


@dataclass(frozen=True)
class ControlConfig:
    """The fields of a control net's config.json that the network depends on. Sizes are those of latents; sample_frames
    counts frames of the video.

    text_embed_dim and out_proj_dim are missing in the files; the loader takes them from the weights' shapes.

    Source of the defaults: TheDenk/cogvideox-controlnet, cogvideo_controlnet.py, CogVideoXControlnet.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    vae_channels: int = 16
    in_channels: int = 3
    downscale_coef: int = 8
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    num_layers: int = 8
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    max_text_seq_length: int = 226
    activation_fn: str = "gelu-approximate"
    timestep_activation_fn: str = "silu"
    norm_elementwise_affine: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    out_proj_dim: int | None = None
    text_embed_dim: int = 4096

    @property
    def dim(self) -> int:
        """Width of the control net's own tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def output_dim(self) -> int:
        """Width of what it adds to the model's tokens, and so the model's width."""
        return self.out_proj_dim or self.dim


class CogVideoXControlNet(nn.Module):
    """The reference's parameter names with a forward in two parts: encode_control once a run, forward at every step."""

    dtype: torch.dtype | None = None  # the compute dtype; the loader sets it, sockets.controlnet casts inputs to it

    def __init__(self, config: ControlConfig):
        super().__init__()
        self.config = c = config
        pixels = c.in_channels * c.downscale_coef**2
        self.unshuffle = nn.PixelUnshuffle(c.downscale_coef)
        self.controlnet_encode_first = _encoder_stage(pixels, pixels // 2)
        self.controlnet_encode_second = _encoder_stage(pixels // 2, pixels // 4)
        # Positions depend on the video's size: _add_positions adds them in forward.
        self.patch_embed = CogVideoXPatchEmbed(
            patch_size=c.patch_size,
            in_channels=c.vae_channels + pixels // 4,
            embed_dim=c.dim,
            text_embed_dim=c.text_embed_dim,
            use_positional_embeddings=False,
            use_learned_positional_embeddings=False,
        )
        self.time_proj = Timesteps(c.dim, c.flip_sin_to_cos, c.freq_shift)
        self.time_embedding = TimestepEmbedding(c.dim, c.time_embed_dim, c.timestep_activation_fn)
        self.transformer_blocks = nn.ModuleList(_block(c) for _ in range(c.num_layers))
        self.out_projectors = None
        if c.out_proj_dim is not None:
            self.out_projectors = nn.ModuleList(nn.Linear(c.dim, c.out_proj_dim) for _ in range(c.num_layers))

    def encode_control(self, frames: torch.Tensor) -> torch.Tensor:
        """Guide frames [B, F, 3, H, W] in -1 .. 1 -> [B, C, T, H / 8, W / 8], F = 4 T - 3.

        Frames are averaged in pairs counted from the start, so that the result for the first frames of a guide does not
        depend on how many follow: sockets.controlnet takes the beginning of one encoded guide for shorter videos. The
        group norms do not mix frames either, because the frames are their batch.
        """
        batch = frames.shape[0]
        x = self.controlnet_encode_first(self.unshuffle(frames.flatten(0, 1)))
        x = halve_frames(x.unflatten(0, (batch, -1)))
        x = self.controlnet_encode_second(x.flatten(0, 1))
        # [B, T, C, h, w] -> [B, C, T, h, w]
        return halve_frames(x.unflatten(0, (batch, -1))).transpose(1, 2)

    def forward(
        self,
        x: torch.Tensor,
        control_latents: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        transformer_options: dict[str, Any] = {},
    ) -> list[torch.Tensor]:
        """What to add to the model's video tokens after each of its first blocks: num_layers of [B, video tokens, D].

        x: [B, 16, T, H, W], scaled, variance preserving, in the compute dtype. control_latents: encode_control's, of
        batch B or 1. timestep: [B], 0 .. 999. context: [B, text tokens, text width].

        Source: TheDenk/cogvideox-controlnet, cogvideo_controlnet.py, forward.
        """
        guide = control_latents.expand(x.shape[0], -1, -1, -1, -1)
        # The convolution is two-dimensional and takes frame by frame: [B, C, T, H, W] -> [B * T, D, H / 2, W / 2].
        patches = self.patch_embed.proj(torch.cat([x, guide], dim=1).transpose(1, 2).flatten(0, 1))
        grid = x.shape[2], *patches.shape[2:]
        video = patches.flatten(2).transpose(1, 2).reshape(x.shape[0], -1, patches.shape[1])
        text = self.patch_embed.text_proj(context)
        video, rotary = self._add_positions(video, grid, text.shape[1], transformer_options)
        embedding = self.time_embedding(self.time_proj(timestep).to(x.dtype))
        options = {**transformer_options, "total_blocks": len(self.transformer_blocks), "block_type": "control"}
        ranks = read_shared_tokens(transformer_options)
        if ranks is not None:  # what is added to this process's part of the model's tokens
            text, video, rotary = ranks.share(text, video, rotary)
        mode = self._memory_mode(text, video, transformer_options)
        mode = mode if ranks is None else LADDER[ranks.agree(LADDER.index(mode))]
        out = []
        for index, block in enumerate(prefetched(self.transformer_blocks, x.device, transformer_options)):
            options["block_index"] = index
            text, video = block_forward(block, text, video, embedding, rotary, options, mode=mode)
            # Without projectors these are the very tokens that the next block reads. That is safe although ComfyUI's
            # control_merge multiplies the outputs by the strength in place: it does so after the last block has run.
            out.append(video if self.out_projectors is None else self.out_projectors[index](video))
        return out

    def _memory_mode(self, text: torch.Tensor, video: torch.Tensor, transformer_options: dict[str, Any]) -> Mode:
        """As of the model's steps (CogVideoXDiT), without a second try. The model's step, which is still to come, takes
        about as much as a control net of its width."""
        if not may_overwrite() or not has_lean_mode(self.transformer_blocks, transformer_options):
            return DEFAULT
        has_kernels = expects_kernels(self.transformer_blocks, video.device, video.dtype, video.numel())

        def needed(mode: Mode) -> float:
            return step_bytes(mode, text.numel() + video.numel(), video.dtype.itemsize, has_kernels)

        return modes_to_try(LADDER, needed, free_in_step(video.device))[0]

    def _add_positions(
        self, video: torch.Tensor, grid: tuple[int, int, int], text_tokens: int, transformer_options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(video tokens, RoPE table). Like the model that it was trained for, a control net either adds sincos
        positions to its tokens (2b: the table is None) or rotates queries and keys (5b)."""
        c = self.config
        if c.use_rotary_positional_embeddings:
            base = c.sample_height // c.patch_size, c.sample_width // c.patch_size
            riflex = read_positions(transformer_options)["riflex"]
            return video, rotary_table(c.attention_head_dim, grid, base, text_tokens, video.device, riflex=riflex)
        scales = c.spatial_interpolation_scale, c.temporal_interpolation_scale
        return video + sincos_table(c.dim, grid, *scales, video.device).to(video.dtype), None


def halve_frames(x: torch.Tensor) -> torch.Tensor:
    """[B, F, ...] -> [B, ceil(F / 2), ...]: frames averaged in pairs; of an odd count the first is kept as it is, for
    the causal VAE gives the first frame a latent of its own."""
    alone = x.shape[1] % 2
    pairs = x[:, alone:].unflatten(1, (x.shape[1] // 2, 2)).mean(2)
    return torch.cat([x[:, :1], pairs], dim=1) if alone else pairs


def _encoder_stage(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1), nn.GroupNorm(2, out_channels), nn.ReLU())


def _block(c: ControlConfig) -> CogVideoXBlock:
    return CogVideoXBlock(
        dim=c.dim,
        num_attention_heads=c.num_attention_heads,
        attention_head_dim=c.attention_head_dim,
        time_embed_dim=c.time_embed_dim,
        activation_fn=c.activation_fn,
        attention_bias=c.attention_bias,
        norm_elementwise_affine=c.norm_elementwise_affine,
        norm_eps=c.norm_eps,
    )
