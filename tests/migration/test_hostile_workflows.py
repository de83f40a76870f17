"""A workflow comes from anybody: whatever it holds, one sentence, and no traceback, endless run or full memory."""

import json
import random

import pytest

from cogvideox.errors import UserError
from cogvideox.migration.migrate_graph import migrate_workflow
from cogvideox.migration.migration_report import Options
from cogvideox.migration.workflow_format import parse_workflow
from cogvideox.migration.wrapper_nodes import WRAPPER
from cogvideox.tests.migration.graph_checks import migrated, only, source
from cogvideox.tests.migration.wrapper_flows import TWELVE, Flow, text_to_video
from cogvideox.tests.mutations import LEAST_REFUSED, MUTATIONS, fuzz, mutate_tree

T2V = "THUDM/CogVideoX-5b"


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not a workflow"),
        ("{}", "not a workflow"),
        ('"nodes"', "not a workflow"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply|not a workflow|neither"),
        ('{"nodes": 1}', "not lists"),
        ('{"nodes": [1]}', "no id or no type"),
        ('{"nodes": [{"id": 1}]}', "no id or no type"),
        ('{"nodes": [{"id": true, "type": "CogVideoDecode"}]}', "no id or no type"),
        ('{"nodes": [], "links": {"a": 1}}', "not lists"),
        ('{"nodes": [], "links": [[1]]}', "a link is not"),
        ('{"nodes": [], "links": [[[], [], []]]}', "a link is not"),
        ('{"nodes": [{"id": 1, "type": "A", "inputs": [1]}]}', "not a list of objects"),
        ('{"nodes": [{"id": 1, "type": "A", "outputs": {"a": 1}}]}', "not a list of objects"),
        ('{"nodes": [{"id": 1, "type": "A"}, {"id": "1", "type": "B"}]}', "two nodes have the id"),
        ('{"nodes": [{"id": 1, "type": "CogVideoDecode", "widgets_values": 7}]}', "widgets"),
        ('{"nodes": [{"id": 1, "type": "KSampler"}]}', "no node of ComfyUI-CogVideoXWrapper"),
        ('{"1": {"class_type": 5}}', "neither"),
        ('{"1": {"class_type": "CogVideoDecode", "inputs": []}}', "neither"),
        ('{"1": {"class_type": "KSampler", "inputs": {}}}', "no node of ComfyUI-CogVideoXWrapper"),
    ],
)
def test_damaged_file_is_one_sentence(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        migrate_workflow(parse_workflow(text), Options())


def test_circles() -> None:
    """Followed, they would never end: in links, through Set and Get, in a chain of LoRAs."""
    flow = Flow()
    first = flow.add("CogVideoLoraSelect", "a", 1.0, False, prev_lora=None)
    second = flow.add("CogVideoLoraSelect", "b", 1.0, False, prev_lora=(first, 0))
    flow.links.append([9, second, 0, first, 0, "COGLORA"])
    flow.nodes[0]["inputs"][0]["link"] = 9
    with pytest.raises(UserError, match="in a circle"):
        migrate_workflow(flow.document(), Options())
    flow = Flow()
    got = flow.add("GetNode", "L")
    lora = flow.add("CogVideoLoraSelect", "a", 1.0, False, prev_lora=(got, 0))
    flow.add("SetNode", "L", COGLORA=(lora, 0))
    with pytest.raises(UserError, match="in a circle"):
        migrate_workflow(flow.document(), Options())


def test_long_chains() -> None:
    """As deep as a file may be: every link of it is followed, and none by a recursion."""
    flow = Flow()
    chain = (flow.add("CLIPLoader", "t5.safetensors", "sd3"), 0)
    for _ in range(1200):
        chain = (flow.add("CogVideoTextEncode", "x", 1, True, clip=chain), 1)
    loader = flow.loader(T2V)
    last = chain[0]
    flow.save(flow.sample(loader, ((last, 0), (last, 0)), samples=flow.empty(64, 64)), (loader, 1))
    api, _ = migrated(flow)
    assert source(api, only(api, "CogVideoXEncodeText")["clip"]) == "CogVideoXLoadTextEncoder"


def test_links_to_nowhere_are_as_if_unconnected() -> None:
    """The frontend drops them; the API refuses the prompt."""
    flow = text_to_video(T2V)
    flow.links[0][1] = 999
    document, work = migrate_workflow(flow.document(), Options())
    assert document is None and work.of("refused")


def test_hostile_names_are_quoted() -> None:
    """A name with a terminal's commands must not reach the terminal as such."""
    document = {"nodes": [{"id": "\x1b[2J" * 100, "type": "CogVideoSampler", "widgets_values": []}]}
    _, work = migrate_workflow(document, Options())
    assert all("\x1b" not in line and len(line) < 1000 for line in work.of("refused"))


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize("kind, value", [("Unknown", None), ("PrimitiveNode", -3), ("PrimitiveNode", float("nan"))])
def test_linked_values(name: str, kind: str, value: object) -> None:
    """Any widget may have been made an input, and get whatever another node makes."""
    for type_, specs in WRAPPER.items():
        for spec in specs:
            flow = TWELVE[name]()
            users = [node for node in flow.nodes if node["type"] == type_]
            if not spec.is_widget or not users:
                continue
            source = flow.add(kind, value)
            for number, node in enumerate(users, len(flow.links) + 1):
                flow.links.append([number, source, 0, node["id"], len(node["inputs"]), "*"])
                node["inputs"].append({"name": spec.name, "type": "*", "link": number})
            written, work = migrate_workflow(flow.document(), Options())
            assert written is not None or work.of("refused"), (type_, spec.name)


@pytest.mark.parametrize("mutations", MUTATIONS)
@pytest.mark.parametrize("name", ["i2v_1.5", "lora", "control_net", "fun_inpaint"])
def test_workflows_with_wrong_contents(name: str, mutations: int) -> None:
    """Every damage ends in a workflow, in a report or in a sentence."""
    document, made = TWELVE[name]().document(), []

    def make(rng: random.Random) -> object:
        made.append((mutate_tree(document, rng, rng.randint(1, 3)), Options(leave_out=rng.random() < 0.5)))
        return "a workflow"

    def load() -> None:
        damaged, options = made[-1]
        written, work = migrate_workflow(parse_workflow(json.dumps(damaged)), options)
        if written is None:
            raise UserError(f"The first of what is refused: {work.of('refused')[0]}")
        json.dumps(written)

    outcome = fuzz(f"workflow {name}", mutations, make, load)
    assert not outcome.problems, str(outcome)
    assert outcome.taken and outcome.refused_share >= LEAST_REFUSED, str(outcome)
