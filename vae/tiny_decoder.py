"""The tiny decoder of CogVideoX's latents, taecvx: approximate frames in a fraction of the time.

Source of the architecture and of its way through time: madebyollin/taehv, taehv.py (MIT).
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..errors import UserError
from .geometry import CHANNELS, TEMPORAL

# Channels of its three stages, each of which doubles height and width, and of what comes after them.
_WIDTHS = (256, 128, 64)
_LAST_WIDTH = 64
_PREFIX = "decoder."
_GROW_LAYERS = (7, 13, 19)  # which of its layers multiply frames: their indices in the weights' names
# Values that are held for each pixel of a frame at the peak: tests/vae/test_tiny_decoder.py counts them.
VALUES_PER_PIXEL = 420


class SoftClamp(nn.Module):
    """Latents to -3 .. 3, smoothly. It has no weights, but a place among the numbered layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Three convolutions over a frame [1, C, h, w] and the one before it (`past`), added to the frame."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([x, past], dim=1)).add_(x).relu_()


class Grow(nn.Module):
    """One frame [1, C, h, w] to `factor` frames [1, C, 2 h, 2 w].

    taehv doubles the size before the convolution; a kernel of one pixel gives the same after it, for a quarter of the
    work and memory.
    """

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(width, factor * width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for frame in self.conv(x).chunk(self.factor, dim=1):
            yield F.interpolate(frame, scale_factor=2)


class TinyDecoder(nn.Module):
    """The layers under the names that taecvx's files give them. factors: see Grow, for each of the three stages."""

    def __init__(self, factors: tuple[int, int, int]):
        super().__init__()
        layers = [SoftClamp(), nn.Conv2d(CHANNELS, _WIDTHS[0], 3, padding=1), nn.ReLU(inplace=True)]
        for width, following, factor in zip(_WIDTHS, (*_WIDTHS[1:], _LAST_WIDTH), factors):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Identity(), Grow(width, factor)]  # Identity: taehv enlarges here, Grow does it later
            layers += [nn.Conv2d(width, following, 3, padding=1, bias=False)]
        self.decoder = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(_LAST_WIDTH, 3, 3, padding=1))
        self.frames_per_latent = factors[0] * factors[1] * factors[2]

    def stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Latents [1, 16, n, h, w], unscaled, to frames [3, 8 h, 8 w] in 0 .. 1, one at a time.

        4 n - 3 of them, or n where there is one for each latent. A frame depends on those before it alone, so an even
        number of latents gives the frames that they have with the last one repeated: those of vae.streaming.
        """
        # By layer. taehv's parallel mode goes layer by layer instead, and holds all frames of a layer.
        past: dict[int, torch.Tensor] = {}
        # Frames to drop: the first latent stands for one frame only, the last of those that it gives.
        surplus = self.frames_per_latent - 1
        for latent in latents.unbind(2):
            for frame in self._walk(0, latent, past):
                if surplus:
                    surplus -= 1
                    continue
                yield frame[0].clamp(0, 1)

    def _walk(self, start: int, x: torch.Tensor, past: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The frames that layers from `start` on make of x [1, C, h, w]. past: each memory block's previous input."""
        for index in range(start, len(self.decoder)):
            layer = self.decoder[index]
            if isinstance(layer, MemoryBlock):
                before = past.get(index)
                past[index] = x
                x = layer(x, torch.zeros_like(x) if before is None else before)
            elif isinstance(layer, Grow):
                # Depth first: every memory block after this layer sees the frames in the order of time, and one frame
                # has left before the next is enlarged.
                for frame in layer(x):
                    yield from self._walk(index + 1, frame, past)
                return
            else:
                x = layer(x)
        yield x


def build_tiny_decoder(
    tensors: Mapping[str, torch.Tensor], source: str, one_per_latent: bool = False
) -> tuple[TinyDecoder, dict[str, torch.Tensor]]:
    """The decoder that fits a file's tensors, on the meta device, and its weights by name.

    one_per_latent: leave out what multiplies frames, as taehv's README suggests for cheaper previews: each latent then
    gives one frame, close to the last of its four.
    source: path for messages.

    Raises UserError for weights of something else.
    """
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    first, second, third = (
        _growth(weights.get(f"{_PREFIX}{layer}.conv.weight"), width) for layer, width in zip(_GROW_LAYERS, _WIDTHS)
    )
    with torch.device("meta"):
        decoder = TinyDecoder((first, second, third))
    expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong or decoder.frames_per_latent != TEMPORAL:
        raise UserError(_not_taecvx(source, weights, wrong))
    if not one_per_latent:
        return decoder, weights
    for layer, width in zip(_GROW_LAYERS, _WIDTHS):
        name = f"{_PREFIX}{layer}.conv.weight"
        # The rows of a weight are those of its frames, one after the other: keep the last frame's.
        weights[name] = weights[name][-width:]
    with torch.device("meta"):
        return TinyDecoder((1, 1, 1)), weights


def _growth(weight: torch.Tensor | None, width: int) -> int:
    """How many frames a weight of Grow makes of one: 1 where the weight is missing or has another shape."""
    if weight is None or weight.ndim != 4 or weight.shape[0] % width:
        return 1
    return max(1, weight.shape[0] // width)


def _not_taecvx(source: str, weights: Mapping[str, torch.Tensor], wrong: list[str]) -> str:
    first = weights.get(f"{_PREFIX}1.weight")
    if not weights:
        what = f"has no weights named {_PREFIX}..."
    elif first is not None and first.ndim == 4 and first.shape[1] != CHANNELS:
        what = f"decodes latents of {first.shape[1]} channels, CogVideoX's have {CHANNELS}"
    elif wrong:
        what = f"does not fit in {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}"
    else:
        what = f"does not make {TEMPORAL} frames of a latent"
    return (
        f"{source} is not CogVideoX's tiny decoder: it {what}. Fetch taecvx.pth or taecvx.safetensors from the "
        "repository madebyollin/taehv on GitHub."
    )
