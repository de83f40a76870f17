"""A ComfyUI server over HTTP: is it one with the pack, what does it list, files there and back. Needs no package."""

import http.client
import json
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..errors import DevError
from ..server import request
from .options import LISTS

ANSWER_S = 10.0  # how long a server may take for its first answer
_TRANSFER_S = 120.0  # without a byte
FOLDER = "cogvideox_run"  # in the server's input and output folders
# A key of LISTS -> the loader that has the list, and its input.
_LOADERS = {
    "pipeline": ("CogVideoXLoadPipeline", "folder"),
    "transformer": ("CogVideoXLoadModel", "model_name"),
    "text_encoder": ("CogVideoXLoadTextEncoder", "text_encoder_name"),
    "vae": ("CogVideoXLoadVAE", "vae_name"),
    "lora": ("CogVideoXApplyLora", "lora_name"),
}
assert _LOADERS.keys() == LISTS.keys()


def read_address(text: str) -> str:
    """The address of a server, without a slash at its end. Raises: DevError."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    else:
        is_address = is_address and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not is_address:
        raise DevError(
            f"--server is {text!r}, which is not an address of a server: write one as http://127.0.0.1:8188."
        )
    return text.rstrip("/")


def check_server(url: str) -> None:
    """Raises: DevError where no ComfyUI answers, or one without the pack."""
    node, _ = _LOADERS["pipeline"]
    try:
        with _explained(url):
            answer = _json(request(f"{url}/system_stats", timeout_s=ANSWER_S))
            if not isinstance(answer, dict) or "system" not in answer:
                raise ValueError
            found = _json(request(f"{url}/object_info/{node}", timeout_s=_TRANSFER_S))
            if not isinstance(found, dict):
                raise ValueError
    except (ValueError, TypeError, RecursionError, urllib.error.HTTPError) as error:
        raise DevError(
            f"{url} answers, and not as ComfyUI does: give the address of a ComfyUI with --server."
        ) from error
    if node not in found:
        raise DevError(
            f"The ComfyUI at {url} does not have this pack, or could not import it (its log says why): install the "
            "pack there and start it again."
        )


def server_lists(url: str) -> dict[str, list[str]]:
    """The names that the server's loaders offer, by the keys of LISTS. Raises: DevError."""
    lists = {}
    for kind, (node, name) in _LOADERS.items():
        with _explained(url, "The server's lists of models could not be read"):
            schema = _json(request(f"{url}/object_info/{node}", timeout_s=_TRANSFER_S))
            entry = schema[node]["input"]["required"][name]
            lists[kind] = entry[0] if isinstance(entry[0], list) else entry[1]["options"]
    return lists


def upload(url: str, name: str, data: bytes) -> str:
    """Put a file into FOLDER of the server's input folder; returns what LoadImage and LoadVideo call it there.

    Raises: DevError.
    """
    boundary = uuid.uuid4().hex
    fields = {"type": "input", "subfolder": FOLDER}
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = "".join(f'{part}"{key}"\r\n\r\n{text}\r\n' for key, text in fields.items())
    head += f'{part}"image"; filename="{quote(name)}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    body = head.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    with _explained(url, f"{len(data) / 1e6:.0f} MB could not be uploaded"):
        kind = f"multipart/form-data; boundary={boundary}"
        answer = _json(request(f"{url}/upload/image", body, _TRANSFER_S, kind))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))


def download(url: str, item: dict[str, Any]) -> bytes:
    """A file that a run has saved. item: what the server's message says of it. Raises: DevError."""
    query = urlencode({name: item[name] for name in ("filename", "subfolder", "type")})
    with _explained(url, f"{item['filename']} could not be downloaded"):
        return request(f"{url}/view?{query}", timeout_s=_TRANSFER_S)


@contextmanager
def _explained(url: str, what: str = "") -> Iterator[None]:
    """Turns errors of the connection into a DevError. what: what was tried, where the server has answered before."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if not what:
            raise
        raise DevError(f"{what}: {url} answered with status {error.code}, {error.reason}.") from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        is_late = isinstance(error, TimeoutError) or isinstance(cause, TimeoutError)
        how = f"no answer within {_TRANSFER_S if what else ANSWER_S:g} s" if is_late else str(cause) or repr(cause)
        if what:
            raise DevError(f"{what}: {how}.") from error
        raise DevError(
            f"No server answers at {url} ({how}): start ComfyUI there, or leave --server out to have one started."
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        if not what:
            raise
        raise DevError(f"{what}: {url} does not answer as ComfyUI does.") from error


def _json(body: bytes) -> Any:
    return json.loads(body)
