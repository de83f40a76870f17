"""The manifest of a download, a JSON file in its folder: which revision, which files, which of them are verified.

It is written before the first file and says "complete" only after the last, so that the loaders can refuse a partial
download. No import of torch or ComfyUI.
"""

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UserError
from ...system.complete_file import write_complete_text
from ...system.small_files import read_small_text
from .hub import RemoteFile, is_commit, is_digest, is_size
from .modelscope import BRANCH

MANIFEST = ".cogvideox-download.json"
PART = ".part"
_FORMAT = 1
FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# What the pack reads, and the licence that belongs to it. No part of a path may begin with a dot, as ".." does: the
# manifest may have been changed, and it names files to write.
_WANTED = (
    r"(?a:model_index\.json|LICENSE(?:\.md|\.txt)?|README\.md"
    rf"|(?:{'|'.join(FOLDERS)})/\w[\w.-]{{0,120}}\.(?:json|safetensors|model|txt))"
)


@dataclass
class Manifest:
    """What one download consists of.

    verified: path -> (size, modification time in ns) that a file had when its hash was found to be right.
    etags: path -> entity tag of a partial file, with which the server checks that it still sends the same bytes.
    """

    repository: str
    revision: str
    files: list[RemoteFile]
    verified: dict[str, tuple[int, int]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    complete: bool = False

    def is_verified(self, folder: Path, file: RemoteFile) -> bool:
        """Whether the file is in `folder`, unchanged since its hash was found to be right."""
        try:
            stat = (folder / file.path).stat()
        except OSError:
            return False
        return self.verified.get(file.path) == (stat.st_size, stat.st_mtime_ns) and stat.st_size == file.size

    def verify(self, folder: Path, file: RemoteFile) -> None:
        """Record that the file in `folder` has the right hash."""
        stat = (folder / file.path).stat()
        self.verified[file.path] = (stat.st_size, stat.st_mtime_ns)
        self.etags.pop(file.path, None)

    def set_etag(self, file: RemoteFile, etag: str | None) -> None:
        """Record the entity tag of a partial file; None deletes it."""
        if etag is None:
            self.etags.pop(file.path, None)
        else:
            self.etags[file.path] = etag

    def missing(self, folder: Path) -> list[RemoteFile]:
        """The files that are missing in `folder` or not verified."""
        return [file for file in self.files if not self.is_verified(folder, file)]

    def save(self, folder: Path) -> None:
        """Replace the manifest in `folder` in one step: a killed process leaves the old one or the new one."""
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
                    "revision": file.revision,
                    "verified": self.verified.get(file.path),
                    "etag": self.etags.get(file.path),
                }
                for file in self.files
            ],
        }
        write_complete_text(folder / MANIFEST, json.dumps(value, indent=1))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`; None where there is none, or it is damaged or of another format."""
    try:
        value = json.loads(read_small_text(folder / MANIFEST, 1 << 24))
        entries = value["files"]
        manifest = Manifest(
            str(value["repository"]),
            str(value["revision"]),
            [
                RemoteFile(entry["path"], int(entry["size"]), entry["digest"], str(entry.get("revision", "")))
                for entry in entries
            ],
            {entry["path"]: tuple(entry["verified"]) for entry in entries if entry["verified"]},
            {entry["path"]: str(entry["etag"]) for entry in entries if entry["etag"]},
            value["complete"] is True,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, UserError):
        return None
    # The file may have been changed by anyone, and it names files to write: every path has to be one that the pack
    # would choose itself.
    is_sound = all(
        re.fullmatch(_WANTED, file.path)
        and is_digest(file.digest)
        and is_size(file.size)
        and (file.revision == "" or is_commit(file.revision))
        for file in manifest.files
    )
    is_sound &= is_commit(manifest.revision) or manifest.revision == BRANCH
    return manifest if is_sound and value.get("format") == _FORMAT else None


def require_complete(path: Path) -> None:
    """Raises UserError where `path` is, or belongs to, a pipeline whose download is not finished.

    path: a pipeline, one of its folders, or a file in one. A folder without a manifest, which the pack did not
    download, is not checked.
    """
    # The manifest is in the pipeline's folder, which is up to two levels above a file of weights.
    for folder in (path, *path.parents[:2]):
        if not (folder / MANIFEST).is_file():
            continue
        manifest = read_manifest(folder)
        if manifest is None or not manifest.complete:
            raise UserError(_describe_partial(folder, manifest), advice="finish the download")
        return


def is_complete(folder: Path) -> bool:
    """Whether a download into `folder` was finished and all its files are still there, unchanged."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.complete and not manifest.missing(folder)


def partial_bytes(folder: Path, files: Iterable[RemoteFile]) -> int:
    """Bytes of `files` that their .part files hold."""
    return sum(min(part_size(folder / file.path), file.size) for file in files)


def part_path(target: Path) -> Path:
    """The path at which the file `target` grows until it is complete."""
    return target.with_name(target.name + PART)


def remove_parts(folder: Path) -> None:
    """Delete the .part files of a complete download: of files that the repository has no longer, or that somebody has
    put there by hand meanwhile. Only the holder of the download's lock may call this. Raises nothing."""
    for place in (folder, *(folder / name for name in FOLDERS)):
        with suppress(OSError):
            for path in place.glob(f"*{PART}"):
                if re.fullmatch(_WANTED, path.relative_to(folder).as_posix().removesuffix(PART)):
                    path.unlink()


def part_size(target: Path) -> int:
    """The size of the .part file of `target` in bytes, 0 without one."""
    try:
        return part_path(target).stat().st_size
    except OSError:
        return 0


def select_files(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files of a repository that the pack needs, small ones first.

    Weights of a variant (fp16) are left out where the folder has plain ones. Raises UserError where a component or its
    weights are missing.
    """
    wanted = {file.path: file for file in files if re.fullmatch(_WANTED, file.path)}
    plain = {file.path.split("/")[0] for file in wanted.values() if _is_weights(file) and not _is_variant(file)}
    chosen = [file for file in wanted.values() if not (_is_variant(file) and file.path.split("/")[0] in plain)]
    lacking = [name for name in FOLDERS if not any(file.path.startswith(f"{name}/") for file in chosen)]
    weightless = [
        name
        for name in FOLDERS[:3]  # transformer, vae, text_encoder: the others have no weights
        if name not in lacking and not any(_is_weights(file) and file.path.startswith(f"{name}/") for file in chosen)
    ]
    if "model_index.json" not in wanted or lacking or weightless:
        names = ", ".join(["model_index.json"] * ("model_index.json" not in wanted) + lacking + weightless)
        raise UserError(
            f"The repository is not a diffusers pipeline with safetensors weights: it lacks {names}. Choose another "
            "checkpoint."
        )
    # Configs before weights. A folder therefore looks complete long before it is; require_complete refuses it.
    return sorted(chosen, key=lambda file: (_is_weights(file), file.path))


def _is_weights(file: RemoteFile) -> bool:
    return file.path.endswith(".safetensors")


def _is_variant(file: RemoteFile) -> bool:
    """Weights, or their index, in another precision: model.fp16.safetensors next to model.safetensors."""
    name = file.path.rsplit("/", 1)[-1].removesuffix(".index.json")
    return name.endswith(".safetensors") and name.count(".") > 1


def _describe_partial(folder: Path, manifest: Manifest | None) -> str:
    if manifest is None:
        return (
            f"{folder} holds a download whose {MANIFEST} cannot be read. Start the download again, which keeps all "
            "files with the right content, or delete that file if you know that the folder is complete."
        )
    missing = manifest.missing(folder)
    left = sum(file.size for file in missing) - partial_bytes(folder, missing)
    return (
        f"{folder} holds a half-finished download of {manifest.repository}: {len(missing)} of {len(manifest.files)} "
        f"files are missing ({left / 1e9:.1f} GB). Start the download again, in the graph or with "
        f"`python3 dev.py models fetch {folder.name}`; it continues where it stopped."
    )
