"""The run itself, against a small server: results, resuming, failures."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import av.error
import pytest

from cogvideox.devtools import cli, paths
from cogvideox.devtools.run import targets, work
from cogvideox.devtools.run.work import Own
from cogvideox.devtools.run_workflow import inspect_video

from .conftest import encode_video

Run = Callable[..., tuple[int, list[dict], str]]


@pytest.fixture
def run(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    """run(arguments...) -> exit status, the results on stdout, stderr: of the inner process, on the small server."""
    monkeypatch.chdir(tmp_path)

    def make(*arguments: str) -> tuple[int, list[dict], str]:
        status = cli.main(["run", "--server", fake.url, *arguments, "--ready", "{}"])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return make


def test_result_is_where_it_was_asked_for(run: Run, fake, tmp_path: Path, picture: Path) -> None:
    status, (result,), err = run("--prompt", "ä star", "--image", "start.png", "--out", "new/clip.mp4", "--seed", "7")
    assert status == 0 and "step" not in err
    clip = tmp_path / "new" / "clip.mp4"
    assert inspect_video(clip).frames == 17
    assert (result["file"], result["seed"]) == (str(clip), 7) and result["seconds"] >= 0
    assert result["settings"]["prompt"] == "ä star" and result["settings"]["model"] == "CogVideoX-nano 5b-I2V"
    assert sorted(path.name for path in clip.parent.iterdir()) == ["clip.mp4", "clip.mp4.json"]
    (graph,), ((name, data),) = fake.graphs, fake.uploads.items()
    assert data == picture.read_bytes()
    assert graph["picture"]["inputs"]["image"] == f"cogvideox_run/{name}"


def test_killed_run_goes_on_where_it_stopped(run: Run, fake, tmp_path: Path) -> None:
    """A night of clips that ends at the last one must not begin again; a clip that a kill has cut must."""
    (tmp_path / "p.txt").write_text('one\n{"prompt": "two", "seed": 2}\nthree\n')
    fake.failing = {"two"}
    command = ("--prompts", "p.txt", "--out", "clips/%03d.mp4", "--steps", "3")
    status, made, err = run(*command)
    assert status == 1 and [Path(result["file"]).name for result in made] == ["001.mp4", "003.mp4"]
    assert "error: clips/002.mp4 was not made: S (node sample) failed: no" in err
    assert "1 of 3 videos were not made" in err.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").iterdir()}
    fake.failing = set()
    status, again, err = run(*command)
    assert status == 0 and [result["seed"] for result in again] == [0, 2, 0]
    assert [again[0], again[2]] == made, "what was there is reported as it was"
    assert fake.prompts == ["one", "two", "three", "two"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    # as a kill right after the record leaves it
    (tmp_path / "clips" / "003.mp4").unlink()
    status, _, _ = run(*command)
    assert status == 0 and fake.prompts[4:] == ["three"]
    assert run(*command)[0] == 0 and len(fake.graphs) == 5


def test_other_settings_are_not_taken_for_the_same(run: Run, fake, tmp_path: Path, picture: Path) -> None:
    """A resumed run with another seed would give back the old video."""
    command = ("--prompt", "a star", "--out", "a.mp4", "--image", "start.png")
    first = run(*command)[1]
    status, results, err = run(*command, "--seed", "1")
    assert (status, results) == (1, []) and "a.mp4 was made with other settings" in err and "--overwrite" in err
    picture.rename(tmp_path / "moved.png")
    status, results, _ = run(*command[:-1], "moved.png")
    assert (status, results) == (0, first), "the picture is the same under another name"
    from PIL import Image

    Image.new("RGB", (80, 48)).save(picture)
    assert run(*command)[0] == 1
    status, (second,), _ = run(*command, "--overwrite")
    assert status == 0 and second["settings"]["image_sha256"] != first[0]["settings"]["image_sha256"]
    assert len(fake.graphs) == 2
    (tmp_path / "a.mp4").write_bytes(b"cut by something else")
    status, _, err = run(*command)
    assert status == 1 and "has changed since" in err


def test_files_of_others_stay(run: Run, fake, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"theirs")
    (tmp_path / "b.mp4.json").write_text("theirs")
    for name in ("a.mp4", "b.mp4"):
        status, results, err = run("--prompt", "a star", "--out", name)
        assert (status, results) == (1, []) and "exists already" in err
    assert not fake.graphs, "it is found before anything is made"
    assert (tmp_path / "a.mp4").read_bytes() == b"theirs" and (tmp_path / "b.mp4.json").read_text() == "theirs"
    assert run("--prompt", "a star", "--out", "a.mp4", "--overwrite")[0] == 0
    assert inspect_video(tmp_path / "a.mp4").frames == 17


def test_file_that_appears_meanwhile_stays(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs into one folder: the second must not replace what the first has made while it ran."""
    monkeypatch.setattr(work, "check_free", lambda *_: (tmp_path / "a.mp4").write_bytes(b"theirs"))
    status, results, err = run("--prompt", "a star", "--out", "a.mp4")
    assert (status, results) == (1, []) and "it is not overwritten" in err
    assert (tmp_path / "a.mp4").read_bytes() == b"theirs"


