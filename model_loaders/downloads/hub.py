"""Talk to the model hub: what a repository holds, and the bytes of its files. No import of torch or ComfyUI.

Format: the hub's public API, /api/models/<repository> and /api/models/<repository>/tree/<revision>; large files carry
their sha256 there, the others git's own hash of a blob.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from ...errors import UserError

if TYPE_CHECKING:
    import requests

ENDPOINT = "https://huggingface.co"
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TIMEOUT_S = (10, 30)  # to connect; without a byte
CHUNK = 128 << 10  # bytes; a killed process loses at most this and what is queued between the threads
_MAX_REDIRECTS, _MAX_PAGES, _MAX_WAIT_S = 5, 50, 60.0
_MAX_ANSWER_BYTES = 1 << 26  # a page of 1000 files takes 400 kB
_MAX_FILE_BYTES = 1 << 50  # beyond every disk, and still a number that floats can be made of
T = TypeVar("T", dict, list)


class NotFoundError(UserError):
    """The hub has answered that it has no such repository, revision or file."""


class TransientError(Exception):
    """A failure that a second try may not meet: a connection that was cut, a busy server.

    wait_s: seconds that the server asks to wait. answered: whether a server has answered; if not, this machine may be
    offline.
    """

    def __init__(self, reason: str, wait_s: float | None = None, answered: bool = False):
        super().__init__(reason)
        self.wait_s, self.answered = wait_s, answered


class RangeError(Exception):
    """The server cannot continue at the byte where the file on disk ends."""


class RemoteFile(NamedTuple):
    """One file of a repository.

    digest: "sha256:" or "git-sha1:" and hexadecimal digits. revision: the commit that it is taken from, "" for that of
    the whole repository.
    """

    path: str
    size: int
    digest: str
    revision: str = ""


class ResponseStart(NamedTuple):
    """How the server answered a request for a file.

    offset: of the first byte that it sends, in the file. etag: the version of these bytes, None where it gives none.
    """

    offset: int
    etag: str | None


class Hub:
    """The hub at HF_ENDPOINT. The token in HF_TOKEN is sent to that host only.

    variable: the environment variable that names another address.

    Raises UserError where HF_ENDPOINT is not an http address, or the token contains characters that no token has.
    """

    variable, default_endpoint = "HF_ENDPOINT", ENDPOINT
    token_variables: tuple[str, ...] = TOKEN_VARIABLES

    def __init__(self) -> None:
        self.endpoint = (os.environ.get(self.variable) or self.default_endpoint).strip().rstrip("/")
        if not _is_address(self.endpoint):
            raise UserError(
                f"{self.variable} is not the address of a model hub. Unset it, or set it to an address such as "
                "https://host."
            )
        tokens = (os.environ.get(name, "").strip() for name in self.token_variables)
        self._token = next(filter(None, tokens), None)
        if self._token and not re.fullmatch(r"[!-~]+", self._token):
            # requests would refuse the header, and its message would quote the token
            raise UserError(
                "The token in HF_TOKEN contains characters that no token has. Copy it again, or unset the variable."
            )
        self._session: requests.Session | None = None

    def page(self, repository: str) -> str:
        """The address where a browser shows the repository's files."""
        return f"{self.endpoint}/{repository}/tree/main"

    def file_url(self, repository: str, revision: str, path: str) -> str:
        """The address of a file's bytes."""
        return f"{self.endpoint}/{quote(repository)}/resolve/{revision}/{quote(path)}"

    def revision(self, repository: str) -> str:
        """The current commit of the branch `main`. Raises UserError, TransientError."""
        return self.current(repository)[0]

    def current(self, repository: str) -> tuple[str, str]:
        """The current commit of the branch `main`, and what the hub calls the repository now: under a former name it
        answers as well. Raises UserError, TransientError."""
        found = self._ask(f"{self.endpoint}/api/models/{quote(repository)}", dict)[0]
        sha, name = found.get("sha"), found.get("id", repository)
        if not is_commit(sha):
            raise UserError(
                f"{self.endpoint} names no revision of {repository}, so it does not answer as a model hub. Check "
                f"{self.variable}."
            )
        return str(sha), name if isinstance(name, str) else repository

    def files(self, repository: str, revision: str) -> list[RemoteFile]:
        """All files of a revision. Raises UserError, TransientError."""
        url = f"{self.endpoint}/api/models/{quote(repository)}/tree/{revision}?recursive=true"
        found: list[RemoteFile] = []
        for _ in range(_MAX_PAGES):
            entries, answer = self._ask(url, list)
            found += [_remote_file(entry) for entry in entries if _is_file(entry)]
            following = answer.links.get("next", {}).get("url")
            if not following:
                return found
            url = self._next_page(url, following)
        raise UserError(
            f"{self.endpoint} lists the files of {repository} on more than {_MAX_PAGES} pages, so it does not answer "
            f"as a model hub. Check {self.variable}."
        )

    def read(
        self, repository: str, revision: str, file: RemoteFile, offset: int, etag: str | None
    ) -> Iterator[ResponseStart | bytes]:
        """A ResponseStart, then the bytes of a file from its offset on: `offset`, or 0 where the server starts again.

        etag: of the bytes before `offset`; where the file has another one now, the server starts again.

        Raises UserError, TransientError, and RangeError where the server cannot continue at `offset`.
        """
        import urllib3

        headers = {"Range": f"bytes={offset}-"} if offset else {}
        # If-Range: the server sends the rest only if the file still has this tag, otherwise all of it (RFC 9110,
        # 13.1.5). Without it, the end of a changed file would follow the beginning of the old one.
        if offset and etag:
            headers["If-Range"] = etag
        url = self.file_url(repository, file.revision or revision, file.path)
        with self._open(url, headers) as answer:
            # 206 is a part of the file; 200 is all of it, whatever was asked for.
            first_byte = _first_byte(answer) if answer.status_code == 206 else 0
            if first_byte not in (0, offset):
                raise RangeError
            tag = answer.headers.get("ETag", "")
            # A weak tag (W/"...") does not promise that the bytes are the same.
            yield ResponseStart(first_byte, tag if tag.startswith('"') else None)
            is_compressed = answer.headers.get("Content-Encoding", "identity") != "identity"
            try:
                # Not iter_content: it always decodes, for which urllib3 collects a whole chunk first and drops what it
                # has when the connection is cut.
                while chunk := answer.raw.read(CHUNK, decode_content=is_compressed):
                    yield chunk
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise TransientError(f"the connection was cut ({_reason(error)})", answered=True) from None

    def _next_page(self, url: str, link: str) -> str:
        """The address of the next page of a list, at the endpoint. link: what the page `url` says of it.

        Raises UserError where it leads to another host: what is listed there says which bytes are the right ones.
        """
        following = _followed(url, link)
        if _is_at(following, self.default_endpoint):
            # A mirror hands on what the hub itself has answered, its address included.
            parts = urlsplit(following)
            return f"{self.endpoint}{parts.path}?{parts.query}"
        if not _is_at(following, self.endpoint):
            raise UserError(
                f"{self.endpoint} leads to {_host(following)} for the next page of a list of files, so it does not "
                f"answer as a model hub. Check {self.variable} and the proxy."
            )
        return following

    def _ask(self, url: str, kind: type[T]) -> tuple[T, "requests.Response"]:
        """The JSON value, a `kind`, that the hub itself answers, and the answer. Raises UserError, TransientError."""
        answer = self._open(url, by_hub=True)
        return self._read_json(answer, kind), answer

    def _open(self, url: str, headers: Mapping[str, str] | None = None, by_hub: bool = False) -> "requests.Response":
        """The answer to a GET after all redirects, its body not read yet.

        by_hub: no other host may answer. Files come from other hosts, and their hashes are known by then.

        Raises UserError, TransientError, RangeError.
        """
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise TransientError("HF_HUB_OFFLINE is set", wait_s=0.0)
        # Redirects are followed here and not by requests, for three reasons: a step from https to http is refused, _get
        # decides about the token at each step, and _check_status has to know whether the hub itself has answered.
        requested = url
        for _ in range(_MAX_REDIRECTS):
            answer = self._get(url, headers or {})
            if answer.status_code not in (301, 302, 303, 307, 308):
                is_hub = _origin(url) == _origin(self.endpoint)
                _check_status(answer, requested, is_hub, "Range" in (headers or {}), self.variable)
                return answer
            answer.close()
            following = _followed(url, answer.headers.get("Location", ""))
            if by_hub and not any(_is_at(following, hub) for hub in (self.endpoint, self.default_endpoint)):
                raise UserError(
                    f"{requested} is redirected to {_host(following)}, which is another host than the hub. Check "
                    f"{self.variable} and the proxy."
                )
            if urlsplit(following).scheme not in ("https", urlsplit(url).scheme):
                raise UserError(
                    f"{requested} is redirected to an address without encryption. Check {self.variable} and the proxy."
                )
            url = following
        raise UserError(f"{requested} is redirected more than {_MAX_REDIRECTS} times. Check {self.variable}.")

    def _get(self, url: str, headers: Mapping[str, str]) -> "requests.Response":
        import requests

        self._session = self._session or requests.Session()
        # Byte offsets of a compressed answer are not offsets in the file: it could not be resumed.
        headers = {"Accept-Encoding": "identity", "User-Agent": "cogvideox-comfyui", **headers}
        if self._token and _origin(url) == _origin(self.endpoint):
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            return self._session.get(
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,  # see _open
                timeout=TIMEOUT_S,
                auth=lambda request: request,  # without it, requests replaces the token by a password of ~/.netrc
            )
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"This machine does not trust the certificate of {_host(url)} ({_reason(error)}). "
                f"Check the clock, the proxy and {self.variable}."
            ) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TransientError(f"{_host(url)} cannot be reached ({_reason(error)})") from None
        # Its own text may contain a signed address. ValueError: for a redirect to what is no address.
        except (requests.RequestException, ValueError) as error:
            raise UserError(
                f"The request to {_host(url)} failed ({type(error).__name__}). Check {self.variable}."
            ) from None

    def _read_json(self, answer: "requests.Response", kind: type[T]) -> T:
        """The JSON value in an answer. Raises UserError where it is not a `kind`, TransientError."""
        import requests

        try:
            with answer:
                body = bytearray()
                for chunk in answer.iter_content(CHUNK):
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        break
                value = json.loads(body)
        except (ValueError, RecursionError):  # it is no JSON, is cut, or nests deeper than anything that a hub answers
            value = None
        except requests.RequestException as error:
            raise TransientError(f"the connection was cut ({_reason(error)})", answered=True) from None
        if not isinstance(value, kind):
            raise UserError(f"{_host(answer.url)} does not answer as a model hub. Check {self.variable} and the proxy.")
        return value


