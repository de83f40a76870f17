"""The VAEs of one rank, and the videos that pass through them: each rank computes its rows of every frame."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch.distributed as dist

from ..host.compat import take_off_device
from ..model_loaders.load_vae import load_vae
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import SPATIAL
from ..vae.plan import LADDER, in_bands
from ..vae.stream import Stream
from ..vae.streaming import decode_chunk, encode_chunk
from .rank_answers import VaeQuestion, VaeRows
from .row_ranks import RowRanks
from .transport import packed, unpacked


class _Video(NamedTuple):
    """One video's pass through the VAE of this name."""

    vae: str
    rows: RowRanks
    stream: Stream


class RankVaes:
    """Loaded VAEs by name. A video's pass is kept from chunk to chunk."""

    def __init__(self, say: Callable[[str], object]):
        """say: gets sentences for the user."""
        self._say = say
        self._vaes: dict[str, CogVideoXVAE] = {}
        self._videos: dict[str, _Video | None] = {}  # None: other ranks have all of its rows
        self._groups: dict[int, Any] = {}  # of the first ranks, by their number

    def load(self, name: str, path: str, weight_dtype: str) -> None:
        """Load the VAE at `path` under `name`. Raises UserError as load_vae does."""
        self._vaes[name] = load_vae(Path(path), weight_dtype, self._say)

    def compute(self, question: VaeQuestion, decodes: bool) -> VaeRows:
        """This rank's rows of what a chunk becomes."""
        x, zoom = unpacked(question.x), 1 if decodes else SPATIAL
        if question.is_first:
            self._begin(question, x.shape, decodes)
        video = self._videos[question.video]
        if video is None:
            return VaeRows(None, 0)
        name, rows, stream = video
        stream.last = question.is_last
        step = decode_chunk if decodes else encode_chunk
        own = rows.own(x, zoom).to(stream.device, stream.dtype)
        made = step(self._vaes[name].first_stage_model, stream, own)  # type: ignore[arg-type]
        answer = VaeRows(packed(made), rows.sent_bytes)
        rows.sent_bytes = 0
        return answer

    def _begin(self, question: VaeQuestion, shape: tuple[int, ...], decodes: bool) -> None:
        """Load the weights with room for this rank's rows."""
        vae, zoom = self._vaes[question.vae], 1 if decodes else SPATIAL
        rows = self._rows(shape[3] // zoom)
        if rows is None:
            self._videos[question.video] = None
            return
        settings = question.settings
        own = (*shape[:2], settings.length, zoom * rows.latent_rows, shape[4])
        needed = partial(vae.memory_used_decode if decodes else vae.memory_used_encode, around=(rows.above, rows.below))
        plan = vae.load(settings.memory, settings.band_pixels, own, needed)
        # The one that the rank with the least memory takes: one that computes the widest frames again sends no rows of
        # them.
        number = rows.agree(max(settings.least, [each.name for each in LADDER].index(plan.name)))
        plan = in_bands(LADDER[number], settings.band_pixels)
        activation = vae.activation(settings.compile)
        stream = Stream(plan, vae.device, vae.vae_dtype, activation, rows=rows)
        self._videos[question.video] = _Video(question.vae, rows, stream)

    def _rows(self, latent_rows: int) -> RowRanks | None:
        """Who shares a video of so many rows; None where that are other ranks."""
        world = dist.get_world_size()
        count = min(world, latent_rows)
        if count not in self._groups:
            # Every rank has to make it, those that are not in it as well.
            self._groups[count] = dist.new_group(list(range(count))) if count < world else dist.group.WORLD
        return RowRanks(self._groups[count], latent_rows) if dist.get_rank() < count else None

    def end(self, video: str) -> None:
        """A video is done, or cancelled: the card is left to others."""
        ended = self._videos.pop(video, None)
        if ended is not None:
            take_off_device(self._vaes[ended.vae].patcher)
            del ended
            mm.soft_empty_cache()

    def forget(self, name: str) -> None:
        """Release a VAE."""
        for video in [video for video, found in self._videos.items() if found and found.vae == name]:
            self.end(video)
        self._vaes.pop(name, None)
