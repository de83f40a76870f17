"""The commands demo, test, serve, bench, models and train; see `python3 dev.py --help`. Python and git suffice."""

import sys

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
    # Imported late, for an old Python cannot even parse it.
    from devtools import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
