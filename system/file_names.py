"""Names of the files that the pack writes, which a workflow chooses, and a workflow may come from a stranger; and of
those that nobody has put into a folder."""

import re
import unicodedata

from ..errors import UserError, quoted

# Longer names fit no file system: 255 bytes, less what is added (a number, a suffix, and that of an unfinished file).
MAX_PART_BYTES = 200
_MAX_BYTES = 1000  # Windows ends paths at 260 characters, Linux at 4096 bytes
FORBIDDEN = frozenset('<>:"|?*')  # on Windows; a file may be copied there
# Devices on Windows, whatever suffix they have (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
_RESERVED = r"(?i:con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9¹²³])"
# Unicode's categories of control characters, of those that only format ("gpj.exe" would be read backwards, and two
# names with and without a space of no width look alike), of unpaired surrogates, and of line breaks.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_BLANKS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
)  # called letters or marks
# What systems leave in folders that are looked at: macOS, and Windows. Names in small letters.
_SYSTEM_FILES = frozenset((".ds_store", "thumbs.db", "desktop.ini"))
# macOS' copy of what its own disks keep of a file ("._config.json" of config.json), on disks that cannot, in archives
# and on shares; and what git keeps of a folder (.gitattributes, .gitignore, .gitkeep).
_SYSTEM_PREFIXES = ("._", ".git")
_JOINERS = "\u200c\u200d"  # they shape the letters on both sides, in Persian, Hindi and emoji


def check_file_name(name: str, example: str) -> str:
    """A name for a new file, in folders separated by / or \\; with / and without spaces around it.

    It is the same rule on every system, so that a workflow that was made on one runs on the others.

    example: a valid name, for the message.

    Raises UserError for a name that leads elsewhere, that some system does not allow, or that hides what it is.
    """
    plain = name.strip().replace("\\", "/") if isinstance(name, str) else ""
    parts = plain.split("/")
    problem = next((found for part in parts if (found := find_problem(part))), None)
    if len(plain.encode("utf-8", "replace")) > _MAX_BYTES:
        problem = f"it has more than {_MAX_BYTES} bytes"
    if problem:
        raise UserError(
            f"{quoted(str(name))!r} is not a valid file name: {problem}. Use letters, digits, - and _, and / for "
            f"folders, as in {example}."
        )
    return plain


def is_system_file(name: str) -> bool:
    """Whether a name in a folder is one that an operating system or git gives to files of its own, whatever it ends
    in: such a file is no config, weights, picture or clip. name: without folders."""
    small = name.lower()
    return small.startswith(_SYSTEM_PREFIXES) or small in _SYSTEM_FILES


def find_problem(part: str) -> str | None:
    """What is wrong with the name of one file or folder; None where nothing is."""
    if not part:
        return "a part of it is empty"
    if part in (".", "..") or part[0] in ".-":
        return f"a part of it begins with {part[0]}"
    if part[-1] in ". ":
        return "a part of it ends with a dot or a space"
    if found := sorted(FORBIDDEN & set(part)):
        return f"it contains {found[0]}"
    if found := _unseen(part):
        return f"it contains a line break or another invisible character (U+{ord(found):04X})"
    if re.fullmatch(_RESERVED, part.split(".")[0].strip()):
        return f"{part.split('.')[0]} is the name of a device on Windows"
    if len(part.encode()) > MAX_PART_BYTES:
        return f"a part of it has more than {MAX_PART_BYTES} bytes"
    return None


def is_invisible(character: str) -> bool:
    """Whether a character is not seen, or changes how others are."""
    return unicodedata.category(character) in _UNSEEN or character in _BLANKS


def _unseen(part: str) -> str | None:
    """The first invisible character of a name, but for joiners between letters that they join."""
    for before, character, after in zip(f"\0{part}", part, f"{part[1:]}\0"):
        joins = character in _JOINERS and not before.isascii() and not after.isascii()
        if is_invisible(character) and not (joins and not is_invisible(before) and not is_invisible(after)):
            return character
    return None
