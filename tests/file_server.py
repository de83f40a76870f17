"""A model hub on this machine that misbehaves as told, to download from: Hugging Face's way, and ModelScope's."""

import contextlib
import hashlib
import itertools
import json
import struct
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BIG = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY, ON_MODELSCOPE = "zai-org/CogVideoX-2b", "ZhipuAI/CogVideoX-2b"


_SETTINGS = (
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MODELSCOPE_ENDPOINT",
    "http_proxy",
    "HTTP_PROXY",
)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request for a file; the next request goes as it should.

    cut_after: bytes after which the connection is closed. claim: added to the true Content-Length.
    body: sent in place of the file. redirect: an address. stall: nothing is sent until the server is closed.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    claim: int = 0
    unsized: bool = False  # no Content-Length: the end is where the connection is closed
    body: bytes | None = None
    ignore_range: bool = False
    redirect: str = ""
    stall: bool = False
    slow_s: float = 0.0  # a pause after every 4096 bytes


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class FileServer:
    """files: path in the repository -> bytes, of which .safetensors are held as LFS files, with a sha256."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.revision, self.asked = dict(files), REVISION, []
        self.faults: dict[str, Iterator[Fault]] = {}
        self.listed: list[dict] = []  # further entries of the list of files
        self.next_page = ""  # the address of the list's second page, for one that is not this server's
        # Further repositories, of which only the lists of files are there, in the format of the hub that has them; and
        # what others are called now.
        self.lists: dict[str, list[dict]] = {}
        self.renamed: dict[str, str] = {}
        self.closing = threading.Event()
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def fail(self, path: str, *faults: Fault, always: bool = False) -> None:
        """Let the next requests for `path` ("" for the API) go wrong, one after the other, or all of them."""
        self.faults[path] = itertools.cycle(faults) if always else iter(faults)

    def requests(self, path: str) -> list[Asked]:
        """What came for one file."""
        return [asked for asked in self.asked if asked.path.endswith(f"/{path}")]

    def modelscope_list(self) -> list[dict]:
        """What ModelScope answers of the files."""
        entries: list[dict] = [{"Type": "tree", "Path": "transformer", "Name": "transformer", "Size": 0, "Sha256": ""}]
        for path, data in self.files.items():
            digest, name = hashlib.sha256(data).hexdigest(), path.rsplit("/", 1)[-1]
            entry = {"Type": "blob", "Path": path, "Name": name, "Size": len(data), "Sha256": digest}
            entries.append({**entry, "Revision": self.revision, "IsLFS": path.endswith(".safetensors")})
        return entries

    def tree(self) -> list[dict]:
        entries = [{"type": "directory", "path": "transformer", "oid": "0" * 40, "size": 0}, *self.listed]
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"type": "file", "path": path, "oid": blob, "size": len(data)}
            if path.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries


class _Handler(BaseHTTPRequestHandler):
    hub: FileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        hub.asked.append(Asked(self.path, {name.lower(): value for name, value in self.headers.items()}))
        with contextlib.suppress(ConnectionError):
            path, _, query = self.path.partition("?")
            if path.startswith("/api/"):
                self.answer_api(path, query)
            else:
                name = path.split(f"/resolve/{hub.revision}/")[-1].removeprefix("/elsewhere/")
                self.send_file(name, hub.files.get(name), next(hub.faults.get(name, iter(())), Fault()))

    def answer_api(self, path: str, query: str) -> None:
        hub = self.hub
        fault = next(hub.faults.get("", iter(())), Fault())
        if fault.stall:
            hub.closing.wait()
        if fault.redirect:
            return self.send_bytes(b"", 307, {"Location": f"{fault.redirect}{self.path}"})
        if fault.status:
            return self.send_bytes(b"no", fault.status, fault.headers)
        if fault.body is not None:
            return self.send_bytes(fault.body)
        if path.startswith("/api/v1/models/"):
            name = path.removeprefix("/api/v1/models/").removesuffix("/repo/files")
            files = hub.modelscope_list() if name == ON_MODELSCOPE and name not in hub.lists else hub.lists.get(name)
            answer = {"Code": 200, "Data": {"Files": files}, "Success": files is not None}
            return self.send_bytes(json.dumps(answer).encode())
        name, _, tree = path.removeprefix("/api/models/").partition("/tree/")
        if name in hub.lists:
            found = hub.lists[name] if tree else {"sha": hub.revision, "id": hub.renamed.get(name, name)}
            return self.send_bytes(json.dumps(found).encode())
        if path == f"/api/models/{REPOSITORY}":
            return self.send_bytes(json.dumps({"sha": hub.revision}).encode())
        if path == f"/api/models/{REPOSITORY}/tree/{hub.revision}":
            entries, half = hub.tree(), len(hub.files) // 2
            if "cursor" in query:
                return self.send_bytes(json.dumps(entries[half:]).encode())
            following = f'<{hub.next_page or hub.url}{path}?recursive=true&cursor=x>; rel="next"'
            return self.send_bytes(json.dumps(entries[:half]).encode(), headers={"Link": following})
        return self.send_bytes(b"not found", 404)

    def send_file(self, name: str, data: bytes | None, fault: Fault) -> None:
        if fault.stall:
            self.hub.closing.wait()
            return None
        if fault.redirect:
            return self.send_bytes(b"", 302, {"Location": fault.redirect})
        if fault.status or data is None:
            return self.send_bytes(b"no", fault.status or 404, fault.headers)
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if fault.ignore_range or self.headers.get("If-Range", etag) != etag:
            start = 0
        if start >= len(data) and start:
            return self.send_bytes(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
        part = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        headers = {"ETag": etag, **part, **fault.headers}
        body = (data if fault.body is None else fault.body)[start:]
        return self.send_bytes(body, 206 if start else 200, headers, fault)

    def send_bytes(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if not fault.unsized:
            self.send_header("Content-Length", str(len(body) + fault.claim))
        self.end_headers()
        step = 4096 if fault.slow_s else 1 << 20
        sent = body if fault.cut_after is None else body[: fault.cut_after]
        for start in range(0, len(sent), step):
            self.wfile.write(sent[start : start + step])
            if self.hub.closing.wait(fault.slow_s):
                break
        if fault.cut_after is not None or fault.claim or fault.unsized:
            self.close_connection = True


@contextlib.contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A hub with a small repository, as Hugging Face and as ModelScope, and nothing of the developer's own settings."""
    for name in _SETTINGS:
        monkeypatch.delenv(name, raising=False)
    server = FileServer(small_repository())
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    try:
        yield server
    finally:
        server.close()


def safetensors(size: int, seed: int) -> bytes:
    """A valid safetensors file of one U8 tensor with `size` bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    data = hashlib.shake_128(bytes([seed])).digest(size)
    return struct.pack("<Q", len(header)) + header + data


def small_repository() -> dict[str, bytes]:
    """The files of a pipeline: all that is needed, and some that are not."""
    needed: Iterable[str] = (
        "model_index.json",
        "README.md",
        "LICENSE",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/spiece.model",
        "scheduler/scheduler_config.json",
    )
    files = {path: f'{{"of": "{path}"}}'.encode() for path in needed}
    return {
        **files,
        BIG: safetensors(600_000, 1),
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": safetensors(90_000, 2),
        "transformer/diffusion_pytorch_model.safetensors.index.json": b'{"weight_map": {}}',
        VAE: safetensors(50_000, 3),
        "vae/diffusion_pytorch_model.fp16.safetensors": safetensors(25_000, 4),
        "text_encoder/model.safetensors": safetensors(120_000, 5),
        "text_encoder/pytorch_model.bin": b"pickle",
        "assets/panda: a video?.mp4": b"video",
    }
