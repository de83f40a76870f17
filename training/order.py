"""Which sample comes when: batches of one shape, every sample about equally often, the same after a restart."""

from collections.abc import Hashable, Sequence

import torch

from .loop import sample_generator


class SampleOrder:
    """Draw -> sample, a function of the draw's number alone.

    Draws come in batches, each of one shape. A shape's share of the batches is its share of the samples; within a shape
    the samples come in an order by chance, each once before any comes again.
    """

    def __init__(self, shapes: Sequence[Hashable], batch_size: int, seed: int):
        """shapes: of each sample."""
        self._members: dict[Hashable, list[int]] = {}
        for sample, shape in enumerate(shapes):
            self._members.setdefault(shape, []).append(sample)
        self._shares = {shape: len(members) / len(shapes) for shape, members in self._members.items()}
        self._batch_size, self._seed = batch_size, seed
        self._due = dict.fromkeys(self._members, 0.0)
        self._batches: list[tuple[Hashable, int]] = []  # of each batch: its shape, and how many that shape had before
        self._counts = dict.fromkeys(self._members, 0)

    def __getitem__(self, draw: int) -> int:
        batch, place = divmod(draw, self._batch_size)
        while len(self._batches) <= batch:
            self._add_batch()
        shape, before = self._batches[batch]
        members = self._members[shape]
        round_, position = divmod(before * self._batch_size + place, len(members))
        return members[self._shuffled(shape, round_)[position]]

    def _add_batch(self) -> None:
        """The shape that lags most behind its share has the next one."""
        for shape, share in self._shares.items():
            self._due[shape] += share
        shape = max(self._due, key=self._due.get)
        self._due[shape] -= 1
        self._batches.append((shape, self._counts[shape]))
        self._counts[shape] += 1

    def _shuffled(self, shape: Hashable, round_: int) -> list[int]:
        members = self._members[shape]
        # a stream of its own, apart from those that noise is drawn from
        generator = sample_generator(self._seed, -1 - members[0] - round_ * 1_000_003)
        return torch.randperm(len(members), generator=generator).tolist()
