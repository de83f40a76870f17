"""Choosing by name, as the commands that build the templates do."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from .errors import DevError


class _Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


def chosen_by_name(items: Iterable[T], names: Sequence[str], what: str) -> list[T]:
    """The items called `names`, all of them if there are none. what: they are, for the message. Raises DevError."""
    known = {item.name: item for item in items}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DevError(f"There is no {what} {' '.join(unknown)}; there are: {', '.join(known)}.")
    return [known[name] for name in names or known]
