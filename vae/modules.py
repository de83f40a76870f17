"""The module tree of diffusers' AutoencoderKLCogVideoX, for type checkers: torch.nn.Module says nothing of its parts.

The protocols have what the pass through the network reads and no more.

Source: diffusers autoencoder_kl_cogvideox.py, upsampling.py, downsampling.py.
"""

from collections.abc import Iterable
from typing import Protocol

from torch import nn


class CausalConv(Protocol):
    """CogVideoXCausalConv3d."""

    conv: nn.Conv3d


class SpatialNorm(Protocol):
    """CogVideoXSpatialNorm3D, the decoder's norm, which depends on the latents."""

    norm_layer: nn.GroupNorm
    conv_y: CausalConv
    conv_b: CausalConv


Norm = SpatialNorm | nn.GroupNorm


class ResnetBlock(Protocol):
    """CogVideoXResnetBlock3D. conv_shortcut is there where in_channels and out_channels differ."""

    in_channels: int
    out_channels: int
    norm1: Norm
    conv1: CausalConv
    norm2: Norm
    conv2: CausalConv
    conv_shortcut: nn.Conv3d


class Resample(Protocol):
    """CogVideoXUpsample3D or CogVideoXDownsample3D."""

    conv: nn.Conv2d
    compress_time: bool


class MidBlock(Protocol):
    """CogVideoXMidBlock3D."""

    resnets: Iterable[ResnetBlock]


class UpBlock(MidBlock, Protocol):
    """CogVideoXUpBlock3D."""

    upsamplers: Iterable[Resample] | None


class DownBlock(MidBlock, Protocol):
    """CogVideoXDownBlock3D."""

    downsamplers: Iterable[Resample] | None


class Coder(Protocol):
    """What CogVideoXEncoder3D and CogVideoXDecoder3D have in common."""

    conv_in: CausalConv
    mid_block: MidBlock
    norm_out: Norm
    conv_out: CausalConv


class Decoder(Coder, Protocol):
    """CogVideoXDecoder3D."""

    up_blocks: Iterable[UpBlock]


class Encoder(Coder, Protocol):
    """CogVideoXEncoder3D."""

    down_blocks: Iterable[DownBlock]


class Autoencoder(Protocol):
    """AutoencoderKLCogVideoX."""

    encoder: Encoder
    decoder: Decoder
    quant_conv: nn.Conv3d | None
    post_quant_conv: nn.Conv3d | None