def _check_status(answer: "requests.Response", requested: str, is_hub: bool, has_range: bool, variable: str) -> None:
    """Raise the error for any status but 200 and 206.

    is_hub: the hub itself has answered, not a host that it redirected to. has_range: a part of a file was requested.
    variable: the environment variable that names the hub's address.
    """
    status = answer.status_code
    if status in (200, 206):
        return
    answer.close()
    if status == 416 and has_range:
        raise RangeError
    if status in (401, 403) and is_hub:
        raise UserError(
            f"The hub refuses {requested} (status {status}). Accept the model's licence on its page if the page asks "
            "for that, and set the environment variable HF_TOKEN to a token of your account; a token that is set may "
            "be wrong or expired. The hub gives the same answer for a repository that does not exist."
        )
    if status in (404, 410) and is_hub:
        raise NotFoundError(
            f"{requested} does not exist (status {status}). Check {variable}, or download the checkpoint elsewhere."
        )
    # Large files are on other hosts, to which the hub redirects by signed addresses. These expire, and the next request
    # gets a new one: what would be final from the hub itself is worth another try.
    if status in (401, 403, 404, 408, 425, 429) or status >= 500:
        raise TransientError(f"{_host(requested)} answers with status {status}", _retry_after(answer), answered=True)
    raise UserError(f"{requested} answers with status {status} instead of a file. Check {variable}.")


