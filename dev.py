"""The commands demo, run, farm, test, serve, bench, models and train: `python3 dev.py --help`. Needs Python and git."""

import importlib.util
import sys
from pathlib import Path

MINIMUM_PYTHON = (3, 10)


def main(argv=None):
    """Run one command; returns the exit status. argv: without the program's name, None for the command line's."""
    if sys.version_info[:2] < MINIMUM_PYTHON:
        needed, found = (".".join(map(str, version)) for version in (MINIMUM_PYTHON, sys.version_info[:3]))
        print(
            f"error: Python {needed} or newer is needed and this is {found}: run `python{needed} dev.py`.",
            file=sys.stderr,
        )
        return 1
    import_package()
    # Imported late: an old Python could not even parse it, and would print a SyntaxError instead of the message above.
    from cogvideox.devtools import cli

    return cli.main(argv)


def import_package():
    """Make this folder the package `cogvideox`, as it is in the virtual environment that does not exist yet."""
    if "cogvideox" in sys.modules:
        return
    init = Path(__file__).resolve().with_name("__init__.py")
    spec = importlib.util.spec_from_file_location("cogvideox", init, submodule_search_locations=[str(init.parent)])
    assert spec is not None and spec.loader is not None
    sys.modules["cogvideox"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["cogvideox"])


if __name__ == "__main__":
    sys.exit(main())
