"""dev.py run: values, names and files that no program should fall over, whoever has written them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.devtools import cli
from cogvideox.devtools.run import requests
from cogvideox.devtools.run.options import OPTIONS, Lora
from cogvideox.devtools.run.requests import read_requests
from cogvideox.devtools.run.targets import plan_targets
from cogvideox.devtools.run_workflow import inspect_video

ONE = ("--prompt", "a star")
NESTED = '{"sha256": "", "settings": {"a": ' + "[" * 900 + "]" * 900 + "}}"
POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has neither FIFOs nor names that are no text")
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": null}', "prompt in line 1 of p.txt is null: give a text in quotes, or leave the key out."),
        ('{"prompt": "a", "negative": null}', "negative in line 1 of p.txt is null"),
        ('{"prompt": "a", "steps": null}', "steps in line 1 of p.txt is null: give one value"),
        ('{"prompt": "a", "lora": null}', "lora in line 1 of p.txt is null: give a text"),
        ('{"prompt": {"a": 1}}', "prompt in line 1 of p.txt is an object"),
        ('{"prompt": 5}', "prompt in line 1 of p.txt is a number"),
        ('{"prompt": NaN}', "prompt in line 1 of p.txt is a number"),
        ('{"prompt": true}', "prompt in line 1 of p.txt is true or false"),
        ('{"prompt": "a", "model": 5.0}', "model in line 1 of p.txt is a number"),
        ('{"prompt": "a", "image": false}', "image in line 1 of p.txt is true or false"),
        ('{"prompt": "a", "lora": [["b"]]}', "An entry of lora in line 1 of p.txt is a list: give a text"),
        ('{"prompt": "a", "lora": ["b", {"c": 1}]}', "An entry of lora in line 1 of p.txt is an object"),
        ('{"prompt": "a", "lora": ["b", null]}', "An entry of lora in line 1 of p.txt is null"),
        ('{"prompt": ["a"]}', "prompt in line 1 of p.txt is a list: give one value."),
        ('{"prompt": "a", "seed": {"value": 1}}', "seed in line 1 of p.txt is an object: give one value"),
        ('{"prompt": "a", "steps": 1e999}', "steps in line 1 of p.txt is 'Infinity'"),
        ('{"prompt": "a", "cfg": NaN}', "cfg in line 1 of p.txt is 'NaN'"),
    ],
)
def test_value_of_another_kind_is_no_text(refused: Refused, tmp_path: Path, line: str, words: str) -> None:
    """A prompt that a script never set was painted as the word "null"."""
    (tmp_path / "p.txt").write_text(line)
    message = refused("--prompts", "p.txt")
    assert message.startswith(words), message


def test_values_of_json_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(
        '{"prompt": "a", "lora": "b:0.5", "steps": 4, "cfg": 5, "dynamic_cfg": true, "seed": "7", "fps": 8.5}\n'
        '{"prompt": "null", "lora": []}'
    )
    first, second = read_requests(cli.parse(["run", "--out", "x/", "--prompts", str(tmp_path / "p.txt")])[0])
    given = {"lora": (Lora("b", 0.5),), "steps": 4, "cfg": 5.0, "dynamic_cfg": True, "seed": 7, "fps": 8.5}
    assert first.values == {"prompt": "a", **given}
    assert second.values == {"prompt": "null", "lora": ()}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("depth", [2, 20, 900, 100_000])
def test_lists_in_lists_take_no_memory(refused: Refused, tmp_path: Path, name: str, depth: int) -> None:
    """A line of 500 letters took all memory, because each level doubled the text; others ended in a RecursionError."""
    before = "" if name == "prompt" else '"prompt": "a", '
    (tmp_path / "p.txt").write_text("".join(("{", before, f'"{name}": ', "[" * depth, "]" * depth, "}")))
    message = refused("--prompts", "p.txt")
    assert "is a list: give" in message or "is not JSON" in message, message
    assert len(message) < 300


def test_a_file_of_very_many_prompts_is_divided(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB may have 32 million lines, and each takes a kilobyte."""
    assert requests._MAX_PROMPTS == 100_000
    monkeypatch.setattr(requests, "_MAX_PROMPTS", 3)
    (tmp_path / "p.txt").write_text("a\n# no prompt\nb\n\nc\n")
    assert len(read_requests(cli.parse(["run", "--out", "x/", "--prompts", "p.txt"])[0])) == 3
    (tmp_path / "p.txt").write_text("a\nb\nc\nd\n")
    assert "p.txt, which has more than 3 prompts: divide it." in refused("--prompts", "p.txt")


