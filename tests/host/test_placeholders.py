"""Placeholders in names of files: what ComfyUI's frontend fills in for its own save nodes, for ours as well."""

import time
from typing import Any

import pytest

from cogvideox.errors import UserError
from cogvideox.host.placeholders import fill_in, stand_in
from cogvideox.system.file_names import check_file_name

PROMPT: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 18446744073709551615, "cfg": 6.0, "noise": True, "x": None}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 2, "cfg": 7.5}, "_meta": {"title": "second"}},
    "5": {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": 'a/b\\c:d*"e"\n<f>|g?\u202e\u200b'},
        "_meta": {"title": "My: prompt"},
    },
    "6": {"class_type": "CogVideoXSample", "inputs": {"seed": ["7", 0], "model": ["8", 0]}},
    "7": {"class_type": "PrimitiveInt", "inputs": {"value": ["9", 0]}},
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 77}},
    "8": {"class_type": "CogVideoXLoadModel", "inputs": {"model_name": "sub/5b.safetensors"}},
    "12:3": {"class_type": "KSampler", "inputs": {"seed": 5}},
    "circle": {"class_type": "Circle", "inputs": {"value": ["circle", 0]}},
}
WORKFLOW: dict[str, Any] = {
    "nodes": [
        {"id": 4, "type": "KSampler", "title": "second", "properties": {"Node name for S&R": "KSampler"}},
        {"id": 3, "type": "KSampler", "properties": {"Node name for S&R": "Renamed"}},
        {"id": 12, "type": "uuid", "title": "a subgraph"},
    ],
    "definitions": {
        "subgraphs": [{"id": "uuid", "nodes": [{"id": 3, "type": "KSampler", "title": "inner", "properties": {}}]}]
    },
}

FILLED = {
    "%KSampler.seed%": "18446744073709551615",
    "v/%KSampler.seed%_%KSampler.cfg%": "v/18446744073709551615_6",
    "%second.cfg%": "7.5",
    "%KSampler.noise%": "true",
    "a%KSampler.x%b": "ab",
    "%My: prompt.text%": "a_b_c_d__e___f__g___",
    "%CogVideoXSample.seed%": "77",
    "%CogVideoXLoadModel.model_name%": "sub_5b.safetensors",
    "%KSampler.steps%": "%KSampler.steps%",
    "%Nobody.seed%": "%Nobody.seed%",
    "%CogVideoXSample.model%": "%CogVideoXSample.model%",
    "%Circle.value%": "%Circle.value%",
    "100%_%KSampler.seed%": "100%_%KSampler.seed%",
    "%a.b.c%": "%a.b.c%",
    "%width%x%height%": "%width%x%height%",
    "50% off": "50% off",
}


@pytest.mark.parametrize(
    "graphs",
    (3, "abc", {"a": 1}, [{"id": "uuid", "nodes": [{"id": n, "type": "uuid"} for n in range(50)]}]),
    ids=("number", "text", "table", "each holds fifty of itself"),
)
def test_subgraphs_of_a_stranger(graphs: Any) -> None:
    """Eight levels of fifty are billions of nodes: the worker hung after the video was made."""
    workflow = {**WORKFLOW, "definitions": {"subgraphs": graphs}}
    began = time.monotonic()
    assert fill_in("%second.cfg%", PROMPT, {"workflow": workflow}) == "7.5"
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("name", FILLED)
def test_values_of_the_workflow(name: str) -> None:
    """As the frontend's applyTextReplacements has them; a number is written as JavaScript writes it."""
    assert fill_in(name, PROMPT, None) == FILLED[name]


def test_the_workflow_says_what_nodes_are_called() -> None:
    """By "Node name for S&R" first, in the order of the workflow, in subgraphs too; titles come second."""
    drawn = {"workflow": WORKFLOW}
    assert fill_in("%Renamed.seed%", PROMPT, drawn) == "18446744073709551615"
    assert fill_in("%KSampler.seed%", PROMPT, drawn) == "2"
    assert fill_in("%inner.seed%", PROMPT, drawn) == "5"
    assert fill_in("%KSampler.seed%", {"12:3": PROMPT["12:3"]}, drawn) == "5"


