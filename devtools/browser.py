"""Find a Chromium for the browser tests, or install Debian's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .console import say
from .process import run_logged

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_USUAL_PATHS = {
    "darwin": ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",),
    "win32": (r"C:\Program Files\Google\Chrome\Application\chrome.exe",),
}
_PACKAGES = ("chromium", "fonts-dejavu-core")


def find_browser() -> str | None:
    """The path of a Chromium that starts: $CHROMIUM, on the PATH, or at its usual path. None if there is none."""
    named = os.environ.get("CHROMIUM")
    candidates = [named] if named else [*map(shutil.which, _NAMES), *_USUAL_PATHS.get(sys.platform, ())]
    return next((path for path in candidates if path and _starts(path)), None)


def ensure_browser(logs: Path) -> str | None:
    """`find_browser`, after an apt-get install where that is possible; says so when there will be no browser."""
    browser = find_browser()
    if browser is None and "CHROMIUM" not in os.environ and _may_install():
        log = logs / "apt.log"
        say(f"Chromium for the browser tests: installing (log: {log})")
        install = ["apt-get", "install", "-y", "--no-install-recommends", *_PACKAGES]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run_logged(["apt-get", "update"], log.with_name("apt-update.log"), env=environment)
        run_logged(install, log, env=environment)
        browser = find_browser()
    if browser is None:
        say(
            "WARNING: the browser tests will be skipped because no Chromium starts here: "
            "install chromium or Google Chrome, or name one in the environment variable CHROMIUM"
        )
    return browser


def _may_install() -> bool:
    return shutil.which("apt-get") is not None and hasattr(os, "geteuid") and os.geteuid() == 0


def _starts(path: str) -> bool:
    # It is run, since Ubuntu's chromium-browser may be a stub that only explains how to install a snap.
    if sys.platform == "win32":
        return Path(path).exists()  # chrome.exe --version opens a window there
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
