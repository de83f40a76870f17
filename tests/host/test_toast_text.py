"""What a toast says of an error."""

import unicodedata

import pytest

from cogvideox.host.toast_text import MOST_COLUMNS, toast_text

_STEP = "Choose another one."


@pytest.mark.parametrize("letters, width, end, gap", (("abcdef", 1, ".", " "), ("一二三四五六", 2, "。", "")))
def test_whole_sentences_and_no_more_than_fit(letters: str, width: int, end: str, gap: str) -> None:
    """Three toasts of nine lines covered the panel with the download buttons that they spoke of. A Chinese sign takes
    the room of two letters: its toasts were twice as high."""
    sentences = [letter * (70 // width) + end for letter in letters]
    assert toast_text(gap.join(sentences)) == gap.join(sentences[:3])
    assert 3 * (70 + width) + 2 * len(gap) <= MOST_COLUMNS < 4 * (70 + width)


def test_reasons_are_left_to_the_node() -> None:
    """Absolute paths fill lines, and nobody reads them there."""
    assert toast_text(f"There is no 'x'. {_STEP}\nIt was looked for in /a, /b.") == f"There is no 'x'. {_STEP}"


@pytest.mark.parametrize(
    "first, reason, step",
    [
        ("It failed. ", f"{'r' * 230}. ", "Try again with a network. "),
        ("失败。", f"{'因' * 115}。", "请在有网络时重试。"),
    ],
)
def test_what_to_do_is_kept(first: str, reason: str, step: str) -> None:
    """A download without a network did not say what to do: a long reason stood in front of it."""
    for text in (first + reason + step, first + step + reason):
        assert toast_text(text) == (first + step).rstrip()


@pytest.mark.parametrize(
    "first, left_out, after",
    [
        ("There is no 'x'. Choose another one. ", f"Add {'n' * 230}. ", "Then press R and choose it. "),
        ("没有 'x'。请选择另一个。", f"请添加{'因' * 115}。", "然后按 R 并选择它。"),
    ],
)
def test_what_comes_after_a_step_goes_with_it(first: str, left_out: str, after: str) -> None:
    """*Choose another one. Then press R and choose it.*: of the step between them there was no room to tell."""
    assert toast_text(first + left_out + after) == first.rstrip()
    short = "Add it. " if " " in after[:5] else "请添加它。"
    assert toast_text(first + short + after + left_out) == (first + short + after).rstrip()


def test_a_long_text_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """4000 letters, as long as a message may be, held ComfyUI's event loop for two seconds."""
    width, looked = unicodedata.east_asian_width, []
    monkeypatch.setattr(unicodedata, "east_asian_width", lambda letter: looked.append(letter) or width(letter))
    toast_text("x" * 4000)
    assert len(looked) < 5 * 4000


def test_short_texts_are_whole_and_long_sentences_end() -> None:
    """A name in it may have any length and any full stops."""
    for text in ("The width is odd.", "", "CogVideoX1.5-5B is not here"):
        assert toast_text(text) == text
    assert toast_text("x" * 5000) == "x" * (MOST_COLUMNS - 3) + " …"
    assert toast_text(f"{_STEP} " + "x" * 5000) == _STEP
    cut = toast_text(f"{'x' * 5000}. {_STEP}")
    assert cut.startswith("xxx") and cut.endswith(f"x … {_STEP}") and len(cut) <= MOST_COLUMNS
