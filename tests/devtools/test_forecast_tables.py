"""The tables of cards in README.md and docs/models.md, against the computation."""

from typing import Any

import pytest

from cogvideox.benchmarks import bench_forecast
from cogvideox.devtools.paths import ROOT
from cogvideox.tests.quantized_models import needs_int8


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, int], Any]:
    return bench_forecast.forecasts()


@needs_int8  # which the tables advise; an older ComfyUI would be advised fp8
@pytest.mark.parametrize("document", ("README.md", "docs/models.md"))
def test_tables_are_those_that_are_counted(document: str, found: dict[tuple[str, int], Any]) -> None:
    """A reader buys a card, or gives up, by these figures. `python3 dev.py bench forecast --write` renews them."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert bench_forecast.block(text) == bench_forecast.documents(found)[document]


@needs_int8
def test_every_card_and_checkpoint_is_in_the_tables(found: dict[tuple[str, int], Any]) -> None:
    """Cards with the same figures share a row: none may be lost between two."""
    assert {name for name, _ in found} == set(bench_forecast.MODELS)
    rows = bench_forecast.cards_table(found).rows
    for name in bench_forecast.MODELS:
        cards = [row[1].removesuffix(" GB").split(" to ") for row in rows if row[0] == name]
        spans = [(int(card[0]), int(card[-1])) for card in cards]
        for gigabytes in bench_forecast.CARDS_GB:
            assert sum(first <= gigabytes <= last for first, last in spans) == 1


def test_documents_call_them_counted() -> None:
    """No card of these sizes was measured: who takes the figures for measurements is misled."""
    for document in ("README.md", "docs/models.md"):
        text = " ".join((ROOT / document).read_text(encoding="utf-8").split())
        before, _, after = text.partition(bench_forecast.MARK)
        after = after.partition(bench_forecast.END)[2]
        assert "counted and not measured" in before[-400:] + after[:200], document


def test_a_block_is_replaced_and_nothing_else(tmp_path: Any) -> None:
    """--write in a document that a person has changed around the tables."""
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n{bench_forecast.MARK}\n\nold\n\n{bench_forecast.END}\nafter\n", encoding="utf-8")
    text = bench_forecast.replace_block(path, "new | \\1")
    assert bench_forecast.block(text) == "new | \\1"
    assert text.startswith("before\n\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
