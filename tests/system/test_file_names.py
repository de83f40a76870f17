"""Names that a workflow chooses for files: the same rule for every file that the pack writes."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host import folders, output
from cogvideox.host.output import check_output_prefix, new_output_path, output_subfolder
from cogvideox.model_loaders.files.safetensors_writer import write_tensors
from cogvideox.nodes import NODES, train
from cogvideox.nodes.decode_to_file import CogVideoXDecodeToFile
from cogvideox.nodes.lora import CogVideoXSaveLora
from cogvideox.system.file_names import check_file_name
from cogvideox.tests.support import validated

BAD = {
    "empty": "",
    "spaces": "   ",
    "parent": "../a",
    "parent inside": "a/../../b",
    "parent of windows": "..\\a",
    "absolute": "/etc/a",
    "drive": "C:/a",
    "stream of a file on windows": "a/b:c",
    "folder": "a/",
    "hidden": ".bashrc",
    "hidden folder": ".ssh/authorized_keys",
    "option": "-rf",
    "newline": "a\nb",
    "nul": "a\0b",
    "escape sequence": "\x1b[2Ja",
    "line separator": "a\u2028b",
    "right to left": "a\u202egpj",
    "markup": "<img src=x onerror=alert(1)>",
    "question mark": "a?",
    "device": "con",
    "device with a suffix": "loras/NUL.safetensors",
    "numbered device": "com1",
    "dot at the end": "a.",
    "space at the end": "a /b",
    "long": "x" * 250,
    "long in bytes": "视" * 80,
    "deep": "a/" * 600 + "a",
    "half a letter": "a\ud800",
    "space of no width": "a\u200bb",
    "mark of byte order": "a\ufeffb",
    "soft hyphen": "a\u00adb",
    "word joiner": "a\u2060b",
    "tag": "a\U000e0041b",
    "filler": "a\u3164b",
    "empty braille": "\u2800",
    "joiner of letters that are not joined": "a\u200db",
    "joiner at the end": "می\u200c",
    "joiners in a row": "می\u200c\u200cخواهم",
    "clock": "clock$",
    "clock with a suffix": "loras/CLOCK$.safetensors",
}
GOOD = (
    *("a", "a/b", "a\\b", " a ", "loras/v1.5 (final)", "%year%-%month%/v", "视频/猫", "a-b", "console", "v.1"),
    *("می\u200cخواهم", "👨\u200d👩\u200d👧", "❤\ufe0f\u200d🔥", "क्\u200dष", "e\u0301", "clock"),
)
links = pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
bad = pytest.mark.parametrize("name", BAD.values(), ids=BAD)


@bad
def test_bad_names(name: str) -> None:
    """One sentence for what some system cannot store, what hides a file, and what leads out of the folder."""
    with pytest.raises(UserError, match="is not a valid file name: .*as in my/name") as caught:
        check_file_name(name, "my/name")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", GOOD)
def test_good_names(name: str) -> None:
    """Users have dates, dots, brackets and their own alphabet in names."""
    assert check_file_name(name, "a") == name.strip().replace("\\", "/")


def refuse_checkpoint(name: str) -> None:
    if name.strip():  # none is a choice
        train.check_checkpoint_name(name)
    else:
        raise UserError("checkpoint_name is empty")


WRITERS: dict[str, Callable[[str], object]] = {
    "output": lambda name: new_output_path(name, ".safetensors"),
    "prefix": check_output_prefix,
    "model": lambda name: folders.new_file(name, "diffusion_models", ".safetensors"),
    "trained LoRA": train.new_lora_path,
    "checkpoint": refuse_checkpoint,
}


@bad
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_file_that_is_written(writer: Callable[[str], object], name: str, tmp_path: Path) -> None:
    """A name that one node refuses must not be accepted by another."""
    with pytest.raises(UserError, match="valid file name|checkpoint_name is"):
        writer(name)


NAMED = {"CogVideoXSaveLora", "CogVideoXSaveModel", "CogVideoXSaveTrainedLora", "CogVideoXDecodeToFile"}


def test_names_are_checked_when_the_prompt_is_queued() -> None:
    """Not after an hour of sampling or training. Every text input that names a file is among them."""
    found = set()
    for node in NODES:
        for name in ("filename_prefix", "name", "checkpoint_name"):
            schema = node.define_schema()
            if name in {entry.id for entry in schema.inputs}:
                found.add(node.__name__)
                value: Any = ["a\nb"] if schema.is_input_list else "a\nb"
                assert "letters, digits" in str(validated(node, **{name: value})), node
    assert found == NAMED | {"CogVideoXTrainLora"}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside of ComfyUI's, to which a link leads from each of its folders."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("output", "diffusion_models", "loras"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "link").symlink_to(elsewhere, target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    for category in ("diffusion_models", "loras"):
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, category, ([str(tmp_path / category)], {".safetensors"})
        )
    return elsewhere


@links
@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "checkpoint"])
def test_links_lead_nowhere(outside: Path, writer: str) -> None:
    """A folder of a downloaded archive may be a link; a new file must not appear where it leads."""
    with pytest.raises(UserError, match="leads out of"):
        WRITERS[writer]("link/a")
    assert not list(outside.iterdir())


@links
def test_links_lead_no_training_elsewhere(outside: Path) -> None:
    """Checkpoints have gigabytes, and folders with the same names in another place would be taken for their own."""
    with pytest.raises(UserError, match="leads out of ComfyUI's output folder"):
        output_subfolder("link", "training")
    with pytest.raises(UserError, match="leads out of ComfyUI's output folder"):
        output_subfolder("link")
    assert output_subfolder("cogvideox_training", "mine").parts[-2:] == ("cogvideox_training", "mine")


@links
@pytest.mark.parametrize("node", [CogVideoXSaveLora, CogVideoXDecodeToFile])
def test_checking_makes_no_folder(outside: Path, node: Any) -> None:
    """A prompt that is only queued, and perhaps refused for something else, leaves nothing behind."""
    output = outside.parent / "output"
    assert validated(node, filename_prefix="new/name") is True
    assert sorted(path.name for path in output.iterdir()) == ["link"]


NUMBERED = {
    "none": [],
    "gaps": ["v_00001_.mp4", "v_00007_.safetensors"],
    "kinds": ["v_00002.safetensors", "v_00003", "v_4_x.png"],
    "others": ["w_00009_.mp4", "av_00009_.mp4", "v_00009x_.mp4", "v_x_00009_.mp4", "v-00009_.mp4", "v.00009.mp4"],
    "seeds": ["v_18446744073709551615_00001_.mp4"],
    "case": ["V_00005_.mp4"],
}


@pytest.mark.parametrize("prefix", ["v", "sub/v"])
@pytest.mark.parametrize("names", NUMBERED.values(), ids=NUMBERED)
def test_numbers_are_those_of_comfyui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], prefix: str
) -> None:
    """A video of ours and a picture of ComfyUI's that belong together have one number."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    folder = (tmp_path / prefix).parent
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    theirs, stem, counter, _, _ = folder_paths.get_save_image_path(prefix, str(tmp_path))
    assert new_output_path(prefix, ".mp4") == Path(theirs) / f"{stem}_{counter:05}_.mp4"