def test_limits_are_those_of_the_nodes() -> None:
    """What a widget takes and the command refuses cannot be made with it; the other way round, a server is started for
    nothing."""
    from comfy_api.latest import io

    from cogvideox.nodes import lora, sample
    from cogvideox.sockets.tokenizer import MAX_CHARACTERS

    sampler = {entry.id: entry for entry in sample.CogVideoXSample.GET_SCHEMA().inputs}
    (strength,) = (entry for entry in lora.CogVideoXApplyLora.GET_SCHEMA().inputs if entry.id == "strength")
    assert isinstance(strength, io.Float.Input)
    for name in ("steps", "cfg", "seed", "denoise"):
        widget = sampler[name]
        assert isinstance(widget, (io.Int.Input, io.Float.Input))
        assert OPTIONS[name].read(str(widget.max)) == widget.max
        beyond = widget.max + 1 if isinstance(widget.max, int) else widget.max * 1.001
        below = widget.min - 1 if name != "denoise" else 0  # at which the node runs no step
        for value in (beyond, below, "inf", "nan"):
            with pytest.raises(ValueError, match="give a "):
                OPTIONS[name].read(str(value))
        if name != "denoise":
            assert OPTIONS[name].read(str(widget.min)) == widget.min
    for value in (strength.min, strength.max):
        assert OPTIONS["lora"].read(f"style:{value}") == Lora("style", value)
    for value in (strength.min * 1.01, strength.max * 1.01, "1e308", "inf", "-inf"):
        with pytest.raises(ValueError, match="is not from -100 to 100; write NAME or"):
            OPTIONS["lora"].read(f"style:{value}")
    for name in ("prompt", "negative"):
        assert len(OPTIONS[name].read("a" * MAX_CHARACTERS)) == MAX_CHARACTERS
        with pytest.raises(ValueError, match=f"it has {MAX_CHARACTERS + 1} characters"):
            OPTIONS[name].read("a" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize(
    "option", [("--denoise", "0"), ("--denoise", "-0.0"), ("--lora", "x:1e308"), ("--lora", "x:inf")]
)
def test_values_without_sense_are_named(refused: Refused, option: tuple[str, str]) -> None:
    assert refused(*ONE, *option).startswith(f"{option[0]} is '{option[1]}': ")


def test_sizes_of_any_length(refused: Refused) -> None:
    """Python reads no number of 5000 digits, and says so in words about itself."""
    for size in ("16385x16", f"{'9' * 5000}x16"):
        assert "give sides of at most 16384 pixels" in refused(*ONE, "--size", size)


@pytest.mark.parametrize("name", ["prompt", "negative"])
def test_half_a_character_is_refused_before_any_work(refused: Refused, tmp_path: Path, name: str) -> None:
    """The clip was made, and then lost with all the others, because its record could not be written."""
    (tmp_path / "p.txt").write_text(f'{{"prompt": "a", "{name}": "a \\ud800"}}')
    assert "its character 3 cannot be encoded" in refused("--prompts", "p.txt")
    assert "its character 3 cannot be encoded" in refused("--prompt", "a", f"--{name}", "a \udcff")
    (tmp_path / "p.txt").write_text(f'{{"prompt": "a", "{name}": "a \\ud83d\\ude00"}}')
    (request,) = read_requests(cli.parse(["run", "--out", "x/", "--prompts", "p.txt"])[0])
    assert request.values[name] == "a \U0001f600", "two halves are one"


def results(fake, *arguments: str) -> tuple[int, list[dict]]:
    """What the command prints where stdout takes ASCII alone."""
    root = Path(cli.__file__).parents[1]
    command = [sys.executable, str(root / "dev.py"), "run", "--server", fake.url, *arguments]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "COGVIDEOX_DEV_START": "0"}
    ended = subprocess.run(command, capture_output=True, env=environ)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


@POSIX
def test_names_that_are_no_text_are_kept(fake, tmp_path: Path, picture: Path) -> None:
    """A disk from elsewhere has names of other encodings: the clip, its record, and going on by it."""
    image = os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.png")
    picture.rename(image)
    out = os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.mp4")
    arguments = ("--prompt", "ä \u202e", "--image", image, "--out", out)
    status, (made,) = results(fake, *arguments)
    assert status == 0 and made["file"] == out and made["settings"]["image"] == image
    assert made["settings"]["prompt"] == "ä \u202e"
    assert json.loads(Path(out + ".json").read_bytes().decode("ascii")) == made
    assert inspect_video(Path(out)).frames == 17
    assert results(fake, *arguments) == (0, [made]) and len(fake.graphs) == 1


@pytest.mark.parametrize("name", ["~nosuch/x", "~nosuch", "x" * 300, "x" * 5000, "a/" * 3000 + "x"])
def test_paths_that_no_disk_has_are_one_sentence(refused: Refused, tmp_path: Path, name: str) -> None:
    """pathlib raises a RuntimeError for the home of nobody, and an OSError for a name that is too long."""
    for option in ("--image", "--video"):
        assert refused(*ONE, option, name).startswith(f"{option} names {name}, which is not there")
        (tmp_path / "p.txt").write_text(json.dumps({"prompt": "a", option[2:]: name}))
        assert f"{option[2:]} in line 1 of p.txt names {name}, which is not there" in refused("--prompts", "p.txt")
    assert refused("--prompts", name).startswith(f"--prompts names {name}, which cannot be read: ")
    assert f"--media-folder names {name}, which is not a folder" in refused(*ONE, "--media-folder", name)


