"""What a toast says of an error: the beginning. It lies over the page, and the node has the whole text."""

from ..errors import shortened

MOST_LETTERS = 240  # five lines of ComfyUI's toast
_ENDS = (". ", "。")


def toast_text(text: str) -> str:
    """The sentences of the first line that a toast has room for, at least one, which is cut off where it is longer.

    What comes after a line break is for those who look for the reason: folders, addresses.
    """
    line = text.strip().split("\n", 1)[0].rstrip()
    if len(line) <= MOST_LETTERS:
        return line
    ends = [line.rfind(end, 0, MOST_LETTERS) + len(end.rstrip()) for end in _ENDS if end in line[:MOST_LETTERS]]
    return line[: max(ends)] if ends else shortened(line, MOST_LETTERS)
