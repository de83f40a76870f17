"""Whether a path lies in a folder, whatever leads to it."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths
import pytest

from cogvideox.errors import UserError
from cogvideox.host import folders, output
from cogvideox.system.inside import is_below, is_inside, is_spelled_inside
from cogvideox.training import clips

links = pytest.mark.skipif(os.name == "nt", reason="Windows allows links only to administrators")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """folder/sub/file, folderly (a longer name), other/secret."""
    for name in ("folder/sub", "folderly", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("folder/sub/file", "folderly/file", "other/secret"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "inside", "spelled"),
    [
        ("folder/sub/file", True, True),
        ("folder/sub", True, True),
        ("folder", True, True),
        ("folder/", True, True),
        ("folder/.", True, True),
        ("folder/not there/yet", True, True),
        ("folder/sub/../sub/file", True, True),
        ("folder/../folder/sub", True, True),
        ("other/../folder/sub", True, True),
        ("folder/..", False, False),
        ("folder/../other/secret", False, False),
        ("folderly", False, False),
        ("folderly/file", False, False),
        ("", False, False),
        ("folder/a\0b", False, True),
    ],
)
def test_names(tree: Path, path: str, inside: bool, spelled: bool) -> None:
    assert is_inside(tree / path, tree / "folder") == inside
    assert is_spelled_inside(tree / path, tree / "folder") == spelled
    is_folder = path.rstrip("/.") == "folder" and inside
    assert is_below(tree / path, tree / "folder") == (inside and not is_folder)


@links
def test_links(tree: Path) -> None:
    """A link inside may lead out, one outside may lead in, and a folder may itself be a link."""
    (tree / "folder" / "out").symlink_to(tree / "other")
    (tree / "other" / "in").symlink_to(tree / "folder" / "sub")
    (tree / "alias").symlink_to(tree / "folder")
    (tree / "folder" / "self").symlink_to(tree / "folder")
    (tree / "folder" / "circle").symlink_to(tree / "folder" / "circle")
    (tree / "folder" / "nowhere").symlink_to(tree / "gone")
    assert not is_inside(tree / "folder" / "out" / "secret", tree / "folder")
    assert is_spelled_inside(tree / "folder" / "out" / "secret", tree / "folder")
    assert is_inside(tree / "other" / "in" / "file", tree / "folder")
    assert not is_spelled_inside(tree / "other" / "in" / "file", tree / "folder")
    assert is_inside(tree / "folder" / "sub", tree / "alias") and is_inside(tree / "alias" / "sub", tree / "folder")
    assert is_inside(tree / "alias", tree / "folder") and not is_below(tree / "alias", tree / "folder")
    itself = tree / "folder" / "self"
    assert is_inside(itself, tree / "folder") and not is_below(itself, tree / "folder")
    assert not is_inside(tree / "folder" / "nowhere", tree / "folder")
    is_inside(tree / "folder" / "circle" / "a", tree / "folder")  # versions of Python differ; none may raise
    # after a link, .. is the folder above its target
    assert not is_inside(tree / "folder" / "out" / ".." / "other", tree / "folder")


def test_relative_paths(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "folder")
    assert is_inside(Path("sub"), tree / "folder") and is_spelled_inside(Path("sub"), tree / "folder")
    assert not is_inside(Path("../other"), Path(".")) and not is_spelled_inside(Path("../other"), Path("."))


def test_case_on_windows() -> None:
    """The rule rests on pathlib's: C: and c: are one drive there, and Data and data one folder; not so elsewhere."""
    assert PureWindowsPath("c:\\Data\\x").is_relative_to(PureWindowsPath("C:\\data"))
    assert not PureWindowsPath("D:\\data\\x").is_relative_to(PureWindowsPath("C:\\data"))
    assert not PureWindowsPath("C:\\database").is_relative_to(PureWindowsPath("C:\\data"))
    assert not PurePosixPath("/Data/x").is_relative_to(PurePosixPath("/data"))


@links
def test_every_place_that_asks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New models, new outputs, datasets and the files in them: none goes through a link that leads out."""
    (tree / "folder" / "out").symlink_to(tree / "other")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([str(tree / "folder")], {".safetensors"}))
    with pytest.raises(UserError, match="leads out"):
        folders.new_file("out/a", "vae", ".safetensors")
    assert folders.new_file("sub/a", "vae", ".safetensors") == tree / "folder" / "sub" / "a.safetensors"
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tree / "folder"))
    with pytest.raises(UserError, match="leads out"):
        output.check_output_prefix("out/a")
    with pytest.raises(UserError, match="leads out"):
        output.output_subfolder("out")
    assert output.check_output_prefix("sub/a") == "sub/a" and output.output_subfolder("sub")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tree / "folder"))
    for name in ("out", ".", str(tree / "folder"), str(tree / "other"), "sub/../../other"):
        with pytest.raises(UserError, match="There is no folder"):
            folders.find_dataset(name)
    assert folders.find_dataset("sub") == tree / "folder" / "sub"
    (tree / "folder" / "out.txt").symlink_to(tree / "other" / "secret")
    (tree / "folder" / "sub" / "a.txt").write_text("a caption")
    for name, problem in (("out.mp4", "leads out"), ("sub/a.mp4", None)):
        (tree / "folder" / name).symlink_to(tree / "other" / "secret") if problem else (tree / "folder" / name).touch()
    found, problems = clips.find_clips(tree / "folder")
    assert [clip.name for clip in found] == ["sub/a.mp4"]
    assert [problem[: problem.index(" leads")] for problem in problems] == ["out: it", "out.mp4: it"]
