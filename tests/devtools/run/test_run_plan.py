"""dev.py run: bad input is one sentence, before anything is installed or started."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cogvideox.devtools import cli
from cogvideox.devtools.paths import ROOT
from cogvideox.devtools.run import remote
from cogvideox.devtools.run.options import Lora
from cogvideox.devtools.run.requests import Request, read_requests
from cogvideox.devtools.run.run_plan import NEEDED

ONE = ("--prompt", "a star")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("There is no prompt", "--prompt or --prompts")),
        ((*ONE, "--lora", "style:strong"), ("--lora is 'style:strong'", "'strong' is not a number", "style:0.8")),
        ((*ONE, "--lora", "style:nan"), ("'nan' is not a number",)),
        ((*ONE, "--lora", ":0.5"), ("has no name",)),
        ((*ONE, "--steps", "many"), ("--steps is 'many'", "from 1 to 1000")),
        ((*ONE, "--steps", "0"), ("--steps is '0'", "from 1 to 1000")),
        ((*ONE, "--cfg", "nan"), ("--cfg is 'nan'", "from 0 to 100")),
        ((*ONE, "--fps", "1000"), ("--fps is '1000'", "from 1 to 120")),
        ((*ONE, "--seed", "-1"), ("--seed is '-1'",)),
        ((*ONE, "--sampler", "euler"), ("--sampler is 'euler'", "ddim or dpm")),
        ((*ONE, "--weight-dtype", "int4"), ("--weight-dtype is 'int4'", "default, fp32, ", "or int8_fast")),
        ((*ONE, "--image", ""), ("--image is ''", "give a name")),
        ((*ONE, "--model", " "), ("--model is ' '", "give a name")),
        ((*ONE, "--media-folder", "no"), ("--media-folder names no, which is not a folder",)),
        ((*ONE, "--server", "http://127.0.0.1:9", "--port", "81"), ("--port is for a ComfyUI that",)),
        ((*ONE, "--dynamic-cfg", "maybe"), ("--dynamic-cfg is 'maybe'", "on or off")),
        ((*ONE, "--size", "720"), ("--size is '720'", "720x480")),
        ((*ONE, "--size", "720x470"), ("--size: height 470", "464 or 480")),
        ((*ONE, "--frames", "50"), ("--frames: frames 50 is not 4k + 1", "49 or 57")),
        ((*ONE, "--size", "16384x16384", "--frames", "1025"), ("--size and --frames", "billion pixels")),
        ((*ONE, "--image", "../no.png"), ("--image names ../no.png, which is not there",)),
        ((*ONE, "--video", "."), ("--video names ., which is a folder",)),
        ((*ONE, "--prompts", "p.txt"), ("give one of the two",)),
        (("--prompts", "p.txt"), ("--prompts names p.txt, which cannot be read: No such file",)),
        (("--prompts", "."), ("--prompts", "not a regular file")),
        ((*ONE, "--server", "localhost:8188"), ("--server is 'localhost:8188'", "http://127.0.0.1:8188")),
        ((*ONE, "--server", "http://me:pw@host"), ("not an address of a server",)),
        ((*ONE, "--server", "http://host:99999"), ("not an address of a server",)),
        ((*ONE, "--server", "file:///etc/passwd"), ("not an address of a server",)),
    ],
)
def test_what_is_wrong_is_named(
    refused: Callable[..., str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Otherwise minutes of installation and a server's start come before the same answer, or a traceback does."""
    message = refused(*arguments)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a star\n\n# a remark\n{'prompt': 1}\n", ("Line 4 of prompts.txt begins with { and is not JSON",)),
        (b'a\n{"prompt": "b", "steps": "ten"}', ("steps in line 2 of prompts.txt is 'ten'",)),
        (b'{"prompt": "b", "sede": 1}', ("Line 1 of prompts.txt has sede", "there are: prompt, negative")),
        (b'a\n{"seed": 1}', ("Line 2 of prompts.txt has no prompt",)),
        (b'{"prompt": "b", "steps": [1, 2]}', ("steps in line 1 of prompts.txt is a list",)),
        (b'{"prompt": "b", "steps": true}', ("steps in line 1 of prompts.txt is 'on'",)),
        (b'{"prompt": "b", "steps": 5.5}', ("steps in line 1 of prompts.txt is '5.5'",)),
        (b'{"prompt": "b", "lora": ["x:0.5", "y:z"]}', ("lora in line 1 of prompts.txt is 'y:z'",)),
        (b'{"prompt": "b", "size": "65x64"}', ("size in line 1 of prompts.txt: width 65",)),
        (b'\r\n{"prompt": "b", "image": "gone.png"}', ("image in line 2 of prompts.txt names gone.png, which is not",)),
        (b'{"prompt": "b", "image": "p.png", "video": "prompts.txt"}', ("names p.png, which is not there",)),
        (b"a star\nein gr\xfcner Stern\n", ("Line 2 of prompts.txt is not UTF-8",)),
        (b"\n# nothing\n", ("--prompts names prompts.txt, in which there is no prompt",)),
    ],
)
def test_broken_line_is_named_by_its_number(
    refused: Callable[..., str], tmp_path: Path, text: bytes, words: tuple[str, ...]
) -> None:
    """A file of a thousand prompts cannot be searched for the one that is wrong."""
    (tmp_path / "prompts.txt").write_bytes(text)
    message = refused("--prompts", "prompts.txt")
    assert all(word in message for word in words), message


