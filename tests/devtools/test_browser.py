import os

import pytest

from cogvideox.devtools import browser

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in browsers are shell scripts")


@pytest.fixture
def executable(tmp_path):
    """executable(name, exit status) -> path of a program that does nothing else."""

    def make(name: str, status: int) -> str:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    return make


def test_named_browser_is_taken(executable, monkeypatch):
    path = executable("mine", 0)
    monkeypatch.setenv("CHROMIUM", path)
    assert browser.find_browser() == path


def test_stub_that_only_prints_advice_is_passed_over(executable, monkeypatch, tmp_path):
    # Ubuntu's chromium-browser asks for a snap; every browser test would fail on it.
    monkeypatch.delenv("CHROMIUM", raising=False)
    executable("chromium-browser", 1)
    real = executable("google-chrome", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.find_browser() == real


def test_missing_browser_is_said_aloud_and_nothing_else_installed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "gone"))
    assert browser.ensure_browser(tmp_path) is None
    assert "browser tests will be skipped" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
