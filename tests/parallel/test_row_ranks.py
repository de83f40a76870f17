"""The VAE's rows in three processes that exchange them over gloo, against one process."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.parallel.rank import Rank
from cogvideox.parallel.row_ranks import RowRanks
from cogvideox.parallel.split import Split
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.children import running
from cogvideox.tests.support import check_at_most, check_parity
from cogvideox.vae import plan as plans
from cogvideox.vae.stream import Stream
from cogvideox.vae.streaming import decode_stream, encode_stream

CPU, RANKS = torch.device("cpu"), 3
PLANS = {plan.name: plan for plan in (plans.FAST, plans.LOW)}
# Latents [T, h, w]: rows that divide by three and that do not, one for each rank, and an even number of frames.
SIZES = ((5, 6, 4), (5, 7, 4), (4, 3, 5))
CASES = [(walk, plan, size) for walk in ("decode", "encode") for plan in PLANS for size in SIZES]


Made = tuple[np.ndarray, int]  # of a case: a rank's rows, and the bytes that it has sent


def video(walk: str, size: tuple[int, int, int]) -> torch.Tensor:
    """Latents for a decode, and frames of -1 .. 1 for an encode."""
    generator, (frames, height, width) = torch.Generator().manual_seed(sum(size)), size
    if walk == "decode":
        return torch.randn(1, 16, frames, height, width, generator=generator)
    return torch.rand(1, 3, 4 * frames - 3, 8 * height, 8 * width, generator=generator) * 2 - 1


def passed(vae: CogVideoXVAE, walk: str, x: torch.Tensor, plan: str, **options: Any) -> torch.Tensor:
    stream = decode_stream if walk == "decode" else encode_stream
    with torch.inference_mode():
        return torch.cat(list(stream(vae.first_stage_model, x, PLANS[plan], CPU, torch.float32, **options)), dim=2)


def work(rank: int, meeting: str, folder: Path) -> list[Made]:
    """In a rank: its rows of each case, and the bytes that it has sent."""
    Rank().join(rank, RANKS, meeting, (Split(1, RANKS),))
    vae, made, world = load_vae(folder, "fp32"), [], dist.group.WORLD
    assert world is not None
    for walk, plan, size in CASES:
        rows, zoom = RowRanks(world, size[1]), 1 if walk == "decode" else 8
        own = rows.own(video(walk, size), zoom)
        found = passed(vae, walk, own, plan, make_stream=partial(Stream, rows=rows))
        made.append((found.numpy(), rows.sent_bytes))
    # The ranks end together, or the last one's messages would be cut off.
    assert [RowRanks(world, RANKS).agree(rank) for _ in range(2)] == [RANKS - 1] * 2
    dist.destroy_process_group()
    return made


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines: Mapping[str, Path]) -> Path:
    return tiny_pipelines["5b"]


@pytest.fixture(scope="module")
def of_ranks(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Made]]:
    """By rank and case."""
    # A folder for temporary files may have any name: where its URL differed, they looked for each other for ever.
    meeting = str(tmp_path_factory.mktemp("the ranks") / "100% #1 + ä?")
    with ExitStack() as stack:
        started = [
            stack.enter_context(running("parallel.test_row_ranks.work", rank, meeting, pipeline))
            for rank in range(RANKS)
        ]
        return [child.result(300) for child in started]


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_three_processes_make_what_one_makes(of_ranks: list[list[Made]], pipeline: Path, number: int) -> None:
    """A seam between two cards' rows would be seen in every frame."""
    walk, plan, size = CASES[number]
    got = torch.from_numpy(np.concatenate([made[number][0] for made in of_ranks], axis=3))
    want = passed(load_vae(pipeline, "fp32"), walk, video(walk, size), plan)
    check_parity(f"VAE {walk}, three ranks against one process", got, want, 1e-6)


def test_only_edges_travel(of_ranks: list[list[Made]]) -> None:
    """A link that carried whole frames would be what a decode waits for: a higher frame sends as much."""
    for number, (walk, plan, size) in enumerate(CASES):
        sent = [made[number][1] for made in of_ranks]
        frames_bytes = 4 * 3 * 64 * (4 * size[0] - 3) * size[1] * size[2]
        check_at_most(
            f"VAE {walk}, {plan}, bytes that a rank sends over those of tiny frames", max(sent) / frames_bytes, 3
        )
        assert sent[1] > 1.5 * max(sent[0], sent[2]), "the one in the middle has two neighbours"
        if size == SIZES[1]:
            assert sent == [made[number - 1][1] for made in of_ranks]
