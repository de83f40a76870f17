"""Workflows of a million parts: in seconds, and in a bounded memory, they are migrated or refused with one sentence."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import REFUSED, Options, Work
from cogvideox.migration.workflow_format import parse_workflow
from cogvideox.tests.guard import bounded
from cogvideox.tests.migration.wrapper_flows import Flow, Slot, text_to_video
from cogvideox.tests.mutations import nested
from cogvideox.tests.tiers import long_after

T2V, INP = "THUDM/CogVideoX-5b", "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP"
SECONDS, MEBIBYTES = 3, 1024
MANY = 10**6


def with_part(**part: Any) -> dict:
    """Text to video, and a node of another pack with one part more."""
    document = text_to_video(T2V).document()
    document["nodes"].append({"id": 99, "type": "Other", **part})
    return document


def with_subgraphs(definitions: Any) -> dict:
    return text_to_video(T2V).document() | {"definitions": definitions}


def api(**inputs: Any) -> dict:
    return {"1": {"class_type": "CogVideoDecode", "inputs": inputs}}


def text(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


# More of something than is read -> the file, and what the one sentence says.
TOO_MUCH: dict[str, tuple[Callable[[], str], str]] = {
    "a million inputs": (lambda: text(with_part(inputs=[{"name": f"{n}"} for n in range(MANY)])), "values"),
    "a million inputs of one name": (lambda: text(with_part(inputs=[{"name": ""}] * MANY)), "values"),
    "a million outputs": (lambda: text(with_part(outputs=[{"name": ""}] * MANY)), "values"),
    "a million widgets": (lambda: text(with_part(widgets_values=[0] * MANY)), "values"),
    "a million links": (
        lambda: text(text_to_video(T2V).document() | {"links": [[1, 1, 0, 2, 0, "*"]] * MANY}),
        "values",
    ),
    "a million nodes": (lambda: text({"nodes": [{"id": 1, "type": "A"}] * MANY}), "values"),
    "a million subgraphs": (lambda: text(with_subgraphs({"subgraphs": [{"nodes": []}] * MANY})), "values"),
    "a million groups": (lambda: text(text_to_video(T2V).document() | {"groups": [{"a": 1}] * MANY}), "values"),
    "a million empty lists": (lambda: text({"nodes": [[]] * 10 * MANY}), "values"),
    "a million inputs in API format": (lambda: text(api(**{f"{n}": n for n in range(MANY)})), "values"),
    "a million nodes in API format": (lambda: text({f"{n}": {"class_type": "A"} for n in range(MANY)}), "values"),
    "1,001 inputs": (lambda: text(with_part(inputs=[{"name": f"{n}"} for n in range(1001)])), "1001 inputs"),
    "1,001 outputs": (lambda: text(with_part(outputs=[{"name": ""}] * 1001)), "1001 outputs"),
    "1,001 inputs in API format": (lambda: text(api(**{f"{n}": n for n in range(1001)})), "1001 inputs"),
    "5,001 nodes": (lambda: text({"nodes": [{"id": n, "type": "A"} for n in range(5001)]}), "5001 nodes"),
    "5,001 nodes in API format": (lambda: text({f"{n}": {"class_type": "A"} for n in range(5001)}), "5001 nodes"),
    "nested subgraphs": (lambda: text(with_subgraphs(nested(900))), "nested too deeply"),
    "a nested widget": (lambda: text(with_part(widgets_values=nested(900))), "nested too deeply"),
    "a nested node": (lambda: text({"nodes": [nested(900)]}), "nested too deeply"),
    "a nested link": (lambda: text({"nodes": [], "links": [nested(900)]}), "nested too deeply"),
    "a number of a million digits": (lambda: '{"nodes": ' + "9" * MANY + "}", "number of 1000000 digits"),
    "a negative one": (lambda: '{"nodes": -' + "9" * 400 + "}", "number of 400 digits"),
}


OF_VALUES = [what for what, (_, word) in TOO_MUCH.items() if word == "values"]


@pytest.mark.parametrize("what", [*long_after(1, OF_VALUES), *(what for what in TOO_MUCH if what not in OF_VALUES)])
def test_more_than_is_read_is_one_sentence(what: str) -> None:
    """Read whole, it would take minutes, or all memory; no workflow has as much."""
    build, word = TOO_MUCH[what]
    contents = build()
    assert len(contents) <= 32 * 2**20 - 1, "the file's size would be what is refused"
    with bounded(SECONDS, MEBIBYTES), pytest.raises(UserError, match=word):
        migrate_workflow(parse_workflow(contents), Options())


def carried() -> Flow:
    """A chain of Set and Get, and as many prompts at its end."""
    flow = Flow()
    clip: Slot = (flow.add("CLIPLoader", "t5.safetensors", "sd3"), 0)
    for number in range(1600):
        flow.add("SetNode", f"name {number}", CLIP=clip)
        clip = (flow.add("GetNode", f"name {number}"), 0)
    for _ in range(1600):
        flow.add("CogVideoTextEncode", "x", 1, True, clip=clip)
    return flow


def carried_by_one_name() -> Flow:
    flow = Flow()
    clip: Slot = (flow.add("CLIPLoader", "t5.safetensors", "sd3"), 0)
    for _ in range(2400):
        flow.add("SetNode", "name", CLIP=clip)
    for _ in range(2400):
        clip = (flow.add("GetNode", "name"), 0)
    flow.add("CogVideoTextEncode", "x", 1, True, clip=clip)
    return flow


def carried_from_nowhere() -> Flow:
    """Reroutes from a Get without its Set, and as many prompts at their end."""
    flow = Flow()
    clip: Slot = (flow.add("GetNode", "name"), 0)
    for _ in range(2400):
        clip = (flow.add("Reroute", **{"": clip}), 0)
    for _ in range(2400):
        flow.add("CogVideoTextEncode", "x", 1, True, clip=clip)
    return flow


def reroutes() -> Flow:
    """Reroutes one after the other, of which none is of use any more."""
    flow = Flow()
    loader = flow.loader(T2V)
    model: Slot = (loader, 0)
    for _ in range(4900):
        model = (flow.add("Reroute", **{"": model}), 0)
    flow.save(flow.sample(model[0], flow.prompts(), samples=flow.empty(720, 480)), (loader, 1))
    return flow


def loras_of_all() -> Flow:
    """Loaders that share a chain of LoRAs: each applies them itself."""
    flow = Flow()
    chain: Slot | None = None
    for _ in range(2400):
        chain = (flow.add("CogVideoLoraSelect", "a", 1, False, prev_lora=chain), 0)
    for _ in range(100):
        flow.add("PreviewAny", source=(flow.loader(T2V, lora=chain), 0))
    return flow


def inpaint_samplers() -> Flow:
    """Each looks for the decoder behind it, whose VAE it needs."""
    flow = Flow()
    loader, prompts, empty = flow.loader(INP), flow.prompts(), flow.empty(720, 480)
    for _ in range(1600):
        flow.save(flow.sample(loader, prompts, samples=empty), (loader, 1))
    return flow


def many_users() -> Flow:
    """Latents that other nodes take: each is a line of the report."""
    flow = Flow()
    loader = flow.loader(T2V)
    image = flow.encode((loader, 1), flow.picture(720, 480))
    for _ in range(1000):
        flow.add("SaveLatent", **{f"samples {n}": image for n in range(30)})
    return flow


def passes() -> Flow:
    """Samplers one after the other, the first without a size."""
    flow = Flow()
    loader, prompts = flow.loader(T2V), flow.prompts()
    sampled = flow.sample(loader, prompts, samples=None)
    for _ in range(2400):
        sampled = flow.sample(loader, prompts, denoise=0.5, samples=(sampled, 0))
    flow.save(sampled, (loader, 1))
    return flow


def combined() -> Flow:
    """Prompts combined again and again, the first of them unconnected."""
    flow = Flow()
    prompt: Slot = (flow.add("CogVideoTextEncode", "x", 1, True, clip=None), 0)
    for _ in range(4900):
        both = {"conditioning_1": prompt, "conditioning_2": prompt}
        prompt = (flow.add("CogVideoTextEncodeCombine", "average", 0.5, **both), 0)
    flow.add("PreviewAny", source=prompt)
    return flow


def bypassed() -> Flow:
    """A bypassed node of a thousand slots: for each output, an input of its type is looked for."""
    flow = Flow()
    clip: Slot = (flow.add("CLIPLoader", "t5.safetensors", "sd3"), 0)
    flow.add("Other", **{f"{n}": clip for n in range(1000)})
    node = flow.nodes[-1]
    node["mode"] = 4
    node["outputs"] = [{"name": "", "type": "MODEL", "links": []} for n in range(1000)]
    for slot in range(1000):
        for _ in range(4):
            flow.add("CogVideoTextEncode", "x", 1, True, clip=(node["id"], slot))
    return flow


def long_name() -> Flow:
    """A checkpoint's name of megabytes in every line of the report."""
    flow = Flow()
    for _ in range(4):
        flow.add("PreviewAny", source=(flow.loader("x" * (5 * 2**20)), 0))
    return flow


