"""Phrases of documents with measured numbers in them, and the numbers that nobody measured."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter

from cogvideox.devtools.paths import ROOT
from cogvideox.tests.figures.cells import WORDS

Value = Callable[[], float | str]


@dataclass(frozen=True)
class Figure:
    """`phrase` stands in `document`, with `values` in its braces.

    document: a path from the root. phrase: in one line, whatever the document's lines are; {2} is a number with two
    decimals, {e} 1.7e-7, {0e} 2e-7, {word} nineteen, {} as it is.
    """

    document: str
    phrase: str
    values: tuple[Value, ...]

    def formatted(self) -> list[str]:
        """What the values are in the phrase's formats."""
        fields = [field for _, field, _, _ in Formatter().parse(self.phrase) if field is not None]
        specs = [f".{field}f" if field.isdigit() else field for field in fields]
        assert len(specs) == len(self.values), f"{self.phrase}: {len(specs)} braces, {len(self.values)} values"
        return [format(value(), spec) for value, spec in zip(self.values, specs)]

    def matches(self, text: str) -> list[re.Match[str]]:
        """Where the phrase stands in a document, whatever its numbers are there."""
        parts = Formatter().parse(self.phrase)
        number = r"(\d+(?:\.\d+)?(?:e-\d+)?|[a-z]+)"
        pattern = "".join(re.escape(literal) + (number if field is not None else "") for literal, field, *_ in parts)
        return list(re.finditer(rf"(?<!\w){pattern}(?!\w|\.\d|-\d)", text))


@dataclass(frozen=True)
class Given:
    """`phrase` stands in `document`, and its numbers are no measurement of this project: `source` says whose."""

    document: str
    phrase: str
    source: str


def one_line(document: str) -> str:
    """A document with every run of white space as one space, without the code blocks and what links lead to."""
    text = (ROOT / document).read_text(encoding="utf-8")
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    return " ".join(text.split())


# names of models and programs, versions, and sizes: W × H
_NAMES = re.compile(
    r"CogVideoX[- ]?1\.[05]|\bV?1\.[015]-5[bB]\w*|\bV1\.[15]|\b1\.5\b(?= and|,| video| \(|:)|Apache-\d\.\d|"
    r"(?:ComfyUI|diffusers|torch|transformers|Python|CUDA) \d+(?:\.\d+)+|\d+(?:\.\d+){2,}|\d+ (?:×|x) \d+"
)
_UNITS = r"(?:s|ms|seconds?|minutes?|hours?|[GMk]i?B|%|×|dB|points?|cases?|times|copies|bytes?)"
_COUNTED = r"(?:seconds|minutes|hours|cases|copies|times|layouts)"
_UNIT_PATTERN = rf"\d+(?:\.\d+)? ?{_UNITS}(?!\w)|\b(?:{'|'.join(WORDS[2:])}) {_COUNTED}\b"
_WITH_UNITS = re.compile(_UNIT_PATTERN)
_MEASURED = re.compile(rf"\d+(?:\.\d+)?e-\d+|{_UNIT_PATTERN}|\d+\.\d+|(?<=\| )\d+(?= \|)")


def looks_measured(text: str, with_units_alone: bool = False) -> list[re.Match[str]]:
    """The numbers of a line of text that somebody must have measured: with a unit, a decimal, a cell of a table.

    with_units_alone: for pages whose decimals are settings.
    """
    named = [match.span() for match in _NAMES.finditer(text)]
    found = (_WITH_UNITS if with_units_alone else _MEASURED).finditer(text)
    return [number for number in found if not any(a <= number.start() < b for a, b in named)]
