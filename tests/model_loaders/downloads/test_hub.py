"""What a download trusts: the hub, its names, its hashes, and who gets the token."""

import hashlib
import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.model_loaders.downloads import fetch as downloads
from cogvideox.model_loaders.downloads import hub as hub_module
from cogvideox.model_loaders.downloads import manifest as manifests
from cogvideox.model_loaders.downloads.part_file import new_digest
from cogvideox.sockets.families import FAMILIES
from cogvideox.tests.file_server import BIG, REPOSITORY, Fault, FileServer, running_hub

TOKEN = "hf_secretSECRETsecret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with running_hub(monkeypatch) as server:
        yield server


def fetch(folder: Path) -> None:
    downloads.download(REPOSITORY, folder, pause_s=0.01)


def failure(folder: Path) -> str:
    """The message of the UserError."""
    with pytest.raises(UserError) as raised:
        fetch(folder)
    return str(raised.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_tells_of_licence_and_token(tmp_path: Path, hub: FileServer, status: int) -> None:
    """'403 Forbidden' alone leaves a user without a next step."""
    hub.fail(BIG, Fault(status), always=True)
    message = failure(tmp_path / "x")
    assert "licence" in message and "HF_TOKEN" in message and BIG in message
    assert len(hub.requests(BIG)) == 1


def test_a_missing_repository_is_named(tmp_path: Path, hub: FileServer) -> None:
    """A wrong HF_ENDPOINT must not look like a broken pack."""
    with pytest.raises(UserError, match="does not exist.*HF_ENDPOINT"):
        downloads.download("nobody/nothing", tmp_path / "x", pause_s=0.01)
    hub.fail(BIG, Fault(404), always=True)
    assert BIG in failure(tmp_path / "y")


def test_the_token_goes_to_the_hub_alone(
    tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A token sent to the host of a redirect, or written anywhere, is a stolen account."""
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n")
    caplog.set_level(logging.DEBUG)
    other = FileServer(hub.files)
    hub.fail(BIG, Fault(redirect=f"{other.url}/elsewhere/{BIG}?signature=s3cret"), always=True)
    other.fail(BIG, Fault(403), Fault(cut_after=1000))  # an expired address: the hub gives a new one
    fetch(tmp_path / "x")
    assert other.requests(f"{BIG}?signature=s3cret")
    assert all("authorization" not in asked.headers for asked in other.asked)
    assert all(asked.headers["authorization"] == f"Bearer {TOKEN}" for asked in hub.asked)
    other.fail(BIG, Fault(500), always=True)
    with pytest.raises(UserError) as raised:
        fetch(tmp_path / "y")
    other.close()
    told = "".join(traceback.format_exception(raised.value)) + caplog.text
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert TOKEN not in told + written and "s3cret" not in "".join(traceback.format_exception(raised.value))


def test_the_token_stays_out_of_every_message(
    tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """requests itself quotes a header that it refuses: a token with a line break would be in the log."""
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", f"{TOKEN}\nX: y")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError, match="HF_TOKEN") as raised:
        fetch(tmp_path / "x")
    assert not hub.asked and TOKEN not in "".join(traceback.format_exception(raised.value)) + caplog.text
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    hub.fail("", Fault(403))
    with pytest.raises(UserError) as raised:
        fetch(tmp_path / "x")
    assert TOKEN not in "".join(traceback.format_exception(raised.value)) + caplog.text


def test_no_password_of_a_netrc_is_sent(tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens come from the environment only; requests by itself reads ~/.netrc."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pass\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(tmp_path / "x")
    assert all("authorization" not in asked.headers for asked in hub.asked)


@pytest.mark.parametrize("body", [b"<html>Sign in to the hotel's network</html>", b"[]", b'{"sha": "../x"}'])
def test_an_answer_of_another_server_is_refused(tmp_path: Path, hub: FileServer, body: bytes) -> None:
    """A captive portal answers 200 to everything."""
    hub.fail("", Fault(body=body), always=True)
    assert "hub" in failure(tmp_path / "x")


@pytest.mark.parametrize(
    "path", ["../evil.json", "/etc/evil.json", "transformer/../../evil.json", "C:/evil.json", "a\\..\\evil.json", ""]
)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, hub: FileServer, path: str) -> None:
    """A hub, or who answers in its place, must not write where it likes."""
    hub.listed = [{"type": "file", "path": path, "oid": "0" * 40, "size": 1}]
    assert "leads out of the folder" in failure(tmp_path / "x")
    assert not [file for file in tmp_path.rglob("*") if "evil" in file.name]


def test_a_manifest_that_was_tampered_with_writes_nothing_outside(tmp_path: Path, hub: FileServer) -> None:
    """The manifest names files to write, and lies where anybody's zip may have been unpacked."""
    folder = tmp_path / "x"
    fetch(folder)
    value = json.loads((folder / manifests.MANIFEST).read_text())
    value["files"][0]["path"] = "../evil.json"
    (folder / manifests.MANIFEST).write_text(json.dumps(value))
    with pytest.raises(UserError, match="cannot be read"):
        manifests.require_complete(folder)
    fetch(folder)
    manifests.require_complete(folder)
    assert not (tmp_path / "evil.json").exists()


def test_a_repository_without_weights_is_refused_before_any_byte(tmp_path: Path, hub: FileServer) -> None:
    """SAT checkpoints and LoRAs are not pipelines: a user must learn that before gigabytes are downloaded."""
    del hub.files["text_encoder/model.safetensors"], hub.files["model_index.json"]
    with pytest.raises(UserError, match="lacks model_index.json, text_encoder"):
        fetch(tmp_path / "x")
    assert not hub.requests(BIG)


def test_a_redirect_without_encryption_or_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """From https to http everything could be read and changed on the way; the hash would tell, the request not."""
    answers = {
        "https://hub/a/resolve/r/f": "http://hub/a",
        "https://hub/b/resolve/r/f": "https://hub/b/resolve/r/f",
    }

    class Answer:
        status_code = 302

        def __init__(self, url: str):
            self.headers = {"Location": answers[url]}

        def close(self) -> None:
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    client = hub_module.Hub()
    monkeypatch.setattr(client, "_get", lambda url, headers: Answer(url))
    for name, what in (("a", "without encryption"), ("b", "more than 5 times")):
        with pytest.raises(UserError, match=what):
            client._open(f"https://hub/{name}/resolve/r/f")


@pytest.fixture
def other(hub: FileServer) -> Iterator[FileServer]:
    """Another server, which answers as the hub does."""
    server = FileServer(hub.files)
    yield server
    server.close()


@pytest.mark.parametrize("how", ["next page", "redirect"])
def test_what_is_listed_comes_from_the_hub_alone(
    tmp_path: Path, hub: FileServer, other: FileServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The list says which bytes are the right ones: one of another host makes its bytes right."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if how == "redirect":
        hub.fail("", Fault(redirect=other.url))
    else:
        hub.next_page = other.url
    message = failure(tmp_path / "x")
    assert "127.0.0.1" in message and "HF_ENDPOINT and the proxy" in message
    assert not other.asked and not hub.requests(BIG)


@pytest.mark.parametrize(
    "address", ["ftp://127.0.0.1", "http://[", "https://127.0.0.1:99999", "file://", "//evil.example"]
)
@pytest.mark.parametrize("how", ["next page", "redirect", "redirected file"])
def test_an_address_of_no_hub_is_a_sentence(tmp_path: Path, hub: FileServer, address: str, how: str) -> None:
    """It ended in a traceback, or in a request to whomever it names."""
    if how == "next page":
        hub.next_page = address
    elif how == "redirect":
        hub.fail("", Fault(redirect=address))
    elif address == "//evil.example":
        pytest.skip("files come from other hosts")
    else:
        hub.fail(BIG, Fault(redirect=address))
    assert "Check HF_ENDPOINT" in failure(tmp_path / "x")


def test_a_mirror_may_hand_on_the_hubs_addresses(
    tmp_path: Path, hub: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list's next page is then asked of the mirror: where one is chosen, the hub itself often cannot be reached."""
    hub.next_page = "https://huggingface.co"
    fetch(tmp_path / "x")
    manifests.require_complete(tmp_path / "x")
    assert [asked.path for asked in hub.asked if "cursor=x" in asked.path]


@pytest.mark.parametrize(
    ("url", "endpoint", "is_own"),
    [
        ("https://modelscope.cn/api", "https://www.modelscope.cn", True),
        ("https://hub/api", "http://hub", True),
        ("https://HUB:443/api", "https://hub", True),
        ("http://hub/api", "https://hub", False),
        ("https://hub:8443/api", "https://hub", False),
        ("https://hub.evil.example/api", "https://hub", False),
        ("https://hub@evil.example/api", "https://hub", False),
        ("https://www.evil.example", "https://www.hub", False),
        ("", "https://hub", False),
        ("https:///x", "https://hub", False),
    ],
)
def test_which_addresses_are_a_hubs(url: str, endpoint: str, is_own: bool) -> None:
    """One that only begins like it is another's; one without encryption can be anybody's."""
    assert hub_module._is_at(url, endpoint) == is_own


@pytest.mark.parametrize("endpoint", ["huggingface.co", "file:///etc", "https://me:pass@mirror"])
def test_an_invalid_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str) -> None:
    """And its password is not repeated."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    message = failure(tmp_path / "x")
    assert "HF_ENDPOINT" in message and "pass" not in message


def test_gits_own_hash_of_a_file_is_ours(tmp_path: Path) -> None:
    """Small files carry no sha256; were the other hash wrong, none of them would ever be right."""
    # `printf 'hello\n' | git hash-object --stdin`
    file = hub_module.RemoteFile("x", 6, "git-sha1:ce013625030ba8dba906f756967f9e9ca394464a")
    digest = new_digest(file)
    digest.update(b"hello\n")
    assert f"git-sha1:{digest.hexdigest()}" == file.digest
    assert new_digest(hub_module.RemoteFile("x", 0, "sha256:")).digest() == hashlib.sha256().digest()


def test_the_table_is_sound() -> None:
    """Two checkpoints in one folder, or a family that no loader knows, would be a trap."""
    from cogvideox.model_loaders.downloads import repositories

    names = [entry.name for entry in repositories.REPOSITORIES]
    assert len(set(names)) == len(names) and names[:5] == [
        "CogVideoX-2b",
        "CogVideoX-5b",
        "CogVideoX-5b-I2V",
        "CogVideoX1.5-5B",
        "CogVideoX1.5-5B-I2V",
    ]
    families = [family.name for family in FAMILIES]
    for entry in repositories.REPOSITORIES:
        assert entry.repository.split("/")[1] == entry.name
        assert entry.name.replace("-V1.1", "").replace("Pose", "Control") in families
        assert entry.licence_url.startswith("https://")
