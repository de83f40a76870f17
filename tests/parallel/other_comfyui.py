"""What another ComfyUI on the same machine does: it starts a Ray, asks it for something, and ends it."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from cogvideox.errors import UserError
from cogvideox.host.ray_environment import LOOPBACK
from cogvideox.model_loaders.load_model import load_model
from cogvideox.parallel import engine, remote_weights
from cogvideox.parallel.remote_model import spread
from cogvideox.tests.parallel.test_lost_ranks import after_a_step
from cogvideox.tests.parallel.test_remote_model import run
from cogvideox.tests.support import relative_error


def start_ray() -> None:
    """Raises where its Ray does not work, or is another process's."""
    ray = engine.start("", 0)
    assert ray.get(ray.remote(lambda: 42).remote()) == 42
    assert len(ray.nodes()) == 1 and not ray.util.list_named_actors(all_namespaces=True)
    engine.shut_down()


def listens() -> None:
    """Prints the addresses at which its Ray listens, all processes together."""
    os.environ.pop(LOOPBACK, None)  # the tests' own Ray may have set it
    engine.start("", 0)
    own = psutil.Process()
    found = [
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    engine.shut_down()
    print(json.dumps(sorted(set(found))))


def join(_: str, address: str) -> None:
    """Prints what it is refused with, and after how long."""
    engine._ray(address)  # its import takes seconds by itself
    began = time.monotonic()
    try:
        engine.start(address, 0)
        refused = ""
    except UserError as error:
        refused = str(error)
    print(json.dumps({"refused": refused, "seconds": time.monotonic() - began}))


@torch.inference_mode()
def run_on_two_machines(folder: str, address: str) -> None:
    """Prints how a run on two machines differs from one in this process, and what it says when one is lost."""
    near = load_model(Path(folder), "fp32")
    far: Any = spread(near, 2, "auto", address, True)
    want, got = run(near), run(far)
    team = far.weights.team
    found = {
        "error": relative_error(got, want),
        "split": list(team.split),
        "machines": [place[0] == engine.machine() for place in team.ask("place")],
        "waits_for": [process.pid for process in team._processes] == team.ask("process")[:1],
    }
    said: list[str] = []
    pid = team.ask("process")[1]
    remote_weights.show_on_running_node = said.append
    out = run(after_a_step(far, lambda: os.kill(pid, signal.SIGKILL)))
    found |= {"error_alone": relative_error(out, want), "lost": " ".join(said)}
    engine.shut_down()
    print(json.dumps(found))
