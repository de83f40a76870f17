"""Files that are not those that came with the pack: what is said of each kind, and what to do."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.system.published_files import SUMS, check_published, files_below, read_sums, sums_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder nano/weights of four files, and the list of them."""
    folder = tmp_path / "nano" / "weights"
    (folder / "part").mkdir(parents=True)
    files = [folder / name for name in ("a.safetensors", "part/b.safetensors", "part/c.json", "part/d.json")]
    for file in files:
        file.write_bytes(f"{file.name}\n".encode())
    (folder / SUMS).write_text(sums_of(folder, files), "utf-8")
    return folder


def check(root: Path) -> None:
    listed = read_sums(root)
    for suffix in (".safetensors", ".json"):
        check_published(root, files_below(root, root / "part", suffix, listed), listed)


RESTORE = "or run `git checkout -- nano/weights` in its folder"


def test_a_published_folder_is_whole(root: Path) -> None:
    assert len(read_sums(root)) == 4
    check(root)


@pytest.mark.parametrize("content", [b"", b"b.safetensorz\n", b"b.safetensors\nmore"])
def test_a_changed_file(root: Path, content: bytes) -> None:
    (root / "part" / "b.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=f"b.safetensors has been changed: its sha256 is not .*{RESTORE}"):
        check(root)


def test_a_missing_file(root: Path) -> None:
    """Whoever reads that it is damaged looks for a file that is not there."""
    (root / "part" / "b.safetensors").unlink()
    with pytest.raises(UserError, match=f"b.safetensors is a part of the pack, and it is missing.*{RESTORE}"):
        check(root)


def test_a_missing_folder(root: Path) -> None:
    shutil.rmtree(root / "part")
    with pytest.raises(UserError, match="is missing"):
        check(root)
    (root / "part").write_text("a file in its place", "utf-8")
    with pytest.raises(UserError, match="b.safetensors is a part of the pack, and it is missing"):
        check(root)


def test_a_link_to_nowhere_is_a_missing_file(root: Path, tmp_path: Path) -> None:
    """What a store of another disk has left, when that is not there."""
    (root / "part" / "b.safetensors").unlink()
    try:
        (root / "part" / "b.safetensors").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UserError, match="b.safetensors is a part of the pack, and it is missing"):
        check(root)


@pytest.mark.parametrize("fails", ["stat", "read"])
def test_an_unreadable_file(root: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed by another user, or on a disk that fails: to install it again as that user changes nothing."""
    file = root / "part" / "b.safetensors"
    real_stat, real_read = os.stat, Path.read_bytes

    def refuse(path: object) -> None:
        if os.fspath(str(path)) == str(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def stat(path: Path, *args: object, **options: object) -> os.stat_result:
        refuse(path)
        return real_stat(path, *args, **options)  # type: ignore[arg-type]

    def read(path: Path) -> bytes:
        refuse(path)
        return real_read(path)

    with monkeypatch.context() as patch:
        if fails == "stat":
            patch.setattr(os, "stat", stat)
        else:
            patch.setattr(Path, "read_bytes", read)
        with pytest.raises(
            UserError, match=f"b.safetensors cannot be read .Permission denied.*Let the user.*{RESTORE}"
        ):
            check(root)
    check(root)  # as soon as it can be read


def test_a_folder_in_a_files_place(root: Path) -> None:
    (root / "part" / "c.json").unlink()
    (root / "part" / "c.json").mkdir()
    with pytest.raises(UserError, match=f"c.json is not a file, and the pack has one of that name. Delete.*{RESTORE}"):
        check(root)


def test_a_file_too_many(root: Path) -> None:
    """It is somebody's, and `git checkout` would leave it where it is."""
    (root / "part" / "mine.json").write_text("{}", "utf-8")
    with pytest.raises(
        UserError, match="mine.json does not belong to the pack: SHA256SUMS does not name.*Move it"
    ) as told:
        check(root)
    assert "git checkout" not in str(told.value)


def damage(text: str, kind: str) -> str:
    lines = text.splitlines()
    return {
        "empty": "",
        "one size less": "\n".join(lines[1:]),
        "one hash less": "\n".join([lines[0], *lines[2:]]),
        "cut short": text[:-20],
        "merged": f"<<<<<<< mine\n{text}",
        "a name that no file can have": text.replace("part/b", "part/\0b"),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["empty", "one size less", "one hash less", "cut short", "merged", "a name that no file can have"]
)
def test_a_damaged_list(root: Path, kind: str) -> None:
    """By what is left of it, files of the pack would be called changed, or too many, and be deleted."""
    (root / SUMS).write_text(damage((root / SUMS).read_text("utf-8"), kind), "utf-8")
    with pytest.raises(UserError, match=f"{SUMS} is damaged, so that the files beside it cannot be.*{RESTORE}"):
        read_sums(root)


def test_other_line_ends_are_no_damage(root: Path) -> None:
    """git on Windows may write them, in the list too."""
    for name in (SUMS, "part/c.json"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n"))
    check(root)
    (root / "part" / "b.safetensors").write_bytes(b"b.safetensors\r\n")  # bytes are bytes
    with pytest.raises(UserError, match="b.safetensors has been changed"):
        check(root)
