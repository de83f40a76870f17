"""The processes that tests start: where these do not do as they are told, tests pass that prove nothing."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.tests import children
from cogvideox.tests.children import CAN_FORK, CAN_SHARE, running


def describe() -> dict[str, object]:
    """What there is when a child begins."""
    return {
        "modules": [name for name in sys.modules if name.partition(".")[0] in ("comfy", "cogvideox", "diffusers")],
        "rank": os.environ.get("RANK"),
        "pid": os.getpid(),
        "threads of the server": len(os.listdir(f"/proc/{os.getppid()}/task")) if os.path.exists("/proc") else 1,
    }


def fail() -> None:
    os.write(1, b"written past Python\n")
    print("printed")
    raise ValueError("what went wrong")


def sleep() -> None:
    time.sleep(600)


def leave_a_child() -> None:
    """Start a child and be killed, as a worker that has crashed."""
    with running("test_children.sleep"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_has_its_own_variables_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of one rank would wait for each other; a test's variables are those of its children's code."""
    monkeypatch.setenv("RANK", "7")
    with running("test_children.describe") as child, running("test_children.describe", environ={"RANK": "1"}) as other:
        found = [child.result(), other.result()]
    assert [one["rank"] for one in found] == ["7", "1"]
    assert len({os.getpid(), *(one["pid"] for one in found)}) == 3


@pytest.mark.skipif(not CAN_FORK, reason="each child is a fresh interpreter")
def test_a_child_has_comfyui_and_nothing_of_the_pack() -> None:
    """Without ComfyUI each would take ten seconds; with the pack, tests of its import would import nothing."""
    with running("test_children.describe") as child:
        found = child.result()
    modules = found["modules"]
    assert found["threads of the server"] == 1, "a fork would copy the locks of the others"
    assert "comfy.sd" in modules and "diffusers" not in modules
    assert {name.split(".")[1] for name in modules if name.startswith("cogvideox.")} <= {
        *("devtools", "errors", "host", "tests")
    }
    assert [name for name in modules if name.startswith("cogvideox.host.")] == ["cogvideox.host.standalone"]


def test_an_error_is_told_with_all_that_was_printed() -> None:
    """Whoever reads of a failure needs the traceback of the process in which it was."""
    with running("test_children.fail") as child:
        assert child.wait() == 1
        for words in ("written past Python", "printed", "ValueError: what went wrong"):
            assert words in child.output()
        with pytest.raises(pytest.fail.Exception, match="ValueError: what went wrong"):
            child.result()


@pytest.mark.skipif(os.name == "nt", reason="there are no signals")
def test_a_kill_is_seen_and_a_block_ends_its_child() -> None:
    with running("test_children.sleep") as child:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    with running("test_children.sleep") as left:
        pass
    assert left.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for a crash is POSIX's")
def test_no_child_outlives_a_worker_that_is_killed() -> None:
    """A training of two processes would wait for ever for what the third never says."""
    code = "from cogvideox.tests import children, test_children as here; children._PRELOADED = (); here.leave_a_child()"
    own = {name: value for name, value in os.environ.items() if name != children._ADDRESS}
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, env=own)
    assert worker.stdout is not None
    with worker:
        worker.communicate(timeout=120)  # until nobody holds its output: not the server either, which waits for a child
        assert worker.returncode == -signal.SIGKILL


def start_worker(code: str) -> subprocess.Popen:
    """As pytest-xdist does."""
    command = [*shlex.split(children.WORKER), "-u", "-c", code]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="these tests run without workers")
@pytest.mark.skipif(not CAN_SHARE, reason="workers are fresh interpreters")
def test_the_workers_of_this_run_are_forked() -> None:
    """Each would import ComfyUI itself, without a word: half a minute of two cores."""
    assert multiprocessing.parent_process() is not None


@pytest.mark.skipif(not CAN_SHARE, reason="workers are fresh interpreters")
def test_a_worker_reads_writes_and_ends_as_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-xdist talks to it through these streams, and takes another status than 0 for a crash."""
    monkeypatch.setenv("RANK", "5")
    code = "import os, sys; print(sys.stdin.readline().upper(), os.environ['RANK'], 'comfy.sd' in sys.modules); exit(3)"
    with start_worker(code) as worker:
        assert worker.communicate("said\n", timeout=120)[0].split() == ["SAID", "5", "True"]
        assert worker.returncode == 3


@pytest.mark.skipif(not CAN_SHARE, reason="workers are fresh interpreters")
def test_no_worker_outlives_a_run_that_is_killed() -> None:
    with start_worker("import time; print('works', flush=True); time.sleep(600)") as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "works\n"
        worker.kill()
        worker.communicate(timeout=120)  # until nobody holds its output


@pytest.mark.skipif(not CAN_SHARE, reason="workers are fresh interpreters")
def test_a_worker_that_crashes_is_told_by_its_signal() -> None:
    with start_worker("import os; os.kill(os.getpid(), 11)") as worker:
        worker.communicate(timeout=120)
        assert worker.returncode == -signal.SIGSEGV
