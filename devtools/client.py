"""Talk to a ComfyUI server as its frontend does: queue a workflow, follow its websocket. Runs inside the venv."""

import asyncio
import contextlib
import json
import struct
import time
import urllib.error
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cogvideox.errors import quoted
from cogvideox.system.inside import is_below, is_spelled_inside

from .errors import DevError
from .server import request

# ComfyUI's protocol.py
_TEXT, _PREVIEW_WITH_METADATA = 3, 4
_CANCEL_S = 5.0  # how long a program that ends waits for the server to hear of it

OnEvent = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class RunError:
    """Why a workflow did not run to its end. kind: "rejected" (before any node ran), "failed" or "interrupted"."""

    kind: str
    node_id: str
    node_type: str
    message: str
    exception_type: str = ""

    def __str__(self) -> str:
        place = f"{self.node_type} (node {self.node_id})" if self.node_id else "the workflow"
        return f"{place} {self.kind}: {self.message}" if self.message else f"{place} was {self.kind}"


@dataclass
class RunResult:
    """What a server said about one workflow.

    outputs: a node's id -> its "executed" message, such as {"images": [{"filename", "subfolder", "type"}]}.
    executed, cached: node ids, in order. progress: (node id, value, max) per step. previews: (node id, image file)
    per preview. texts: (node id, text) per progress text. error: None for a run that succeeded.
    """

    prompt_id: str = ""
    outputs: dict[str, dict] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[tuple[str, bytes]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    error: RunError | None = None

    def files(self, output: Path) -> list[Path]:
        """The files that were saved below the server's output folder, in the order of their nodes.

        Raises: DevError where the server names another place.
        """
        return [local_file(item, output) for message in self.outputs.values() for item in saved_files(message)]


class Rejected(Exception):
    """The server refused a workflow before running it; `error` says why."""

    def __init__(self, error: RunError):
        super().__init__(str(error))
        self.error = error


def run_workflow(
    url: str,
    api: dict,
    on_event: OnEvent | None = None,
    timeout_s: float | None = 600.0,
    extra_data: dict | None = None,
) -> RunResult:
    """Queue a workflow in API format and wait until the server has finished it.

    on_event: called with each message's type and data as it comes, previews as ("preview", {"node", "image"}) and
    progress texts as ("text", {"node", "text"}); it may call `interrupt`.
    timeout_s: None waits for as long as it takes.
    extra_data: what a frontend sends along with a workflow, such as {"preview_method": "taesd"}.
    Where this program ends before the workflow, by Ctrl-C or because of the time, the server stops it.
    Returns also when the workflow was refused, failed or was interrupted: see RunResult.error.
    Raises: DevError if the server goes away or takes longer than `timeout_s`.
    """
    return asyncio.run(_run(url, api, on_event or (lambda kind, data: None), timeout_s, extra_data))


def submit(url: str, api: dict, client_id: str = "", extra_data: dict | None = None) -> str:
    """Queue a workflow in API format without waiting; returns its prompt id.

    Raises: Rejected, also where the server refuses some outputs and queues the others.
    """
    body = {"prompt": api, "client_id": client_id or uuid.uuid4().hex, "extra_data": extra_data or {}}
    try:
        answer = json.loads(request(f"{url}/prompt", body))
    except urllib.error.HTTPError as error:
        raise Rejected(_read_refusal(json.loads(error.read()), api)) from error
    if answer.get("node_errors"):
        raise Rejected(_read_refusal({"error": {"message": "some outputs were refused"}, **answer}, api))
    return answer["prompt_id"]


def object_info(url: str) -> dict:
    """Every node's schema, by node id."""
    return json.loads(request(f"{url}/object_info"))


def interrupt(url: str) -> None:
    """Stop the running workflow at its next step."""
    request(f"{url}/interrupt", {})


def cancel(url: str, prompt_id: str) -> None:
    """Take one workflow out of the queue, or stop it where it runs. Others are left alone. Raises nothing."""
    with contextlib.suppress(OSError):
        request(f"{url}/queue", {"delete": [prompt_id]}, timeout_s=_CANCEL_S)
        request(f"{url}/interrupt", {"prompt_id": prompt_id}, timeout_s=_CANCEL_S)


def free(url: str, settle_s: float = 1.0) -> None:
    """Unload every model and forget every cached result.

    The server only sets a flag and acts on it between two workflows, without an answer: `settle_s` gives it time.
    """
    request(f"{url}/free", {"unload_models": True, "free_memory": True})
    time.sleep(settle_s)


def history(url: str, prompt_id: str) -> dict:
    """The history entry of a finished workflow, {} if there is none."""
    return json.loads(request(f"{url}/history/{prompt_id}")).get(prompt_id, {})


def saved_files(message: dict) -> list[dict]:
    """What an "executed" message says of files in the output folder: {"filename", "subfolder", "type"} of each."""
    items = [item for items in message.values() if isinstance(items, list) for item in items if isinstance(item, dict)]
    names = ("filename", "subfolder", "type")
    return [item for item in items if all(isinstance(item.get(n), str) for n in names) and item["type"] == "output"]


def local_file(item: dict, output: Path, folder: Path | None = None) -> Path:
    """Where a saved file lies on this machine. item: one of saved_files. output: the server's output folder. folder:
    the folder that it has to be in, `output` by default.

    Raises: DevError for a name that leads out of it: what a server says is not trusted with files of this machine.
    """
    folder = folder or output
    path = output / item["subfolder"] / item["filename"]
    if not (is_spelled_inside(path, folder) and is_below(path, folder)):
        raise DevError(f"The server names a file {quoted(str(path))!r}, which is not in {folder}: it is left alone.")
    return path


async def _run(url: str, api: dict, on_event: OnEvent, timeout_s: float | None, extra_data: dict | None) -> RunResult:
    client_id = uuid.uuid4().hex
    result = RunResult()
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            # As the frontend does; otherwise previews come without the id of their node.
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            try:
                result.prompt_id = submit(url, api, client_id, extra_data)
            except Rejected as refusal:
                result.error = refusal.error
                return result
            waking = asyncio.create_task(_keep_waking())
            try:
                await asyncio.wait_for(_follow(socket, result, on_event), timeout_s)
            except BaseException as error:  # Ctrl-C and SIGTERM too: nobody waits for the result any more
                cancel(url, result.prompt_id)
                if not isinstance(error, asyncio.TimeoutError):
                    raise
                raise DevError(f"The workflow did not end within {timeout_s:.0f} s.") from error
            finally:
                waking.cancel()
    return result


async def _keep_waking() -> None:
    """Wake the event loop once a second. A signal that comes in the moment before the loop waits for the server does
    not end that wait, so that Ctrl-C was lost where the server had nothing more to say."""
    while True:
        await asyncio.sleep(1)


async def _follow(socket: "aiohttp.ClientWebSocketResponse[bool]", result: RunResult, on_event: OnEvent) -> None:
    async for message in socket:
        if message.type == aiohttp.WSMsgType.BINARY:
            kind, data = _read_binary(message.data)
        else:
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != result.prompt_id:
                continue
        _record(result, kind, data)
        on_event(kind, data)
        # Sent in every case once the history is written; execution_success comes earlier.
        if kind == "executing" and data["node"] is None:
            return
    raise DevError("The ComfyUI server went away while it ran the workflow; its log says why.")


def _record(result: RunResult, kind: str, data: dict[str, Any]) -> None:
    node: Any = data.get("node")  # the node's id
    if kind == "executing":
        result.executed += [] if node is None else [node]  # None: no node runs any more
    elif kind == "execution_cached":
        result.cached += data["nodes"]
    elif kind == "executed":
        result.outputs[node] = data["output"] or {}
    elif kind == "progress":
        result.progress.append((node, data["value"], data["max"]))
    elif kind == "preview":
        result.previews.append((node, data["image"]))
    elif kind == "text":
        result.texts.append((node, data["text"]))
    elif kind == "execution_error":
        message, exception = data["exception_message"].strip(), data["exception_type"]
        result.error = RunError("failed", data["node_id"], data["node_type"], message, exception)
    elif kind == "execution_interrupted":
        result.error = RunError("interrupted", data["node_id"], data["node_type"], "")


def _read_binary(frame: bytes) -> tuple[str, dict[str, Any]]:
    kind, length = struct.unpack(">II", frame[:8])
    head, rest = frame[8 : 8 + length], frame[8 + length :]
    if kind == _PREVIEW_WITH_METADATA:
        return "preview", {"node": json.loads(head)["node_id"], "image": rest}
    if kind == _TEXT:
        return "text", {"node": head.decode(), "text": rest.decode()}
    return "preview", {"node": "", "image": frame[8:]}  # from hosts without metadata, `length` is the image's format


def _read_refusal(answer: dict, api: dict) -> RunError:
    error = answer["error"]
    node_id = str((error.get("extra_info") or {}).get("node_id", ""))
    node_type, message = api.get(node_id, {}).get("class_type", ""), error["message"]
    refusals = [
        (id_, node["class_type"], ": ".join(filter(None, (reason["message"], reason["details"]))))
        for id_, node in (answer.get("node_errors") or {}).items()
        for reason in node["errors"]
    ]
    if refusals:
        node_id, node_type, message = refusals[0]
        message += "".join(f"; {other_type} (node {other}): {why}" for other, other_type, why in refusals[1:])
    return RunError("rejected", node_id, node_type, message)
