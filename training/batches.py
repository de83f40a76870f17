"""Which samples each step of a training takes."""

import random
from collections.abc import Hashable, Sequence
from functools import lru_cache

from ..errors import UserError
from ..video_limits import check_latent_amount


def check_micro_batch(latent_shape: Sequence[int], count: int, name: str) -> None:
    """Raises UserError where `count` clips of latents [16, T, h, w] are more than can be computed at once.

    name: what the user knows their number by.
    """
    try:
        check_latent_amount((count, *latent_shape))
    except UserError as error:
        raise UserError(f"{name} is {count}, too many clips of this size at once. {error}") from error


def batch_samples(shapes: tuple[Hashable, ...], number: int, count: int, seed: int) -> list[int]:
    """Which samples the batch `number` of a training takes: `count` of one shape.

    A function of its arguments alone, without the state of a data loader: a restart and every process come to the same
    batch by its number.

    An epoch shows every sample once. Where `count` does not divide the number of samples of a shape, its last batch is
    filled up with samples that have been shown already.
    """
    batches = sum(-(-shapes.count(shape) // count) for shape in set(shapes))
    epoch, position = divmod(number, batches)
    return _epoch(shapes, count, seed, epoch)[position]


@lru_cache(4)  # every step of an epoch asks for the same list
def _epoch(shapes: tuple[Hashable, ...], count: int, seed: int, epoch: int) -> list[list[int]]:
    rng = random.Random(f"{seed} {epoch}")
    batches: list[list[int]] = []
    for shape in dict.fromkeys(shapes):  # in order of appearance, where a set would have an arbitrary one
        bucket = [index for index, other in enumerate(shapes) if other == shape]
        rng.shuffle(bucket)
        starts = range(0, len(bucket), count)
        batches += [[bucket[(start + i) % len(bucket)] for i in range(count)] for start in starts]
    rng.shuffle(batches)
    return batches
