"""What a new user meets: a list without a model, a name that is not there, and nothing chosen."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import execution
import pytest
import torch
from comfy_api.latest import io

from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.paths import ROOT, TEMPLATES
from cogvideox.errors import UserError
from cogvideox.host import patches, queued_workflow, toy
from cogvideox.host.queue_errors import naming_input, reported_once
from cogvideox.host.queued_workflow import bypassed_downloads, note_workflow
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.host.toast_text import toast_text
from cogvideox.locales.translations import translate
from cogvideox.model_loaders.downloads.repositories import FILES, REPOSITORIES
from cogvideox.nodes import NODES, controlnet, draft, load, lora, missing_models
from cogvideox.nodes.missing_models import KINDS, say_empty
from cogvideox.tests.model_folders import empty_model_folders

# What has a list of models: the node, the input with the list, the kind.
LISTS: list[tuple[type[io.ComfyNode], str, str]] = [
    (load.CogVideoXLoadPipeline, "folder", "pipeline"),
    (load.CogVideoXLoadModel, "model_name", "transformer"),
    (load.CogVideoXLoadTextEncoder, "text_encoder_name", "text_encoder"),
    (load.CogVideoXLoadVAE, "vae_name", "vae"),
    (controlnet.CogVideoXLoadControlNet, "control_net_name", "controlnet"),
    (lora.CogVideoXApplyLora, "lora_name", "lora"),
    (draft.CogVideoXDraftDecode, "decoder", "decoder"),
]
PUBLISHED = [entry for entry in LISTS if KINDS[entry[2]].published]


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model folders of a ComfyUI that was just installed."""
    return empty_model_folders(tmp_path, monkeypatch)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """queue(node, inputs): (input, message) of each error that ComfyUI reports, whatever the order of the inputs."""
    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)  # restored afterwards
    if hasattr(execution.validate_inputs, patches._MARK):
        monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs.__wrapped__)
    patches.wrap_validation({node.__name__ for node in NODES})

    def check(node: type[io.ComfyNode], **given: Any) -> list[tuple[str, str]]:
        monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, node.__name__, node)
        widgets = {
            entry.id: entry.default
            for entry in node.define_schema().inputs
            if isinstance(entry, (io.Combo.Input, io.Float.Input)) and entry.default is not None
        }
        told = []
        for inputs in ({**widgets, **given}, dict(reversed({**widgets, **given}.items()))):
            prompt = {"1": {"class_type": node.__name__, "inputs": inputs}}
            errors = asyncio.run(execution.validate_inputs("id", prompt, "1", {}))[1]
            own = [error for error in errors if error["type"] == "custom_validation_failed"]
            told.append([(e["extra_info"]["input_name"], e["details"].partition(" - ")[2]) for e in own])
        assert told[0] == told[1], "the order of the inputs in a prompt says nothing"
        return told[0]

    return check


def options(node: type[io.ComfyNode], name: str) -> list[str]:
    (entry,) = (entry for entry in node.define_schema().inputs if entry.id == name)
    assert isinstance(entry, io.Combo.Input) and entry.options is not None
    return [str(option) for option in entry.options]


def test_every_list_of_models_is_looked_at() -> None:
    """A list that nobody wrapped would be empty again."""
    lists = {
        (node.__name__, entry.id)
        for node in NODES
        for entry in node.define_schema().inputs
        if isinstance(entry, io.Combo.Input) and entry.default is None and entry.upload is None
    }
    assert lists == {(node.__name__, name) for node, name, _ in LISTS}
    assert {kind for _, _, kind in LISTS} == set(KINDS)


@pytest.mark.parametrize("node, name, kind", LISTS)
def test_a_list_without_a_model_says_so(
    models: Path, monkeypatch: pytest.MonkeyPatch, node: type[io.ComfyNode], name: str, kind: str
) -> None:
    """An empty list looks broken, and one of toys alone does not tell where the real model comes from."""
    names = list(toy.LISTED.get(kind, ()))
    assert options(node, name) == [*names, say_empty(kind)]
    monkeypatch.setattr(toy, "WEIGHTS", models / "deleted")
    toy._is_there.cache_clear()
    assert options(node, name) == [say_empty(kind)]
    mine = models / KINDS[kind].categories[-1] / "taecvx_mine.safetensors"
    mine.touch()
    assert options(node, name) == [mine.name]
    toy._is_there.cache_clear()


@pytest.mark.parametrize("node, name, kind", LISTS)
@pytest.mark.parametrize("chosen", ["", None, "the line that says so"])
def test_nothing_chosen_names_the_next_click(
    queue: Callable, node: type[io.ComfyNode], name: str, kind: str, chosen: str | None
) -> None:
    """'Choose one from the list' does not help before a list with nothing in it."""
    value = say_empty(kind) if chosen else chosen
    with pytest.raises(UserError) as raised:
        missing_models.find(value, kind)  # type: ignore[arg-type]
    message = str(raised.value)
    assert message.startswith(f"No {KINDS[kind].what} is chosen: choose one from the list. ") and "press R" in message
    assert f"models/{KINDS[kind].categories[-1]}" in message
    assert ("Add the node CogVideoX Download" in message) == KINDS[kind].published
    if value is not None:  # None: linked, in ComfyUI's language
        assert queue(node, **{name: value}) == [(name, message)]


