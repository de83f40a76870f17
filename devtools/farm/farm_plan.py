"""What `dev.py farm` is asked for, read and checked as far as it can be without packages."""

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError, quoted
from cogvideox.migration.workflow_limits import MAX_BYTES, check_depth
from cogvideox.model_loaders.downloads import repositories
from cogvideox.parallel import engine
from cogvideox.system.file_names import check_file_name
from cogvideox.system.small_files import read_small_text

from ..errors import DevError
from ..paths import expanded
from ..run import requests, run_plan
from ..run.options import OPTIONS
from ..run.targets import try_folder
from .farm_results import Results

# What the farm imports where the servers are other machines': module -> package.
NEEDED = {**run_plan.NEEDED, "ray": "ray"}
_OWN_KEYS = {"id", "workflow", "inputs"}
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_LINES = """
A line of PROMPTS is one of these; empty lines and those that begin with # are left out:
  a small green star moves down                      a prompt
  {"prompt": "a star", "seed": 2, "id": "star"}      a prompt with options, as `dev.py run` takes them
  {"workflow": "upscale.json", "id": "dog"}          a workflow in API format, in a file or written out
  {"workflow": "i2v.json", "inputs": ["dog.png"]}    with files for its LoadImage and LoadVideo nodes

examples:
  python3 dev.py farm prompts.jsonl --out clips                 all cards of this machine
  python3 dev.py farm prompts.jsonl --out clips --workers 2     two of them; without cards, two servers on the CPU
  python3 dev.py farm prompts.jsonl --out clips --address 10.0.0.1:6379
                                                                all cards of a Ray cluster, whose token is named by
                                                                RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE

The same command after a stop makes what is missing. docs/farm.md says more.
"""


@dataclass(frozen=True)
class Job:
    """One clip. id: the beginning of its files' names. source: its line, for messages.

    request: a clip as `dev.py run` makes it, or None; graph: then a workflow in API format. inputs: names in a server's
    input folder -> files.
    """

    id: str
    source: str
    request: requests.Request | None
    graph: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is asked for. address: of a Ray cluster, "" for this machine. workers: 0 for one a card.

    tries: how often a clip is begun before it counts as failed. limit_minutes: after which one counts as lost; None for
    no limit. fetch: checkpoints that every machine needs, from source.
    """

    jobs: list[Job]
    results: Results
    address: str
    workers: int
    tries: int
    limit_minutes: int | None
    fetch: tuple[str, ...]
    source: str
    overwrite: bool


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The arguments of `dev.py farm`."""
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = _LINES
    command.add_argument("prompts", metavar="PROMPTS", type=Path, help="a file with one clip in each line; see below")
    command.add_argument("--out", metavar="DIR", required=True, help="the folder of the results")
    command.add_argument("--address", metavar="HOST:PORT", default="", help="a Ray cluster; this machine by default")
    command.add_argument("--workers", metavar="N", help="ComfyUI servers to run, by default one for each card")
    command.add_argument(
        "--tries", metavar="N", default="3", help="how often a clip is begun whose machine is lost; 3 by default"
    )
    command.add_argument(
        "--limit", metavar="MINUTES", help="end the ComfyUI of a clip that takes longer, and begin the clip again; by "
        "default there is no limit",
    )  # fmt: skip
    command.add_argument(
        "--fetch", metavar="NAME", action="append", default=[], help="download this checkpoint to every machine that "
        "lacks it, as `models fetch` does; may be given several times",
    )  # fmt: skip
    command.add_argument("--modelscope", action="store_true", help="--fetch from ModelScope, not from Hugging Face")
    command.add_argument("--overwrite", action="store_true", help="replace results that were made of other lines")
    requests.add_media_folder(command, "PROMPTS")
    clip = command.add_argument_group("options of every line that is not a workflow, unless it has its own")
    requests.add_options(clip, (name for name in OPTIONS if name != "prompt"))
    command.add_argument("--ready", help=argparse.SUPPRESS)


