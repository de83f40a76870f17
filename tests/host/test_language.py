"""Which language a browser shows ComfyUI in, and where messages get it."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import execution
import pytest
import server
from comfy.cli_args import args as options

from cogvideox.errors import UserError
from cogvideox.host import language, messages, patches
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.locales import translations
from cogvideox.nodes.latent import CogVideoXEmptyLatent

CHINESE, ENGLISH = {"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}, {"Accept-Language": "en-US,en;q=0.9,zh;q=0.8"}
SHORT = UserError("frames 50 is not 4k + 1 (8k + 1 as the models were trained): use 49 or 57, or else 53")
IN_CHINESE = "frames（帧数）50 不是 4k + 1（模型训练时为 8k + 1）：请使用 49 或 57，也可用 53"


class Settings:
    """ComfyUI's app.app_settings.AppSettings, of the user `default`."""

    def __init__(self) -> None:
        self.stored: object = {}

    def get_settings(self, request: Any) -> object:
        assert not request.headers  # nobody's: with a user's name in it ComfyUI looks for that user
        if isinstance(self.stored, Exception):
            raise self.stored
        return self.stored


class Server:
    """ComfyUI's PromptServer: its settings, its open browsers, and what was sent to them."""

    def __init__(self) -> None:
        self.client_id: str | None = "mine"
        self.last_node_id: str | None = "7"
        self.last_prompt_id = "a run"
        self.settings = Settings()
        self.user_manager = SimpleNamespace(settings=self.settings)
        self.sockets: dict[str, Any] = {}
        self.sent: list[tuple[str, Any, str | None]] = []
        self.on_prompt_handlers = [messages.begin_request]

    def open(self, client_id: str, headers: dict[str, str]) -> None:
        self.sockets[client_id] = SimpleNamespace(_req=SimpleNamespace(headers=headers))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append(("text", text, sid))

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(server.PromptServer, "instance", made, raising=False)
    monkeypatch.setattr(messages, "_shown", {})
    return made


@pytest.mark.parametrize(
    ("stored", "headers", "locale"),
    [
        ({"Comfy.Locale": "zh"}, ENGLISH, "zh"),
        ({"Comfy.Locale": "zh-TW"}, ENGLISH, "zh-TW"),
        ({"Comfy.Locale": "en"}, CHINESE, "en"),
        ({}, CHINESE, "zh"),  # nobody has set it: the frontend takes the browser's language
        ({}, {"Accept-Language": "zh-TW,zh;q=0.9"}, "zh-TW"),
        ({}, {"Accept-Language": "zh-HK"}, "zh"),
        ({}, {"Accept-Language": "nl,zh-CN;q=0.9,en"}, "zh"),  # the frontend has no Dutch
        ({}, ENGLISH, "en"),
        ({}, {}, "en"),
        ({"Comfy.Locale": None}, CHINESE, "zh"),
        ("not a dictionary", ENGLISH, "en"),
        (KeyError("Unknown user"), ENGLISH, "en"),
    ],
)
def test_locale_is_the_frontends(comfyui: Server, stored: object, headers: dict[str, str], locale: str) -> None:
    """Messages in another language than the page that they stand on."""
    comfyui.settings.stored = stored
    comfyui.open("mine", headers)
    assert language.locale_of(comfyui, "mine") == locale  # type: ignore[arg-type]


def test_users_of_one_server(comfyui: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --multi-user the settings of the user `default` are another person's."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    comfyui.open("mine", ENGLISH)
    comfyui.open("yours", CHINESE)
    monkeypatch.setattr(options, "multi_user", True)
    assert [language.locale_of(comfyui, name) for name in ("mine", "yours", "gone")] == ["en", "zh", "en"]  # type: ignore[arg-type]
    assert language.locale_of(comfyui, None) == "en"  # type: ignore[arg-type]
    del comfyui.sockets["mine"]
    assert language.locale_of(comfyui, None) == "zh"  # type: ignore[arg-type]


def test_a_script_has_no_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no settings."""
    monkeypatch.delattr(server.PromptServer, "instance", raising=False)
    assert language.locale_of(language.prompt_server(), None) == "en"
    assert language.localized("Saved a.", None) == "Saved a."


def test_comfyui_has_what_is_read() -> None:
    """A setting under another name, or a request that is not kept: all messages would silently stay English."""
    from aiohttp import web
    from app.app_settings import AppSettings

    assert hasattr(web.StreamResponse, "_req") and hasattr(AppSettings, "get_settings")
    assert isinstance(options.multi_user, bool)


def test_settings_are_comfyuis_own(comfyui: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read through its user manager, from the file that it writes."""
    import folder_paths
    from app.user_manager import UserManager

    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path), raising=False)
    comfyui.user_manager = UserManager()  # type: ignore[assignment]
    assert language.localized(str(SHORT), "mine") == str(SHORT)
    (tmp_path / "default").mkdir(exist_ok=True)
    (tmp_path / "default" / "comfy.settings.json").write_text(json.dumps({"Comfy.Locale": "zh"}), "utf-8")
    assert language.localized(str(SHORT), "mine") == IN_CHINESE


