"""Which benchmarks there are. Standard library only: nothing is imported of them."""

import ast
from collections.abc import Mapping
from pathlib import Path

from . import paths

_PREFIX = "bench_"


def scripts() -> dict[str, Path]:
    """A benchmark's name -> its script."""
    files = sorted((paths.ROOT / "benchmarks").glob(f"{_PREFIX}*.py"))
    return {file.stem.removeprefix(_PREFIX): file for file in files}


def describe(named: Mapping[str, Path]) -> str:
    """What `bench --help` prints: how to call it, and each benchmark with the first sentence of its docstring."""
    width = max(map(len, named), default=0)
    lines = [f"  {name:{width}}  {_sentence(file)}" for name, file in named.items()]
    head = [
        "usage: dev.py bench [NAME] [OPTIONS]",
        "",
        "Run all benchmarks, or the one named. `bench NAME --help` lists the options of one; --save writes the tables",
        "to benchmarks/results as well; --comfyui PATH runs them in your own ComfyUI.",
        "",
    ]
    return "\n".join([*head, *lines])


def _sentence(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ")