def test_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((2026, 3, 9, 7, 5, 2, 0, 68, 0)))
    name = "%date:yyyy-MM-dd%/%date:hhmmss%_%date:d.M.yy%_%year%%month%%day%-%hour%%minute%%second%"
    assert fill_in(name, None, None) == stand_in(name) == "2026-03-09/070502_9.3.26_20260309-070502"


def test_size_of_the_video() -> None:
    """As ComfyUI's own nodes fill it in; what has no size keeps the words."""
    assert fill_in("%width%x%height%/v", None, None, (96, 64)) == "96x64/v"
    assert fill_in("%width%x%height%/v", None, None) == "%width%x%height%/v"


WORDS = "%year%_%month%_%width%_%height%_%M.w%_%N.v%"  # a value gets no :, and so no date:...


@pytest.mark.parametrize(("name", "filled"), [("%N.v%", WORDS), ("a%N.v%b", f"a{WORDS}b"), ("%M.w%year%", "50%year%")])
def test_values_are_put_in_once_and_as_they_are(name: str, filled: str) -> None:
    """A prompt that contains %year%, or that ends in %, would become another text in the file's name."""
    prompt = {
        "1": {"class_type": "N", "inputs": {"v": WORDS}},
        "2": {"class_type": "M", "inputs": {"w": "50%"}},
    }
    assert fill_in(name, prompt, None, (96, 64)) == filled


@pytest.mark.parametrize("name", ["100%_%year%", "%%year%", "%a%year%", "%N.x%year%"])
def test_words_of_comfyui_wherever_they_stand(name: str) -> None:
    """folder_paths.get_save_image_path, which fills in prefixes of ComfyUI's own nodes, does not count the % before."""
    assert fill_in(name, None, None) == name.replace("%year%", time.strftime("%Y"))


@pytest.mark.parametrize(
    "value", ["", "-1", ".x", "..", "con", "x" * 5000, "视" * 300, "a.", "NUL.txt", "\ud800", "clock$"]
)
@pytest.mark.parametrize("name", ["%N.v%", "a/%N.v%/b", "x%N.v%", "%N.v%.safetensors"])
def test_any_value_makes_a_valid_name(name: str, value: str) -> None:
    """It is known only in the run: an hour of sampling must not end in a message about a file name."""
    filled = fill_in(name, {"1": {"class_type": "N", "inputs": {"v": value}}}, None)
    assert check_file_name(filled, "a") == filled.strip() and filled.count("/") == name.count("/")


@pytest.mark.parametrize("name", ["../%N.v%", "%N.v%/../../a", "/%N.v%", "~/%N.v%:", "%N.v%\0"])
def test_placeholders_hide_no_bad_name(name: str) -> None:
    """When it is queued the rest of the name is checked as that of any other."""
    with pytest.raises(UserError, match="valid file name"):
        check_file_name(stand_in(name), "a")


INNER = {"id": 1, "type": "g"}
STRANGE_PROMPTS: list[Any] = [None, {}, {"1": None}, {"1": {"inputs": []}}, {"1": {"inputs": {"seed": {"a": 1}}}}]
STRANGE_WORKFLOWS: list[Any] = [
    1,
    {"nodes": [None, 1, {"id": None, "properties": 3}], "definitions": {"subgraphs": [1, {"id": 2}]}},
    {"nodes": [INNER], "definitions": {"subgraphs": [{"id": "g", "nodes": [INNER]}]}},
]


@pytest.mark.parametrize("prompt", STRANGE_PROMPTS)
@pytest.mark.parametrize("workflow", STRANGE_WORKFLOWS)
def test_strange_workflows(prompt: Any, workflow: Any) -> None:
    """A workflow is a stranger's file: a subgraph that contains itself must not end the worker."""
    assert fill_in("%KSampler.seed%", prompt, {"workflow": workflow}) == "%KSampler.seed%"
