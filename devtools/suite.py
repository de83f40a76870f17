"""`dev.py test`: the tiers of the test suite, its workers, and coverage. Standard library only."""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import comfyui, libraries, paths
from .console import say
from .process import run_foreground

# Of the fast tier one for each of CI's cores: each takes some seconds to collect the tests. Otherwise two more, since
# tests wait for servers, browsers and other processes. A worker takes up to 2 GB, and a server a further one.
WORKERS = {"fast": 2, "standard": 4, "long": 4}
COVERAGE = paths.DEV / "coverage"
_HOSTS = [release.version for release in comfyui.RELEASES]
_NOT_MEASURED = ("tests", "benchmarks", ".venv", ".dev")
# Options of pytest that need the tests in this process, or say themselves how they are to be shared out.
_ONE_PROCESS = ("--pdb", "--trace", "-s", "--capture=no", "--co", "--collect-only", "--fixtures", "--markers")
_OWN_WORKERS = ("-n", "--numprocesses", "-p", "--dist")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `dev.py test` that are not pytest's."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_const", const="fast", dest="tier", help="what a minute can check")
    which.add_argument("--long", action="store_const", const="long", dest="tier", help="everything, trainings included")
    which.add_argument("--faults", action="store_true", help="put faults into a copy of the code: all must be caught")
    parser.add_argument(
        "--host",
        metavar="VERSION",
        help=f"run in this ComfyUI, the fast tier where it is not the newest: {', '.join(_HOSTS)}",
    )
    parser.add_argument(
        "--libraries",
        choices=(*libraries.SETS, "all"),
        help="run the fast tier with other versions of transformers, diffusers, peft, accelerate and gguf: "
        + "; ".join(f"{name}, {meaning}" for name, meaning in libraries.SETS.items())
        + "; or all of these in turn",
    )
    parser.add_argument("--save", action="store_true", help="write what was measured to benchmarks/results as well")
    parser.add_argument("--coverage", action="store_true", help="print which lines and branches were run")
    parser.set_defaults(tier=None, faults=False, save=False, coverage=False, host=None, libraries=None)


def run(python: Path, environ: Mapping[str, str], arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the tier that `arguments` ask for; returns the exit status. rest: arguments for pytest."""
    if arguments.faults:
        return run_foreground([str(python), "-m", "cogvideox.tests.faults.run", *rest], cwd=paths.ROOT, env=environ)
    pinned = arguments.host in (None, comfyui.PINNED.version) and arguments.libraries is None
    tier = arguments.tier or ("standard" if pinned else "fast")
    say(f"Running pytest, the {tier} tier")
    options = [
        f"--tier={tier}",
        *(["--save"] if arguments.save else []),
        *worker_options(rest, os.cpu_count() or 1, tier),
        *rest,
    ]
    if any(option.startswith("-n") for option in options):
        environ = {**environ, "OMP_NUM_THREADS": "1"}  # workers side by side: more threads would wait for each other
    if not arguments.coverage:
        return run_foreground([str(python), "-m", "pytest", *options], cwd=paths.ROOT, env=environ)
    shutil.rmtree(COVERAGE, ignore_errors=True)
    COVERAGE.mkdir(parents=True)
    coverage = [str(python), "-m", "coverage"]
    # Whole paths, which pyproject.toml cannot have: servers are measured too, and run in ComfyUI's folder.
    skipped = ",".join(str(paths.ROOT / name / "*") for name in _NOT_MEASURED)
    measured = [f"--source={paths.ROOT}", f"--omit={skipped}"]
    status = run_foreground([*coverage, "run", *measured, "-m", "pytest", *options], cwd=paths.ROOT, env=environ)
    # Some tests compile code under names of files that are not there.
    for command in (["combine", "--quiet"], ["report", "--ignore-errors"]):
        ended = run_foreground([*coverage, *command], cwd=paths.ROOT, env=environ)
        status = status or ended
    return status


def worker_options(rest: Sequence[str], cores: int, tier: str = "standard") -> list[str]:
    """pytest-xdist's options: workers for the suite, none for a file that is named or for a debugger."""
    names_a_file = any(not argument.startswith("-") and ".py" in argument for argument in rest)
    alone = names_a_file or any(argument.split("=")[0] in _ONE_PROCESS or argument in _ONE_PROCESS for argument in rest)
    if cores < 2 or alone or any(argument.startswith(_OWN_WORKERS) for argument in rest):
        return []
    return ["-n", str(WORKERS[tier])]
