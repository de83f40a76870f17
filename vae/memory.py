"""What decoding and encoding hold at their peak, so that ComfyUI frees no more and no less.

The sizes of all tensors follow from the network's configuration: the same way is gone here as in blocks and streaming,
counting instead of computing. Counts are of values in the type that is computed in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .activation import SPAN_BYTES
from .causal import TAPS
from .frames import downsampled_sources, upsampled_sources
from .geometry import SPATIAL, TEMPORAL, latent_frames, video_frames
from .plan import FAST, Plan
from .streaming import FRAMES_AT_ONCE, LATENTS_AT_ONCE, chunk_lengths

# what all official checkpoints' vae/config.json say
OFFICIAL = {
    "block_out_channels": (128, 256, 256, 512),
    "layers_per_block": 3,
    "latent_channels": 16,
    "in_channels": 3,
    "out_channels": 3,
    "temporal_compression_ratio": 4,
}
MIDDLE_BLOCKS = 2
KERNEL_VALUES = 27
MARGIN, MARGIN_BYTES = 1.02, 8 << 20  # small tensors that are not counted


def decode_bytes(
    shape: torch.Size,
    dtype: torch.dtype,
    plan: Plan = FAST,
    on_cpu: bool = False,
    config: Mapping[str, object] = OFFICIAL,
) -> int:
    """Bytes on the device at the peak of decoding latents [B, 16, n, h, w], one video after the other.

    on_cpu: the device is the host, where nothing is put aside. Weights are not counted.
    """
    count, height, width = shape[2:]
    count += count > 1 and count % 2 == 0
    lengths = chunk_lengths(count, LATENTS_AT_ONCE)
    pixels = config["out_channels"] * TEMPORAL * SPATIAL**2 * height * width
    return _peak_bytes(_decoder, lengths, pixels, height, width, dtype, plan, on_cpu, config)


def encode_bytes(
    shape: torch.Size,
    dtype: torch.dtype,
    plan: Plan = FAST,
    on_cpu: bool = False,
    config: Mapping[str, object] = OFFICIAL,
) -> int:
    """Bytes on the device at the peak of encoding frames [B, 3, t, H, W]; see decode_bytes."""
    count, height, width = shape[2:]
    lengths = chunk_lengths(video_frames(latent_frames(count)), FRAMES_AT_ONCE)
    pixels = config["in_channels"] * height * width
    return _peak_bytes(_encoder, lengths, pixels, height, width, dtype, plan, on_cpu, config)


def _peak_bytes(
    walk: Callable[..., None],
    lengths: list[int],
    pixels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    plan: Plan,
    on_cpu: bool,
    config: Mapping[str, object],
) -> int:
    """The peak over the first three chunks; those after them are as the third."""
    peak, caches = 0, 0
    for index, length in enumerate(lengths[:3]):
        keeps = index < len(lengths) - 1
        tally = _Tally(plan, dtype.itemsize, on_cpu, caches, keeps, pixels=lengths[0] * pixels)
        walk(tally, length, height, width, config)
        peak, caches = max(peak, tally.peak), tally.new_caches
    return int(peak * dtype.itemsize * MARGIN) + MARGIN_BYTES


@dataclass
class _Frames:
    """Frames at one depth: which tensor each stands for (two may share one), and of what size these are."""

    sources: list[int]
    channels: int
    height: int
    width: int
    computed_from: "_Frames | None" = None

    @property
    def values(self) -> int:
        """Of one frame."""
        return self.channels * self.height * self.width

    def kept(self, start: int = 0) -> int:
        """Tensors that frames from `start` on stand for."""
        return len(set(self.sources[start:]))


@dataclass
class _Tally:
    """What lies on the device in the course of one chunk."""

    plan: Plan
    itemsize: int
    on_cpu: bool
    old_caches: int  # of the chunk before
    keeps: bool  # whether another chunk comes
    pixels: int  # of the chunk's frames, small or large: they lie there as they come in or as they went out
    new_caches: int = 0
    latents: _Frames | None = None  # that condition norms
    peak: float = 0

    def see(self, values: float) -> None:
        self.peak = max(self.peak, values + self.pixels + self.old_caches + self.new_caches)

    def rows(self, height: int, width: int) -> int:
        """Of a frame that are worked on at once."""
        start, stop = next(self.plan.bands(height, width))
        return stop - start

    def share(self, on_host: bool) -> int:
        """Factor of what is kept: 0 where that does not lie on the device."""
        return int(self.on_cpu or not on_host)

    def convolution(
        self, frames: _Frames, outer: int, kept: float, read: float = 0, aside: float = 0, added: float = 0
    ) -> None:
        """Norm and causal convolution of `frames` to `outer` channels.

        kept: values of all frames that lie there. read, aside, added: values that rows take on their way in, what is
        made of them on the side, and what is added to them on their way out.
        """
        inner, width = frames.channels, frames.width
        rows = self.rows(frames.height, width)
        cache = (TAPS - 1) * frames.values * self.share(self.plan.caches_on_host)
        kernel, kernels = KERNEL_VALUES * inner * outer, min(len(frames.sources), TAPS)
        self.see(kept + (kernels + 2) * kernel)
        self.old_caches -= min(cache, self.old_caches)
        ring = TAPS * inner * (rows + 2) * width
        waiting = 0  # fp32 numbers that wait to be rounded
        if self.itemsize < 4:
            span_bytes = SPAN_BYTES["cpu" if self.on_cpu else "other"]
            waiting = min(span_bytes, 4 * inner * (rows + 2) * width) / self.itemsize
        output = outer * rows * width
        lying = kept + kernels * kernel + ring + self._modulations(inner, width)
        if rows < frames.height and (len(frames.sources) > 1 or 2 * rows <= frames.height):
            lying += output  # the rows before, which the caller still has in hand
        # rows of a cache on their way between host and card
        passing = inner * (rows + 2) * width * (1 - self.share(self.plan.caches_on_host))
        self.see(lying + max(read + max(waiting, aside), self._enlarged(frames, rows + 2), output + added, passing))
        if self.keeps:
            self.new_caches += cache
            self.see(lying + output + passing)

    def _modulations(self, channels: int, width: int) -> float:
        """Scale and shift of a norm in fp32; on CPUs in fp32, one for each pixel of a row."""
        if self.latents is None:
            return 0
        values = len(self.latents.sources) * self.latents.height * self.latents.width
        if self.on_cpu and self.itemsize == 4:
            values *= width // self.latents.width
        return (2 * channels * values + 2 * channels * values / len(self.latents.sources)) * 4 / self.itemsize

    def resnet(self, frames: _Frames, outer: int) -> _Frames:
        count, rows, width = len(frames.sources), self.rows(frames.height, frames.width), frames.width
        result = _Frames(list(range(count)), outer, frames.height, width)
        on_device, hidden_on_device = self.share(self.plan.blocks_on_host), self.share(self.plan.hidden_on_host)
        source, block, hidden = frames.values * on_device, result.values * on_device, result.values * hidden_on_device
        apart = frames.channels != outer or frames.computed_from is not None
        whole = rows == frames.height
        shortcut = apart * outer * (rows + 2) * width
        if frames.computed_from is not None:
            first = [frames.computed_from.kept() * frames.computed_from.values * on_device + count * (block + hidden)]
        elif not whole:
            first = [frames.kept() * source + count * (apart * block + hidden)]
        elif apart:
            first = [frames.kept(t) * source + t * (block + hidden) for t in range(count)]
        else:
            first = [frames.kept() * source + t * hidden for t in range(count)]
        self.convolution(
            frames, outer, max(first), self._read(frames, rows + 2), shortcut, added=max(0, apart * (block - source))
        )
        then = result if apart else frames
        second = [count * (hidden + block)]
        if whole:
            second = [(count - t) * hidden + (t + then.kept(t)) * block for t in range(count)]
        back, out = (1 - hidden_on_device) * outer * (rows + 2) * width, (1 - on_device) * outer * rows * width
        self.convolution(result, outer, max(second), back, added=out)
        return result

    def _read(self, frames: _Frames, rows: int) -> int:
        """Values that `rows` rows of a frame take when they are not there already."""
        if frames.computed_from is not None:
            return frames.channels * (rows + 4) * frames.width
        return 0 if self.share(self.plan.blocks_on_host) else frames.channels * rows * frames.width

    def _enlarged(self, frames: _Frames, rows: int) -> int:
        """Values that they take while they are computed: enlarged, and convolved."""
        return 0 if frames.computed_from is None else 2 * self._read(frames, rows)

    def upsample(self, frames: _Frames, compress_time: bool, widest: bool) -> _Frames:
        sources = upsampled_sources(len(frames.sources), compress_time)
        computed = _Frames(sources, frames.channels, 2 * frames.height, 2 * frames.width, frames)
        on_device = self.share(self.plan.blocks_on_host)
        rows = self.rows(computed.height, computed.width)
        base, values = frames.values * on_device, computed.values * on_device
        recompute = widest and self.plan.recompute
        kept = [frames.kept() * base + (0 if recompute else computed.kept() * values)]
        if rows == computed.height and not recompute:
            kept = [frames.kept(sources[t]) * base + len(set(sources[:t])) * values for t in range(len(sources))]
        self.see(max(kept) + self._enlarged(computed, rows) + 9 * frames.channels**2)
        return computed if recompute else _Frames(sources, frames.channels, computed.height, computed.width)

    def downsample(self, frames: _Frames, compress_time: bool) -> _Frames:
        groups = downsampled_sources(len(frames.sources), compress_time)
        height, width = frames.height // 2, frames.width // 2
        result = _Frames(list(range(len(groups))), frames.channels, height, width)
        on_device, rows = self.share(self.plan.blocks_on_host), self.rows(height, 4 * width)
        window = frames.channels * (2 * rows + 1) * (frames.width + 1)
        kept = (len(frames.sources) * frames.values + len(groups) * result.values) * on_device
        if rows == height:
            kept = (
                max(
                    (len(frames.sources) - group[0]) * frames.values + t * result.values
                    for t, group in enumerate(groups)
                )
                * on_device
            )
        # two frames and their mean, or the mean with its margin and the result
        windows = 3 if compress_time and not on_device else 2
        self.see(kept + window * windows + frames.channels * rows * width)
        return result


def _decoder(tally: _Tally, count: int, height: int, width: int, config: Mapping[str, object]) -> None:
    """Source: as streaming's."""
    channels = list(reversed(config["block_out_channels"]))
    latents = _Frames(list(range(count)), config["latent_channels"], height, width)
    _start(tally, latents, channels[0])
    tally.latents = latents
    frames = _Frames(list(range(count)), channels[0], height, width)
    for _ in range(MIDDLE_BLOCKS):
        frames = tally.resnet(frames, channels[0])
    for level, outer in enumerate(channels):
        for _ in range(config["layers_per_block"] + 1):
            frames = tally.resnet(frames, outer)
        if level < len(channels) - 1:
            compress_time = level < int(config["temporal_compression_ratio"]).bit_length() - 1
            frames = tally.upsample(frames, compress_time, widest=level == len(channels) - 2)
    _finish(tally, frames, config["out_channels"])


