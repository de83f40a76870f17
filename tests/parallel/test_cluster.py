"""Two machines: two of Ray's nodes on this one, joined with a token."""

import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cogvideox.host.ray_environment import LOOPBACK
from cogvideox.parallel import engine
from cogvideox.tests.children import Child

pytestmark = pytest.mark.long
RAY = Path(sys.executable).with_name("ray")


class Machines(NamedTuple):
    address: str
    environ: dict[str, str]


def ray_command(environ: Mapping[str, str], *arguments: str) -> subprocess.Popen:
    """`ray start --block`, which ends with the process."""
    command = [str(RAY), "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    """One core each. A parameter: variables of their environment, in the place of those for a token."""
    folder = tempfile.mkdtemp(prefix="ray")  # a short path: sockets are in it, whose names have a limit
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder} | getattr(request, "param", {})
    environ.pop(LOOPBACK, None)
    port = 20000 + os.getpid() % 20000
    store = f"--object-store-memory={100 << 20}"
    started = [ray_command(environ, "--head", f"--port={port}", "--include-dashboard=false", store)]
    address = f"127.0.0.1:{port}"
    try:
        _wait_for(environ, address, 1)
        started.append(ray_command(environ, f"--address={address}", store))
        _wait_for(environ, address, 2)
        yield Machines(address, {**environ, engine.ALLOWED: address})
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(environ: Mapping[str, str], address: str, nodes: int) -> None:
    code = (
        f"import ray; ray.init({address!r}, logging_level='ERROR'); print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline, said = time.monotonic() + 90, ""
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            command = [sys.executable, "-c", code]
            found = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=30)
            if found.stdout.strip() == str(nodes):
                return
            said = found.stderr[-2000:]
        time.sleep(1)
    pytest.fail(f"Ray's nodes did not start: {said}")


def ask(machines: Machines, tiny_pipelines: Mapping[str, Path], what: str, **environ: str) -> Any:
    """What another ComfyUI finds at the machines' address (other_comfyui.py)."""
    child = Child(
        f"parallel.other_comfyui.{what}",
        str(tiny_pipelines["5b"]),
        machines.address,
        environ=machines.environ | environ,
    )
    assert child.wait(240) == 0, child.output()
    return json.loads(child.output().strip().splitlines()[-1])


def test_a_rank_on_each_of_two_machines(machines: Machines, tiny_pipelines: Mapping[str, Path]) -> None:
    """The prompts are divided between them. One that is lost is named, and the run that lost it goes on alone."""
    found = ask(machines, tiny_pipelines, "run_on_two_machines")
    assert found["machines"] == [True, False], "this machine has the first rank"
    assert found["waits_for"], "a run that goes on alone needs the card of the rank that was on this machine"
    assert found["split"] == [2, 1]
    assert found["error"] < 5e-6 and found["error_alone"] < 5e-6
    assert "One of the 2 processes that compute together has ended" in found["lost"]


def test_a_ray_of_this_machine_stays_on_it() -> None:
    """Where whoever runs ComfyUI has allowed clusters as well."""
    child = Child("parallel.other_comfyui.listens", environ={engine.ALLOWED: "10.0.0.1:6379"})
    assert child.wait(120) == 0, child.output()
    found = json.loads(child.output().strip().splitlines()[-1])
    plain = [ipaddress.ip_address(address.removeprefix("::ffff:")) for address in found]  # also as one of IPv6
    assert plain and all(address.is_loopback for address in plain), found


@pytest.mark.parametrize("machines", [{"RAY_AUTH_MODE": "disabled"}], indirect=True, ids=["open"])
def test_a_cluster_that_asks_nobody_is_refused(machines: Machines, tiny_pipelines: Mapping[str, Path]) -> None:
    """This process's own token says nothing of the cluster, which runs anybody's code."""
    found = ask(machines, tiny_pipelines, "join", RAY_AUTH_MODE="token")
    assert "asks nobody for a token" in found["refused"] and found["seconds"] < 10


def test_another_token_is_refused(machines: Machines, tiny_pipelines: Mapping[str, Path]) -> None:
    """Within ten seconds, with what has to be the same."""
    found = ask(machines, tiny_pipelines, "join", RAY_AUTH_TOKEN="0" * 64)
    assert "does not let this process in" in found["refused"] and "token has to be the same" in found["refused"]
    assert found["seconds"] < 10