def read_plan(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for, checked as far as it can be without packages. Raises: DevError, UserError."""
    workers = 0 if arguments.workers is None else _whole(arguments.workers, "--workers", 1024)
    tries = _whole(arguments.tries, "--tries", 100)
    limit_minutes = None if arguments.limit is None else _whole(arguments.limit, "--limit", 100_000)
    for name in arguments.fetch:
        repositories.find_repository(name)
    jobs = _read_jobs(arguments)
    address = arguments.address.strip()
    if address:
        # A workflow may not name a cluster that the server's owner has not allowed; here the owner has typed it.
        os.environ[engine.ALLOWED] = address
        engine.check_address(address)
    else:
        os.environ.pop(engine.ALLOWED, None)
    if not arguments.out.strip():
        raise DevError("--out is empty: give the name of a folder.")
    folder = Path(os.path.abspath(expanded(arguments.out)))
    try_folder(folder, arguments.out)
    source = repositories.MODELSCOPE if arguments.modelscope else repositories.HUGGING_FACE
    results = Results(folder)
    fetch = tuple(arguments.fetch)
    return Plan(jobs, results, address, workers, tries, limit_minutes, fetch, source, arguments.overwrite)


def _whole(text: str, option: str, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise DevError(f"{option} is {quoted(text)!r}: give a whole number from 1 to {most}.")
    return int(text)


def _read_jobs(arguments: argparse.Namespace) -> list[Job]:
    """The clips of the file. Raises: DevError."""
    common = requests.read_common(arguments)
    requests.check_media_folders(arguments.media_folder)
    jobs = list(_lines(arguments.prompts, common, arguments.media_folder))
    if not jobs:
        raise DevError(f"PROMPTS names {arguments.prompts}, in which there is no prompt: write one in each line.")
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.id.lower(), job)  # for some file systems both are one name
        if other is not job:
            raise DevError(
                f"{job.source} has the id {job.id}, which {other.source} has already: the results would have the same "
                "name. Give each line an id of its own."
            )
    return jobs


def _lines(file: Path, common: requests.Request, media_folders: Sequence[Path]) -> Iterator[Job]:
    folder = expanded(file).parent
    for number, (line, source) in enumerate(requests.prompt_lines(file, "PROMPTS"), 1):
        found, name = requests.read_object(line, source), f"{number:04d}"
        if found is None:
            yield Job(name, source, requests.read_line(line, source, folder, common))
            continue
        name = _read_id(found["id"], source) if "id" in found else name
        if "workflow" in found:
            yield _read_workflow(found, name, source, folder)
            continue
        if "inputs" in found:
            raise DevError(f"{source} has inputs and no workflow that could read them: use image or video.")
        clip = {key: value for key, value in found.items() if key != "id"}
        request = requests.read_clip(clip, source, folder, common)
        requests.check_request(request, media_folders)
        yield Job(name, source, request)


def _read_id(value: Any, source: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DevError(
            f"id in {source} is {quoted(str(value))!r}: the results' names begin with it, so give up to 100 letters "
            "(a to z), digits, - and _ in quotes."
        )
    return value


def _read_workflow(found: Mapping[str, Any], name: str, source: str, folder: Path) -> Job:
    """Raises: DevError."""
    if unknown := sorted(found.keys() - _OWN_KEYS):
        raise DevError(
            f"{source} has a workflow and {quoted(', '.join(unknown))}: what a workflow makes stands in its nodes, so "
            "leave that out."
        )
    graph, label = found["workflow"], f"workflow in {source}"
    if isinstance(graph, str):
        path = folder / graph
        requests.check_place(label, graph, path, folder)
        requests.check_is_file(label, graph, path, "workflow")
        try:
            graph = json.loads(read_small_text(path, MAX_BYTES))
        except (OSError, ValueError, RecursionError, UserError) as error:
            raise DevError(f"{label} names {found['workflow']}, which cannot be read as JSON: {error}.") from error
    return Job(name, source, None, _checked_graph(graph, label), _read_inputs(found, source, folder))


def _checked_graph(graph: Any, label: str) -> dict[str, Any]:
    """Raises: DevError where a value is not a workflow in API format."""
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise DevError(f"{label} is as ComfyUI saves it for its page: export it with File, Export (API).")
    nodes = list(graph.values()) if isinstance(graph, dict) else []
    if not nodes or not all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in nodes
    ):
        raise DevError(
            f'{label} is not a workflow in API format, {{"1": {{"class_type": …, "inputs": {{…}}}}, …}}: export one '
            "with File, Export (API)."
        )
    try:
        check_depth(graph)
    except UserError as error:
        raise DevError(f"{label}: {error}") from error
    return graph


def _read_inputs(found: Mapping[str, Any], source: str, folder: Path) -> dict[str, Path]:
    """Raises: DevError."""
    names, inputs = found.get("inputs", []), {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DevError(f'inputs in {source} is not a list of names: write it as ["first.png"].')
    for name in names:
        try:
            plain = check_file_name(name, "frames/first.png")
        except UserError as error:
            raise DevError(f"inputs in {source}: {error}") from error
        requests.check_place(f"inputs in {source}", name, folder / plain, folder)
        requests.check_is_file(f"inputs in {source}", name, folder / plain, "picture or video")
        inputs[plain] = folder / plain
    return inputs