def test_half_a_video_is_none(run: Run, fake, tmp_path: Path) -> None:
    """A connection that breaks would leave a file that no player opens, taken for done ever after."""
    fake.damaged = {"a star"}
    status, results, err = run("--prompt", "a star", "--out", "a.mp4")
    assert (status, results) == (1, []) and "the server sent no video that can be read" in err
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_playlist_that_the_server_sends_opens_nothing(run: Run, fake, tmp_path: Path) -> None:
    """FFmpeg opens and decodes what it names: any file of this machine, chosen by whatever answers as the server."""
    (tmp_path / "mine.mp4").write_bytes(encode_video(17))
    with pytest.raises(av.error.FFmpegError):
        (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile mine.mp4\n")
        inspect_video(tmp_path / "list.mp4")
    for number, text in enumerate(
        f"ffconcat version 1.0\nfile {name}\n" for name in ("mine.mp4", f"file:{tmp_path / 'mine.mp4'}")
    ):
        fake.sent = text.encode()
        status, results, err = run("--prompt", "a star", "--out", f"{number}.mp4")
        assert (status, results) == (1, []) and "the server sent no video that can be read" in err
        assert not (tmp_path / f"{number}.mp4").exists()


@pytest.mark.parametrize("output", [["a"], "text", 7])
def test_an_output_of_another_kind_costs_its_clip_alone(run: Run, fake, tmp_path: Path, output: object) -> None:
    """It ended in a traceback, and the clips after it were not made."""
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    fake.answers = {"one": output}
    status, results, err = run("--prompts", "p.txt", "--out", "out/")
    assert status == 1 and [Path(result["file"]).name for result in results] == ["0002.mp4"]
    assert "0001.mp4 was not made: the server does not answer as ComfyUI does" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/object_info/CogVideoXApplyLora", 500, "The server's lists of models could not be read: http"),
        ("/object_info/CogVideoXApplyLora", 200, "does not answer as ComfyUI does"),
        ("/upload/image", 413, "a.mp4 was not made: 0 MB could not be uploaded: http"),
        ("/upload/image", 200, "0 MB could not be uploaded: http"),
        ("/prompt", 200, "a.mp4 was not made: the server does not answer as ComfyUI does"),
        ("/prompt", 500, "a.mp4 was not made: the server does not answer as ComfyUI does"),
        ("/ws", 502, "went away (502"),
        ("/view", 404, "run 1.mp4 could not be downloaded: http"),
    ],
)
def test_server_that_breaks_is_a_sentence(
    run: Run, fake, tmp_path: Path, picture: Path, path: str, status: int, words: str
) -> None:
    """A proxy in front of it answers with pages of its own; a traceback says nothing of which video is missing."""
    fake.broken = {path: (status, "<html>")}
    ended, results, err = run("--prompt", "a star", "--image", picture.name, "--out", "a.mp4")
    assert (ended, results) == (1, []) and words in err and "Traceback" not in err
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="closed pipes of POSIX")
def test_reader_that_ends_is_no_traceback(fake, tmp_path: Path) -> None:
    """`dev.py run ... | head -1`: what was made is kept."""
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    command = [sys.executable, str(paths.ROOT / "dev.py"), "run", "--prompts", "p.txt", "--server", fake.url]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [*command, "--out", "out/", "--ready", "{}"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1].startswith("error: The program that reads")
    assert inspect_video(tmp_path / "out" / "0001.mp4").frames == 17 and len(fake.graphs) == 1


def test_name_that_the_server_lacks_is_answered_with_its_list(run: Run, fake) -> None:
    fake.lists["pipeline"] = ["CogVideoX-5b", *fake.lists["pipeline"]]
    status, _, err = run("--prompt", "a", "--model", "CogVideoX-9b", "--out", "a.mp4")
    assert status == 1 and "which is not in the server's list: CogVideoX-5b, CogVideoX-nano 5b" in err
    assert not fake.graphs


def test_wrong_picture_is_found_before_a_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its start takes half a minute; and a name in no list of the clone's folders is found too."""
    monkeypatch.setattr(paths, "BASE", tmp_path)
    monkeypatch.setattr(work, "running_server", lambda *_, **__: pytest.fail("it started"))
    monkeypatch.setattr(work, "local_lists", lambda *_: {"pipeline": ["CogVideoX-nano 5b"], "lora": ["x"]})
    (tmp_path / "no.png").write_text("no picture")
    own = json.dumps(Own(str(tmp_path), str(tmp_path / "models"), None).__dict__)
    command = ["run", "--prompt", "a", "--out", str(tmp_path / "out.mp4"), "--ready", own]
    assert cli.main([*command, "--image", str(tmp_path / "no.png")]) == 1
    assert f"--image names {tmp_path / 'no.png'}, which is not a picture" in capsys.readouterr().err
    assert cli.main([*command, "--lora", "y"]) == 1
    assert "--lora is 'y', which is not in the server's list: x." in capsys.readouterr().err