MANY_NODES = {
    build.__name__: build
    for build in (carried, carried_by_one_name, carried_from_nowhere, reroutes, loras_of_all, inpaint_samplers)
} | {build.__name__: build for build in (many_users, passes, combined, bypassed, long_name)}


@pytest.mark.parametrize("name", long_after(6, MANY_NODES))
def test_work_grows_with_the_nodes_and_not_with_their_square(name: str) -> None:
    """5,000 nodes are read: whatever is done for each of them must not go through all of them."""
    contents = text(MANY_NODES[name]().document())
    work: Work | None = None
    with bounded(SECONDS, MEBIBYTES):
        try:
            written, work = migrate_workflow(parse_workflow(contents), Options())
            assert written is not None or work.of(REFUSED)
        except UserError as error:
            assert "nodes" in str(error)
    lines = [] if work is None else [line for kind in ("changed", "left out", REFUSED) for line in work.of(kind)]
    assert all(len(line) <= 1000 for line in lines), "a line of megabytes on a terminal"


def test_circle_through_names_that_are_equal_numbers() -> None:
    """1 and 1.0 are the same value and not the same text: a chain of LoRAs that is followed for ever."""
    flow = Flow()
    got = flow.add("GetNode", 1)
    lora: Slot = (flow.add("CogVideoLoraSelect", "a", 1.0, False, prev_lora=(got, 0)), 0)
    flow.add("SetNode", 1.0, COGLORA=lora)
    flow.add("PreviewAny", source=(flow.loader(T2V, lora=lora), 0))
    with bounded(SECONDS, MEBIBYTES):
        written, work = migrate_workflow(flow.document(), Options())
    assert written is None and any("SetNode" in line for line in work.of(REFUSED))


