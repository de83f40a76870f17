"""What a download has written down beside the files: which revision, which files, what of them is verified.

The manifest is there before the first file and says "complete" after the last, so a folder that was left half way is
never taken for a whole one. No import of torch or ComfyUI.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UserError
from .hub import RemoteFile, is_digest

MANIFEST = ".cogvideox-download.json"
PART = ".part"
_FORMAT = 1
FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# all that the pack reads, and what one should keep beside it; each part of a name begins like a plain file's
_WANTED = re.compile(
    r"model_index\.json|LICENSE(?:\.md|\.txt)?|README\.md"
    rf"|(?:{'|'.join(FOLDERS)})/\w[\w.-]{{0,120}}\.(?:json|safetensors|model|txt)",
    re.ASCII,
)


@dataclass
class Manifest:
    """verified: path -> (size, modification time in ns) of the file on disk whose hash was right."""

    repository: str
    revision: str
    files: list[RemoteFile]
    verified: dict[str, tuple[int, int]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)  # of the half files, by path
    complete: bool = False

    def is_verified(self, folder: Path, file: RemoteFile) -> bool:
        """Whether the file lies there as it was when its hash was computed."""
        try:
            stat = (folder / file.path).stat()
        except OSError:
            return False
        return self.verified.get(file.path) == (stat.st_size, stat.st_mtime_ns) and stat.st_size == file.size

    def verify(self, folder: Path, file: RemoteFile) -> None:
        """Remember that the file lies there with the right hash."""
        stat = (folder / file.path).stat()
        self.verified[file.path] = (stat.st_size, stat.st_mtime_ns)
        self.etags.pop(file.path, None)

    def missing(self, folder: Path) -> list[RemoteFile]:
        """The files that are not known to be right."""
        return [file for file in self.files if not self.is_verified(folder, file)]

    def save(self, folder: Path) -> None:
        """Replace the manifest in `folder`, all of it or nothing."""
        value = {
            "format": _FORMAT,
            "repository": self.repository,
            "revision": self.revision,
            "complete": self.complete,
            "files": [
                {
                    "path": file.path,
                    "size": file.size,
                    "digest": file.digest,
                    "verified": self.verified.get(file.path),
                    "etag": self.etags.get(file.path),
                }
                for file in self.files
            ],
        }
        temporary = folder / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None where there is none, or none that can be used."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = value["files"]
        manifest = Manifest(
            str(value["repository"]),
            str(value["revision"]),
            [RemoteFile(entry["path"], int(entry["size"]), entry["digest"]) for entry in entries],
            {entry["path"]: tuple(entry["verified"]) for entry in entries if entry["verified"]},
            {entry["path"]: str(entry["etag"]) for entry in entries if entry["etag"]},
            value["complete"] is True,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # what lies on a disk may have been changed: it names files to write
    sound = all(_WANTED.fullmatch(file.path) and is_digest(file.digest) and file.size >= 0 for file in manifest.files)
    return manifest if sound and value.get("format") == _FORMAT else None


def require_complete(path: Path) -> None:
    """Raises UserError where a download is not finished: of `path`, or of the pipeline that `path` belongs to.

    path: a pipeline, one of its folders, or a file in one. What something else than the pack has put there passes.
    """
    for place in (path, *path.parents[:2]):
        if not (place / MANIFEST).is_file():
            continue
        manifest = read_manifest(place)
        if manifest is None or not manifest.complete:
            raise UserError(_describe_half(place, manifest))
        return


def is_complete(folder: Path) -> bool:
    """Whether a download into `folder` was finished and all its files still lie there unchanged."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.complete and not manifest.missing(folder)


def half_done(folder: Path, files: Iterable[RemoteFile]) -> int:
    """Bytes that lie in half files."""
    return sum(min(part_size(folder / file.path), file.size) for file in files)


def part_path(place: Path) -> Path:
    """Where a file grows before it is whole."""
    return place.with_name(place.name + PART)


def part_size(place: Path) -> int:
    """Bytes that are there of a file that is not whole."""
    try:
        return part_path(place).stat().st_size
    except OSError:
        return 0


def select_files(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """What the pack needs of a repository, small files first. Raises UserError where a part is missing."""
    wanted = {file.path: file for file in files if _WANTED.fullmatch(file.path)}
    plain = {file.path.split("/")[0] for file in wanted.values() if _is_weights(file) and not _is_variant(file)}
    chosen = [file for file in wanted.values() if not (_is_variant(file) and file.path.split("/")[0] in plain)]
    lacking = [name for name in FOLDERS if not any(file.path.startswith(f"{name}/") for file in chosen)]
    weightless = [
        name
        for name in FOLDERS[:3]
        if name not in lacking and not any(_is_weights(file) and file.path.startswith(f"{name}/") for file in chosen)
    ]
    if "model_index.json" not in wanted or lacking or weightless:
        what = ", ".join(["model_index.json"] * ("model_index.json" not in wanted) + lacking + weightless)
        raise UserError(
            f"The repository is no diffusers pipeline with safetensors weights: it lacks {what}. Choose another one."
        )
    return sorted(chosen, key=lambda file: (_is_weights(file), file.path))


def _is_weights(file: RemoteFile) -> bool:
    return file.path.endswith(".safetensors")


def _is_variant(file: RemoteFile) -> bool:
    """Weights, or their index, in another precision: model.fp16.safetensors beside model.safetensors."""
    name = file.path.rsplit("/", 1)[-1].removesuffix(".index.json")
    return name.endswith(".safetensors") and name.count(".") > 1


def _describe_half(folder: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return (
            f"{folder} holds a download whose {MANIFEST} cannot be read. Start the download again, which keeps what is "
            "right, or delete that file if you know that the folder is whole."
        )
    missing = manifest.missing(folder)
    left = sum(file.size for file in missing) - half_done(folder, missing)
    return (
        f"{folder} holds a half-finished download of {manifest.repository}: {len(missing)} of {len(manifest.files)} "
        f"files are missing ({left / 1e9:.1f} GB). Start the download again, in the graph or with "
        f"`python3 dev.py models fetch {folder.name}`; it continues where it ended."
    )
