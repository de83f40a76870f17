"""Every measured number in the documents is that of the newest committed results."""

import re

import pytest

from cogvideox.benchmarks.bench_forecast import END, MARK
from cogvideox.devtools.paths import ROOT
from cogvideox.nodes import NODES
from cogvideox.tests.figures import of_exactness, of_many_cards, of_models, of_pages, of_speed, of_toy
from cogvideox.tests.figures.cells import Cell, Number, find
from cogvideox.tests.figures.given import GIVEN
from cogvideox.tests.figures.phrases import Figure, looks_measured, one_line

DOCUMENTS = ["README.md", *(f"docs/{file.name}" for file in sorted(ROOT.glob("docs/*.md")))]
PAGES = [f"web/docs/{file.name}" for file in sorted(ROOT.glob("web/docs/*.md"))]
PARTS = (of_exactness, of_many_cards, of_models, of_speed, of_toy, of_pages)
FIGURES = tuple(figure for part in PARTS for figure in part.FIGURES)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.document}: {figure.phrase[:60]}")
def test_documents_say_what_was_measured(figure: Figure) -> None:
    """A reader chooses a card or a precision by numbers; a benchmark that has been run again changes them."""
    found = [list(match.groups()) for match in figure.matches(one_line(figure.document))]
    assert found == [figure.formatted()], f"{figure.document} has {found}, the results have {figure.formatted()}"


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES])
def test_every_measured_number_has_a_source(document: str) -> None:
    """A number that no command prints grows old unseen. Add it to tests/figures, or leave it out."""
    text = one_line(document)
    known = [match.span() for figure in FIGURES if figure.document == document for match in figure.matches(text)]
    for given in (given for given in GIVEN if given.document == document):
        spans = [match.span() for match in re.finditer(re.escape(given.phrase), text)]
        assert spans, f"{document} no longer says “{given.phrase}”"
        known += spans
    if document == "docs/samplers.md":
        known += [match.span() for match in re.finditer(r"\| [\w, ]+ \|(?: (?:\d+|refused) \|){9}", text)]
    # what bench_forecast counts again, which tests/devtools/test_forecast_tables.py compares
    known += [match.span() for match in re.finditer(rf"{MARK}.*?{END}", text)]
    unknown = [
        text[max(0, number.start() - 40) : number.end() + 30]
        for number in looks_measured(text, with_units_alone=document in PAGES)
        if not any(start <= number.start() and number.end() <= end for start, end in known)
    ]
    assert not unknown, "\n".join(unknown)


def test_scores_of_samplers_are_those_of_the_benchmark() -> None:
    """Whoever chooses by this table would get noise if a row is another sampler's."""
    lines = [line for line in (ROOT / "docs/samplers.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(rows) > 35
    for name, *scores in rows:
        want = [find(Cell("cpu", "samplers", of_toy.SCORES, (name,), scheduler)) for scheduler in header[1:]]
        assert scores == want, name


def test_start_was_measured_with_the_nodes_of_today() -> None:
    """Every node costs ComfyUI's start something: the figure for a third of them says nothing."""
    measured = of_speed.start("nodes")()
    assert measured == len(NODES), "run `python3 dev.py bench start --save` and add its results to the commit"


def test_a_number_that_was_not_measured_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose number differs from the results, or that has one more, would look as good as one that is right."""
    figure = Figure("any.md", "takes {2} of it, {e} off", (lambda: Number(0.5), lambda: Number(2e-7)))
    for text, found in (
        ("It takes 0.50 of it, 2.0e-7 off.", [["0.50", "2.0e-7"]]),
        ("It takes 0.51 of it, 2.0e-7 off.", [["0.51", "2.0e-7"]]),
        ("It takes 0.50 of it, 2.0e-71 off.", [["0.50", "2.0e-71"]]),
        ("It takes half of it.", []),
    ):
        assert [list(match.groups()) for match in figure.matches(text)] == found
    assert figure.formatted() == ["0.50", "2.0e-7"]


@pytest.mark.parametrize(
    "text, numbers",
    (
        ("CogVideoX1.5-5B, V1.5, ComfyUI 0.30.0 and 720 x 480 at 8 fps", []),
        (
            "takes 3.5 s, 12 GiB or 2 %, in 24 cases, twelve layouts",
            ["3.5 s", "12 GiB", "2 %", "24 cases", "twelve layouts"],
        ),
        ("| one | 24 | 1.7e-7 |", ["24", "1.7e-7"]),
        ("0.99 of it, 1.15 × the time", ["0.99", "1.15 ×"]),
    ),
)
def test_what_looks_measured(text: str, numbers: list[str]) -> None:
    """A kind of number that is overlooked needs no source."""
    assert [match[0] for match in looks_measured(text)] == numbers
