"""Messages in another language: a finished English text, matched with the templates that it was made from.

Messages are raised and shown in plain English. A catalogue, locales/zh/messages.json, has the template of each, with
named placeholders, and its translation with the same ones. A text is translated where it is shown, and stays English
where the catalogue has nothing for it: the message of a library, or one that another version of the pack has left.

A text may hold anything, such as names from a stranger's file. What stands in quotation marks is not looked into. No
template is a regular expression: its constant parts are looked for from left to right, so that a template costs as much
as reading the text once, and how many are tried for one text is limited.
"""

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from ..errors import MAX_CHARACTERS, quoted

_CATALOGUES = Path(__file__).resolve().parent
_MAX_CHARACTERS = 2 * MAX_CHARACTERS  # of a text that is translated: a message and what completes it
_MAX_SEARCHES, _MAX_DEPTH = 400, 5  # through the whole catalogue, for one text; of a part in a part
_MAX_SENTENCES = 24  # of one paragraph
_MAX_SHIFTS = 12  # of the border between two values
_FEW_LETTERS, _SOME_LETTERS = 4, 9  # in the constant parts of a template: fewer make it a fragment
_NO_WORDS, _NO_PHRASES = (" ",), (". ", ": ", "; ")  # what its values cannot hold then
_LISTS = (("; ", "；"), (" and ", "，并且"), (", ", "，"))  # how parts are joined in English, and in the translation
_WIDE_ENDS = "。！？；：，）”"  # no space follows these
_WIDE = "[\u4e00-\u9fff]"  # letters of a language that has a full stop of its own
_MARKED_LIST = "“[^“”]*”(, “[^“”]*”)+"  # “a”, “b”
# The names of placeholders whose value is a user's own text.
_OWN_TEXT = (
    r"(quoted|clip_name|error_filename).*|(checkpoint|index|file|key|layer)(_\d+)?"
    r"|(.*_)?(path|folder)(_name|_parent)?(_\d+)?"
)
# How the name of a file ends. The shortest templates are found in one such as "1 or 2.mp4" too.
_FILE_END = r"\.[A-Za-z][A-Za-z0-9]{1,11}\Z"
# As repr writes a text: no quotation mark of the same kind is inside without a backslash.
_IN_QUOTES = r"""(?<![^\s(\[{,:;=|])(["'])((?:\\.|(?!\1)[^\\\n])+)\1"""
_IN_MARKS = r"(“)([^“”\n]+)”"  # as messages quote prompts
# What one thing and several differ in, in English.
_ENDING = "(?:e?s|is|are|was|were|has|have|patch(?:es)?|a.node|nodes)?"
_MARKS = range(0xE000, 0xF900)  # letters that Unicode leaves to everybody


class _Template(NamedTuple):
    """An English template: constants[0] {names[0]} constants[1] ... constants[-1], and its translation."""

    constants: tuple[str, ...]
    names: tuple[str, ...]
    translation: tuple[tuple[str, str | None], ...]  # (constant, the placeholder after it)
    letters: int  # in the constants

    def values(self, text: str) -> list[str] | None:
        """What stands in the placeholders' places in `text`; None if the template did not make it."""
        first, last = self.constants[0], self.constants[-1]
        if not self.names:
            return [] if text == first else None
        if not text.startswith(first) or not text.endswith(last) or len(text) < len(first) + len(last):
            return None
        values, start, end = [], len(first), len(text) - len(last)
        for constant in self.constants[1:-1]:
            # "{names} and {count} more": a name may contain "and", and the count does not.
            is_count = (constant, last) == (" and ", " more")
            found = (text.rfind if is_count else text.find)(constant, start, end)
            if found < 0:
                return None
            values.append(text[start:found])
            start = found + len(constant)
        return [*values, text[start:end]]

    def keeps(self, values: Sequence[str]) -> bool:
        """Whether nothing is lost of `values`: Chinese has no place for the "s" of "{count} clip{plural}", which may be
        any text in what somebody else wrote."""
        told = {name for _, name in self.translation}
        return all(name in told or re.fullmatch(_ENDING, value) for name, value in zip(self.names, values))


class Catalogue(NamedTuple):
    """A language's templates. by_text: those without placeholders; others: with, the most specific first.

    in_quotes: what stands in quotation marks in the templates themselves.
    """

    by_text: dict[str, _Template]
    others: tuple[_Template, ...]
    in_quotes: frozenset[str]

    def find(self, text: str, plain: bool = False) -> tuple[_Template, list[str]] | None:
        """The most specific template that has made `text`, and the values of its placeholders.

        plain: only a template in whose values no sentence ends.
        """
        if text in self.by_text:
            return self.by_text[text], []
        for template in self.others:
            values = template.values(text)
            if values is None or (plain and any(". " in value for value in values)):
                continue
            if not template.keeps(values):
                continue
            if template.letters < _SOME_LETTERS and not template.constants[-1] and re.search(_FILE_END, text):
                continue
            # "{low} or {high}" and "missing {names}" are found in any text: they count where they can be meant alone.
            borders = _NO_PHRASES if template.letters < _SOME_LETTERS else ()
            if template.letters < _FEW_LETTERS and not template.constants[0]:
                borders = _NO_WORDS
            if not any(border in value for value in values for border in borders):
                return template, values
        return None


