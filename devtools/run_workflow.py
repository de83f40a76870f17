"""Run a workflow file on a ComfyUI server and print its progress.

    python -m cogvideox.devtools.run_workflow FILE URL OUTPUT

FILE: as saved by the frontend, or in API format. OUTPUT: the server's output folder. Runs inside the venv.
--prompt TEXT, --image NAME: instead of the prompt and the example picture; NAME in the server's input folder.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

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


def inspect_video(file: Path) -> Video:
    """Decode a video file and count."""
    import av

    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return Video(frames, stream.width, stream.height, float(stream.average_rate or 0))


def run(workflow: Path, url: str, output: Path, prompt: str | None = None, image: str | None = None) -> None:
    """Run a workflow file to its end, with a line per node and step, and name the files it saved.

    Raises: DevError if the workflow is refused, fails or saves nothing, or has no single node for prompt or image.
    """
    api = client_format(workflow, url)
    replace_widgets(api, prompt, image)
    types = {node_id: node["class_type"] for node_id, node in api.items()}

    def report(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] is not None:
            say(f"  {types.get(data['node'], 'node')} (node {data['node']})")
        elif kind == "progress":
            say(f"    step {data['value']:g} of {data['max']:g}")
        elif kind == "text":
            say(f"    {data['text']}")

    result = client.run_workflow(url, api, report)
    if result.error is not None:
        raise DevError(f"The workflow {workflow.name} did not run to its end: {result.error}")
    if result.previews:
        say(f"  {len(result.previews)} live previews were sent")
    files = result.files(output)
    if not files:
        raise DevError(f"The workflow {workflow.name} saved no file: it needs a node such as SaveVideo.")
    for file in files:
        print(describe_file(file.resolve()), flush=True)


def client_format(workflow: Path, url: str) -> dict:
    """A workflow file in API format, its nodes looked up on the server. Raises: DevError."""
    try:
        saved = json.loads(workflow.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DevError(f"{workflow} cannot be read as a workflow: {error}") from error
    return convert_to_api(saved, client.object_info(url))


def replace_widgets(api: dict, prompt: str | None, image: str | None) -> None:
    """Set the text of the prompt that is not empty, and put LoadImage, whose outputs are the same, in the place of the
    example picture. Raises: DevError."""
    for kind, widget, value in (("CogVideoXEncodeText", "text", prompt), ("CogVideoXExample", "example", image)):
        nodes = [n for n in api.values() if n["class_type"] == kind and n["inputs"][widget]]
        if value is not None:
            if len(nodes) != 1:
                raise DevError(f"The workflow has {len(nodes)} {kind} nodes with a {widget}; it takes one.")
            if kind == "CogVideoXExample":
                nodes[0].update(class_type="LoadImage", inputs={"image": value})
            else:
                nodes[0]["inputs"][widget] = value


def describe_file(file: Path) -> str:
    """The path, and for a video its frames, size and fps."""
    if file.suffix not in (".mp4", ".webm", ".mkv"):
        return str(file)
    video = inspect_video(file)
    return f"{file}  ({video.frames} frames, {video.width}x{video.height}, {video.fps:g} fps)"


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser("run_workflow", allow_abbrev=False)
    for name in ("workflow", "url", "output", "--prompt", "--image"):
        parser.add_argument(name)
    arguments = parser.parse_args(argv)
    try:
        run(Path(arguments.workflow), arguments.url, Path(arguments.output), arguments.prompt, arguments.image)
    except DevError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
