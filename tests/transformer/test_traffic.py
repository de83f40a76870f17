"""What a forward moves through memory, counted at 5b's own size with three of its blocks; see bench_traffic."""

import pytest

from cogvideox.benchmarks import bench_traffic
from cogvideox.benchmarks.traffic import Traffic

LAYERS = 3


@pytest.fixture(scope="module")
def counted() -> dict[str, Traffic]:
    return bench_traffic.count_all(bench_traffic.SIZES["5b"], batch=2, layers=LAYERS)


def test_the_same_is_computed(counted: dict[str, Traffic]) -> None:
    """A saving that leaves something out would be a mistake, and an operation that is done twice a loss."""
    for title, found in counted.items():
        assert found.flops == pytest.approx(counted[bench_traffic.THEIRS].flops, rel=0.002), title


def test_no_pass_more_than_needed(counted: dict[str, Traffic]) -> None:
    """A copy of all tokens that slips in shows in no other test: it is 2 of the 35 readings and writings of a block, in
    units of all tokens."""
    size = bench_traffic.SIZES["5b"]
    ours, base = counted[bench_traffic.OURS], counted[bench_traffic.THEIRS]
    assert size.most_gib and ours.peak_bytes <= size.most_gib * bench_traffic.GIB
    tokens = 2 * (226 + 13 * 30 * 45) * 3072 * 2
    assert ours.moved_bytes <= (LAYERS * 35.2 + 11) * tokens
    assert ours.kernels <= LAYERS * 15 + 25
    assert ours.moved_bytes < counted["ours, comfy-kitchen's rotation"].moved_bytes < 0.5 * base.moved_bytes
    assert counted["ours, torch's operations"].moved_bytes < 0.7 * base.moved_bytes


def test_copies_of_streamed_weights_have_a_table() -> None:
    """Who takes the lean mode's peak for all of a step would run out of memory: with streamed weights it also holds
    both layers of the feed-forward, which it takes in parts."""
    (row,) = bench_traffic.copies_table(["5b"]).rows
    feed_forward = 2 * (3072 * 12288) * 2 / bench_traffic.GIB
    assert feed_forward < float(row[2]) < float(row[1]) < 2 * feed_forward


def test_the_lean_mode_takes_less_and_moves_little_more(counted: dict[str, Traffic]) -> None:
    """Parts that are too small, or a result that is copied once more, cost the time that the lean mode is not to."""
    lean, ours = counted[bench_traffic.LEAN], counted[bench_traffic.OURS]
    assert lean.peak_bytes <= 0.58 * ours.peak_bytes
    assert lean.moved_bytes <= 1.42 * ours.moved_bytes
    assert counted["ours, lean, torch's operations"].peak_bytes <= 1.01 * lean.peak_bytes
