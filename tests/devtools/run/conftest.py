"""A small server that answers as ComfyUI does, and videos and pictures to begin with."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")
import av
import numpy as np
from aiohttp import web

from cogvideox.devtools import cli, models, server
from cogvideox.devtools.run.remote import _LOADERS
from cogvideox.host.toy import LISTED


def encode_video(
    frames: int, width: int = 64, height: int = 64, fps: int = 8, container: str = "mp4", codec: str = "mpeg4"
) -> bytes:
    """A video, an mp4 by default. container, codec: as FFmpeg names them."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), number * 255 // max(frames, 2), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


@dataclass
class FakeComfyUI:
    """What a test says to the server, and what the server has heard.

    failing: prompts whose run fails. damaged: prompts whose video comes damaged. hanging: prompts that never end.
    broken: paths that are answered with a status and a text, whatever is asked. saved: what it says otherwise of the
    files that it has saved. error: the message of a run that fails. sent: what is downloaded in place of a video.
    answers: prompt -> what the server says that its run has put out, in place of a file.
    """

    url: str = ""
    has_pack: bool = True
    lists: dict[str, list[str]] = field(default_factory=lambda: {kind: list(names) for kind, names in LISTED.items()})
    failing: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    graphs: list[dict] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    cancelled: list[dict] = field(default_factory=list)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    error: str = "no"
    sent: bytes = b""
    answers: dict[str, object] = field(default_factory=dict)
    saved: dict[str, object] = field(default_factory=dict)
    queued: asyncio.Queue = field(default_factory=asyncio.Queue)

    @property
    def prompts(self) -> list[str]:
        return [graph["prompt"]["inputs"]["text"] for graph in self.graphs]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/system_stats", self._stats),
            web.get("/object_info/{node}", self._schema),
            web.post("/upload/image", self._upload),
            web.post("/prompt", self._prompt),
            web.get("/ws", self._follow),
            web.get("/view", self._view),
            web.post("/queue", self._cancel),
            web.post("/interrupt", self._cancel),
        ]

    def middleware(self) -> Callable:
        @web.middleware
        async def break_some(request: web.Request, handler: Callable) -> web.StreamResponse:
            status, text = self.broken.get(request.path, (0, ""))
            if not status:
                return await handler(request)
            if request.path == "/prompt":
                await self.queued.put(None)
            return web.Response(status=status, text=text)

        return break_some

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response({"system": {"comfyui_version": "0.30.0"}})

    async def _schema(self, request: web.Request) -> web.Response:
        node = request.match_info["node"]
        found = {name: (kind, entry) for kind, (name, entry) in _LOADERS.items()}
        if not self.has_pack or node not in found:
            return web.json_response({})
        kind, entry = found[node]
        spec = ["COMBO", {"options": self.lists[kind]}]
        return web.json_response({node: {"input": {"required": {entry: spec}}}})

    async def _upload(self, request: web.Request) -> web.Response:
        posted = await request.post()
        image = posted["image"]
        assert isinstance(image, web.FileField)
        self.uploads[image.filename] = image.file.read()
        return web.json_response({"name": image.filename, "subfolder": posted["subfolder"], "type": posted["type"]})

    async def _prompt(self, request: web.Request) -> web.Response:
        graph = (await request.json())["prompt"]
        self.graphs.append(graph)
        await self.queued.put(graph)
        return web.json_response({"prompt_id": f"run {len(self.graphs)}"})

    async def _follow(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        graph = await self.queued.get()
        if graph is None:  # nothing was queued
            return socket
        id_, text = f"run {len(self.graphs)}", graph["prompt"]["inputs"]["text"]

        async def send(kind: str, **data: object) -> None:
            await socket.send_json({"type": kind, "data": {"prompt_id": id_, **data}})

        await send("executing", node="sample")
        if text in self.hanging:
            await socket.receive()  # the features that the client announces
            await socket.receive()
            return socket
        if text in self.failing:
            await send(
                "execution_error", node_id="sample", node_type="S", exception_message=self.error, exception_type="E"
            )
        else:
            item = {"filename": f"{id_}.mp4", "subfolder": "cogvideox_run", "type": "output", **self.saved}
            output = self.answers.get(text, {"images": [item], "animated": [True]})
            await send("executed", node="save", output=output)
        await send("executing", node=None)
        return socket

    async def _view(self, request: web.Request) -> web.Response:
        graph = self.graphs[int(request.query["filename"].removeprefix("run ").removesuffix(".mp4")) - 1]
        frames = graph["latent"]["inputs"].get("frames") or graph["first"]["inputs"]["length"]
        video = self.sent or encode_video(frames)
        return web.Response(body=video[:400] if graph["prompt"]["inputs"]["text"] in self.damaged else video)

    async def _cancel(self, request: web.Request) -> web.Response:
        self.cancelled.append(await request.json())
        return web.Response()


@pytest.fixture
def fake() -> Iterator[FakeComfyUI]:
    """A running FakeComfyUI."""
    loop, port = asyncio.new_event_loop(), server.free_port()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    comfyui = FakeComfyUI(f"http://{server.ADDRESS}:{port}")
    app = web.Application(client_max_size=1 << 26, middlewares=[comfyui.middleware()])
    app.add_routes(comfyui.routes())
    runner = web.AppRunner(app, shutdown_timeout=1)

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, server.ADDRESS, port).start()

    asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
    yield comfyui
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """refused(arguments...) -> the one sentence that `run` ends with; nothing may be set up before it."""
    monkeypatch.chdir(tmp_path)
    for owner, name in ((cli, "prepare"), (models, "interpreter"), (cli, "run_foreground")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("it went on"))

    def run(*arguments: str, out: str = "out/") -> str:
        assert cli.main(["run", "--out", out, *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "", "stdout is for results alone"
        (line,) = captured.err.splitlines()
        return line.removeprefix("error: ")

    return run


@pytest.fixture
def video(tmp_path: Path) -> Callable[..., Path]:
    """video(frames, fps) -> an mp4 file."""

    def write(frames: int = 17, fps: int = 8) -> Path:
        (tmp_path / "clip.mp4").write_bytes(encode_video(frames, fps=fps))
        return tmp_path / "clip.mp4"

    return write


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG file."""
    from PIL import Image

    Image.new("RGB", (80, 48), (200, 30, 30)).save(tmp_path / "start.png")
    return tmp_path / "start.png"


@pytest.fixture
def lists() -> dict[str, list[str]]:
    """What a server offers that has two checkpoints, a transformer alone and a LoRA besides the toy."""
    own = {
        "pipeline": ["CogVideoX-5b", "THUDM/CogVideoX1.5-5B-I2V"],
        "transformer": ["CogVideoX-5b", "THUDM/CogVideoX1.5-5B-I2V", "CogVideoX_5b_fp8.safetensors"],
        "text_encoder": ["t5xxl_fp8.safetensors"],
        "vae": ["cogvideox_vae.safetensors"],
        "lora": ["styles/Paint.safetensors"],
    }
    return {kind: [*names, *LISTED[kind]] for kind, names in own.items()}
