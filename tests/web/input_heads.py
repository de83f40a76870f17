"""How a help page begins what it says of an input, in any language."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """A language's words and marks. line: of {name} and {facts}."""

    line: str
    comma: str
    default: str
    to: str
    optional: str
    on: str
    off: str


ENGLISH = Words("- **`{name}`** ({facts})", ", ", "default", "to", "optional", "on", "off")
CHINESE = Words("- **`{name}`**（{facts}）", "，", "默认", "到", "可选", "开启", "关闭")


def head(entry: Any, words: Words) -> str:
    """Its name, type, default and range. entry: an input of a node's schema."""
    facts, widget = [entry.get_io_type()], entry.as_dict()
    default, least, most = (widget.get(name) for name in ("default", "min", "max"))
    if default not in (None, ""):
        facts.append(f"{words.default} {_shown(default, words)}")
    if least is not None:
        facts.append(f"{_shown(least, words)} {words.to} {_shown(most, words)}")
    if entry.optional:
        facts.append(words.optional)
    return words.line.format(name=entry.id, facts=words.comma.join(facts))


def _shown(value: object, words: Words) -> str:
    if isinstance(value, bool):
        return words.on if value else words.off
    if isinstance(value, str):
        return f"`{value}`"
    return "2^64 - 1" if value == 2**64 - 1 else f"{value:.12g}"
