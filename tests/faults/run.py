"""`dev.py test --faults`: put each fault of the table into a copy of the code, and see whether its tests notice.

The working tree is never changed. A fault counts as caught when its tests ran and one failed; a module that could not
even be imported does not count. Before, the same tests must pass without any fault.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from cogvideox.tests.faults.table import FAULTS, ROOT, Fault

RESULTS = Path(__file__).with_name("RESULTS.md")
TESTS_FAILED = 1  # pytest's exit status; 2 and above: they did not run
AT_ONCE = 2


@dataclass(frozen=True)
class Result:
    """status: pytest's. noticed: the first test that failed, "" if none. output: what pytest said."""

    fault: Fault
    status: int
    noticed: str
    seconds: float
    output: str

    @property
    def caught(self) -> bool:
        return self.status == TESTS_FAILED and bool(self.noticed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the faults whose names hold one of the given words, all without any. Returns 0 if all were caught."""
    parser = argparse.ArgumentParser("dev.py test --faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="faults to run, by a part of the name; all without any")
    parser.add_argument("--write", action="store_true", help=f"write the results to {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args(argv)
    if arguments.write and arguments.words:
        parser.error("--write needs the results of all faults.")
    faults = [f for f in FAULTS if not arguments.words or any(word in f.name for word in arguments.words)]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            copies.put(copy_of_the_code(Path(scratch) / str(number) / "cogvideox"))
        tests = sorted({test for fault in faults for test in fault.tests})
        print(f"Without a fault: {len(tests)} tests or files", flush=True)
        root = copies.get()
        status, output = run_tests(root, tests)
        copies.put(root)
        if status:
            print(output, "\nThe tests fail without any fault: nothing can be said about the faults.")
            return 2
        with ThreadPoolExecutor(AT_ONCE) as pool:
            running = [pool.submit(try_fault, fault, copies) for fault in faults]
            for ended in as_completed(running):
                print(line_of(ended.result()), flush=True)
        results = [ended.result() for ended in running]
    survived = [result for result in results if not result.caught]
    for result in survived:
        print(f"\n=== {result.fault.name} (pytest's status {result.status}) ===\n{result.output[-2000:]}")
    print(f"{len(results) - len(survived)} of {len(results)} faults were caught.")
    if arguments.write:
        RESULTS.write_text(page(results), "utf-8")
    return 1 if survived else 0


def try_fault(fault: Fault, copies: "SimpleQueue[Path]") -> Result:
    """Put one fault into a copy, run its tests there, and take it out again."""
    root = copies.get()
    try:
        with applied(fault, root):
            began = time.monotonic()
            status, output = run_tests(root, fault.tests, "-x")
        failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        noticed = failed[0].split(" - ")[0].split(" ", 1)[1] if failed else ""
        return Result(fault, status, noticed, time.monotonic() - began, output)
    finally:
        copies.put(root)


@contextmanager
def applied(fault: Fault, root: Path):
    """The fault in the copy at `root`, for the length of the block."""
    file = root / fault.file
    before = file.read_text("utf-8")
    file.write_text(fault.source(root), "utf-8")
    try:
        yield
    finally:
        file.write_text(before, "utf-8")


def copy_of_the_code(target: Path) -> Path:
    """All files that git knows or does not ignore, in a folder of their own."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    return target


def run_tests(root: Path, tests: Sequence[str], *options: str) -> tuple[int, str]:
    """(exit status, output) of pytest in the copy at `root`, whose parent makes it the package `cogvideox`."""
    # no bytecode: a file that is changed twice within a second would keep the first one's
    environ = {**os.environ, "PYTHONPATH": str(root.parent), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--tier=long", *plugins, *options, *tests]
    ended = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def line_of(result: Result) -> str:
    """One line for the terminal."""
    verdict = f"caught by {result.noticed}" if result.caught else "SURVIVED"
    return f"{result.fault.name:46s} {result.seconds:5.0f} s  {verdict}"


def page(results: Sequence[Result]) -> str:
    """RESULTS.md."""
    caught = sum(result.caught for result in results)
    rows = [
        f"| {result.fault.name} | `{result.fault.file}` | {result.fault.harm} | "
        + (f"`{result.noticed.removeprefix('tests/')}`" if result.caught else "**survived**")
        + " |"
        for result in results
    ]
    return (
        "# Deliberate faults\n\n"
        f"Written by `python3 dev.py test --faults --write`: {caught} of {len(results)} were caught.\n\n"
        "| fault | file | what a user would meet | first test that failed |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