def test_places_that_cannot_be_written_are_found(refused: Callable[..., str], tmp_path: Path) -> None:
    """A video that has taken an hour would have nowhere to go."""
    (tmp_path / "file").touch()
    (tmp_path / "two.txt").write_text("a\nb\n")
    for out in ("file/clip.mp4", "file/deeper/"):
        assert f"--out is {out}, and nothing can be written to" in refused(*ONE, out=out)
    assert "--out is clip.webm, and videos are written as .mp4" in refused(*ONE, out="clip.webm")
    several = refused("--prompts", "two.txt", out="clips/one.mp4")
    assert "there are 2 prompts" in several and "clips/one-%03d.mp4" in several
    assert "which has 2 numbers" in refused(*ONE, out="%03d-%02d.mp4")


def test_a_line_names_files_of_its_own_folder_alone(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a line names is uploaded: a stranger's file of prompts must not send a person's pictures to a server."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    secret = tmp_path / "home" / "card.png"
    downloaded = tmp_path / "downloaded"
    for folder in (secret.parent, downloaded / "frames", tmp_path / "downloaded-too"):
        folder.mkdir(parents=True)
    for file in (secret, downloaded / "frames" / "own.png", tmp_path / "downloaded-too" / "x.png"):
        file.touch()
    written = [str(secret), "~/card.png", "../home/card.png", "frames/../../home/card.png", "../downloaded-too/x.png"]
    if os.name == "posix":
        (downloaded / "link.png").symlink_to(secret)
        written.append("link.png")
    prompts = downloaded / "prompts.txt"
    for name in (*written, "../home/not_there.png"):  # and whether a file is there is not told either
        for kind in ("image", "video"):
            prompts.write_text(json.dumps({"prompt": "a", kind: name}))
            message = refused("--prompts", str(prompts))
            assert message.startswith(f"{kind} in line 1 of {prompts} names {name}, which is not in the folder of")
            assert "--media-folder DIR" in message
    prompts.write_text("".join(json.dumps({"prompt": "a", "image": name}) + "\n" for name in written))
    argv = ["run", "--out", "x/", "--prompts", str(prompts)]
    allowed = ["--media-folder", str(tmp_path / "downloaded-too"), "--media-folder", "~"]
    assert len(read_requests(cli.parse([*argv, *allowed])[0])) == len(written)
    prompts.write_text('{"prompt": "a", "image": "frames/own.png"}\nb\n')
    assert len(read_requests(cli.parse(argv)[0])) == 2
    prompts.write_text("b\n")
    (request,) = read_requests(cli.parse([*argv, "--image", str(secret)])[0])
    assert request.file("image") == secret, "what the command line names is the person's own choice"


def test_a_result_takes_the_place_of_nothing_that_is_read(refused: Callable[..., str], tmp_path: Path) -> None:
    """With --overwrite, the video that was to be changed, or the file of prompts, was gone."""
    (tmp_path / "clip.mp4").touch()
    again = (*ONE, "--overwrite", "--video", "clip.mp4")
    assert "--out would replace clip.mp4, which the run reads" in refused(*again, out="./clip.mp4")
    (tmp_path / "new.mp4.json").write_text('{"prompt": "a", "video": "clips/0002.mp4"}\n{"prompt": "a"}\n')
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "0002.mp4").touch()
    lines = ("--prompts", "new.mp4.json", "--overwrite")
    assert "--out would replace clips/0002.mp4, which the run reads" in refused(*lines, out="clips")
    (tmp_path / "new.mp4.json").write_text('{"prompt": "a"}\n')
    assert "--out would replace new.mp4.json, which the run reads" in refused(*lines, out="new.mp4")


