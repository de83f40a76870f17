"""Run a workflow file on a ComfyUI server and print its progress.

    python -m cogvideox.devtools.run_workflow FILE URL OUTPUT

FILE: as saved by the frontend, or in API format. OUTPUT: the server's output folder. Runs inside the venv.
"""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from cogvideox.errors import printable
from cogvideox.media.file_formats import VIDEO_OPTIONS

from . import client
from .console import say
from .errors import DevError
from .workflow import convert_to_api


@dataclass(frozen=True)
class Video:
    """What a decoder finds in a video file. fps: frames per second."""

    frames: int
    width: int
    height: int
    fps: float


def inspect_video(file: Path | io.BytesIO) -> Video:
    """Decode a video file and count. What opens further files, as a playlist does, is no video."""
    import av

    with av.open(file if isinstance(file, io.BytesIO) else str(file), options=VIDEO_OPTIONS) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return Video(frames, stream.width, stream.height, float(stream.average_rate or 0))


def run(workflow: Path, url: str, output: Path) -> list[Path]:
    """Run a workflow file to its end, with a line per node and step, and name the files it saved; returns these.

    Raises: DevError if the workflow is refused, fails or saves nothing.
    """
    api = client_format(workflow, url)
    result = client.run_workflow(url, api, progress_lines(api))
    if result.error is not None:
        raise DevError(f"The workflow {workflow.name} did not run to its end: {result.error}")
    if result.previews:
        say(f"  {len(result.previews)} live previews were sent")
    files = [file.resolve() for file in result.files(output)]
    if not files:
        raise DevError(f"The workflow {workflow.name} saved no file: it needs a node such as SaveVideo.")
    for file in files:
        print(printable(describe_file(file)), flush=True)
    return files


def progress_lines(api: dict) -> client.OnEvent:
    """What prints a line for each node and step of a workflow in API format."""
    types = {node_id: node["class_type"] for node_id, node in api.items()}

    def report(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] is not None:
            say(f"  {types.get(data['node'], 'node')} (node {data['node']})")
        elif kind == "progress":
            say(f"    step {data['value']:g} of {data['max']:g}")
        elif kind == "text":
            say(f"    {data['text']}")

    return report


def client_format(workflow: Path, url: str) -> dict:
    """A workflow file in API format, its nodes looked up on the server. Raises: DevError."""
    try:
        saved = json.loads(workflow.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DevError(f"{workflow} cannot be read as a workflow: {error}") from error
    return convert_to_api(saved, client.object_info(url))


def describe_file(file: Path) -> str:
    """The path, and for a video its frames, size and fps."""
    if file.suffix not in (".mp4", ".webm", ".mkv"):
        return str(file)
    return f"{file}  ({describe_video(inspect_video(file))})"


def describe_video(video: Video) -> str:
    """Its frames, size and fps."""
    return f"{video.frames} frames, {video.width}x{video.height}, {video.fps:g} fps"


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    if len(argv) != 3:
        print("usage: run_workflow FILE URL OUTPUT", file=sys.stderr)
        return 2
    workflow, url, output = argv
    try:
        run(Path(workflow), url, Path(output))
    except DevError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
