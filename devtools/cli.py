"""dev.py's commands. Standard library only, and no import of the venv's packages."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cogvideox.errors import UserError, printable

from . import bench_list, browser, comfyui, environment, libraries, migrate, models, overlay, paths, server, suite
from .console import say
from .errors import DevError, describe_full_disk, is_disk_full
from .farm import farm_plan
from .process import go_on_as, run_foreground
from .run import run_plan
from .signals import forget_callers_signals


@dataclass(frozen=True)
class Setup:
    """A machine that is ready: ComfyUI's folder and the interpreter. installed: a digest of what is in the venv."""

    host: Path
    python: Path
    installed: str = ""

    def environ(self, **more: str) -> dict[str, str]:
        """This process's environment variables, and those that tests and benchmarks read.

        Bytecode is written even where containers forbid it: a run of the tests begins dozens of processes, and each
        would compile ComfyUI, the pack and its tests again, which takes three to five seconds.
        """
        own = {"COMFYUI_PATH": str(self.host), "COGVIDEOX_DEV_BASE": str(paths.BASE), "PYTHONDONTWRITEBYTECODE": ""}
        return {**os.environ, **own, **more}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. argv: without the program's name, None for the command line's."""
    arguments, rest = parse(sys.argv[1:] if argv is None else argv)
    try:
        with _stopping_when_asked():
            return arguments.run(arguments, rest)
    except (DevError, UserError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        # What the system refuses of a file is nothing that a traceback explains. Everything else that comes up to here
        # is a fault of ours, and whoever repairs it needs the traceback.
        if not is_disk_full(error) and error.filename is None:
            raise
        print(f"error: {printable(_describe_refusal(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _describe_refusal(error: OSError) -> str:
    """The sentence for an error of the system that names a file."""
    if is_disk_full(error):
        return describe_full_disk(error.filename or paths.ROOT)
    return (
        f"The system refuses {error.filename} ({type(error).__name__}: {error.strerror or error}). Check its name, its "
        "folder and its permissions, and run the command again."
    )


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the arguments that `test` and `bench` pass on."""
    # No abbreviations: pytest's --co is not our --comfyui.
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--comfyui", metavar="PATH", help="your ComfyUI (or COMFYUI_PATH); only `models fetch` writes there"
    )
    starts = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    starts.add_argument("--port", type=int, metavar="N", help="the server's port, a free one by default")
    title, both = "Try, test and measure the pack in a real ComfyUI.", [common, starts]
    parser = argparse.ArgumentParser("dev.py", description=title, parents=both, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, act: Callable, parents: list[argparse.ArgumentParser], explanation: str
    ) -> argparse.ArgumentParser:
        sentence = f"{explanation[:1].upper()}{explanation[1:]}."
        # bench says itself what there is, and passes --help on to a benchmark.
        command = commands.add_parser(
            name,
            help=explanation,
            description=sentence,
            parents=parents,
            allow_abbrev=False,
            add_help=act is not bench,
        )
        command.set_defaults(run=act, command=name, parents=parents)
        return command

    command = add("demo", demo, both, "make three videos, or one of your prompt or picture, with the toy in the pack")
    command.add_argument("--prompt", metavar="TEXT", help="what to paint: a shape, its colour, where it goes")
    command.add_argument("--image", metavar="FILE", type=Path, help="the first frame: image to video")
    tiers = "run the tests: a fast, a standard or a long tier; further arguments go to pytest"
    suite.add_arguments(add("test", test, [common], tiers))
    add("serve", serve, both, "keep ComfyUI running for your browser")
    add("bench", bench, [common], "run the benchmarks, or the one named, with further arguments")
    made = "make videos of prompts, pictures or videos, on a server of its own or one that runs"
    run_plan.add_arguments(add("run", make, both, made))
    many = "make the clips of a file of prompts and workflows, on all cards of this machine or of a Ray cluster"
    farm_plan.add_arguments(add("farm", farm, [common], many))
    hubs = "list the published models, download a checkpoint (models fetch NAME), or ask what has moved (check)"
    models.add_arguments(add("models", models.run, [common], hubs))
    rewritten = "rewrite a workflow of ComfyUI-CogVideoXWrapper into the pack's nodes: migrate workflow.json"
    migrate.add_arguments(add("migrate", migrate.run, [], rewritten))
    command = add(
        "train", train, [common], "train a LoRA, or a whole transformer, as a recipe says: train my_recipe.toml"
    )
    command.add_argument("recipe", help="a TOML file; training/example.toml is a whole one")
    arguments, rest = parser.parse_known_args(argv)
    arguments.argv = argv
    # Before the command, both are read for every one of them.
    for option, owner in (("comfyui", common), ("port", starts)):
        if option in arguments and owner not in arguments.parents:
            parser.error(f"--{option} has no effect on {arguments.command}: leave it out.")
    if rest and arguments.run not in (test, bench):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments, rest[1:] if rest[:1] == ["--"] else rest


_DEMO = ("Text to video", "Image to video", "Inpaint a region of a video")
_DEMO_PROMPT = "A large red square moves up on a white background."  # where a picture alone is given


