"""Run example workflows on a ComfyUI server and put frames of their videos into one picture, demo.png in its output.

    python -m cogvideox.devtools.demo URL OUTPUT NAME [NAME ...]

OUTPUT: the server's output folder. NAME: the title of a template, without its number. Runs inside the venv.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from cogvideox.errors import printable

from . import run_workflow
from .console import say
from .contact_sheet import contact_sheet
from .errors import DevError
from .paths import template


def run_examples(url: str, output: Path, names: Sequence[str]) -> Path:
    """Returns the picture: a row for each video that the workflows have saved. Raises: DevError."""
    videos = []
    for name in names:
        say(f"Running {name}")
        files = run_workflow.run(template(name), url, output)
        videos += [file for file in files if file.suffix == ".mp4"]
    sheet = output / "demo.png"
    contact_sheet(videos).save(sheet, optimize=True)
    return sheet


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    url, output, *names = argv
    try:
        sheet = run_examples(url, Path(output), names)
    except DevError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"Frames of them, a row each: {sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
