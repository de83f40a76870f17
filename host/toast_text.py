"""What a toast says of an error: what it lies over is covered, and the node has the whole text."""

import re
import unicodedata
from itertools import accumulate, takewhile

from ..errors import shortened

MOST_COLUMNS = 240  # five lines of ComfyUI's toast; a Chinese sign is two columns wide
_LEAST_COLUMNS = 80  # of the first sentence, where it is cut off for what to do
_END = r"(?<=\. )|(?<=。)"


def toast_text(text: str) -> str:
    """Of the first line as many whole sentences as a toast has room for: the first one, then what to do, then the
    others. A first one that is longer is cut off.

    What comes after a line break is for those who look for the reason: folders, addresses.
    """
    line = text.strip().split("\n", 1)[0].rstrip()
    if _columns(line) <= MOST_COLUMNS:
        return line
    first, *others = re.split(_END, line)
    steps = (other for other in others if _is_step(other) and not _goes_on(other))
    step = next((other for other in steps if _fits(other, MOST_COLUMNS - _LEAST_COLUMNS)), "")
    kept = {0: _cut(first, MOST_COLUMNS - _columns(step))}
    room = MOST_COLUMNS - _columns(kept[0])
    for number, other in sorted(
        enumerate(others, 1), key=lambda pair: (pair[1] != step, not _is_step(pair[1]), pair[0])
    ):
        is_alone = _goes_on(other) and number - 1 not in kept
        if _fits(other.rstrip(), room) and not is_alone:
            kept[number] = other
            room -= _columns(other)
    return "".join(kept[number] for number in sorted(kept)).rstrip()


def _fits(sentence: str, columns: int) -> bool:
    return len(sentence) <= columns and _columns(sentence) <= columns


def _is_step(sentence: str) -> bool:
    """Whether a sentence says what to do, by how it begins. In Chinese 请 may stand anywhere in it."""
    return bool(
        re.match(
            r"(?i)(?:Or |Otherwise |Then )?(?:Accept|Add|Check|Choose|Connect|Correct|Delete|Download|Free|Give|"
            r"Install|Invert|Join|Let|Load|Lower|Make|Merge|Move|Pass|Press|Put|Queue|Raise|Remove|Resize|Select|Set|Start|"
            r"Switch|Take|Try|Update|Use)\b|.*请",
            sentence,
        )
    )


def _goes_on(sentence: str) -> bool:
    """Whether a sentence says nothing without the one before it."""
    return re.match("Then |然后", sentence) is not None


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _cut(text: str, columns: int) -> str:
    """The beginning of `text`, with a mark and a space where something is left out."""
    if _columns(text) <= columns:
        return text
    widths = accumulate(map(_columns, text))
    return f"{shortened(text, sum(1 for _ in takewhile(lambda width: width <= columns - 3, widths)))} "