@POSIX
@pytest.mark.parametrize("named", ["--image", "--video"])
def test_a_pipe_is_no_file(refused: Refused, tmp_path: Path, named: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert f"{named} names pipe, which is no file: " in refused(*ONE, named, "pipe")


@pytest.mark.parametrize("length", [300, 251, 220])
def test_out_that_is_too_long_is_found_first(refused: Refused, length: int) -> None:
    """The record has the longer name, and a file that is being written the longest: both were met after the work."""
    name = "x" * (length - 4) + ".mp4"
    assert refused(*ONE, out=name).startswith(f"--out: {name}")
    assert "nothing can be written to" in refused(*ONE, out="y" * 300 + "/")


def test_the_longest_out_can_be_written(fake, tmp_path: Path) -> None:
    out = tmp_path / f"{'x' * 214}.mp4"
    assert results(fake, *ONE, "--out", str(out))[0] == 0 and out.is_file()


@POSIX
@pytest.mark.parametrize("name", ["0001.mp4", "0001.mp4.json"])
@pytest.mark.parametrize("through_link", [False, True])
def test_out_that_is_no_file_stays(refused: Refused, tmp_path: Path, name: str, through_link: bool) -> None:
    """--overwrite would put a file in the place of a device; a pipe would be read for ever."""
    (tmp_path / "out").mkdir()
    pipe = tmp_path / "out" / name
    os.mkfifo(tmp_path / "pipe" if through_link else pipe)
    if through_link:
        pipe.symlink_to(tmp_path / "pipe")
    assert f"--out: out/{name} is a device or a pipe" in refused(*ONE, "--overwrite", out="out/")
    assert pipe.is_fifo() and pipe.is_symlink() == through_link


@POSIX
def test_results_are_written_through_links(fake, refused: Refused, tmp_path: Path) -> None:
    """Whose output is a link to another disk keeps it there."""
    (tmp_path / "disk").mkdir()
    for name in ("a.mp4", "a.mp4.json"):
        (tmp_path / "disk" / name).write_text("old")
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    assert results(fake, *ONE, "--out", str(tmp_path / "a.mp4"), "--overwrite")[0] == 0
    assert (tmp_path / "a.mp4").is_symlink() and inspect_video(tmp_path / "disk" / "a.mp4").frames == 17
    assert "sha256" in json.loads((tmp_path / "disk" / "a.mp4.json").read_text())
    (tmp_path / "b.mp4").symlink_to(tmp_path / "gone" / "b.mp4")
    (tmp_path / "c.mp4").symlink_to(tmp_path / "c.mp4")
    assert "--out: b.mp4 is a link to a folder that is not there" in refused(*ONE, "--overwrite", out="b.mp4")
    assert "--out: c.mp4 cannot be written (" in refused(*ONE, "--overwrite", out="c.mp4")


@pytest.mark.parametrize("record", ["[" * 5000, NESTED, "\ud800"])
def test_an_invalid_record_is_somebody_elses(fake, tmp_path: Path, record: str) -> None:
    """It ended in a RecursionError before anything was made."""
    (tmp_path / "a.mp4.json").write_bytes(record.encode("utf-8", "surrogatepass"))
    assert results(fake, *ONE, "--out", str(tmp_path / "a.mp4")) == (1, [])
    assert not fake.graphs
    assert results(fake, *ONE, "--out", str(tmp_path / "a.mp4"), "--overwrite")[0] == 0


@pytest.mark.parametrize("answer", ["[" * 50_000, "5", "null", '{"a":' * 50_000])
@pytest.mark.parametrize(
    "path", ["/system_stats", "/object_info/CogVideoXLoadPipeline", "/upload/image", "/prompt", "refused prompt"]
)
def test_server_that_answers_anything_is_a_sentence(
    refused: Refused, fake, capsys: pytest.CaptureFixture, picture: Path, path: str, answer: str
) -> None:
    """Python gives up JSON of so many levels with an unusual error."""
    fake.broken = {path.replace("refused prompt", "/prompt"): (400 if path == "refused prompt" else 200, answer)}
    arguments = (*ONE, "--server", fake.url, "--image", picture.name)
    if path.startswith(("/system", "/object")):
        assert f"{fake.url} answers, and not as ComfyUI does" in refused(*arguments)
    else:
        assert cli.main(["run", "--out", "a.mp4", *arguments, "--ready", "{}"]) == 1
        assert "a.mp4 was not made: " in capsys.readouterr().err


def test_home_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.png").touch()
    (request,) = read_requests(cli.parse(["run", *ONE, "--out", "~/x.mp4", "--image", "~/a.png"])[0])
    assert request.file("image") == tmp_path / "a.png"
    assert plan_targets("~/x.mp4", 1)[0].path == tmp_path / "x.mp4"