@pytest.mark.parametrize("node, name, kind", LISTS)
def test_a_name_that_is_not_there_blames_its_input_alone(
    queue: Callable, models: Path, node: type[io.ComfyNode], name: str, kind: str
) -> None:
    """Two red inputs, of which one is right, send people to look for a mistake that they did not make."""
    ((blamed, message),) = queue(node, **{name: "not-here.safetensors"})
    assert blamed == name
    assert message.startswith("There is no 'not-here.safetensors'. Choose another one from the list. ")
    assert str(models / KINDS[kind].categories[-1]) in message
    assert missing_models._next_click(KINDS[kind]) in message


@pytest.mark.parametrize("node, name, kind", PUBLISHED)
@pytest.mark.parametrize("chosen", ["CogVideoX-5b", "THUDM/CogVideoX-5b", "zai-org\\cogvideox-5b"])
def test_a_published_checkpoint_is_one_click_away(
    queue: Callable, node: type[io.ComfyNode], name: str, kind: str, chosen: str
) -> None:
    """A template for a real checkpoint asks for it by this name."""
    ((blamed, message),) = queue(node, **{name: chosen})
    assert blamed == name and "Add the node CogVideoX Download, choose CogVideoX-5b and queue it (22 GB)" in message


@pytest.mark.parametrize("node, name, kind", PUBLISHED)
def test_a_download_that_stands_bypassed_is_switched_on(
    queue: Callable, monkeypatch: pytest.MonkeyPatch, node: type[io.ComfyNode], name: str, kind: str
) -> None:
    """'Add the node' misleads whom the template has given it already."""
    entry = {"type": "CogVideoXDownload", "mode": 4, "widgets_values": ["CogVideoX-5b", "Hugging Face"]}
    workflow = {"nodes": [{"type": "Note", "mode": 4}, entry]}
    monkeypatch.setattr(queued_workflow, "_bypassed", ContextVar("of this test", default=frozenset()))

    def told() -> str:
        note_workflow({"prompt": {}, "extra_data": {"extra_pnginfo": {"workflow": workflow}}})
        ((_, message),) = queue(node, **{name: "CogVideoX-5b"})
        return message

    assert told().startswith("There is no 'CogVideoX-5b'. Select CogVideoX Download, the violet node, press Ctrl+B")
    assert ", then Run (22 GB)." in told() and "from the list" not in told()
    for change in ({"mode": 0}, {"widgets_values": ["CogVideoX-2b"]}, {"widgets_values": None}, {"type": "Note"}):
        workflow["nodes"] = [entry | change]
        assert "Add the node CogVideoX Download, choose CogVideoX-5b" in told(), change


