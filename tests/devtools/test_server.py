import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cogvideox.devtools import server
from cogvideox.devtools.errors import DevError
from cogvideox.devtools.paths import ROOT

# Answers like ComfyUI and logs what it was started with.
ANSWERING = """
import http.server, json, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
print(json.dumps({"arguments": sys.argv[1:], "path": sys.path}), flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def start(tmp_path):
    """start(code of main.py, ...) -> running_server of a host with that main.py."""

    def with_host(code: str, **options):
        host, base = tmp_path / "host", tmp_path / "base"
        host.mkdir()
        base.mkdir()
        (host / "main.py").write_text(code, "utf-8")
        return server.running_server(host, base, log=tmp_path / "logs" / "server.log", cpu=True, **options)

    return with_host


def test_server_runs_inside_the_block_and_not_after(start):
    with start(ANSWERING) as running:
        assert server.request(f"{running.url}/system_stats") == b"{}"
        assert running.process.poll() is None
    assert running.process.poll() is not None
    server.check_port(running.port)


def test_server_stops_when_a_test_fails(start):
    with pytest.raises(ZeroDivisionError):
        with start(ANSWERING) as running:
            raise ZeroDivisionError
    assert running.process.poll() is not None


def test_each_run_has_a_user_of_its_own_with_the_settings_and_leaves_none(start, tmp_path):
    with start(ANSWERING, settings={"Comfy.TutorialCompleted": True}) as running:
        saved = running.user_directory / "default" / "comfy.settings.json"
        assert json.loads(saved.read_text("utf-8")) == {"Comfy.TutorialCompleted": True}
    assert not list((tmp_path / "base").iterdir())


def test_users_own_files_survive(start, tmp_path):
    mine = tmp_path / "user"
    (mine / "default").mkdir(parents=True)
    (mine / "default" / "comfy.settings.json").write_text('{"mine": 1}', "utf-8")
    with start(ANSWERING, user_directory=mine):
        pass
    assert (mine / "default" / "comfy.settings.json").read_text("utf-8") == '{"mine": 1}'


def test_clone_never_comes_before_comfyui_on_the_servers_path(start, tmp_path, monkeypatch):
    # ComfyUI's `import nodes` would find our folder of that name.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    with start(ANSWERING) as running:
        seen = json.loads(running.log.read_text("utf-8").splitlines()[0])
    assert seen["path"][0] == str((tmp_path / "host").resolve())
    assert str(ROOT) not in seen["path"]


def test_nothing_is_written_into_the_checkout(start, tmp_path):
    # ComfyUI keeps its database and temporary files beside main.py unless told otherwise.
    with start(ANSWERING) as running:
        arguments = json.loads(running.log.read_text("utf-8").splitlines()[0])["arguments"]
    base = str(tmp_path / "base")
    for option in ("--base-directory", "--user-directory", "--temp-directory", "--database-url"):
        assert base in arguments[arguments.index(option) + 1]


def test_server_that_ends_while_starting_names_its_last_line_and_log(start, tmp_path):
    with pytest.raises(DevError) as caught:
        with start("print('no module named torchsde'); raise SystemExit(3)"):
            pass
    assert "exit status 3" in str(caught.value) and "no module named torchsde" in str(caught.value)
    assert str(tmp_path / "logs" / "server.log") in str(caught.value)


def test_server_that_never_answers_is_given_up_and_stopped(start):
    code = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(DevError, match=r"did not answer within 2 s, its last line: pid \d+") as caught:
        with start(code, timeout_s=2.0):
            pass
    pid = int(str(caught.value).split("pid ")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_port_in_use_is_one_sentence(start):
    with socket.socket() as taken:
        taken.bind((server.ADDRESS, 0))
        taken.listen()
        with pytest.raises(DevError, match="^Port .* cannot be used .*--port"):
            with start(ANSWERING, port=taken.getsockname()[1]):
                pass


@pytest.mark.parametrize("port", [-1, 70000])
def test_impossible_port_is_one_sentence(port):
    with pytest.raises(DevError, match=f"^Port {port} cannot be used"):
        server.check_port(port)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_server_does_not_outlive_a_command_that_is_ended(tmp_path, name):
    for folder in ("host", "base"):
        (tmp_path / folder).mkdir()
    (tmp_path / "host" / "main.py").write_text(ANSWERING, "utf-8")
    code = (
        "import signal, time\nfrom pathlib import Path\nfrom cogvideox.devtools import cli, server\n"
        # Under nohup a hang-up is ignored, by these tests and by what they start.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "with cli._stopping_when_asked(), server.running_server("
        "Path('host'), Path('base'), log=Path('log').resolve(), cpu=True) as running:\n"
        "    print(running.process.pid, flush=True)\n    time.sleep(60)\n"
    )
    # A caller that is ended itself may have the signal ignored or blocked.
    ignored = f"signal.signal(signal.{name}, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{name}])"
    caller = f"import os, signal, sys; {ignored}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = subprocess.Popen(
        [sys.executable, "-c", caller, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, env={**os.environ}
    )
    assert command.stdout is not None
    pid = int(command.stdout.readline())
    number = getattr(signal, name)
    command.send_signal(number)
    assert command.wait(30) == 128 + number
    command.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the server is still running")
