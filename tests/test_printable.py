"""What messages repeat of strangers' names."""

import pytest

from cogvideox.errors import UserError, printable, quoted

COMMANDS = ["\x1b[2K", "\x07", "\r", "\x00", "\x9b", "\x7f"]
DIRECTIONS = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]  # Unicode 16, UAX 9, 2.1 to 2.5
LINES = ["\x0b", "\x0c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("mark", [*COMMANDS, *DIRECTIONS, *LINES, "\ud800", "\udfff"])
def test_names_command_nothing_and_turn_nothing_around(mark: str) -> None:
    """After U+202E, a folder "gpj.exe" reads "exe.jpg" in a message, and so does the rest of the line."""
    name = f"a{mark}gpj.exe"
    for shown in (printable(name), quoted(name), str(UserError(name))):
        assert shown == "a\ufffd" + name.partition(mark[-1])[2] if len(mark) == 1 else mark[0] not in shown
        shown.encode()


def test_every_script_stays() -> None:
    """Marks that single letters of a script need are no commands, nor are line ends and tabs of our own messages."""
    for text in (
        "ä\n\tb",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u05d0\u200f\u05d1\u200e",
        "\U0001f468\u200d\U0001f469",
        "\u6587",
    ):
        assert printable(text) == text
