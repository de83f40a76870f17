"""The plan on paper for several cards: its bytes, and that its saved tables are those that it would print today."""

import pytest

from cogvideox.benchmarks import bench_parallel_plan as plan
from cogvideox.tests.figures.reading import sections_by_age


@pytest.mark.parametrize(("model", "cards", "billions"), (("5b", 2, 4.6), ("5b", 4, 3.4), ("1.5-5B", 2, 11.6)))
def test_what_a_card_sends(model: str, cards: int, billions: float) -> None:
    """Queries, keys, values and the result, of a card's part of the tokens, to all the others: in bf16 as ranks on a
    CPU were counted to send."""
    assert plan.sent_bytes(plan.MODELS[model], cards) / plan.GB == pytest.approx(billions, abs=0.05)
    assert plan.sent_bytes(plan.MODELS[model], 1) == 0


def test_a_step_is_divided() -> None:
    """Two cards with one prompt each send nothing; with more the link counts, and without limit on it only computing
    is left."""
    model = plan.MODELS["5b"]
    assert plan.step_seconds(model, 1.0, 1, plan.PCIE) == 1.0
    assert plan.step_seconds(model, 1.0, 2, plan.PCIE) == 0.5
    assert plan.step_seconds(model, 1.0, 8, 1e9) == pytest.approx(1 / 8, abs=1e-6)
    assert plan.step_seconds(model, 1.0, 2, plan.PCIE, 1) == 0.5 + plan.sent_bytes(model, 2, 2) / (plan.PCIE * plan.GB)
    assert plan.step_seconds(model, 1.0, 8, plan.PCIE) > plan.step_seconds(model, 1.0, 8, plan.NVLINK) > 1 / 8


def test_a_published_run_follows_from_the_link_that_it_implies() -> None:
    for anchor in plan.ANCHORS:
        one = anchor.step * anchor.times
        again = plan.step_seconds(plan.MODELS[anchor.model], one, anchor.cards, plan.implied_link(anchor))
        assert again == pytest.approx(anchor.step)


def test_the_saved_tables_are_of_today() -> None:
    """docs/many-cards.md has them: a step that is measured again changes them all."""
    saved = {table.title: table for table in next(sections_by_age("cpu", "parallel_plan"))}
    for table in plan.tables():
        assert (list(table.header), [list(row) for row in table.rows]) == (
            list(saved[table.title].header),
            saved[table.title].rows,
        ), "run `python3 dev.py bench parallel_plan --save`"
