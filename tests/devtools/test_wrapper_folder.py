"""The section that `dev.py migrate --extra-model-paths` writes: nothing that is in the file is lost or damaged."""

import json
import os
from pathlib import Path
from random import Random

import pytest
import yaml as pyyaml

from cogvideox.devtools import cli, wrapper_folder
from cogvideox.devtools.errors import DevError
from cogvideox.tests.migration.wrapper_flows import TWELVE

LINES = ["diffusers: models/CogVideo", "loras: models/CogVideo/loras"]
SECTION = {"diffusers": "models/CogVideo", "loras": "models/CogVideo/loras"}
WINDOWS = (
    "#Rename this to extra_model_paths.yaml\r\n\r\n# my disks\r\ncomfyui:\r\n"
    "    base_path: C:\\Users\\me\\ComfyUI\\  # a\r\n"
    "    is_default: true\r\n    checkpoints: |\r\n        models\\checkpoints\r\n\r\n        D:\\Modelle für Video\r\n"
)
KEPT = {
    "none": "",
    "comments alone": "# nothing yet\n",
    "ComfyUI's own example": "#a111:\n#    base_path: path/to/a111/\n\ncomfyui:\n#     base_path: path/to/comfyui/\n",
    "without a line end": "mine:\n    checkpoints: elsewhere",
    "Windows": WINDOWS,
    "Windows, without a line end": WINDOWS.rstrip("\r\n"),
    "a document's beginning": "# mine\n---  # here\nmine:\n    loras: D:/loras\n",
    "names in quotes, and with spaces": "'my: disk':\n  loras: x\n\"other\":\n  vae: y\nthird one:\n  vae: z\n",
    "a comment that names the section": "# cogvideox_wrapper:\nmine:\n    # cogvideox_wrapper: no\n    vae: x\n",
    "a path that names the section": "mine:\n    vae: x/cogvideox_wrapper:/y\n    cogvideox_wrapper: z\n",
    "flow in one line": "mine: {vae: x, loras: y}\nother: null\n",
    "flow, null and comments": "a: {} # x\nb: ~ # y\nc: NULL\nd: # {\ne: {vae: '}'}\n",
    "an anchor": "a: &one\n  vae: x\nb: *one\nc: !!map\n  vae: y\n",
}


def folders(text: str) -> dict:
    """What ComfyUI reads in the file: sections, and in them the lines of each category that are not empty."""
    config = pyyaml.safe_load(text) or {}
    return {
        name: {kind: [path for path in str(value).split("\n") if path] for kind, value in (section or {}).items()}
        for name, section in config.items()
    }


@pytest.mark.parametrize("what", KEPT)
def test_what_is_in_the_file_stays(what: str) -> None:
    """Comments, paths with backslashes and line ends are the user's work, and ComfyUI still reads all of it."""
    text = KEPT[what]
    extended = wrapper_folder.extend(Path("x.yaml"), text, LINES).text
    assert extended is not None and extended.startswith(text)
    before, after = folders(text), folders(extended)
    assert after == before | {"cogvideox_wrapper": {name: [path] for name, path in SECTION.items()}}
    assert ("\r\n" in text) == ("\r\n" in extended)
    assert "\n" not in extended.replace("\r\n", "") or "\r\n" not in extended, "one kind of line ends"
    again = wrapper_folder.extend(Path("x.yaml"), extended, LINES)
    assert again == wrapper_folder.Extension(None, [])


