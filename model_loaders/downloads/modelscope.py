"""Talk to ModelScope, the model hub in China on which the same authors publish. No import of torch or ComfyUI.

Format, as modelscope_hub 0.5.1 (Apache-2.0, _legacy_api.py and _download.py) reads it: /api/v1/models/<repository> with
/repo/files lists path, size, sha256 and commit of every file, at most 3000 of them, and /models/<repository> with
/resolve/<commit>/<path> sends one, by way of a host for large files.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ...errors import UserError
from .hub import Hub, NotFoundError, RemoteFile, check_path, is_commit, is_digest, is_size

ENDPOINT = "https://www.modelscope.cn"
BRANCH = "master"


class ModelScope(Hub):
    """ModelScope, at MODELSCOPE_ENDPOINT where that is set. No token is sent to it: the repositories are public.

    Raises UserError where MODELSCOPE_ENDPOINT is not an http address.
    """

    variable, default_endpoint = "MODELSCOPE_ENDPOINT", ENDPOINT
    token_variables = ()

    def page(self, repository: str) -> str:
        return f"{self.endpoint}/models/{repository}/files"

    def file_url(self, repository: str, revision: str, path: str) -> str:
        return f"{self.endpoint}/models/{quote(repository)}/resolve/{revision}/{quote(path)}"

    def current(self, repository: str) -> tuple[str, str]:
        """The branch: each file of the list has a commit of its own, at which it is downloaded."""
        return BRANCH, repository

    def files(self, repository: str, revision: str) -> list[RemoteFile]:
        url = f"{self.endpoint}/api/v1/models/{quote(repository)}/repo/files?Revision={revision}&Recursive=true"
        answer = self._ask(url, dict)[0]
        if answer.get("Success") is False:  # with status 200
            raise NotFoundError(
                f"{self.endpoint} has no repository {repository}. Check {self.variable}, or choose another source."
            )
        data = answer.get("Data")
        entries = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{self.endpoint} does not answer as ModelScope does. Check {self.variable} and the proxy.")
        return [_remote_file(entry) for entry in entries if entry.get("Type") != "tree"]


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    """One entry of ModelScope's list of files.

    Raises UserError for a path that leads out of its folder, or an entry without size and hash.
    """
    path, size = check_path(entry.get("Path")), entry.get("Size")
    digest, revision = f"sha256:{entry.get('Sha256')}", entry.get("Revision")
    if not is_size(size) or not is_digest(digest):
        raise UserError(f"ModelScope names no size and hash of {path!r}. Choose another source.")
    # Without a commit the file comes from the branch, and its hash tells whether it has changed since it was listed.
    return RemoteFile(path, size, digest, str(revision) if is_commit(revision) else "")
