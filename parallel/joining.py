"""Joining a Ray cluster: whether it answers, asks for a token and lets this process in, all of it within SECONDS."""

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

Look = Callable[[], object]
SECONDS = 9
_LOOK_SECONDS = 0.1
# A process of its own: Ray reads the token once in each. GcsClient is what `ray status` asks a cluster with.
_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).internal_kv_get(b"cogvideox", namespace=b"cogvideox", timeout=3)
except AuthenticationError:
    print("refused")
else:
    print("accepted")
"""


class Attempt(threading.Thread):
    """ray.init in a thread, for Ray goes on trying for a minute where something else answers. Where it succeeds after
    nobody waits any more, the connection is closed again."""

    def __init__(self, ray: Any, address: str, options: Mapping[str, Any]):
        super().__init__(name="cogvideox cluster", daemon=True)
        self._ray, self._address, self._options = ray, address, options
        self._lock, self._is_given_up = threading.Lock(), False
        self.error: Exception | None = None
        self.has_joined = False

    def run(self) -> None:
        """As a thread does."""
        try:
            self._ray.init(address=self._address, **self._options)
        except Exception as error:
            self.error = error
            return
        with self._lock:
            if self._is_given_up:
                self._ray.shutdown()
            else:
                self.has_joined = True

    def wait(self, seconds: float, look: Look) -> bool:
        """Whether it has joined within `seconds`; if not, or if `look` raises, it never will have."""
        deadline = time.monotonic() + seconds
        try:
            while self.is_alive() and time.monotonic() < deadline:
                self.join(_LOOK_SECONDS)
                look()
        except BaseException:
            with self._lock:
                self._is_given_up = True
                if self.has_joined:
                    self._ray.shutdown()
            raise
        with self._lock:
            self._is_given_up = not self.has_joined
        return self.has_joined


_last: Attempt | None = None


def require_none_under_way() -> None:
    """Raises UserError while an attempt that was given up goes on: a process can be in one cluster only."""
    if _last is not None and _last.is_alive():
        raise UserError(
            "Ray still tries to reach an address that has not answered in time, and gives up within a minute. Try "
            "again then."
        )


def join(ray: Any, address: str, options: Mapping[str, Any], look: Look) -> None:
    """Connect `ray` to the cluster at `address`. options: of ray.init. look: called while it waits; may raise.

    Raises UserError where nothing answers, where the cluster lets in whoever asks, or does not let this process in.
    """
    global _last
    deadline = time.monotonic() + SECONDS
    require_answer(address)
    _require_token(ray, address, deadline - 1, look)
    _last = Attempt(ray, address, options)
    _last.start()
    if not _last.wait(deadline - time.monotonic(), look):
        raise _not_let_in(address, _last.error)


def require_answer(address: str) -> None:
    """Raises UserError where nothing listens at `address`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS / 3).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"Nothing answers at {address} ({error}). Start Ray there (ray start --head --port=…), or correct the "
            "address: it is a name or number of a machine, a colon, and Ray's port."
        ) from error


def _require_token(ray: Any, address: str, deadline: float, look: Look) -> None:
    """Raises UserError unless the cluster refuses a token that nobody has."""
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environ.pop("RAY_AUTH_TOKEN_PATH", None)
    with subprocess.Popen(
        [sys.executable, "-c", _PROBE, address],
        env=environ,
        cwd=Path(ray.__file__).parent.parent,  # where the same Ray is found, wherever else one lies
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as probe:
        try:
            while probe.poll() is None:  # what it prints fits into a pipe
                if time.monotonic() > deadline:
                    raise _not_let_in(address, None)
                time.sleep(_LOOK_SECONDS)
                look()
        except BaseException:
            probe.kill()
            raise
        out, errors = probe.communicate()
    answer = out.strip()
    if answer == "accepted":
        raise UserError(
            f"The cluster at {address} asks nobody for a token: whoever reaches it can run code on every machine of "
            "it. Start Ray there with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN as here."
        )
    if answer != "refused":
        raise _not_let_in(address, RuntimeError((errors.strip().splitlines() or ["no answer"])[-1]))


def _not_let_in(address: str, error: Exception | None) -> UserError:
    reason = f"{type(error).__name__}: {str(error)[:300]}" if error else f"no answer in {SECONDS} seconds"
    return UserError(
        f"Ray at {address} does not let this process in ({reason}). The token has to be the same, and so has the "
        "version of Ray and of Python."
    )