@pytest.mark.parametrize(
    "text, line",
    [
        ("- a\n- b\n", 1),
        ("just text\n", 1),
        ("# mine\n  comfyui:\n    vae: x\n", 2),  # a section at the first column would be an error there
        ("mine:\n    vae: x\n...\n", 3),
        ("mine:\n    vae: x\n---\nother:\n", 3),
        ("{mine: {vae: x},\nother: {vae: y}}\n", 1),
        ("mine: {\n  vae: x\n}\n", 1),
        ("%YAML 1.2\n---\nmine:\n", 1),
        ("https://example.org/x\n", 1),
        ("{}", 1),
        ("null\n", 1),
        ("[1]\n", 1),
        ('{"a": {"base_path": "/x"}}', 1),
        ("mine:\n    vae: x\n...", 3),
        ("  mine:\n      vae: x\n", 1),
        ("mine: {vae: x}\nother: x\n", 2),  # ComfyUI reads a text as a section, and does not start
        ('a: "x"\n', 1),
        ("a: [x]\n", 1),
        ("a: |\n  x\n", 1),
        ("a: 1\n", 1),
        ("a: b: c\n", 1),
        ("a: {vae: x} y\n", 1),
        ("a: 'x\nb: y'\n", 1),
        ("? cogvideox_wrapper\n: {vae: x}\n", 1),
        ('"cogvideox\\x5fwrapper":\n  vae: x\n', 1),
        ("!!str cogvideox_wrapper:\n  vae: x\n", 1),
        ("a:\n  vae: x\n# y\x85[1]\n", 4),  # YAML's line ends are more than an editor's
        ("a:\n  vae: x\n# y\u2028[1]\n", 4),
        ("a:\n  vae: x\n  loras: \x00\n", 3),
        ("a:\n  vae: \x1b[2K\n", 2),
    ],
)
def test_file_of_another_kind_is_not_written_to(text: str, line: int) -> None:
    """Behind a list or in a second document, the section would keep ComfyUI from starting."""
    with pytest.raises(DevError, match=f"in its line {line} ") as raised:
        wrapper_folder.extend(Path("x.yaml"), text, LINES)
    assert "by hand:\ncogvideox_wrapper:" in str(raised.value) and "    loras: models/CogVideo/loras" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "section, lacking",
    [
        ("cogvideox_wrapper:\n    diffusers: models/CogVideo\n", LINES[1:]),
        (
            "'cogvideox_wrapper' :\n    diffusers: 'models\\CogVideo\\'  # a\nb:\n    loras: models/CogVideo/loras\n",
            LINES[1:],
        ),
        ("cogvideox_wrapper:\n    # loras: models/CogVideo/loras\n    diffusers: models/CogVideo/\n", LINES[1:]),
        ("cogvideox_wrapper:\n    base_path: D:\\ComfyUI\\models\\CogVideo\n    diffusers: .\n", []),
        ("cogvideox_wrapper:\n", LINES),
        ('"cogvideox_wrapper":\n', LINES),
        ("cogvideox_wrapper :\n", LINES),
        ("cogvideox_wrapper\t:\n", LINES),
        ("# a\u2028cogvideox_wrapper:\n", LINES),
        ("cogvideox_wrapper: # mine\n", LINES),
        ("cogvideox_wrapper: null\n", LINES),
    ],
)
def test_section_of_the_user_s_stays(section: str, lacking: list[str]) -> None:
    """It is told apart from comments and other sections, and what it lacks is named."""
    assert wrapper_folder.extend(Path("x.yaml"), f"a:\n    vae: x\n{section}", LINES) == wrapper_folder.Extension(
        None, lacking
    )


@pytest.mark.parametrize(
    "section, lacking, differing",
    [
        (f"    diffusers: {os.path.abspath('models/CogVideo')}\n    loras: ./models/CogVideo/loras/\n", [], []),
        ("    diffusers: |\n        D:/other\n        models/CogVideo\n", LINES[1:], []),
        ("  loras: >-  # mine\n    models/CogVideo/loras\n\n  diffusers: models/CogVideo\n  vae: x\n", [], []),
        ("    diffusers: D:/other\n", LINES[1:], LINES[:1]),
        ("    'diffusers': |\n        D:/other\n    loras:\n        models/CogVideo/loras\n", [], LINES[:1]),
        ("    diffusers: models/CogVideo/diffusers\n    loras: *others\n", [], LINES),
        ("    <<: *others\n    loras: models/CogVideo/loras\n", [], LINES[:1]),
    ],
)
def test_a_category_that_the_section_has_is_not_added_again(
    section: str, lacking: list[str], differing: list[str]
) -> None:
    """Whole paths and blocks counted as missing; a second line of a category takes the place of the first."""
    found = wrapper_folder.extend(Path("x.yaml"), f"a: &others\n    vae: x\ncogvideox_wrapper:\n{section}", LINES)
    assert found == wrapper_folder.Extension(None, lacking, differing)


