"""Where a farm's results go, and which of them are there already. Standard library only, but to write.

A clip's files are named after its id: star.mp4, further ones star.2.png and so on. Beside them lies star.farm.json with
what they were made of and their hashes: by this a farm that was ended goes on where it stopped.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError
from cogvideox.system.complete_file import complete_file, write_complete_text

from ..errors import DevError
from ..run.targets import file_sha256, read_record

RECORD_SUFFIX = ".farm.json"
_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}\Z")
_NEEDED = {"line": dict, "files": list}


@dataclass(frozen=True)
class Results:
    """The folder of the results. line: in each method, what makes a clip what it is, as JSON has it."""

    folder: Path

    def find_done(self, name: str, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a clip that is there, whole, and was made of this line; None otherwise."""
        record = self._own_record(name, line)
        if record is None or not record["files"] or not all(self._is_whole(file, name) for file in record["files"]):
            return None
        return record

    def check_free(self, lines: Mapping[str, Mapping[str, Any]], overwrite: bool) -> None:
        """Raises: DevError where a result would take the place of a file. lines: by the ids of what is to be made."""
        present: dict[str, str] = {}  # id in lower case -> a file
        for file in sorted(os.listdir(self.folder)):
            present.setdefault(file.partition(".")[0].lower(), file)
        taken = [name for name in lines if name.lower() in present and self._own_record(name, lines[name]) is None]
        if taken and not overwrite:
            what = f"and {len(taken) - 1} more exist" if len(taken) > 1 else "exists"
            raise DevError(
                f"{self.folder / present[taken[0].lower()]} {what} already, made of another line: give "
                "another --out, other ids, or --overwrite to replace it."
            )

    def write(self, name: str, files: Sequence[tuple[str, bytes]], record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a clip's files, each under a name of its own until it is complete; returns the record with them.

        files: what the server calls each, and its contents. Raises: DevError.
        """
        named = [(self._path(name, number, file), data) for number, (file, data) in enumerate(files, 1)]
        entries = [{"file": str(path), "sha256": hashlib.sha256(data).hexdigest()} for path, data in named]
        written = {"id": name, "files": entries, **record}
        try:
            # The record first: a kill in between leaves a record without its files, and the clip is made again.
            write_complete_text(self._record(name), json.dumps(written, indent=1) + "\n")
            for path, data in named:
                with complete_file(path, replaces=True) as file:
                    file.part.write_bytes(data)
        except UserError as error:
            raise DevError(str(error)) from error
        return written

    def _path(self, name: str, number: int, file: str) -> Path:
        # What a workflow calls its file is a stranger's: an ending that no file can have would end the whole farm.
        suffix = found[0].lower() if (found := _SUFFIX.search(file)) else ""
        return self.folder / f"{name}{f'.{number}' if number > 1 else ''}{suffix}"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}{RECORD_SUFFIX}"

    def _own_record(self, name: str, line: Mapping[str, Any]) -> dict[str, Any] | None:
        record = read_record(self._record(name), _NEEDED)
        return record if record is not None and record["line"] == json.loads(json.dumps(line)) else None

    def _is_whole(self, entry: Any, name: str) -> bool:
        """Whether a file that a record names is here, as it was; the folder may have been moved since."""
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            return False
        path = self.folder / Path(entry["file"]).name
        return f"{path.name}.".startswith(f"{name}.") and file_sha256(path) == entry.get("sha256")
