import sys
import time
from pathlib import Path

import pytest

from cogvideox.devtools import process
from cogvideox.devtools.errors import DevError


def test_long_step_shows_that_it_is_alive(tmp_path, capsys):
    code = "import time; print('Collecting torch', flush=True); print('noise', flush=True); time.sleep(1.5)"
    command = [sys.executable, "-c", code]
    assert process.run_logged(command, tmp_path / "log", heartbeat_s=0.5, matching="^Collecting") == 0
    assert "Collecting torch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "output, shown", [("", "started"), ("Requirement already satisfied: x", "Requirement already")]
)
def test_progress_has_no_blank_lines(tmp_path, capsys, output, shown):
    """pip prints pages before the first line that is worth showing, and a blank line every ten seconds says nothing."""
    code = f"import time; print({output!r}, flush=True); time.sleep(1.0)"
    command = [sys.executable, "-c", code]
    process.run_logged(
        command, tmp_path / "log", heartbeat_s=0.6, matching="^Collecting", measure=lambda: "9 MB so far"
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2, "the first one comes sooner than the others"
    assert f"s: {shown}" in lines[-1] and all(line.endswith(", 9 MB so far") for line in lines)


def test_log_line_in_a_message_has_no_colour_codes(tmp_path):
    (tmp_path / "log").write_text("first\n\x1b[1m\x1b[31m[ERROR]\x1b[0m port taken\n\n", "utf-8")
    assert process.last_line(tmp_path / "log") == "[ERROR] port taken"


def test_program_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(DevError, match="no-such-program cannot be started"):
        process.run_logged(["no-such-program"], tmp_path / "log")


def test_process_that_ignores_the_request_to_end_is_killed():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    stubborn = process.start([sys.executable, "-c", code], stdout=process.subprocess.PIPE)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    began = time.monotonic()
    process.stop(stubborn, patience_s=0.5)
    stubborn.stdout.close()
    assert stubborn.returncode is not None and time.monotonic() - began < 30


@pytest.mark.parametrize("options", [{}, {"cwd": Path.cwd()}], ids=["demo, train", "test, bench"])
def test_exit_status_of_a_foreground_program_is_ours(options):
    # A failing pytest must fail `dev.py test`.
    assert process.run_foreground([sys.executable, "-c", "raise SystemExit(5)"], **options) == 5
