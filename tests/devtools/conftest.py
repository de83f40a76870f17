"""A pip that does what a test wants, in place of the real one."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def fake_pip(tmp_path, monkeypatch):
    """fake_pip(code) makes `python -m pip` run `code`, with its arguments in sys.argv; returns the file of calls."""
    package, calls = tmp_path / "fake" / "pip", tmp_path / "pip-calls.txt"
    package.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))

    def install(code: str = "") -> Path:
        note = f"import sys\nopen({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        (package / "__init__.py").write_text("", "utf-8")
        (package / "__main__.py").write_text(note + code, "utf-8")
        return calls

    return install


@pytest.fixture
def python():
    """The interpreter whose pip `fake_pip` replaces."""
    return Path(sys.executable)