def test_templates_are_read_as_they_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checkpoint stands among a node's values is the frontend's."""
    monkeypatch.setattr(queued_workflow, "_bypassed", ContextVar("of this test", default=frozenset()))
    found = 0
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        workflow = json.loads(path.read_text("utf-8"))
        nodes = [node for node in workflow["nodes"] if node["type"] == "CogVideoXDownload" and node["mode"] == 4]
        note_workflow({"extra_data": {"extra_pnginfo": {"workflow": workflow}}})
        assert len(bypassed_downloads()) == len(nodes) and bypassed_downloads() <= {one.name for one in REPOSITORIES}
        found += len(nodes)
    assert found


@pytest.mark.parametrize("nodes", [None, {}, 7, [None, 7, [], {"type": []}], "CogVideoXDownload"])
def test_a_damaged_workflow_ends_nothing(nodes: object) -> None:
    """Anybody may send anything as the workflow of a prompt."""
    for workflow in (nodes, {"nodes": nodes}):
        for request in ({"extra_data": {"extra_pnginfo": {"workflow": workflow}}}, {"extra_data": workflow}):
            note_workflow(request)
            assert not bypassed_downloads()


def test_every_published_file_is_told_where_it_belongs(queue: Callable) -> None:
    """And only there: a T5 in the list of VAEs is no next click."""
    holders = {"transformer": LISTS[1], "text_encoder": LISTS[2], "vae": LISTS[3]}
    for file in FILES:
        for holds, (node, name, _) in holders.items():
            ((blamed, message),) = queue(node, **{name: file.name})
            is_told = f"models/{file.directory} and press R." in message and f"address is {file.url}." in message
            assert blamed == name and is_told == (holds == file.holds), file.name
            if is_told:  # two short sentences; folders and addresses are below them, and not in the toast
                assert toast_text(message).startswith(
                    f"There is no '{file.name}'. Press View details and, under Missing"
                )
                assert "://" not in toast_text(message) and "looked for" not in toast_text(message)


@pytest.mark.parametrize(
    "name", ["mine.safetensors", "Close the notice", "a. b", "Choose another one from the list.", "it's"]
)
def test_every_sentence_is_chinese_and_the_name_stays(name: str) -> None:
    """Half a sentence was English, and a name with a full stop in it was changed."""
    names = [name, FILES[0].name, REPOSITORIES[0].name]
    for node_type, named in itertools.product(missing_models.LOADERS, names):
        for bypassed in (frozenset[str](), frozenset({REPOSITORIES[0].name})):
            missing = missing_models.describe_missing(named, node_type, bypassed)
            assert missing is not None
            chinese = translate(missing.message(), "zh")
            assert chinese.startswith(f"没有 {named!r}。"), chinese
            assert not re.search("Choose|choose|Press|Put|Add the|Select", chinese.replace(repr(named), "")), chinese


def test_several_are_told_in_chinese() -> None:
    files = [next(file for file in FILES if file.holds == holds) for holds in ("transformer", "text_encoder", "vae")]
    loaders = ("CogVideoXLoadModel", "CogVideoXLoadTextEncoder", "CogVideoXLoadVAE")
    of_files = [missing_models.describe_missing(file.name, loader, frozenset()) for file, loader in zip(files, loaders)]
    own = [missing_models.describe_missing(f"{number}.gguf", loaders[number % 3], frozenset()) for number in range(5)]
    for several, are_told in itertools.product((of_files, own, [*of_files, *own]), (True, False)):
        english = missing_models.describe_all((one for one in several if one is not None), are_told)
        chinese = translate(english, "zh")
        assert chinese.startswith("缺少模型：'") and english.startswith("Models are missing: '"), chinese
        assert not re.search("Models|more|Choose|choose|Press|[Ee]ach|folder|Add the", chinese), chinese
        if several is of_files:  # beside three long names a toast says what to do
            assert "each Download under Missing Models (" in toast_text(english)
            assert "逐个点击下载" in toast_text(chinese) and all(file.name in toast_text(english) for file in files)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_toast_has_room_for_what_a_template_lacks(language: str) -> None:
    """The English one lost its last sentence, that the nodes name the folders."""
    found = 0
    for template in sorted(TEMPLATES.glob("*.json")):
        nodes = json.loads(template.read_text("utf-8"))["nodes"]
        chosen = [(n["widgets_values"][0], n["type"]) for n in nodes if n["type"] in missing_models.LOADERS]
        told = [missing_models.describe_missing(name, kind, frozenset()) for name, kind in chosen]
        files = [one for one in told if one is not None and one.file() is not None]
        if files:
            text = translate(missing_models.describe_all(files, are_told=True), language)
            assert toast_text(text) == text, template.name
            found += 1
    assert found == 10


def test_a_wrong_family_or_precision_is_blamed_itself(queue: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is right: its input must not be red."""
    monkeypatch.setattr(load.mm, "get_torch_device", lambda: torch.device("cpu"))
    for node, name, kind in LISTS[:2]:
        toys = {name: next(iter(toy.LISTED[kind]))}
        assert queue(node, **toys) == []
        ((blamed, message),) = queue(node, **toys, family="CogVideoX-2b-img2vid")
        assert blamed == "family" and message.startswith("These weights are not CogVideoX-2b-img2vid")
        ((blamed, message),) = queue(node, **toys, weight_dtype="fp8_e4m3fn_fast")
        assert blamed == "weight_dtype" and message.startswith("fp8_e4m3fn_fast needs fp8 matmul support")


def test_saved_values_stay_valid(queue: Callable) -> None:
    """Workflows that were saved with a toy, in every list."""
    for node, name, kind in LISTS[:5]:
        for value in toy.LISTED[kind]:
            assert queue(node, **{name: value}) == [], (node, value)


def test_templates_that_are_named_are_there() -> None:
    names = {file_name(example) for example in EXAMPLES}
    named = re.findall("“([^”]+)”", " ".join(kind.trial for kind in KINDS.values()))
    assert len(named) == 5 and set(named) <= names


def test_the_line_in_the_list_is_no_models_name() -> None:
    lines = [say_empty(kind) for kind in KINDS]
    known = {entry.name for entry in (*REPOSITORIES, *FILES)}.union(*toy.LISTED.values())
    assert len(set(lines)) == len(lines) and not known & set(lines)


def test_the_input_is_named_where_the_message_does_not() -> None:
    """Where ComfyUI repeats a message for each input, the right one is found again; elsewhere a reader finds it."""
    names = ["folder", "family"]
    assert naming_input("There is no x.", "folder", names) == "folder: There is no x."
    assert naming_input("family is x: use y.", "folder", names) == "family is x: use y."
    assert naming_input("There is no x.", "folder", ["folder"]) == "There is no x."
    errors = [
        {"type": "custom_validation_failed", "details": f"{name} - folder: Gone.", "extra_info": {"input_name": name}}
        for name in ("family", "folder")
    ]
    (kept,) = reported_once(errors)
    assert kept["details"] == "folder - Gone." and kept["extra_info"]["input_name"] == "folder"
    assert errors[1]["details"] == "folder - folder: Gone.", "the error is ComfyUI's own"