def translate(text: str, language: str) -> str:
    """`text` in the language of locales/<language>/messages.json, as far as the catalogue knows its parts."""
    return translate_with(load_catalogue(language), text)


def translate_with(catalogue: Catalogue, text: str) -> str:
    """The same with a given catalogue. A text of more than 8,000 characters stays as it is."""
    if len(text) > _MAX_CHARACTERS:
        return text
    hidden, names = _hide_quoted(text, catalogue.in_quotes)
    translator = _Translator(catalogue)
    return "\n".join(_line(translator, line) for line in hidden.split("\n")).translate(names)


def _hide_quoted(text: str, known: frozenset[str]) -> tuple[str, dict[int, str]]:
    """`text` with one letter in the place of each name in quotation marks that is not `known`; what the letters stand
    for, as str.translate takes it. A file may be called as a sentence of ours."""
    there, names = set(text), dict[int, str]()
    free = (mark for mark in _MARKS if chr(mark) not in there)

    def hide(found: re.Match[str]) -> str:
        mark = None if found[2] in known else next(free, None)
        if mark is None:
            return found[0]
        names[mark] = found[2].translate(names)  # with the quotation marks inside, which were hidden before
        return f"{found[1]}{chr(mark)}{found[0][-1]}"

    return re.sub(_IN_MARKS, hide, re.sub(_IN_QUOTES, hide, text)), names


@functools.cache
def load_catalogue(language: str) -> Catalogue:
    """A catalogue, read once. An unreadable one is reported in the log, and messages stay English."""
    path = _CATALOGUES / language / "messages.json"
    try:
        return make_catalogue(_checked_entries(json.loads(path.read_text("utf-8"))))
    except (OSError, TypeError, ValueError, RecursionError) as error:  # the last one of lists in lists
        logging.warning(f"CogVideoX's messages stay English: {path} cannot be read ({error}).")
        return make_catalogue({})


def _checked_entries(found: object) -> dict[str, str | None]:
    """What a catalogue's file holds. Raises TypeError where that is not text, or null, for each text."""
    if not isinstance(found, dict):
        raise TypeError(f"it holds a {type(found).__name__} where a dict is expected")
    for english, translation in found.items():
        if not isinstance(translation, str | None):
            raise TypeError(f"it has a {type(translation).__name__} for {quoted(english)!r}")
    return found


def make_catalogue(entries: Mapping[str, str | None]) -> Catalogue:
    """The templates of `entries`: {English: its translation, or None where the text stays English}."""
    told = {english: translation for english, translation in entries.items() if translation is not None}
    # A sentence that is appended to another one, with its space, is looked for without it.
    told |= {
        english.lstrip(" "): translation.lstrip(" ") for english, translation in told.items() if english[-1:] == "."
    }
    made = [_parse(english, translation) for english, translation in told.items()]
    others = sorted(
        (one for one in made if one.names and one.letters),
        key=lambda one: (-one.letters, -sum(map(len, one.constants))),
    )
    in_quotes = frozenset(
        found[2]
        for english in told
        for pattern in (_IN_QUOTES, _IN_MARKS)
        for found in re.finditer(pattern, english.replace("{{", "{").replace("}}", "}"))
    )
    return Catalogue({one.constants[0]: one for one in made if not one.names}, tuple(others), in_quotes)


def placeholders(template: str) -> tuple[tuple[str, str | None], ...]:
    """(constant, the name of the placeholder after it, or None at the end) of the parts of a template."""
    return tuple((constant, name) for constant, name, _, _ in Formatter().parse(template))


def _parse(english: str, translation: str) -> _Template:
    constants, names = [""], []
    for constant, name in placeholders(english):
        constants[-1] += constant  # a doubled brace ends a part without a placeholder
        if name is not None:
            names.append(name)
            constants.append("")
    letters = sum(letter.isalpha() for constant in constants for letter in constant)
    return _Template(tuple(constants), tuple(names), placeholders(translation), letters)


def _line(translator: "_Translator", line: str) -> str:
    """A line of a text, or of a table in it: "| weights | 3 GiB |"."""
    if not line.startswith("| ") or line in translator.catalogue.by_text:
        return translator.paragraph(line)
    return "| " + " | ".join(translator.paragraph(cell) for cell in line[2:].split(" | "))