def test_a_number_that_the_list_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS V_00001_.mp4 has the name v_00001_.mp4 as well."""
    (tmp_path / "v_00001_.mp4").touch()
    monkeypatch.setattr(os, "listdir", lambda _: ["V_00001_.mp4"])
    assert output.numbered_path(tmp_path, "v", "_.mp4").name == "v_00002_.mp4"


def test_a_number_that_is_taken_while_the_file_is_written(tmp_path: Path) -> None:
    """Of two runs with one prefix, the second one lost the LoRA that it had merged for minutes."""
    theirs = tmp_path / "v_00001.safetensors"

    def write(path: Path) -> int:
        theirs.write_bytes(b"theirs")
        return write_tensors(path, {"a": torch.zeros(2)}, {})

    path, size = output.write_numbered(lambda: output.numbered_path(tmp_path, "v", ".safetensors"), write)
    assert theirs.read_bytes() == b"theirs" and path.name == "v_00002.safetensors" and path.stat().st_size == size
    with pytest.raises(UserError, match="another reason"):
        output.write_numbered(lambda: tmp_path / "w", lambda _: fail_for("another reason"))


def test_another_error_while_something_is_there(tmp_path: Path) -> None:
    """A full disk, and a name that is taken besides: the LoRA was written again and again."""
    tries: list[Path] = []

    def write(path: Path) -> None:
        path.touch()
        tries.append(path)
        assert len(tries) == 1, "it is tried again"
        fail_for("The disk is full")

    with pytest.raises(UserError, match="The disk is full"):
        output.write_numbered(lambda: tmp_path / "v", write)


def fail_for(reason: str) -> None:
    raise UserError(reason)


def test_dates_are_filled_in(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the frontend does for ComfyUI's own save nodes; for those of packs it leaves %date:...% as it is."""
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((2026, 3, 9, 7, 5, 2, 0, 68, 0)))
    assert check_output_prefix("%date:yyyy-MM-dd%/%date:hhmmss%_%date:d.M.yy%") == "2026-03-09/070502_9.3.26"
    with pytest.raises(UserError, match="it contains :"):
        check_output_prefix("%date:hh:mm%")