# Retry-After may also be a date, which is not read: the pause between two tries is used then.
def _retry_after(answer: "requests.Response") -> float | None:
    try:
        # In this order, NaN becomes 0.
        return min(max(0.0, float(answer.headers.get("Retry-After", ""))), _MAX_WAIT_S)
    except ValueError:
        return None


def _first_byte(answer: "requests.Response") -> int:
    """The offset at which a part of a file begins, by its Content-Range; -1 where that says nothing."""
    found = re.match(r"bytes (\d{1,18})-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _is_file(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("type") == "file"


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    """One entry of the hub's list of files.

    Raises UserError for a path that leads out of its folder, or an entry without size and hash.
    """
    # For a file in Git LFS the outer hash is that of its pointer; "lfs" has the hash of the file itself.
    path, size = check_path(entry.get("path")), entry.get("size")
    lfs = entry.get("lfs")
    digest = f"sha256:{lfs.get('oid')}" if isinstance(lfs, dict) else f"git-sha1:{entry.get('oid')}"
    size = lfs.get("size", size) if isinstance(lfs, dict) else size
    if not is_size(size) or not is_digest(digest):
        raise UserError(f"The hub names no size and hash of {path!r}. Check HF_ENDPOINT.")
    return RemoteFile(path, size, digest)


def check_path(path: object) -> str:
    """`path`, a relative path with slashes. Raises UserError where it leads out of its folder on any system."""
    # On Windows "C:" begins an absolute path and a backslash separates as a slash does. "" comes from a leading slash.
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or part[1:2] == ":" for part in parts):
        raise UserError(f"The hub names a file {str(path)[:100]!r}, which leads out of the folder. Check HF_ENDPOINT.")
    return str(path)


