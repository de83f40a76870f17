"""What the pack's import builds while ComfyUI waits for it. Counted, since a time would depend on the machine."""

import json
import subprocess
import sys

import pytest

from cogvideox.tests.test_house import ROOT

# A little above what there is. A frozen dataclass takes half a millisecond to build, a NamedTuple a tenth of that; a
# pattern up to half a millisecond to compile, and none where re gets it as text and compiles it at its first use.
MOST = {"dataclasses": 34, "patterns": 12}

COUNT = """
import asyncio, json, re, sys

compile_pattern, patterns = re.compile, []

def count(pattern, flags=0):
    name = sys._getframe(1).f_globals["__name__"]
    if name.startswith("cogvideox"):
        patterns.append(f"{name}: {pattern}")
    return compile_pattern(pattern, flags)

re.compile = count
from cogvideox.host.standalone import use_comfyui
use_comfyui()
import cogvideox
asyncio.run(asyncio.run(cogvideox.comfy_entrypoint()).get_node_list())
classes = {
    f"{name}.{value.__name__}"
    for name, module in list(sys.modules.items()) if name.startswith("cogvideox")
    for value in vars(module).values()
    if isinstance(value, type) and "__dataclass_fields__" in vars(value) and value.__module__ == name
}
print(json.dumps({"dataclasses": sorted(classes), "patterns": patterns}))
"""


@pytest.fixture(scope="module")
def built() -> dict[str, list[str]]:
    out = subprocess.run([sys.executable, "-c", COUNT], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", MOST)
def test_the_import_builds_little(built: dict[str, list[str]], kind: str) -> None:
    """With 66 dataclasses and 112 patterns the import took longer than the tenth of a second that it may take."""
    assert built[kind], "nothing was counted"
    assert len(built[kind]) <= MOST[kind], "\n".join(built[kind])
