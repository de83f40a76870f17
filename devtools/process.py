"""Child processes: logged ones with a heartbeat, and foreground ones that never outlive us."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .console import say
from .errors import DevError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def last_line(log: Path, width: int = 160, matching: str = "") -> str:
    """The last line of a log that is not blank and that the regular expression `matching` finds; "" if there is none.

    It is cut to `width` characters; colour codes are removed.
    """
    text = _COLOURS.sub("", log.read_text("utf-8", "replace")) if log.exists() else ""
    lines = (line.strip() for line in reversed(text.splitlines()))
    return next((line[:width] for line in lines if line and re.search(matching, line)), "")


def stop(process: subprocess.Popen, patience_s: float = 10.0) -> None:
    """Ask a process to end, wait, then kill it. Does nothing to one that has ended."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """`subprocess.Popen` with `options`. Raises: DevError if the program cannot be started."""
    try:
        return subprocess.Popen(command, **options)
    except (FileNotFoundError, PermissionError) as error:
        raise DevError(f"{command[0]} cannot be started ({error.strerror}).") from error


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    heartbeat_s: float = 10.0,
    matching: str = "",
    measure: Callable[[], str] = lambda: "",
) -> int:
    """Run `command` with its output in `log`, printing a line of it every `heartbeat_s` seconds, the first one sooner.

    matching: a regular expression for the lines worth printing; where there is none yet, the last one is printed.
    measure: what else there is to say of how far it is.
    Returns the exit status. The process is stopped when this one is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=env)
        try:
            wait_s = heartbeat_s / 3
            while True:
                try:
                    return process.wait(wait_s)
                except subprocess.TimeoutExpired:
                    wait_s = heartbeat_s
                    line = last_line(log, 90, matching) or last_line(log, 90) or "started"
                    say(f"  ... {time.monotonic() - began:.0f} s: {', '.join(filter(None, (line, measure())))}")
        finally:
            stop(process)


def go_on_as(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Become `command`: no parent is left whose kill would leave it running. Where the system cannot, as
    run_foreground."""
    if os.name == "nt":
        return run_foreground(command, env=env)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], list(command), dict(env))


def run_foreground(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run `command` on this terminal; returns its exit status. It is stopped when this process is interrupted."""
    process = start(command, cwd=cwd, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal's Ctrl-C reached the child too: let it end in its own way (pytest prints a summary).
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        raise
    finally:
        stop(process)
