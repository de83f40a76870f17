"""VAE whose weights are in other processes: each of them decodes and encodes some rows of every frame."""

import copy
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import comfy.model_management as mm
import torch

from ..host.messages import show_on_running_node
from ..model_loaders.precision import WEIGHT_DTYPES
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import SPATIAL, video_frames
from ..vae.plan import FAST, LADDER, LEAST, LOW, in_bands
from ..vae.streaming import latent_chunks, pixel_chunks, without_repeated
from .engine import all_cards
from .rank_answers import VaePass, VaeQuestion
from .team import RankLostError, RankMemoryError, Team
from .teams import drop_with, load_everywhere, team_of
from .token_ranks import parts_of
from .transport import packed, unpacked


class RemoteVAE(CogVideoXVAE):
    """CogVideoXVAE that asks a Team for each chunk of a video. Its own weights stay in main memory, for nodes that save
    or count them, and for a video that goes on alone.

    sent_bytes: what the first rank has sent to the others for the last video.
    """

    team: Team
    name: str  # of the VAE in the ranks
    goes_on_alone: bool
    sent_bytes = 0
    _start = 0  # of the team that has loaded the VAE

    def _decoded(
        self, latents: torch.Tensor, memory: str, band_pixels: int | None, compile: bool
    ) -> Iterator[torch.Tensor]:
        self._make_room(memory, band_pixels, latents.shape, 1, self.memory_used_decode)
        asked = self._asked("decode", latent_chunks(latents), VaePass(latents.shape[2], memory, band_pixels, compile))
        yield from self._or_alone(
            without_repeated(asked, video_frames(latents.shape[2])),
            partial(super()._decoded, latents, memory, band_pixels, compile),
        )

    def _encoded(self, video: torch.Tensor, memory: str, band_pixels: int | None) -> Iterator[torch.Tensor]:
        self._make_room(memory, band_pixels, video.shape, SPATIAL, self.memory_used_encode)
        asked = self._asked("encode", pixel_chunks(video), VaePass(video.shape[2], memory, band_pixels, compile=False))
        yield from self._or_alone(asked, partial(super()._encoded, video, memory, band_pixels))

    def _asked(self, method: str, chunks: Sequence[torch.Tensor], settings: VaePass) -> Iterator[torch.Tensor]:
        """What the ranks make of each chunk. Out of memory, they begin again in a leaner mode, as one process does.
        Raises as Team.start and Team.ask do."""
        done, tries = 0, [FAST, LOW, LEAST][settings.memory == "low" :]
        for plan, following in zip_longest(tries, tries[1:]):
            try:
                again = self._pass(method, chunks, settings._replace(least=LADDER.index(plan)))
                for made in islice(again, done, None):
                    done += 1
                    yield made
                return
            except RankMemoryError:
                if following is None:
                    raise
            self.notify(
                "The VAE needs more memory than one of the cards has: all of them start again, and it goes on in "
                f"memory mode {following.name}, slower and with the same result."
            )

    def _pass(self, method: str, chunks: Sequence[torch.Tensor], settings: VaePass) -> Iterator[torch.Tensor]:
        """Once through the chunks."""
        self._prepare()
        video, self.sent_bytes = uuid.uuid4().hex, 0
        try:
            for index, chunk in enumerate(chunks):
                x = (self.process_input(chunk) if method == "encode" else chunk).to(self.vae_dtype)
                is_last = index == len(chunks) - 1
                question = VaeQuestion(self.name, video, packed(x), index == 0, is_last, settings)
                answers = self.team.ask(method, question, notify=self.notify)
                self.sent_bytes += answers[0].sent_bytes
                yield torch.cat([unpacked(answer.rows) for answer in answers if answer.rows is not None], dim=3)
        finally:
            if self.team.is_running:
                self.team.tell("end_video", video)

    def _prepare(self) -> None:
        """Have the weights loaded in every rank, in the precision that this process would compute in."""
        with self.team.lock:
            self.team.start()
            if self._start != self.team.start_count:
                assert self.patcher.cached_patcher_init is not None  # load_vae sets it
                path = self.patcher.cached_patcher_init[1][0]
                dtype = next(name for name, dtype in WEIGHT_DTYPES.items() if dtype == self.vae_dtype)
                load_everywhere(self.team, "vae", "load_vae", self.name, path, dtype, notify=self.notify)
                self._start = self.team.start_count

    def _make_room(
        self, memory: str, band_pixels: int | None, shape: torch.Size, zoom: int, needed: Callable[..., int]
    ) -> None:
        """A first rank on this process's card cannot unload what this process has there."""
        if not self.team.shares_card:
            return
        counts = parts_of(shape[3] // zoom, self.team.cards)
        plan = in_bands(LOW if memory == "low" else FAST, band_pixels)
        own, around = (*shape[:3], zoom * counts[0], shape[4]), (0, int(any(counts[1:])))
        mm.free_memory(self.model_size() + needed(own, self.vae_dtype, plan, around), self.device)

    def _or_alone(
        self, asked: Iterator[torch.Tensor], computed_here: Callable[[], Iterator[torch.Tensor]]
    ) -> Iterator[torch.Tensor]:
        """`asked`; where it loses its ranks, and may go on alone, the rest is computed in this process."""
        if self.goes_on_alone and self.team.was_lost:
            show_on_running_node("A process of another card was lost in this run: the VAE computes alone, on one card.")
            yield from computed_here()
            return
        done = 0
        try:
            for result in asked:
                done += 1
                yield result
            return
        except RankLostError as error:
            if not self.goes_on_alone:
                raise
            self.team.wait_until_gone()  # the first rank was on the same card
            show_on_running_node(f"{error.message} The VAE goes on alone, on one card, from the frames that were lost.")
        # From the beginning, for what the convolutions keep of each chunk.
        yield from islice(computed_here(), done, None)


def spread_vae(vae: CogVideoXVAE, cards: int, split: str, address: str, goes_on_alone: bool) -> RemoteVAE:
    """`vae` as a VAE whose frames `cards` cards compute together, with the ranks of remote_model.spread. goes_on_alone:
    a video that loses its ranks goes on in this process. Nothing starts before the first video."""
    remote: Any = copy.copy(vae)
    remote.__class__ = RemoteVAE
    remote.team, remote.goes_on_alone = team_of(address, cards or all_cards(), split), goes_on_alone
    remote.name, remote._start = remote.team.add(), 0
    drop_with(remote, remote.team, remote.name)
    return remote
