"""What a toast says of an error."""

import pytest

from cogvideox.host.toast_text import MOST_LETTERS, toast_text

_STEP = "Choose another one."


@pytest.mark.parametrize("end, gap", ((".", " "), ("。", "")))
def test_whole_sentences_and_no_more_than_fit(end: str, gap: str) -> None:
    """Three toasts of nine lines covered the panel with the download buttons that they spoke of."""
    sentences = [f"{letter * 70}{end}" for letter in "abcdef"]
    assert toast_text(gap.join(sentences)) == gap.join(sentences[:3])
    assert len(toast_text(gap.join(sentences))) <= MOST_LETTERS


def test_reasons_are_left_to_the_node() -> None:
    """Absolute paths fill lines, and nobody reads them there."""
    assert toast_text(f"There is no 'x'. {_STEP}\nIt was looked for in /a, /b.") == f"There is no 'x'. {_STEP}"


def test_short_texts_are_whole_and_long_sentences_end() -> None:
    """A name in it may have any length and any full stops."""
    for text in ("The width is odd.", "", "CogVideoX1.5-5B is not here"):
        assert toast_text(text) == text
    assert toast_text("x" * 5000) == "x" * MOST_LETTERS + " …"
    assert toast_text(f"{_STEP} " + "x" * 5000) == _STEP
