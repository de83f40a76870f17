"""Whether a rewritten workflow is one that ComfyUI would run: every node, input, link and value against the schemas."""

import asyncio
from functools import cache
from typing import Any

from cogvideox.devtools.workflow import convert_to_api
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options, Work
from cogvideox.migration.wrapper_nodes import NAMES
from cogvideox.nodes import CogVideoXExtension
from cogvideox.tests.migration.wrapper_flows import Flow

FILES = ("model_name", "vae_name", "text_encoder_name", "lora_name", "control_net_name", "image", "clip_name")
# What the tests' workflows have of other packs.
_INT, _IMAGE = ["INT", {"default": 0}], ["IMAGE", {}]
THIRD_PARTY: dict[str, tuple[dict, tuple[str, ...]]] = {
    "ImageResizeKJ": (
        {
            "image": _IMAGE,
            "width": _INT,
            "height": _INT,
            "upscale_method": ["STRING", {}],
            "keep_proportion": ["BOOLEAN", {}],
            "divisible_by": _INT,
        },
        ("IMAGE", "INT", "INT"),
    ),
    "GetImageSizeAndCount": ({"image": _IMAGE}, ("IMAGE", "INT", "INT", "INT")),
    "CreateCFGScheduleFloatList": ({}, ("FLOAT",)),
    "INTConstant": ({"value": _INT}, ("INT",)),
}


@cache
def schemas() -> dict[str, Any]:
    """The schemas of the pack's nodes, of ComfyUI's that migrated workflows have, and of THIRD_PARTY."""
    from comfy_extras import nodes_images, nodes_torch_compile

    import nodes as core

    found = {node.__name__: node.GET_NODE_INFO_V1() for node in asyncio.run(CogVideoXExtension().get_node_list())}
    for node in (nodes_images.GetImageSize, nodes_images.ImageFromBatch, nodes_torch_compile.TorchCompileModel):
        found[node.GET_SCHEMA().node_id] = node.GET_NODE_INFO_V1()
    names = ("KSampler", "ConditioningAverage", "ConditioningConcat", "CLIPLoader", "LoadImage", "ImageScale")
    for name in (*names, "SaveImage", "SaveLatent", "RepeatImageBatch", "EmptyLatentImage"):
        if name == "RepeatImageBatch":
            found[name] = nodes_images.RepeatImageBatch.GET_NODE_INFO_V1()
            continue
        node = core.NODE_CLASS_MAPPINGS[name]
        inputs = {section: dict(node.INPUT_TYPES().get(section, {})) for section in ("required", "optional")}
        found[name] = {"input": inputs, "output": list(node.RETURN_TYPES)}
    for name, (inputs, outputs) in THIRD_PARTY.items():
        found[name] = {"input": {"required": inputs}, "output": list(outputs)}
    return found


def check_runs(api: dict[str, Any]) -> None:
    """Assert that a workflow in API format has only known nodes, with every required input and right types."""
    for node_id, node in api.items():
        kind, where = node["class_type"], f"{node['class_type']} (node {node_id})"
        assert kind not in NAMES, f"{where} is the wrapper's"
        schema = schemas()[kind]
        required, optional = schema["input"]["required"], schema["input"].get("optional") or {}
        assert set(required) <= set(node["inputs"]), f"{where} lacks {set(required) - set(node['inputs'])}"
        assert set(node["inputs"]) <= {*required, *optional}, where
        for name, value in node["inputs"].items():
            _check_value(api, (required | optional)[name], value, name, where)


def _check_value(api: dict[str, Any], spec: Any, value: Any, name: str, where: str) -> None:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if isinstance(value, list):
        source, slot = value
        given = schemas()[api[source]["class_type"]]["output"][slot]
        assert given == kind, f"{where}.{name} is {kind} and gets {given}"
        return
    assert kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") or isinstance(kind, list), (
        f"{where}.{name} lacks a link"
    )
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None and name not in FILES:
        assert value in choices, f"{where}.{name} {value!r} is not in {choices}"
    if kind in ("INT", "FLOAT"):
        assert not isinstance(value, bool) and isinstance(value, (int, float)), f"{where}.{name} {value!r}"
        assert options.get("min", value) <= value <= options.get("max", value), f"{where}.{name} {value!r}"


def migrated(flow: Flow, **options: Any) -> tuple[dict[str, Any], Work]:
    """A workflow that must migrate: in API format, checked, and the report."""
    document, work = migrate_workflow(flow.document(), Options(**options))
    assert document is not None, work.of("refused")
    api = convert_to_api(document, schemas())
    check_runs(api)
    return api, work


def refused(flow: Flow, **options: Any) -> list[str]:
    """Why a workflow that must be refused is."""
    document, work = migrate_workflow(flow.document(), Options(**options))
    assert document is None
    return work.of("refused")


def only(api: dict[str, Any], kind: str) -> dict[str, Any]:
    """The inputs of the one node of a type."""
    (found,) = (node["inputs"] for node in api.values() if node["class_type"] == kind)
    return found


def source(api: dict[str, Any], link: Any) -> str:
    """The type of the node that an input comes from."""
    return api[link[0]]["class_type"]
