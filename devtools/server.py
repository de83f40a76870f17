"""Start and stop a real ComfyUI server. Standard library only; also for the tests, from inside the venv."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .console import say
from .environment import has_accelerator
from .errors import DevError
from .process import last_line, start, stop

ADDRESS = "127.0.0.1"
_LEASH = Path(__file__).with_name("leash.py")

# Never through a proxy: the server is on this machine, or is one that the user has named.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A ComfyUI server that answers."""

    url: str
    port: int
    process: subprocess.Popen
    log: Path
    output: Path
    user_directory: Path


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raises: DevError if `port` cannot be listened on."""
    with socket.socket() as probe:
        if os.name == "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Otherwise a port that a server released a minute ago would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DevError(
                f"Port {port} cannot be used ({reason}): give another with --port, or none to have one chosen."
            ) from error


@contextlib.contextmanager
def running_server(
    host: Path,
    base: Path,
    *,
    log: Path,
    python: Path | str = sys.executable,
    port: int | None = None,
    user_directory: Path | None = None,
    settings: dict | None = None,
    cpu: bool | None = None,
    arguments: Sequence[str] = (),
    timeout_s: float = 300.0,
    environ: Mapping[str, str] | None = None,
    leashed: bool = False,
) -> Iterator[Server]:
    """ComfyUI's server, from its first answer to the end of the `with` block.

    host: the ComfyUI checkout. base: its --base-directory. port: None for a free one. user_directory: None for a
    fresh one that is deleted afterwards. settings: written as the default user's comfy.settings.json. cpu: None to
    let torch decide. arguments: more of ComfyUI's options. environ: environment variables in the place of this
    process's. leashed: the server ends with this process even where that is killed.
    Raises: DevError if the port is taken, the server ends while starting or does not answer in `timeout_s`.
    """
    port = free_port() if port is None else port
    check_port(port)
    cpu = not has_accelerator(Path(python)) if cpu is None else cpu
    with contextlib.ExitStack() as cleanup:
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=base))
        cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
        user = Path(user_directory or scratch / "user").resolve()
        _write_settings(user, settings)
        command = [
            str(python), *([str(_LEASH)] if leashed else []),
            str(Path(host).resolve() / "main.py"), *(["--cpu"] if cpu else []),
            "--listen", ADDRESS, "--port", str(port), "--disable-auto-launch",
            "--base-directory", str(Path(base).resolve()), "--user-directory", str(user),
            # In the checkout by default, and emptied by every start: two servers would disturb each other.
            "--database-url", f"sqlite:///{(user / 'comfyui.db').as_posix()}", "--temp-directory", str(scratch),
            # No calls to paid services, and a frontend that stays off the internet.
            "--disable-api-nodes", "--preview-method", "auto", *arguments,
        ]  # fmt: skip
        log.parent.mkdir(parents=True, exist_ok=True)
        out = cleanup.enter_context(log.open("w", encoding="utf-8"))
        process = start(
            command,
            cwd=host,
            env=_environment(os.environ if environ is None else environ),
            stdin=subprocess.PIPE if leashed else subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=leashed,
        )
        if process.stdin is not None:
            cleanup.enter_context(process.stdin)
        cleanup.callback(stop, process)
        url = f"http://{ADDRESS}:{port}"
        _wait_until_up(process, url, log, timeout_s)
        yield Server(url, port, process, log, Path(base).resolve() / "output", user)


def request(
    url: str, body: dict | bytes | None = None, timeout_s: float = 60.0, content_type: str = "application/json"
) -> bytes:
    """GET `url`, or POST `body`, a dict as JSON. Raises: urllib.error.HTTPError, OSError if nobody answers, and
    http.client.HTTPException for half an answer."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    message = urllib.request.Request(url, data, {"Content-Type": content_type})
    with _OPENER.open(message, timeout=timeout_s) as response:
        return response.read()


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    # A PYTHONPATH with the clone in it would make ComfyUI's `import nodes` find our folder.
    kept = {name: value for name, value in given.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def _write_settings(user: Path, settings: dict | None) -> None:
    (user / "default").mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (user / "default" / "comfy.settings.json").write_text(json.dumps(settings), "utf-8")


def _wait_until_up(process: subprocess.Popen, url: str, log: Path, timeout_s: float, heartbeat_s: float = 10.0) -> None:
    began = spoke = time.monotonic()
    while True:
        if process.poll() is not None:
            raise DevError(
                f"ComfyUI stopped while starting (exit status {process.returncode}), "
                f"its last line: {last_line(log)} ({log})"
            )
        try:
            request(f"{url}/system_stats", timeout_s=5.0)
            return
        except (urllib.error.HTTPError, OSError):
            now = time.monotonic()
        if now - began > timeout_s:
            raise DevError(f"ComfyUI did not answer within {timeout_s:.0f} s, its last line: {last_line(log)} ({log})")
        if now - spoke > heartbeat_s:
            spoke = now
            say(f"  ... {now - began:.0f} s: {last_line(log, 90)}")
        time.sleep(0.2)