def _encoder(tally: _Tally, count: int, height: int, width: int, config: Mapping[str, object]) -> None:
    """Source: as streaming's."""
    channels = list(config["block_out_channels"])
    pixels = _Frames(list(range(count)), config["in_channels"], height, width)
    _start(tally, pixels, channels[0])
    frames = _Frames(list(range(count)), channels[0], height, width)
    for level, outer in enumerate(channels):
        for _ in range(config["layers_per_block"]):
            frames = tally.resnet(frames, outer)
        if level < len(channels) - 1:
            compress_time = level < int(config["temporal_compression_ratio"]).bit_length() - 1
            frames = tally.downsample(frames, compress_time)
    for _ in range(MIDDLE_BLOCKS):
        frames = tally.resnet(frames, channels[-1])
    _finish(tally, frames, 2 * config["latent_channels"])


def _start(tally: _Tally, frames: _Frames, outer: int) -> None:
    values = frames.values + outer * frames.height * frames.width * tally.share(tally.plan.blocks_on_host)
    tally.convolution(frames, outer, len(frames.sources) * values, 0)


def _finish(tally: _Tally, frames: _Frames, outer: int) -> None:
    on_device = tally.share(tally.plan.blocks_on_host)
    rows = tally.rows(frames.height, frames.width)
    result = len(frames.sources) * outer * frames.height * frames.width
    kept = len(frames.sources) * frames.values * on_device + result
    tally.convolution(frames, outer, kept, tally._read(frames, rows + 2))
