"""Talk to the model hub: what a repository holds, and the bytes of its files. No import of torch or ComfyUI.

Format: the hub's public API, /api/models/<repository> and /api/models/<repository>/tree/<revision>; large files carry
their sha256 there, the others git's own hash of a blob.
"""

import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from ...errors import UserError

ENDPOINT = "https://huggingface.co"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TIMEOUT_S = (10, 30)  # to connect; without a byte
CHUNK = 128 << 10  # bytes; what a kill loses at most, beside what waits in the queue
_MAX_REDIRECTS, _MAX_PAGES, _MAX_WAIT_S = 5, 50, 60.0


class NotThereError(UserError):
    """The hub answers, and has no such repository, revision or file."""


class PassingError(Exception):
    """What may be over in a moment: a cut connection, a busy server. wait_s: how long the server asks for patience."""

    def __init__(self, reason: str, wait_s: float | None = None, answered: bool = False):
        super().__init__(reason)
        self.wait_s = wait_s
        self.answered = answered  # by a server, so that this machine is not offline


class RangeError(Exception):
    """The server cannot go on where the file on disk ends."""


class Stopped(Exception):
    """The user wants no more of it."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository. digest: "sha256:" or "git-sha1:" and hexadecimal digits."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Beginning:
    """How the server answered a request for a file: where in the file its bytes begin, and their entity tag."""

    offset: int
    etag: str | None


class Hub:
    """The hub that HF_ENDPOINT names, with the token of HF_TOKEN, which goes to that host alone.

    Raises UserError for an endpoint or a token that cannot be one.
    """

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or ENDPOINT).strip().rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise UserError("HF_ENDPOINT is not the address of a hub. Unset it, or set it like https://host.")
        self._token = next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), None)
        if self._token and not re.fullmatch(r"[!-~]+", self._token):
            # the request would be refused with the header's value in the message
            raise UserError("The token in HF_TOKEN holds characters that no token has. Copy it again, or unset it.")
        self._session = None

    def page(self, repository: str) -> str:
        """Where a browser shows the repository's files."""
        return f"{self.endpoint}/{repository}/tree/main"

    def revision(self, repository: str) -> str:
        """The commit that `main` is now. Raises UserError, PassingError."""
        sha = _json(self._open(f"{self.endpoint}/api/models/{quote(repository)}")).get("sha")
        if not isinstance(sha, str) or not re.fullmatch(r"[0-9a-f]{40}", sha):
            raise UserError(f"{self.endpoint} gives no revision of {repository}: is HF_ENDPOINT a model hub?")
        return sha

    def files(self, repository: str, revision: str) -> list[RemoteFile]:
        """Everything in a revision. Raises UserError, PassingError."""
        url = f"{self.endpoint}/api/models/{quote(repository)}/tree/{revision}?recursive=true"
        found: list[RemoteFile] = []
        for _ in range(_MAX_PAGES):
            answer = self._open(url)
            entries = _json(answer, list)
            found += [_remote_file(entry) for entry in entries if _is_file(entry)]
            following = answer.links.get("next", {}).get("url")
            if not following:
                return found
            url = urljoin(url, following)
        raise UserError(f"{self.endpoint} lists {repository} without end. Is HF_ENDPOINT a model hub?")

    def read(
        self, repository: str, revision: str, file: RemoteFile, offset: int, etag: str | None
    ) -> Iterator[Beginning | bytes]:
        """The bytes of a file from `offset` on, after a Beginning, which is at 0 where the server starts again.

        Raises UserError, PassingError, RangeError where there is nothing at `offset`.
        """
        import urllib3

        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and etag:
            headers["If-Range"] = etag
        url = f"{self.endpoint}/{quote(repository)}/resolve/{revision}/{quote(file.path)}"
        with self._open(url, headers) as answer:
            begins = _first_byte(answer) if answer.status_code == 206 else 0
            if begins not in (0, offset):
                raise RangeError
            tag = answer.headers.get("ETag", "")
            # a weak tag is no promise that the bytes are the same
            yield Beginning(begins, tag if tag.startswith('"') else None)
            packed = answer.headers.get("Content-Encoding", "identity") != "identity"
            try:
                # not iter_content: it keeps what it has of a chunk to itself when the connection is cut
                while chunk := answer.raw.read(CHUNK, decode_content=packed):
                    yield chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise PassingError(f"the connection was cut ({_reason(error)})", answered=True) from None

    def _open(self, url: str, headers: dict[str, str] | None = None) -> object:
        """The answer to a GET, its body not read yet. Raises UserError, PassingError, RangeError."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise PassingError("HF_HUB_OFFLINE is set", wait_s=0.0)
        asked = url
        for _ in range(_MAX_REDIRECTS):
            answer = self._get(url, headers or {})
            if answer.status_code not in (301, 302, 303, 307, 308):
                _check_status(answer, asked, _origin(url) == _origin(self.endpoint), "Range" in (headers or {}))
                return answer
            answer.close()
            following = urljoin(url, answer.headers.get("Location", ""))
            if urlsplit(following).scheme not in ("https", urlsplit(url).scheme):
                raise UserError(f"{asked} is redirected to an address without encryption. Check HF_ENDPOINT.")
            url = following
        raise UserError(f"{asked} is redirected without end. Check HF_ENDPOINT.")

    def _get(self, url: str, headers: dict[str, str]) -> object:
        import requests

        self._session = self._session or requests.Session()
        # what is stored packed cannot be resumed by bytes
        headers = {"Accept-Encoding": "identity", "User-Agent": "cogvideox-comfyui", **headers}
        if self._token and _origin(url) == _origin(self.endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return self._session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,  # requests keeps a token on a redirect to another port of the host
                timeout=TIMEOUT_S,
                auth=lambda request: request,  # else it puts the password of a ~/.netrc in the token's place
            )
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"{_host(url)} has no certificate that this machine trusts ({_reason(error)}). "
                "Check the clock, the proxy and HF_ENDPOINT."
            ) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise PassingError(f"{_host(url)} cannot be reached ({_reason(error)})") from None
        except requests.RequestException as error:  # its own text may hold a signed address
            raise UserError(f"{_host(url)} cannot be asked ({type(error).__name__}). Check HF_ENDPOINT.") from None


def in_background(produce: Callable[[], Iterator], should_stop: Callable[[], bool]) -> Iterator:
    """What the iterator that `produce` makes yields, made in a thread of its own.

    A server that is silent can so be left at once. Raises Stopped when should_stop says so, and what `produce` raises.
    """
    items: queue.Queue = queue.Queue(maxsize=8)
    left = threading.Event()

    def put(item: tuple) -> bool:
        while not left.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in produce():
                if not put((value, None, False)):
                    return
            put((None, None, True))
        except Exception as error:  # raised again below, where someone can catch it
            put((None, error, True))

    threading.Thread(target=work, name="cogvideox-download", daemon=True).start()
    try:
        while True:
            if should_stop():
                raise Stopped
            try:
                value, error, last = items.get(timeout=0.1)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if last:
                return
            yield value
    finally:
        left.set()


def _check_status(answer: object, asked: str, own: bool, ranged: bool) -> None:
    """own: the hub itself answers, not a host that it sent us to. ranged: a part of a file was asked for."""
    status = answer.status_code
    if status in (200, 206):
        return
    answer.close()
    if status == 416 and ranged:
        raise RangeError
    if status in (401, 403) and own:
        raise UserError(
            f"{asked} is refused ({status}). Accept the model's licence on its page if it asks for that, and set a "
            "token of your account in the environment variable HF_TOKEN; if one is set, it may be wrong or expired. "
            "The hub answers so for a repository that does not exist as well."
        )
    if status in (404, 410) and own:
        raise NotThereError(f"{asked} is not there ({status}). Check HF_ENDPOINT, or fetch the checkpoint elsewhere.")
    # signed addresses of other hosts expire: asking again gives a new one
    if status in (401, 403, 404, 408, 425, 429) or status >= 500:
        raise PassingError(f"{_host(asked)} answers {status}", _retry_after(answer), answered=True)
    raise UserError(f"{asked} answers {status}, which is no file. Check HF_ENDPOINT.")


def _retry_after(answer: object) -> float | None:
    try:
        return min(max(float(answer.headers.get("Retry-After", "")), 0.0), _MAX_WAIT_S)
    except ValueError:
        return None


def _first_byte(answer: object) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _json(answer: object, kind: type = dict) -> dict | list:
    import requests

    try:
        with answer:
            value = answer.json()
    except ValueError:  # requests' own error for what is not JSON is one too
        value = None
    except requests.RequestException as error:
        raise PassingError(f"the connection was cut ({_reason(error)})", answered=True) from None
    if not isinstance(value, kind):
        raise UserError(f"{_host(answer.url)} does not answer as a model hub. Check HF_ENDPOINT and the proxy.")
    return value


def _is_file(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "file"


def _remote_file(entry: dict) -> RemoteFile:
    """Raises UserError for a name that leads out of a folder, or an entry without size and hash."""
    path, size = entry.get("path"), entry.get("size")
    check_path(path)
    lfs = entry.get("lfs")
    digest = f"sha256:{lfs.get('oid')}" if isinstance(lfs, dict) else f"git-sha1:{entry.get('oid')}"
    size = lfs.get("size", size) if isinstance(lfs, dict) else size
    if isinstance(size, bool) or not isinstance(size, int) or size < 0 or not is_digest(digest):
        raise UserError(f"The hub gives no size and hash for {path!r}. Check HF_ENDPOINT.")
    return RemoteFile(path, size, digest)


def check_path(path: object) -> None:
    """Raises UserError unless `path` is a relative one that stays in its folder, on every system."""
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or part[1:2] == ":" for part in parts):
        raise UserError(f"The hub names a file {str(path)[:100]!r}, which leads out of the folder. Check HF_ENDPOINT.")


def is_digest(digest: object) -> bool:
    """Whether this is a hash as RemoteFile holds it."""
    return isinstance(digest, str) and bool(re.fullmatch(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", digest))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the hub"


def _reason(error: BaseException) -> str:
    """The innermost cause. The outer ones tell whole addresses, signatures included."""
    while True:
        inner = [getattr(error, "reason", None), *error.args]
        found = next((cause for cause in inner if isinstance(cause, BaseException)), None)
        if found is None:
            break
        error = found
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text)