class _Translator:
    """One text's translation, which may take so many searches and no more."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self._searches = catalogue, 0

    def paragraph(self, text: str, depth: int = 0) -> str:
        """A line: one message, or sentences of several; those that the catalogue does not know stay English.

        Messages with sentences in the places of their placeholders are tried last: they take the next one for theirs.
        """
        for plain in (True, False):
            found = self._message(text, depth, plain)
            if found is not None:
                return found
            told, is_complete = self._sentences(text, depth, plain)
            if is_complete or not plain:
                return told
        return text

    def _sentences(self, text: str, depth: int, plain: bool) -> tuple[str, bool]:
        """(the sentences of a text, translated piece by piece; whether the catalogue knows them all)."""
        starts = [0, *_sentence_starts(text)]
        written, number, is_complete = "", 0, len(starts) > 1
        while number < len(starts) > 1:
            piece, found, end = "", None, number + 1
            # The longest piece first: a message may be several sentences.
            for end in range(len(starts), number, -1):
                stop = starts[end] if end < len(starts) else len(text)
                piece = text[starts[number] : stop]
                found = self._message(piece.strip(" "), depth, plain) if piece != text else None
                if found is not None:
                    break
            is_complete = is_complete and found is not None
            written = _joined(written, found if found is not None else piece.strip(" "))
            number = end
        return (written, is_complete) if len(starts) > 1 else (text, False)

    def _message(self, text: str, depth: int, plain: bool = False) -> str | None:
        """`text`, translated, if one template has made all of it. plain: no value of it has sentences of its own."""
        self._searches += 1
        if self._searches > _MAX_SEARCHES or depth > _MAX_DEPTH or not text:
            return None
        found = self.catalogue.find(text, plain)
        if found is None:
            # "clip.mp4: it has no caption": what a message is about, and the message.
            subject, colon, rest = text.partition(": ")
            told = self._message(rest, depth + 1, plain) if colon else None
            return None if told is None else f"{subject}：{told}"
        template, values = found
        shown = dict(zip(template.names, self._values(template, values, depth + 1)))
        told = "".join(part + (shown.get(name, "") if name else "") for part, name in template.translation)
        # "{name} is not {step}: use {low} or {high}" has no full stop: that of the text is in its last value.
        is_ended = text.endswith(".") and told.endswith(".") and not told.endswith("..")
        return f"{told[:-1]}。" if is_ended and re.search(_WIDE, told) else told

    def _values(self, template: _Template, values: Sequence[str], depth: int) -> list[str]:
        """The values of a message, translated where they are parts of sentences themselves."""
        values = list(values)
        shown = [self._value(name, value, depth) for name, value in zip(template.names, values)]
        for number, constant in enumerate(template.constants[1:-1]):
            # "{path} {what}": a path with a space in it ends at the first one that a known part follows.
            # "{names}{more}": so do names.
            if constant.strip(" ,:(") or shown[number + 1] != values[number + 1] or self._is_own(template, number + 1):
                continue
            both = values[number] + constant + values[number + 1]
            for border in _borders(both, constant)[1:_MAX_SHIFTS] if constant else _last_borders(both):
                right = both[border + len(constant) :]
                if (told := self._value(template.names[number + 1], right, depth)) != right:
                    break
            else:
                border, told = len(both), ""
                if constant:
                    continue
            values[number], values[number + 1] = both[:border], both[border + len(constant) :]
            shown[number], shown[number + 1] = self._value(template.names[number], both[:border], depth), told
        return shown

    @staticmethod
    def _is_own(template: _Template, number: int) -> bool:
        return re.fullmatch(_OWN_TEXT, template.names[number]) is not None

    def _value(self, name: str, text: str, depth: int) -> str:
        if re.fullmatch(_OWN_TEXT, name) or not any(letter.isalpha() for letter in text):
            return _in_a_row(text)
        if ". " in text:
            return self.paragraph(text, depth)
        for english, translated in _LISTS:
            parts = text.split(english)
            if not 1 < len(parts) <= _MAX_SENTENCES:
                continue
            shown = [self._message(part, depth) for part in parts]
            known = sum(part is not None for part in shown)
            # "a, b and c" may as well be names, or one name; what stands between semicolons are parts of sentences.
            if known == len(parts) or (known > 1 and english == "; "):
                return translated.join(told or part for told, part in zip(shown, parts))
        found = self._message(text, depth)
        if found is not None:
            return found
        # "a, b, c and 3 more"
        names, joint, rest = text.rpartition(" and ")
        told = self._message(joint + rest, depth) if joint else None
        return text if told is None else _in_a_row(names) + told


def _in_a_row(names: str) -> str:
    """“a”、“b” for “a”, “b”, as other languages than English have it; any other text as it is."""
    return names.replace("”, “", "”、“") if re.fullmatch(_MARKED_LIST, names) else names


def _sentence_starts(text: str) -> list[int]:
    """Where sentences begin after the first one: after a full stop and a space."""
    borders = [start + 2 for start in _borders(text, ". ")]
    return [start for start in borders if start < len(text)][: _MAX_SENTENCES - 1]


def _borders(text: str, between: str) -> list[int]:
    found, start = [], text.find(between)
    while start >= 0:
        found.append(start)
        start = text.find(between, start + 1)
    return found


def _last_borders(text: str) -> list[int]:
    """Where the last parts of a text begin, with the space or the comma before them, the very last one first."""
    found: list[int] = []
    for start in _borders(text, " ")[: -_MAX_SHIFTS - 1 : -1]:
        found += [start, start - 1] if text[start - 1 : start] in (",", ";") else [start]
    return found


def _joined(before: str, after: str) -> str:
    """Two sentences: with a space between them, unless the first ends in a wide sign that has its own."""
    return before + after if not before or before[-1] in _WIDE_ENDS else f"{before} {after}"