def test_own_server_runs_once_for_all_and_keeps_no_copies(
    fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Models of the user's ComfyUI are passed to it; what it saves below the clone nobody would ever delete; and where
    everything is there already it need not start."""
    monkeypatch.setattr(paths, "BASE", tmp_path)
    starts: list[dict[str, Any]] = []

    def running_server(host: Path, base: Path, **options: Any) -> Any:
        extra = options["arguments"][1]
        starts.append({"host": host, "extra": json.loads(Path(extra).read_text("utf-8"))})
        return nullcontext(fake)

    monkeypatch.setattr(work, "running_server", running_server)
    saved = tmp_path / "output" / "cogvideox_run"
    saved.mkdir(parents=True)
    for number in (1, 2):
        (saved / f"run {number}.mp4").touch()
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    own = json.dumps(Own(str(tmp_path / "host"), str(tmp_path / "theirs" / "models"), None).__dict__)
    command = ["run", "--prompts", str(tmp_path / "p.txt"), "--out", f"{tmp_path / 'out'}/", "--ready", own]
    assert cli.main(command) == 0
    assert [json.loads(line)["file"][-8:] for line in capsys.readouterr().out.splitlines()] == ["0001.mp4", "0002.mp4"]
    (start,) = starts
    assert start["extra"]["cogvideox"]["loras"] == str(tmp_path / "theirs" / "models" / "loras")
    assert not list(saved.iterdir())
    assert cli.main(command) == 0 and len(starts) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert not list(tmp_path.glob("run-*")), "nothing of a run stays in the base directory"


@pytest.mark.parametrize("place", ["victims", "output", "output/cogvideox_run/../other"])
def test_nothing_but_its_own_copy_is_deleted(
    fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, place: str
) -> None:
    """The name comes from a server; whatever answers in its place must not delete a file of its choice."""
    monkeypatch.setattr(paths, "BASE", tmp_path)
    monkeypatch.setattr(work, "running_server", lambda *_, **__: nullcontext(fake))
    (tmp_path / "output" / "cogvideox_run").mkdir(parents=True)
    victim = tmp_path / place / "run 1.mp4"
    victim.parent.mkdir(exist_ok=True)
    victim.write_bytes(b"somebody's")
    fake.saved = {"subfolder": os.path.relpath(victim.parent, tmp_path / "output")}
    own = json.dumps(Own(str(tmp_path), str(tmp_path / "models"), None).__dict__)
    assert cli.main(["run", "--prompt", "a", "--out", str(tmp_path / "a.mp4"), "--ready", own]) == 1
    assert "a.mp4 was not made: The server names a file" in capsys.readouterr().err
    assert victim.read_bytes() == b"somebody's"


@pytest.mark.parametrize("saved", [{"subfolder": None}, {"filename": ["a"]}, {"type": 7}])
def test_a_saved_file_without_a_name_is_none(run: Run, fake, saved: dict[str, object]) -> None:
    """It ended in a traceback, and the clips after it were not made."""
    fake.saved = saved
    status, results, err = run("--prompt", "a", "--out", "a.mp4")
    assert (status, results) == (1, []) and "a.mp4 was not made: the server has saved no video" in err


def test_a_server_commands_no_terminal(run: Run, fake) -> None:
    """Its messages are printed: escape sequences in them would write into the title, or more."""
    fake.error = "no \x1b]0;title\x07 memory \x9b2J"
    fake.failing = {"a"}
    _, _, err = run("--prompt", "a", "--out", "a.mp4")
    assert "no \ufffd]0;title\ufffd memory \ufffd2J" in err and "\x1b" not in err


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ended_run_is_ended_on_the_server_too(fake, tmp_path: Path, how: signal.Signals) -> None:
    """Otherwise somebody's card works an hour for a video that nobody waits for."""
    fake.hanging = {"a star"}
    command = [sys.executable, str(paths.ROOT / "dev.py"), "run", "--prompt", "a star", "--server", fake.url]
    command += ["--out", str(tmp_path / "a.mp4"), "--ready", "{}"]
    environ = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environ)
    assert process.stderr is not None
    while b"(node sample)" not in (line := process.stderr.readline()):
        assert line, "it ended"
    process.send_signal(how)
    try:
        assert process.wait(60) != 0
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it prints where it waits
        pytest.fail(f"It did not end: {process.communicate()[1].decode()}")
    process.stderr.close()
    assert fake.cancelled == [{"delete": ["run 1"]}, {"prompt_id": "run 1"}]
    assert not list(tmp_path.iterdir())


def test_number_counts_the_prompts(tmp_path: Path) -> None:
    """A folder sorts as the prompts do; a % that is part of a name stays."""
    planned = targets.plan_targets(str(tmp_path / "100%done %03d" / "%02d.mp4"), 2)
    assert [target.path.relative_to(tmp_path).as_posix() for target in planned] == [
        "100%done %03d/01.mp4",
        "100%done %03d/02.mp4",
    ]
    (one,) = targets.plan_targets(str(tmp_path / "100%done.mp4"), 1)
    assert one.path.name == "100%done.mp4"
