"""Names of the files that the pack writes. A workflow chooses them, and a workflow may come from a stranger."""

import re
import unicodedata

from ..errors import UserError, quoted

# Longer names fit no file system: 255 bytes, less what is added (a number, a suffix, and that of an unfinished file).
_MAX_PART_BYTES = 200
_MAX_BYTES = 1000  # Windows ends paths at 260 characters, Linux at 4096 bytes
_FORBIDDEN = frozenset('<>:"|?*')  # on Windows; a file may be copied there
# Devices on Windows, whatever suffix they have (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_TURNS_TEXT = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # "gpj.exe" would be read backwards


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


def find_problem(part: str) -> str | None:
    """What is wrong with the name of one file or folder; None where nothing is."""
    if not part:
        return "a part of it is empty"
    if part in (".", "..") or part[0] in ".-":
        return f"a part of it begins with {part[0]}"
    if part[-1] in ". ":
        return "a part of it ends with a dot or a space"
    if found := sorted(_FORBIDDEN & set(part)):
        return f"it contains {found[0]}"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _TURNS_TEXT for letter in part):
        return "it contains a line break or another control character"
    if _RESERVED.fullmatch(part.split(".")[0].strip()):
        return f"{part.split('.')[0]} is the name of a device on Windows"
    if len(part.encode()) > _MAX_PART_BYTES:
        return f"a part of it has more than {_MAX_PART_BYTES} bytes"
    return None
