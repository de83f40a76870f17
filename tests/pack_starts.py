"""What ComfyUI's start does with the pack, for processes of which none has imported it yet (children.py)."""

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Any


def forget_the_pack() -> None:
    """The few modules that the tests themselves have imported."""
    for name in list(sys.modules):
        if name.split(".")[0] == "cogvideox":
            del sys.modules[name]


def load(folders: list[Path]) -> tuple[list[tuple[bool, bool]], str | None]:
    """ComfyUI's own load of these folders, one after the other: of each whether it was loaded and whether its nodes are
    there; and the file that is the package afterwards. The log is printed."""
    import nodes

    forget_the_pack()
    logging.basicConfig(format="%(message)s", force=True)
    loaded = [
        (asyncio.run(nodes.load_custom_node(str(folder))), "CogVideoXSample" in nodes.NODE_CLASS_MAPPINGS)
        for folder in folders
    ]
    return loaded, getattr(sys.modules.get("cogvideox"), "__file__", None)


def load_under(folder: Path) -> list[str]:
    """Load the pack from `folder`, whose name has a dot; the modules whose names show what is before it. ComfyUI writes
    a dot as _x_."""
    import nodes

    assert load([folder])[0] == [(True, True)]
    import cogvideox.errors
    import cogvideox.nodes.sample

    assert nodes.NODE_CLASS_MAPPINGS["CogVideoXSample"] is cogvideox.nodes.sample.CogVideoXSample
    assert cogvideox.errors.UserError.__module__ == "cogvideox.errors"
    return [name for name in sys.modules if folder.name.partition(".")[0] in name]


def import_and_count() -> dict[str, list[str]]:
    """Import all nodes: the dataclasses and the compiled patterns that this builds, and the modules that it imports."""
    compile_pattern, patterns = re.compile, list[str]()

    def count(pattern: Any, flags: Any = 0) -> re.Pattern:
        name = sys._getframe(1).f_globals["__name__"]
        if name.startswith("cogvideox"):
            patterns.append(f"{name}: {pattern}")
        return compile_pattern(pattern, flags)

    forget_the_pack()
    re.compile = count
    import cogvideox

    asyncio.run(asyncio.run(cogvideox.comfy_entrypoint()).get_node_list())
    classes = {
        f"{name}.{value.__name__}"
        for name, module in list(sys.modules.items())
        if name.startswith("cogvideox")
        for value in vars(module).values()
        if isinstance(value, type) and "__dataclass_fields__" in vars(value) and value.__module__ == name
    }
    return {"dataclasses": sorted(classes), "patterns": patterns, "modules": sorted(sys.modules)}