def is_size(size: object) -> TypeGuard[int]:
    """Whether `size` can be that of a file, in bytes."""
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _MAX_FILE_BYTES


def is_commit(revision: object) -> bool:
    """Whether `revision` has the form of a commit."""
    return isinstance(revision, str) and bool(re.fullmatch(r"[0-9a-f]{40}", revision))


def is_digest(digest: object) -> bool:
    """Whether `digest` has the form of RemoteFile.digest."""
    return isinstance(digest, str) and bool(re.fullmatch(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", digest))


def _is_address(url: str) -> bool:
    """Whether `url` is the address of a server, without a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # a bracket without its other one, a port beyond 65535
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.username or parts.password)


def _followed(url: str, link: str) -> str:
    """The address to which a link on `url` leads; "" where it is none."""
    try:
        following = urljoin(url, link)
        _ = urlsplit(following).port
    except ValueError:
        return ""
    return following


def _is_at(url: str, endpoint: str) -> bool:
    """Whether `url` is one of the server at `endpoint`: with encryption where that was without, with or without www."""
    there, own = _origin(url), _origin(endpoint)
    if there == own:
        return True
    are_usual = there[0::2] == ("https", 443) and own[0::2] in (("https", 443), ("http", 80))
    return are_usual and bool(there[1]) and (there[1] or "").removeprefix("www.") == (own[1] or "").removeprefix("www.")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # no address
        return "", None, None


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the hub"


def _reason(error: BaseException) -> str:
    """The innermost cause in words. The outer ones would print complete addresses, signatures included."""
    while True:
        inner = [getattr(error, "reason", None), *error.args]
        found = next((cause for cause in inner if isinstance(cause, BaseException)), None)
        if found is None:
            break
        error = found
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text)
