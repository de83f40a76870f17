"""Which pack each node of a workflow comes from, as ComfyUI-Manager writes it: who opens the workflow without the pack
is offered it by name."""

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found,no-redef]

from ..paths import ROOT

_CORE = "comfy-core"
_FRONTEND_ONLY = ("MarkdownNote",)


def pack() -> tuple[str, str]:
    """The pack's name in the registry, and its version, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["name"], project["version"]


def stamp(workflow: dict, comfyui: str) -> None:
    """Write `cnr_id` and `ver` into the properties of every node. comfyui: the version of ComfyUI."""
    name, version = pack()
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    inner = {graph["id"] for graph in graphs[1:]}
    for node in (node for graph in graphs for node in graph["nodes"]):
        if node["type"] in _FRONTEND_ONLY or node["type"] in inner:
            continue
        ours = node["type"].startswith("CogVideoX")
        node.setdefault("properties", {}).update(cnr_id=name if ours else _CORE, ver=version if ours else comfyui)
