import asyncio
import json
import struct
import threading

import pytest

pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

from cogvideox.devtools import client, server  # noqa: E402
from cogvideox.devtools.errors import DevError  # noqa: E402

METADATA = json.dumps({"node_id": "5"}).encode()
SAVED = {"images": [{"filename": "a.mp4", "subfolder": "video", "type": "output"}], "animated": [True]}
SHOWN = {"images": [{"filename": "b.png", "subfolder": "", "type": "temp"}]}
END = ("executing", {"node": None})


@pytest.fixture
def comfyui():
    """comfyui(messages, refusal) -> url of a server that sends `messages` for the workflow it is given."""
    loop, port = asyncio.new_event_loop(), server.free_port()
    thread = threading.Thread(target=loop.run_forever)
    runners = []

    def serve(messages, refusal: dict | None = None) -> str:
        queued = asyncio.Event()

        async def prompt(request):
            queued.set()
            refused = refusal is not None and "error" in refusal
            return web.json_response(refusal or {"prompt_id": "mine"}, status=400 if refused else 200)

        async def socket(request):
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            await ws.send_json({"type": "status", "data": {"sid": "x"}})
            await queued.wait()
            for message in messages:
                if isinstance(message, bytes):
                    await ws.send_bytes(message)
                else:
                    await ws.send_json({"type": message[0], "data": {"prompt_id": "mine", **message[1]}})
            return ws

        async def begin():
            app = web.Application()
            app.add_routes([web.post("/prompt", prompt), web.get("/ws", socket)])
            runner = web.AppRunner(app)
            await runner.setup()
            runners.append(runner)
            await web.TCPSite(runner, server.ADDRESS, port).start()

        asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        return f"http://{server.ADDRESS}:{port}"

    thread.start()
    yield serve
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


def test_result_holds_what_the_server_said(comfyui, tmp_path):
    heard = []
    url = comfyui(
        [
            ("execution_cached", {"nodes": ["1"]}),
            ("executing", {"node": "5"}),
            ("progress", {"node": "5", "value": 1, "max": 2}),
            struct.pack(">II", 4, len(METADATA)) + METADATA + b"jpeg",
            struct.pack(">II", 1, 1) + b"old host's jpeg",
            struct.pack(">II", 3, 1) + b"5" + "cut: über".encode(),
            ("executed", {"node": "6", "output": SAVED}),
            ("executed", {"node": "7", "output": SHOWN}),
            ("execution_success", {}),
            END,
        ]
    )
    result = client.run_workflow(url, {}, lambda kind, data: heard.append(kind))
    assert (result.prompt_id, result.error, result.cached, result.executed) == ("mine", None, ["1"], ["5"])
    assert result.progress == [("5", 1, 2)]
    assert result.previews == [("5", b"jpeg"), ("", b"old host's jpeg")]
    assert result.texts == [("5", "cut: über")]
    assert result.files(tmp_path) == [tmp_path / "video" / "a.mp4"]
    assert heard[:4] == ["execution_cached", "executing", "progress", "preview"]


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [("", "../a.mp4"), ("", "/etc/passwd"), ("sub/../..", "a.mp4"), ("/etc", "passwd"), ("", "."), ("link", "a.mp4")],
)
def test_a_saved_file_is_in_the_output_folder(tmp_path, subfolder, filename):
    # What a server names is opened as a video, or deleted: no other file may be meant.
    (tmp_path / "out").mkdir()
    if subfolder == "link":
        (tmp_path / "out" / "link").symlink_to(tmp_path)
    item = {"filename": filename, "subfolder": subfolder, "type": "output"}
    with pytest.raises(DevError, match="names a file .*, which is not in "):
        client.RunResult(outputs={"6": {"images": [item]}}).files(tmp_path / "out")


def test_other_peoples_workflows_are_not_mixed_in(comfyui):
    url = comfyui(
        [
            ("executed", {"prompt_id": "theirs", "node": "6", "output": SAVED}),
            ("executing", {"prompt_id": "theirs", "node": None}),
            END,
        ]
    )
    assert client.run_workflow(url, {}).outputs == {}


def test_failure_names_the_node_and_its_message(comfyui):
    failure = {
        "node_id": "5",
        "node_type": "CogVideoXSample",
        "exception_message": "NaN after step 2\n",
        "exception_type": "ValueError",
    }
    error = client.run_workflow(comfyui([("execution_error", failure), END]), {}).error
    assert error == client.RunError("failed", "5", "CogVideoXSample", "NaN after step 2", "ValueError")
    assert str(error) == "CogVideoXSample (node 5) failed: NaN after step 2"


def test_interrupted_run_says_so(comfyui):
    error = client.run_workflow(comfyui([("execution_interrupted", {"node_id": "5", "node_type": "S"}), END]), {}).error
    assert error is not None
    assert (error.kind, str(error)) == ("interrupted", "S (node 5) was interrupted")


def test_refusal_names_every_node_and_reason(comfyui):
    reason = {"message": "Value not in list", "details": "folder: 'nope' not in ['a']"}
    refusal = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {
            "1": {"class_type": "Load", "errors": [reason]},
            "2": {"class_type": "Save", "errors": [reason]},
        },
    }
    error = client.run_workflow(comfyui([], refusal), {}).error
    assert error is not None
    assert (error.kind, error.node_id, error.node_type) == ("rejected", "1", "Load")
    assert error.message == (
        "Value not in list: folder: 'nope' not in ['a']; Save (node 2): Value not in list: folder: 'nope' not in ['a']"
    )


def test_refusal_of_the_whole_workflow_has_a_message_too(comfyui):
    refusal = {"error": {"message": "Prompt has no outputs", "extra_info": {}}, "node_errors": []}
    error = client.run_workflow(comfyui([], refusal), {}).error
    assert str(error) == "the workflow rejected: Prompt has no outputs"


def test_server_that_goes_away_is_one_sentence(comfyui):
    # Waiting on would hang the demo and the tests for ever.
    with pytest.raises(DevError, match="went away"):
        client.run_workflow(comfyui([("executing", {"node": "5"})]), {})


def test_refusal_of_some_outputs_is_one(comfyui):
    """ComfyUI answers 200 and queues the other outputs: half a workflow would pass for a whole one."""
    reason = {"message": "Value not in list", "details": "folder"}
    refusal = {"prompt_id": "mine", "node_errors": {"4": {"errors": [reason], "class_type": "Loader"}}}
    error = client.run_workflow(comfyui([], refusal), {"4": {"class_type": "Loader"}}).error
    assert error is not None
    assert (error.kind, error.node_id) == ("rejected", "4") and "Value not in list: folder" in error.message
