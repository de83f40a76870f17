"""A server of a farm ends with the process that supervises it, whatever ends that one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogvideox.devtools.server import _LEASH

# What a supervisor does, as short as it can be.
SUPERVISOR = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""
SCRIPT = """
import json, os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
found = {"pids": [os.getpid(), helper.pid], "argv": sys.argv, "path": sys.path[0], "name": __name__}
open(sys.argv[1] + ".part", "w").write(json.dumps(found))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_kill_of_the_supervisor_ends_the_server_and_its_helpers(tmp_path: Path) -> None:
    """SIGKILL leaves no time to end anything: a ComfyUI that stays would keep the card's memory."""
    (tmp_path / "main.py").write_text(SCRIPT)
    script, said = str(tmp_path / "main.py"), tmp_path / "said.json"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(_LEASH), script, str(said), "--listen"])
    try:
        assert within(30, said.exists)
        found = json.loads(said.read_text())
        assert all(map(is_alive, found["pids"]))
    finally:
        os.kill(supervisor.pid, signal.SIGKILL)
        supervisor.wait(30)
    assert within(30, lambda: not any(map(is_alive, found["pids"])))
    # the script has seen what it sees without
    assert (found["argv"], found["path"]) == ([script, str(said), "--listen"], str(tmp_path))
    assert found["name"] == "__main__"