def test_set_and_get_without_a_name_are_no_circle() -> None:
    """Two that somebody has put there and not filled in have nothing to do with each other."""
    flow = text_to_video(T2V)
    flow.add("SetNode", "", x=(flow.add("GetNode", ""), 0))
    written, work = migrate_workflow(flow.document(), Options())
    assert written is not None, work.of(REFUSED)


def test_inputs_of_one_name_keep_their_own_links() -> None:
    """Told apart by a number that a third has in its name, two would get the link of the last."""
    flow = text_to_video(T2V)
    pictures = [flow.picture(64, 64) for _ in range(3)]
    flow.add("Other", **dict(zip(("x #2", "x", "y"), pictures, strict=True)))
    flow.nodes[-1]["inputs"][2]["name"] = "x"
    written, _ = migrate_workflow(flow.document(), Options())
    assert written is not None
    origins = {row[0]: row[1] for row in written["links"]}
    (node,) = (node for node in written["nodes"] if node["type"] == "Other")
    assert [origins[entry["link"]] for entry in node["inputs"]] == [picture[0] for picture in pictures]


def test_link_to_a_node_that_is_gone_leads_to_no_new_one() -> None:
    """The new nodes get the next free numbers; the lost one's number must not be among them."""
    flow = text_to_video(T2V)
    flow.add("Other", x=(1, 0))
    flow.links[-1][1] = len(flow.nodes) + 1
    written, _ = migrate_workflow(flow.document(), Options())
    assert written is not None
    (node,) = (node for node in written["nodes"] if node["type"] == "Other")
    assert node["inputs"][0]["link"] is None
