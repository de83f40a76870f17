"""CogVideoXDownload on the real server, against a hub on this machine that misbehaves as told."""

import shutil
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from cogvideox.devtools import client
from cogvideox.devtools.client import RunResult
from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.file_server import ON_MODELSCOPE, REPOSITORY, Fault, FileServer
from cogvideox.tests.graphs import LATENTS, PIPELINE, node, with_inputs
from cogvideox.tests.part_graphs import latent_only, short

NAME = REPOSITORY.split("/")[1]  # the folder that the node makes
GET, NODE = "get", "CogVideoXDownload"
TINY = folder_name("2b")  # what the hub gives in the place of the real one


@pytest.fixture
def hub(comfyui) -> Iterator[FileServer]:
    """The server's hub with the tiny 2b, of which nothing is fetched yet."""
    hub, source = comfyui.hub, comfyui.pipeline(TINY)
    hub.files.clear()
    hub.files |= {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.*")}
    hub.faults.clear()
    hub.asked.clear()
    yield hub
    hub.faults.clear()
    shutil.rmtree(comfyui.pipelines / NAME, ignore_errors=True)


@pytest.fixture
def weights(hub) -> str:
    """The largest file of the repository."""
    return max(hub.files, key=lambda path: len(hub.files[path]))


def fetching(checkpoint: str = NAME, **more: str) -> dict:
    """A graph of the download alone."""
    return {GET: node(NODE, checkpoint=checkpoint, **more)}


def linked() -> dict:
    """A graph that fetches the checkpoint, loads it and makes a video."""
    return with_inputs(short(TINY, "default"), PIPELINE, folder=[GET, 0]) | fetching()


def shown(result: RunResult) -> str:
    """What the node showed on itself in a run that succeeded."""
    assert result.error is None, str(result.error)
    return "\n".join(text for node_id, text in result.texts if node_id == GET)


def test_from_nothing_to_a_video(comfyui, hub, weights):
    """One click on an empty machine: fetch, load, sample. The next click fetches nothing."""
    hub.fail(weights, Fault(cut_after=50_000))
    made, expected = comfyui.make(linked()), comfyui.make(short(TINY, "default"))
    assert np.array_equal(made.frames, expected.frames)
    assert all((comfyui.pipelines / NAME / path).read_bytes() == data for path, data in hub.files.items())
    assert [asked.range for asked in hub.requests(weights)] == [None, "bytes=50000-"]
    count = len(hub.asked)
    comfyui.free()
    assert "verified: nothing to download" in shown(comfyui.run(fetching()))
    assert len(hub.asked) == count
    assert NAME in comfyui.offered("CogVideoXLoadPipeline", "folder")


def test_it_says_what_comes(comfyui, hub, weights):
    """Who starts a download of 13 GB wants to know so, its licence, how far it is, and that it came well."""
    hub.fail(weights, Fault(slow_s=0.02))
    result = comfyui.run(fetching())
    text = shown(result)
    assert "about 14 GB, Apache-2.0" in text and str(comfyui.pipelines / NAME) in text
    assert " MB/s, " in text and " left, " in text and "is complete and verified" in text
    assert [(value, most) for node_id, value, most in result.progress if node_id == GET][-1:] == [(0, 1)]  # megabytes


def test_cancel_and_again(comfyui, hub, weights):
    """Cancel works while the hub is silent; the half folder is refused by the loader, and the next click goes on."""
    hub.fail(weights, Fault(cut_after=50_000), Fault(stall=True))
    pressed: list[float] = []

    def press_cancel() -> None:
        while len(hub.requests(weights)) < 2:
            time.sleep(0.01)
        client.interrupt(comfyui.url)
        pressed.append(time.monotonic())

    button = threading.Thread(target=press_cancel, daemon=True)
    button.start()
    result = comfyui.run(linked())
    assert time.monotonic() - pressed[0] < 5
    assert result.error is not None and result.error.kind == "interrupted" and result.error.node_id == GET
    assert not (comfyui.pipelines / NAME / weights).exists()
    half = comfyui.run(latent_only(short(NAME))).error
    assert half is not None and half.kind == "rejected" and half.node_type == "CogVideoXLoadPipeline"
    for words in ("holds a half-finished download", "1 of 15 files", "Start the download again", "CogVideoX Download"):
        assert words in half.message
    assert "is complete and verified" in shown(comfyui.run(linked()))
    assert [asked.range for asked in hub.requests(weights)] == [None, "bytes=50000-", "bytes=50000-"]
    latents = (comfyui.latent(latent_only(short(name))) for name in (NAME, TINY))
    assert (next(latents) == next(latents)).all()


REFUSALS = {
    "401": (Fault(401), "Accept the model's licence"),
    "404": (Fault(404), "does not exist (status 404)"),
    "a login page": (Fault(body=b"<html>Please log in</html>"), "does not answer as a model hub"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_hub_that_refuses(comfyui, hub, refused, what):
    """The user can do something about it only if the node says what it is."""
    fault, words = REFUSALS[what]
    hub.fail("", fault)
    error = refused(fetching(), NODE, words)
    assert error.exception_type in ("UserError", "NotFoundError"), "not an error of our own"
    assert "is complete and verified" in shown(comfyui.run(fetching()))


def test_wrong_bytes(comfyui, hub, weights):
    """A proxy that spoils a file would leave a model of noise; nothing of it stays under the file's name."""
    spoilt = Fault(body=bytes(len(hub.files[weights])))
    hub.fail(weights, spoilt, spoilt)
    error = comfyui.run(fetching()).error
    assert error is not None and f"{weights} was downloaded twice" in error.message and "wrong hash" in error.message
    assert not list((comfyui.pipelines / NAME / weights).parent.glob("*.safetensors*"))
    assert "is complete and verified" in shown(comfyui.run(fetching()))


@pytest.mark.parametrize("name", ["../../evil", "zai-org/CogVideoX-2b", ""])
def test_names_that_are_not_in_the_table(hub, refused, name):
    """A shared workflow must not make the server ask for anything else."""
    assert refused(fetching(name), NODE, f"checkpoint: {name!r} not in ['CogVideoX-2b'").kind == "rejected"
    assert not hub.asked


@pytest.mark.parametrize("source", ["https://evil.example", "../../evil", ""])
def test_sources_that_are_not_in_the_table(hub, refused, source):
    """A shared workflow must not make the server ask at another address."""
    words = f"source: {source!r} not in ['Hugging Face', 'ModelScope']"
    assert refused(fetching(source=source), NODE, words).kind == "rejected"
    assert not hub.asked


def test_the_other_hub(comfyui, hub, weights):
    """What Hugging Face has begun, ModelScope goes on with; the token of the one is not the other's."""
    hub.fail(weights, Fault(cut_after=50_000), Fault(403))
    assert comfyui.run(fetching()).error is not None
    hub.asked.clear()
    text = shown(comfyui.run(fetching(source="ModelScope")))
    assert f"from {ON_MODELSCOPE} on ModelScope" in text and "is complete and verified" in text
    assert [asked.range for asked in hub.requests(weights)] == ["bytes=50000-"]
    assert all(ON_MODELSCOPE in asked.path and "authorization" not in asked.headers for asked in hub.asked)


def test_token_goes_nowhere_but_to_the_hub(comfyui, hub, weights):
    """Logs and workflows are what people post when they ask for help; a token in them is an open account."""
    hub.fail(weights, Fault(body=bytes(len(hub.files[weights]))), Fault(403))
    results = [comfyui.run(linked()) for _ in range(3)]
    assert [result.error is None for result in results] == [False, True, True], results
    (header,) = {asked.headers["authorization"] for asked in hub.asked}
    token = header.removeprefix("Bearer ")
    assert token.startswith("hf_") and len(token) > 10
    histories = [client.history(comfyui.url, result.prompt_id) for result in results]
    assert all(history["outputs"].keys() >= {LATENTS} for history in histories[1:])
    written = [path for path in comfyui.base.rglob("*") if path.is_file() and path.suffix in (".json", ".log", ".png")]
    assert comfyui.server.log in written
    for text in (repr(results), repr(histories), *(path.read_bytes().decode("latin-1") for path in written)):
        assert token not in text
