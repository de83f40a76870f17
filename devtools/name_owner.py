"""Write who publishes the pack into every file that says so.

    python -m cogvideox.devtools.name_owner OWNER [--publisher ID]

OWNER is the name on GitHub whose repository ComfyUI-CogVideoX this is; ID is that of the Comfy Registry, where it is
another one. Both stand in pyproject.toml; README.md and the other documents repeat the address. Standard library only.
"""

import argparse
import re
from pathlib import Path

from .errors import DevError
from .paths import ROOT

REPOSITORY = "ComfyUI-CogVideoX"
FILES = ("pyproject.toml", "README.md", "SECURITY.md", "CONTRIBUTING.md")
# of the repository's pages, and of its files as they are
ADDRESS = re.compile(rf"((?:github|githubusercontent)\.com/)([\w-]+)(?=/{REPOSITORY}\b)")
_PUBLISHER = re.compile(r'(?<=^PublisherId = ")[^"]+', re.M)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("owner", help="the name on GitHub")
    parser.add_argument("--publisher", help="the id of the Comfy Registry, where it is not the same")
    options = parser.parse_args(argv)
    for file in name_owner(ROOT, options.owner, options.publisher or options.owner):
        print(file)


def name_owner(root: Path, owner: str, publisher: str) -> list[str]:
    """Rewrite FILES below `root`; returns those that have changed. Raises: DevError for what is no name."""
    for name in (owner, publisher):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}", name):
            raise DevError(f"{name!r} is not a name on GitHub: it has letters of A to Z, digits and hyphens only.")
    changed = []
    for name in FILES:
        file = root / name
        before = file.read_text("utf-8")
        after = ADDRESS.sub(rf"\g<1>{owner}", before)
        if name == "pyproject.toml":
            after = _PUBLISHER.sub(publisher, after)
        if after != before:
            file.write_text(after, "utf-8")
            changed.append(name)
    return changed


if __name__ == "__main__":
    main()
