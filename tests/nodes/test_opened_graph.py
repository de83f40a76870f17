"""What the page gets where a graph is opened: the examples' pictures, and sentences about missing models."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import folder_paths
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cogvideox.host.toy import INPUTS
from cogvideox.model_loaders.downloads.repositories import FILES
from cogvideox.nodes import opened_graph
from cogvideox.nodes.example_input import show_example
from cogvideox.nodes.opened_graph import _shown, sentences


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
    (text,) = ask([["CogVideoXLoadModel", "x" * 5000]])
    assert text.startswith(f"There is no '{'x' * 100} …'. ") and len(text) < 1000
    (text,) = ask([["CogVideoXLoadModel", "x" * 100]])
    assert text.startswith(f"There is no '{'x' * 100}'. ")


@pytest.mark.parametrize(("listed", "more"), [(99, " and 96 more"), (4, " and 1 more"), (3, ""), (2, "")])
def test_several_are_one_sentence(listed: int, more: str) -> None:
    """Three near-identical ones said one thing. Further names are counted: whoever has chosen three models would take
    the graph for complete."""
    models = [["CogVideoXLoadModel", f"{number}.safetensors"] for number in range(listed)]
    others = [["CogVideoXSample", f"sampler {number}"] for number in range(9)]
    names = ", ".join(f"'{number}.safetensors'" for number in range(min(listed, 3)))
    (text,) = ask([*others, *models])
    assert text.startswith(f"Models are missing: {names}{more}. Choose another one from the list. Add the node")


def test_the_next_step_of_several_is_one() -> None:
    """Files that ComfyUI offers have one; where each needs another, its node says it: once it has been asked."""
    holders = {"transformer": "Model", "text_encoder": "TextEncoder", "vae": "VAE"}
    first = {holds: next(file.name for file in FILES if file.holds == holds) for holds in holders}
    files = [[f"CogVideoXLoad{what}", first[holds]] for holds, what in holders.items()]
    (text,) = ask(files)
    assert all(repr(name) in text for _, name in files)
    assert "each Download under Missing Models (" in text and "GB in all). Press Run" in text
    (text,) = ask([files[0], ["CogVideoXApplyLora", "mine.safetensors"]])
    names = f"'{files[0][1]}', 'mine.safetensors'"
    assert text == f"Models are missing: {names}. Press Run, and each of these nodes says what to do."
    (text,) = ask([files[0], ["CogVideoXLoadVAE", files[0][1]]])  # a transformer, which is no VAE to download
    assert "Download" not in text
    (text,) = ask([["CogVideoXLoadModel", "CogVideoX-5b"], ["CogVideoXLoadVAE", "CogVideoX-5b"]], ["CogVideoX-5b"])
    assert text.startswith("There is no 'CogVideoX-5b'. Select CogVideoX Download")


def test_what_is_no_entry_is_skipped() -> None:
    """One node that somebody has broken must not silence the others."""
    good = ["CogVideoXLoadModel", "mine.safetensors"]
    for wrong in (
        None,
        5,
        [],
        ["CogVideoXLoadModel"],
        ["CogVideoXLoadModel", 5],
        [*good, "c"],
        {"a": 1},
        "ab",
        [[], {}],
    ):
        assert len(ask([wrong, good, wrong])) == 1, wrong
    for bypassed in (None, 5, "ab", [None, [], {}, 5], {}):
        assert len(ask([good], bypassed)) == 1, bypassed
    assert len(sentences(json.dumps({"models": [good]}).encode(), str)) == 1
    published = [["CogVideoXLoadPipeline", "CogVideoX-5b"]]
    assert "press Ctrl+B" in ask(published, [None, "CogVideoX-5b", []])[0]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_question_arrives_in_pieces(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network cuts where it likes: half a question was none, and the page said nothing."""
    routes = web.RouteTableDef()
    monkeypatch.setattr(opened_graph, "new_routes", lambda name: routes)
    opened_graph.serve_opened_graph()
    body = json.dumps({"models": [["CogVideoXLoadPipeline", "CogVideoX-5b"]], "bypassed": []}).encode()
    size = -(-len(body) // pieces)

    async def in_pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]
            await asyncio.sleep(0.05)  # until the server has read it

    async def asked() -> list[str]:
        app = web.Application()
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            answer = await client.post(opened_graph.MISSING_ROUTE, data=in_pieces())
            too_long = await client.post(opened_graph.MISSING_ROUTE, data=body + b" " * opened_graph.MAX_BYTES * 4)
            assert too_long.status == 200
            return await answer.json()

    (text,) = asyncio.run(asked())
    assert text.startswith("There is no 'CogVideoX-5b'. ")


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