def demo(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run example workflows on the toy, name the videos they made, and put frames of these into one picture. With a
    prompt or a picture, one video of it instead, as `run` makes it."""
    if arguments.image is not None or arguments.prompt is not None:
        return _demo_of(arguments)
    port = _chosen_port(arguments)
    setup = prepare(arguments, for_tests=False)
    with _server(setup, port, "demo") as running:
        command = [str(setup.python), "-m", "cogvideox.devtools.demo", running.url, str(running.output), *_DEMO]
        return run_foreground(command, env=setup.environ())


def _demo_of(arguments: argparse.Namespace) -> int:
    folder = paths.BASE / "output" / "demo"
    number = 1 + max((int(file.stem) for file in folder.glob("*.mp4") if file.stem.isdecimal()), default=0)
    video, sheet = folder / f"{number}.mp4", folder / f"{number}.png"
    prompt = _DEMO_PROMPT if arguments.prompt is None else arguments.prompt
    options = [f"--prompt={prompt}", f"--out={video}"]
    if arguments.image is not None:
        options.append(f"--image={arguments.image}")
    options += [f"--{name}={value}" for name in ("comfyui", "port") if (value := getattr(arguments, name, None))]
    if status := make(*parse(["run", *options])):
        return status
    python = environment.venv_python(paths.VENV)
    command = [str(python), "-m", "cogvideox.devtools.contact_sheet", str(sheet), str(video)]
    status = run_foreground(command)
    say(f"Frames of it: {sheet}")
    return status


def make(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Make the videos that `run` asks for: what can be checked without packages here, the rest in a process that has
    them. Progress goes to stderr: stdout has a line of JSON for each result, and nothing else."""
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        plan = run_plan.read_plan(arguments)
        if arguments.ready is not None:
            from .run.work import Own, work  # needs packages

            own = json.loads(arguments.ready)
            return work(plan, Own(**own) if own else None, results)
        if plan.server is not None:
            python, environ, ready = models.interpreter(run_plan.NEEDED), dict(os.environ), "{}"
        else:
            port = _chosen_port(arguments)
            folder = models.models_folder(arguments)
            setup = prepare(arguments, for_tests=False)
            python, environ = setup.python, setup.environ()
            ready = json.dumps({"host": str(setup.host), "models": str(folder), "port": port})
    command = [str(python), str(paths.ROOT / "dev.py"), *arguments.argv, "--ready", ready]
    return run_foreground(command, env=environ)


def farm(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Make the clips of `farm`, as `make` does: this process becomes the one that has the packages."""
    results = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        plan = farm_plan.read_plan(arguments)
        if arguments.ready is not None:
            from .farm.farm_work import work  # needs packages

            return work(plan, json.loads(arguments.ready), results)
        if plan.address:
            python, environ = models.interpreter(farm_plan.NEEDED), dict(os.environ)
            _, checkout = _chosen_host(arguments)
            host, folder = checkout or "", ""
        else:
            folder = models.models_folder(arguments)
            setup = prepare(arguments, for_tests=False)
            models.install_missing(setup.python, {"ray": "ray"})
            python, environ, host = setup.python, setup.environ(), setup.host
    ready = json.dumps({"package": str(paths.ROOT), "comfyui": str(host), "models": str(folder)})
    return go_on_as([str(python), str(paths.ROOT / "dev.py"), *arguments.argv, "--ready", ready], environ)


def serve(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Keep the server running until Ctrl-C."""
    port = _chosen_port(arguments)
    setup = prepare(arguments, for_tests=False)
    with _server(setup, port, "serve", user_directory=paths.BASE / "user") as running:
        say(f"ComfyUI is at {running.url} - the examples are under Templates, CogVideoX; Ctrl-C ends it")
        status = running.process.wait()
    raise DevError(f"ComfyUI ended by itself (exit status {status}); its log is {running.log}.")


def test(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run a tier of the test suite inside the venv, or in environments with other versions of libraries."""
    _require_clone("tests", "test_*.py")
    if arguments.libraries is not None and (arguments.host is not None or arguments.faults):
        raise DevError("--libraries takes neither --host nor --faults: run the two commands one after the other.")
    setup = prepare(arguments, for_tests=True)
    chromium = browser.ensure_browser(paths.LOGS)
    environ = setup.environ(**({"CHROMIUM": chromium} if chromium else {}))
    if arguments.libraries is None:
        return suite.run(setup.python, environ, arguments, rest)
    ended = {}
    for chosen in libraries.SETS if arguments.libraries == "all" else [arguments.libraries]:
        python = libraries.prepare(chosen, setup.python, setup.host, setup.installed)
        ended[chosen] = suite.run(python, environ, arguments, rest)
    for chosen, status in ended.items():
        say(f"{chosen}: {'passed' if status == 0 else f'failed (exit status {status})'}")
    return next((status for status in ended.values() if status), 0)


def bench(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Run one benchmark, named without its `bench_`, or all of them; returns the first status that is not 0."""
    _require_clone("benchmarks", "bench_*.py")
    scripts = bench_list.scripts()
    named = rest[:1] if rest and not rest[0].startswith("-") else []
    if not named and {"-h", "--help"} & set(rest):
        print(bench_list.describe(scripts))
        return 0
    names, options = named or list(scripts), rest[len(named) :]
    unknown = [name for name in names if name not in scripts]
    if unknown or not scripts:
        raise DevError(f"There is no benchmark {' '.join(unknown)}; there are: {', '.join(scripts) or 'none'}.")
    setup = prepare(arguments, for_tests=True)
    status = 0
    for name in names:
        say(f"Benchmark {name}")
        command = [str(setup.python), str(scripts[name]), *options]
        ended = run_foreground(command, cwd=paths.ROOT, env=setup.environ())
        status = status or ended
    return status


def _require_clone(folder: str, pattern: str) -> None:
    """Raises: DevError in the Comfy Registry's package (.comfyignore)."""
    if not any((paths.ROOT / folder).glob(pattern)):
        raise DevError(
            f"{paths.ROOT} is the Comfy Registry's package, which has neither tests nor benchmarks: clone the "
            "repository for them."
        )


def train(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Train as a recipe says, in one process; training/launch.py says how in several."""
    recipe = Path(os.path.realpath(paths.expanded(arguments.recipe)))
    if not os.path.isfile(recipe):
        raise DevError(f"There is no recipe {recipe}. Copy training/example.toml and fill it in.")
    setup = prepare(arguments, for_tests=False)
    say(f"Training {recipe.name}")
    command = [str(setup.python), "-m", "cogvideox.training.launch", str(recipe)]
    return run_foreground(command, env=setup.environ())


def prepare(arguments: argparse.Namespace, *, for_tests: bool) -> Setup:
    """Everything up to the server: venv, ComfyUI, packages, base directory. Raises: DevError."""
    release, checkout = _chosen_host(arguments)
    stamps = paths.VENV / "dev-stamps"
    if not stamps.exists():
        free_gb = environment.check_room(paths.ROOT)
        say(f"First install: Python {sys.version.split()[0]}, {free_gb:.0f} GB free")
    paths.LOGS.mkdir(parents=True, exist_ok=True)
    python = environment.create_venv(paths.VENV, paths.LOGS)
    host = checkout or comfyui.fetch(comfyui.PINNED, paths.DEV, python, paths.LOGS)
    installed = _install(python, host, stamps, for_tests)
    if release is not comfyui.PINNED:
        host = comfyui.fetch(release, paths.DEV, python, paths.LOGS)
        python = overlay.prepare(python, host, release.version, installed)
    say(f"ComfyUI: {host}")
    comfyui.prepare_base(paths.BASE, paths.ROOT, paths.PACK_NAME)
    return Setup(host, python, installed)


def _chosen_host(arguments: argparse.Namespace) -> tuple[comfyui.Release, Path | None]:
    """The release to fetch, and the user's own checkout to take in its place. Raises: DevError."""
    version, by_option = getattr(arguments, "host", None), getattr(arguments, "comfyui", None)
    if version is not None:
        if by_option is not None:
            raise DevError("--host fetches a ComfyUI and --comfyui names one that is there: give one of the two.")
        return comfyui.find_release(version), None
    checkout = by_option or os.environ.get("COMFYUI_PATH")
    named_by = "COMFYUI_PATH" if by_option is None else "--comfyui"
    return comfyui.PINNED, comfyui.find_checkout(checkout, named_by) if checkout else None


def _install(python: Path, host: Path, stamps: Path, for_tests: bool) -> str:
    """Install what `host`, the pack and the tests need; returns a digest of it."""
    constraints = paths.CONSTRAINTS
    # In one go, so that pip finds versions that satisfy both.
    packages = [host / "requirements.txt", paths.ROOT / "requirements.txt"]
    installed = environment.install(python, "ComfyUI requirements", packages, constraints, stamps, paths.LOGS)
    environment.install_package(python, paths.ROOT, stamps, paths.LOGS)
    if for_tests:
        extras = [paths.ROOT / "requirements-dev.txt"]
        installed = environment.install(
            python, "test requirements", extras, constraints, stamps, paths.LOGS, after=installed
        )
    return installed


def _chosen_port(arguments: argparse.Namespace) -> int | None:
    """The port from the command line, checked before anything that takes long. Raises: DevError."""
    port = getattr(arguments, "port", None)
    if port is not None:
        server.check_port(port)
    return port


@contextlib.contextmanager
def _server(setup: Setup, port: int | None, name: str, user_directory: Path | None = None) -> Iterator[server.Server]:
    """ComfyUI's server with the pack; name: of the log. See `server.running_server`."""
    log = paths.LOGS / f"server-{name}.log"
    say(f"Starting ComfyUI (log: {log})")
    with server.running_server(
        setup.host, paths.BASE, log=log, python=setup.python, port=port, user_directory=user_directory
    ) as running:
        say(f"ComfyUI answers at {running.url}")
        yield running


@contextlib.contextmanager
def _stopping_when_asked() -> Iterator[None]:
    """Let `finally` clauses run, and with them the server stop, on SIGTERM and when the terminal is closed."""
    before = {}
    forget_callers_signals()
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # nohup has the signal ignored, and it must stay so.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