def test_an_out_that_is_empty_is_none(refused: Callable[..., str]) -> None:
    """`--out "$VIDEO"` of a script that has never set it filled the folder that it ran in."""
    assert "--out is empty" in refused(*ONE, out="")


def test_line_overrides_the_command_line(tmp_path: Path) -> None:
    """Settings of one line must not reach the next; its pictures lie beside the file, the command line's do not."""
    (tmp_path / "p.jsonl").write_text(
        '\ufeff{"prompt": "ä\u2028b", "seed": 7, "size": "96x64", "dynamic_cfg": false, "lora": ["a:0.5", "b"], '
        '"image": "p.jsonl"}\n  plain  \n',
        "utf-8",
    )
    argv = ["run", "--out", "x/", "--prompts", str(tmp_path / "p.jsonl"), "--seed", "3", "--steps", "4", "--lora", "c"]
    first, second = read_requests(cli.parse(argv)[0])
    common = {"seed": 3, "steps": 4, "lora": (Lora("c", 1.0),)}
    assert second.values == {**common, "prompt": "plain"}
    assert first.values == {
        **common,
        "prompt": "ä\u2028b",
        "seed": 7,
        "size": (96, 64),
        "dynamic_cfg": False,
        "lora": (Lora("a", 0.5), Lora("b", 1.0)),
        "image": "p.jsonl",
    }
    assert first.file("image") == tmp_path / "p.jsonl"
    assert Request({"image": "here.png"}).file("image") == Path("here.png")


@pytest.fixture
def web_page() -> Iterator[str]:
    """The address of a server that is no ComfyUI."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_not_a_server_is_told_so(refused: Callable[..., str], web_page: str) -> None:
    """Port 8188 may be anything's."""
    assert f"{web_page} answers, and not as ComfyUI does" in refused(*ONE, "--server", web_page)


def test_server_that_does_not_answer_is_given_up(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine behind a firewall would hold the command for minutes."""
    assert remote.ANSWER_S == 10.0
    monkeypatch.setattr(remote, "ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert f"No server answers at {url} (no answer within 0.3 s)" in refused(*ONE, "--server", url)
    assert f"No server answers at {url} (" in refused(*ONE, "--server", url)


def test_server_without_the_pack_is_told_so(refused: Callable[..., str], fake) -> None:
    """ComfyUI's own answer is that a node does not exist, after everything has been uploaded."""
    fake.has_pack = False
    assert f"The ComfyUI at {fake.url} does not have this pack" in refused(*ONE, "--server", fake.url + "/")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("cogvideox.devtools.run.run_plan", set()),
        ("cogvideox.devtools.run.work", set(NEEDED)),
    ],
)
def test_nothing_else_is_imported(module: str, allowed: set[str]) -> None:
    """What is checked first runs in a Python without packages; a server elsewhere needs four, and no torch."""
    foreign = {"torch", "comfy", "diffusers", "numpy", "yaml", "requests", *NEEDED} - allowed
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import dev; dev.import_package(); import {module}; "
        f"print(sorted({foreign!r} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