def test_texts_on_nodes_are_chinese(comfyui: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The node's text in the page's language; the log, which others read as well, in English."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    messages.show_on_running_node("Strength is 0: the model stays as it is.")
    messages.show_on_running_node("Saved <b>.")
    shown, warned = comfyui.sent[-2:]  # the second one is for an app
    assert shown == ("text", "强度为 0：模型保持不变。\n\n已保存 &lt;b&gt;。", "mine")
    assert warned[1]["text"] == "已保存 <b>。"
    assert "Strength is 0" in caplog.text and "强度" not in caplog.text


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is looked up in the catalogue."""
    texts: list[str] = []

    def translate(text: str, to: str) -> str:
        texts.append(text)
        return translations.translate(text, to)

    monkeypatch.setattr(language, "translate", translate)
    return texts


def test_a_text_is_looked_up_once(comfyui: Server, looked_up: list[str]) -> None:
    """An error was translated, and then what came out of it; a warning again with each one after it. A translation may
    be what another template has made, and a long text takes a part of a second each time."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    comfyui.open("mine", CHINESE)
    messages.show_on_running_node("Strength is 0: the model stays as it is.")
    messages.show_on_running_node("Saved a.")
    messages.show_on_running_node("Saved a.")
    sent_error(comfyui, SHORT)
    last = [data for event, data, _ in comfyui.sent if event == "text"][-1]
    assert last == f"{IN_CHINESE}\n\n强度为 0：模型保持不变。\n\n已保存 a。"
    assert all("强" not in text and "帧" not in text for text in looked_up)
    assert looked_up.count(str(SHORT)) == 1
    assert looked_up.count("Strength is 0: the model stays as it is.") == 1


def test_a_refusal_is_looked_up_once(comfyui: Server, looked_up: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI gives back the same errors for each output that needs the node."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    comfyui.open("mine", CHINESE)
    original = getattr(execution.validate_inputs, "__wrapped__", execution.validate_inputs)
    monkeypatch.setattr(execution, "validate_inputs", original)
    patches.wrap_validation({"CogVideoXEmptyLatent"})
    monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, "CogVideoXEmptyLatent", CogVideoXEmptyLatent)
    inputs = {"width": 64, "height": 64, "frames": 50, "batch_size": 1}
    prompt = {"3": {"class_type": "CogVideoXEmptyLatent", "inputs": inputs}}

    async def queue() -> list[dict]:
        messages.begin_request({"client_id": "mine"})
        validated: dict = {}
        for _ in range(3):
            _, errors, _ = await execution.validate_inputs("a run", prompt, "3", validated)
        return errors

    (error,) = asyncio.run(queue())
    assert error["details"] == f"frames - {IN_CHINESE}。"
    assert [data for event, data, _ in comfyui.sent if event == "text"] == [f"{IN_CHINESE}。"]
    assert looked_up == [f"{SHORT}."]


class Executor:
    """execution.PromptExecutor, as far as errors go."""

    def __init__(self, of: Server) -> None:
        self.server = of

    handle_execution_error = execution.PromptExecutor.handle_execution_error
    add_message = execution.PromptExecutor.add_message
    status_messages: list[Any] = []


def sent_error(of: Server, raised: Exception) -> str:
    """What the browser gets as the message of an error that a node has raised."""
    patches.wrap_run_reports()
    error = {"node_id": "7", "exception_message": f"{raised}\n", "exception_type": "E", "traceback": []}
    error |= {"current_inputs": {}}
    Executor.handle_execution_error = execution.PromptExecutor.handle_execution_error
    prompt = {"7": {"class_type": "KSampler"}}
    Executor(of).handle_execution_error("a run", prompt, [], set(), error, raised)  # type: ignore[arg-type]
    (data,) = (data for event, data, *_ in of.sent if event == "execution_error")
    assert error["exception_message"].startswith(str(raised)), "what is in the log stays"
    return data["exception_message"]


@pytest.mark.fast
def test_errors_of_any_node_are_chinese(comfyui: Server) -> None:
    """A stock KSampler raises the same error as our sampler."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    raised = UserError(
        "The latent has shape [1]; CogVideoX needs [batch, 16, frames, height / 8, width / 8].", "make a latent"
    )
    shown = sent_error(comfyui, raised)
    assert shown == (
        "Latent 的形状为 [1]；CogVideoX 需要 [批量, 16, 帧, 高 / 8, 宽 / 8]。"
        "请用“空Latent视频（CogVideoX）”创建 Latent，或用 CogVideoX VAE 编码视频。"
    )


def test_other_errors_and_languages_are_left_alone(comfyui: Server) -> None:
    """An error of another pack, and an English page."""
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    assert sent_error(comfyui, ValueError(str(SHORT))) == f"{SHORT}\n"
    comfyui.sent.clear()
    comfyui.settings.stored = {"Comfy.Locale": "en"}
    assert sent_error(comfyui, SHORT) == str(SHORT)
    comfyui.sent.clear()
    comfyui.settings.stored = {"Comfy.Locale": "zh"}
    assert sent_error(comfyui, SHORT) == IN_CHINESE
    text, _ = (data for event, data, *_ in comfyui.sent if event != "execution_error")
    assert text.partition("\n\n")[0] == IN_CHINESE, "on the node as well"
