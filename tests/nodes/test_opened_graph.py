"""What the page gets where a graph is opened: the examples' pictures, and sentences about missing models."""

import json
from pathlib import Path

import folder_paths
import pytest

from cogvideox.host.toy import INPUTS
from cogvideox.nodes.example_input import show_example
from cogvideox.nodes.opened_graph import _MOST_MODELS, _shown, sentences


def ask(models: object, bypassed: object = ()) -> list[str]:
    return sentences(json.dumps({"models": models, "bypassed": bypassed}).encode(), str)


def test_the_bypassed_download_is_named() -> None:
    """Nothing but a note said that the template's checkpoint is not there."""
    (text,) = ask([["CogVideoXLoadPipeline", "CogVideoX-5b"]], ["CogVideoX-5b"])
    assert text.startswith(
        "There is no 'CogVideoX-5b'. Select CogVideoX Download, the violet node, press Ctrl+B, then "
    )
    assert "then Run (22 GB)" in text
    (text,) = ask([["CogVideoXLoadPipeline", "CogVideoX-5b"]])
    assert "Add the node CogVideoX Download" in text


def test_the_same_is_said_once_and_other_nodes_are_left_alone() -> None:
    twice = [["CogVideoXLoadModel", "mine.safetensors"]] * 2
    assert len(ask([*twice, ["CheckpointLoaderSimple", "x.safetensors"]])) == 1
    assert len(ask([["CogVideoXLoadModel", f"{number}.safetensors"] for number in range(99)])) == _MOST_MODELS
    others = [["CogVideoXSample", "a sampler that is gone"]] * _MOST_MODELS
    (text,) = ask([*others, ["CogVideoXLoadModel", "x" * 5000]])
    assert len(text) < 1000


@pytest.mark.parametrize(
    "body", (b"", b"{", b"[]", b'{"models": 1, "bypassed": []}', b'{"models": [1], "bypassed": []}')
)
def test_what_is_no_question_has_no_answer(body: bytes) -> None:
    """Whoever may open the page may send anything."""
    assert sentences(body, str) == []


def test_an_example_is_shown_before_a_run_and_written_once() -> None:
    """The node was empty until Run; each look at it must not leave another file."""
    first, again = show_example("video"), show_example("video")
    assert first == again and first["animated"] == (True,)
    (image,) = first["images"]
    file = Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]
    assert image["type"] == "temp" and file.is_file()
    file.unlink()  # as ComfyUI empties the folder
    (image,) = show_example("video")["images"]
    assert (Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]).is_file()


@pytest.mark.parametrize("name", (None, "", "../weights", "picture.png"))
def test_only_the_packs_own_examples_are_read(name: str | None) -> None:
    assert name not in INPUTS and _shown(name) is None
