"""Errors that a user can correct. Every message says what was found, what is expected and what to do.

The rooms below the nodes know no node: they say what is wrong with what they were given. The sentence about the node to
use next is looked up by `advice` in one table, nodes/advice.py, when the message is read. In a graph the message is
thus complete even where a stock node raises it; in a script, which has not set the table, it does not speak of nodes.
"""

import re
from collections.abc import Mapping, Sequence

MAX_CHARACTERS, QUOTED_CHARACTERS = 4000, 120  # of a message, and of what it quotes

# Filled by set_advice: this module is below the nodes and cannot import their table.
_advice: dict[str, str] = {}


class UserError(Exception):
    """A mistake in what a user has given, or something that went wrong outside of the pack.

    advice: a key of the table of next steps. input_name: what is wrong of several arguments, where a class of errors
    knows it; None leaves it to who asked for the check.
    """

    input_name: str | None = None

    def __init__(self, message: str, advice: str | None = None):
        # Both, because pickle makes an exception again from these arguments; __str__ gives the message.
        # A message may quote a file, whose names and values have any length.
        message = printable(shortened(message, MAX_CHARACTERS))
        super().__init__(message, advice)
        self.message, self.advice = message, advice

    def __str__(self) -> str:
        return " ".join(filter(None, self.parts()))

    def parts(self) -> tuple[str, str]:
        """The message and the sentence about the next step, which may be empty: each is translated for itself."""
        return self.message, _advice.get(self.advice or "", "")


class JoinableError(UserError):
    """One of which a graph may have several that say nearly the same: the page shows them as one message."""

    def joined(self, others: Sequence["JoinableError"]) -> str:
        """One message for this error and `others`, of the same class."""
        raise NotImplementedError


class NonFiniteError(UserError):
    """A prediction contains NaN or Inf, and the weights do not."""


class NameTakenError(UserError):
    """A new file's name has been taken by something else, which is not overwritten."""


def set_advice(table: Mapping[str, str]) -> None:
    """Complete the messages of errors with these next steps, sentences by UserError's `advice`."""
    _advice.clear()
    _advice.update(table)


def quoted(text: str) -> str:
    """The beginning of a text that a message repeats: a prompt, or a name from a file."""
    return printable(shortened(text, QUOTED_CHARACTERS))


def printable(text: str) -> str:
    """`text` without what a terminal would take for commands, what turns the direction of the text around it (so that
    "gpj.exe" reads "exe.jpg"), and what UTF-8 cannot encode: names in a stranger's file may hold all of it, and
    messages go to the log as well."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", "\ufffd", text)


def shortened(text: str, most: int) -> str:
    """The first `most` characters, with a mark where something is left out."""
    return text if len(text) <= most else f"{text[:most]} …"