@pytest.mark.parametrize("value", [" {diffusers: models/CogVideo}", " *others"])
def test_a_section_without_lines_of_its_own_is_not_said_to_lack_any(value: str) -> None:
    found = wrapper_folder.extend(Path("x.yaml"), f"a: &others\n    vae: x\ncogvideox_wrapper:{value}\n", LINES)
    assert found == wrapper_folder.Extension(None, [], LINES)


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A folder with the wrapper's models, and a workflow beside it."""
    (tmp_path / "ComfyUI" / "models" / "CogVideo" / "loras").mkdir(parents=True)
    (tmp_path / "bear.json").write_text(json.dumps(TWELVE["t2v_2b"]().document()), "utf-8")
    return tmp_path / "ComfyUI"


def migrate(comfyui: Path, yaml: Path, *more: str) -> int:
    return cli.main(["migrate", str(comfyui.parent / "bear.json"), "--extra-model-paths", str(yaml), *more])


def test_writes_the_bytes_that_were_there(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On Windows, text that is written as such would get its line ends twice; the file's rights stay, too."""
    yaml = comfyui / "extra_model_paths.yaml"
    yaml.write_bytes(WINDOWS.encode())
    yaml.chmod(0o600)
    assert migrate(comfyui, yaml) == 0
    section = b"cogvideox_wrapper:  # of ComfyUI-CogVideoXWrapper\r\n    " + b"\r\n    ".join(
        line.encode() for line in LINES
    )
    assert yaml.read_bytes() == WINDOWS.encode() + section + b"\r\n"
    assert os.name == "nt" or yaml.stat().st_mode & 0o777 == 0o600
    assert f"Written: {yaml}, section cogvideox_wrapper. Restart ComfyUI." in capsys.readouterr().out
    yaml.write_bytes(b"cogvideox_wrapper:\n    diffusers: models/CogVideo\n")
    assert migrate(comfyui, yaml, "--overwrite") == 0
    out = capsys.readouterr().out
    assert "has a section cogvideox_wrapper already" in out and out.endswith("    loras: models/CogVideo/loras\n")
    assert yaml.read_bytes() == b"cogvideox_wrapper:\n    diffusers: models/CogVideo\n"
    yaml.write_bytes(b"cogvideox_wrapper:\n    loras: D:/other\n    diffusers: models/CogVideo\n")
    assert migrate(comfyui, yaml, "--overwrite") == 0
    out = capsys.readouterr().out
    assert "missing" not in out and "add the folder to the category that it has" in out
    assert out.endswith("restart ComfyUI.\n    loras: models/CogVideo/loras\n")


def test_failed_write_leaves_the_file(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the file, or none, and ComfyUI would not find the models of all other packs."""
    yaml, synced = comfyui / "extra_model_paths.yaml", []
    yaml.write_text("mine:\n    vae: x\n", "utf-8")

    def full(_: int) -> None:
        synced.append(1)
        if len(synced) == 2:  # the workflow comes first
            raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "fsync", full)
    assert migrate(comfyui, yaml) == 1
    found = capsys.readouterr()
    assert "bear_migrated.json" in found.out and "extra_model_paths.yaml cannot be written" in found.err
    assert "by hand" in found.err and "--out" not in found.err
    assert yaml.read_text("utf-8") == "mine:\n    vae: x\n"
    assert sorted(path.name for path in comfyui.iterdir()) == ["extra_model_paths.yaml", "models"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO")
def test_a_pipe_is_not_waited_for_nor_replaced(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = comfyui / "extra_model_paths.yaml"
    os.mkfifo(yaml)
    assert migrate(comfyui, yaml) == 1
    error = capsys.readouterr().err
    assert "is not a regular file" in error and error.count("\n") == 1 and yaml.is_fifo()


PIECES = (
    "a:",
    "b :",
    '"c":',
    "cogvideox_wrapper:",
    " ",
    "  vae: x",
    "\t",
    "\n",
    "\r\n",
    "\x85",
    "{}",
    "~",
    "[",
    "'",
    '"',
)
PIECES += (
    "#",
    "...",
    "---",
    "x",
    "&a",
    "*a",
    "!!map",
    "|",
    "- ",
    "\u2028",
    "?",
    ": ",
    "{",
    "}",
    ",",
    "null",
    "\\",
    "%",
)


def test_whatever_the_file_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Of files put together by chance, each is refused, or ComfyUI reads in it what it read before, and the section."""
    random, extended, read = Random(0), 0, 0
    for _ in range(4000):
        text = "".join(random.choices(PIECES, k=random.randrange(1, 9)))
        if random.random() < 0.5:
            text = f"mine:\n  loras: x\n{text}"
        try:
            before = pyyaml.safe_load(text)
        except pyyaml.YAMLError:
            continue  # ComfyUI does not start with it, whatever is behind
        read += 1
        try:
            found = wrapper_folder.extend(Path("x.yaml"), text, LINES)
        except DevError:
            continue
        assert before is None or all(isinstance(section, dict | None) for section in before.values()), text
        assert (found.text is None) == ("cogvideox_wrapper" in (before or {})), text
        if found.text is not None:
            assert pyyaml.safe_load(found.text) == {**(before or {}), "cogvideox_wrapper": SECTION}, text
            extended += 1
    assert extended > 50 and read > 400


@pytest.mark.parametrize("contents", [b"mine: \xff\n", b"- a\n", b"x" * (32 * 2**20 + 1), None])
def test_bad_file_is_one_sentence_and_nothing_is_written(
    comfyui: Path, contents: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of that name ended in a traceback, and words about a workflow were said of this file."""
    yaml = comfyui / "extra_model_paths.yaml"
    if contents is None:
        yaml.mkdir()
    else:
        yaml.write_bytes(contents)
    assert migrate(comfyui, yaml) == 1
    error = capsys.readouterr().err
    assert "extra_model_paths.yaml" in error and "workflow" not in error
    assert not (comfyui.parent / "bear_migrated.json").exists()
    assert contents is None or yaml.read_bytes() == contents


def test_the_workflow_is_not_written_over_it(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = comfyui / "extra_model_paths.yaml"
    yaml.write_text("mine:\n    vae: x\n", "utf-8")
    assert migrate(comfyui, yaml, "--out", str(yaml), "--overwrite") == 1
    assert "--extra-model-paths as well" in capsys.readouterr().err
    assert yaml.read_text("utf-8") == "mine:\n    vae: x\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows lets only some users make links")
def test_link_counts_from_its_own_folder(comfyui: Path, tmp_path: Path) -> None:
    """ComfyUI does not follow it for relative paths: beside the link is where the models have to be."""
    yaml, kept = comfyui / "extra_model_paths.yaml", tmp_path / "dotfiles" / "paths.yaml"
    kept.parent.mkdir()
    kept.write_text("mine:\n    vae: x\n", "utf-8")
    yaml.symlink_to(kept)
    assert migrate(comfyui, yaml) == 0
    assert yaml.is_symlink() and pyyaml.safe_load(kept.read_text("utf-8"))["cogvideox_wrapper"] == SECTION
