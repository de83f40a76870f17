"""Errors where one looks: on the node that failed and in a toast, by the sentence, and gone with the next run."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import execution
import pytest
import server

from cogvideox.errors import UserError
from cogvideox.host import messages, patches
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.downloads.hub import NotFoundError
from cogvideox.nodes import missing_models
from cogvideox.nodes.latent import CogVideoXEmptyLatent

MARKUP = "<img src=x>"
# What is wrapped, and the arguments that the wrappers read by position or by name.
WRAPPED = {"handle_execution_error": {"error": 5, "ex": 6}, "add_message": {"event": 1, "data": 2}}


class Browser:
    """ComfyUI's server: who has queued the run, which node runs, what was shown on nodes and what in toasts."""

    def __init__(self) -> None:
        self.client_id: str | None = "mine"
        self.last_node_id: str | None = "7"
        self.last_prompt_id = "first run"
        self.texts: list[tuple[str, str, str | None]] = []
        self.events: list[tuple[str, dict, str | None]] = []
        self.sockets: dict[str, object] = {"mine": object()}
        self.on_prompt_handlers: list[Callable] = []

    def add_on_prompt_handler(self, handler: Callable) -> None:
        self.on_prompt_handlers.append(handler)

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.texts.append((text, node_id, sid))

    def send_sync(self, event: str, data: dict, sid: str | None = None) -> None:
        if event.startswith("cogvideox."):
            self.events.append((event, data, sid))


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    made = Browser()
    monkeypatch.setattr(server.PromptServer, "instance", made, raising=False)
    for name in WRAPPED:  # restored afterwards
        method = getattr(execution.PromptExecutor, name)
        monkeypatch.setattr(execution.PromptExecutor, name, getattr(method, "__wrapped__", method))
    patches.wrap_run_reports()
    patches.wrap_run_reports()  # ComfyUI may load the pack twice: nothing is said twice
    assert made.on_prompt_handlers == [messages.begin_request]
    yield made
    messages._shown.clear()
    messages._request.set(None)


def report(error: Exception, node_id: str = "5", class_type: str = "KSampler") -> dict[str, Any]:
    """What ComfyUI sends of an error that node `node_id` has raised."""
    sent: list[tuple[str, dict]] = []
    executor: Any = SimpleNamespace(add_message=lambda event, data, broadcast: sent.append((event, data)))
    details = {
        "node_id": node_id,
        "exception_message": f"{error}\n",
        "exception_type": f"{type(error).__module__}.{type(error).__name__}",
        "traceback": [],
        "current_inputs": {},
    }
    prompt = {node_id: {"class_type": class_type}}
    execution.PromptExecutor.handle_execution_error(executor, "first run", prompt, [], set(), details, error)
    ((event, data),) = sent
    assert event == "execution_error"
    return data


@pytest.mark.fast
@pytest.mark.parametrize("name", WRAPPED)
def test_comfyui_has_what_is_wrapped(name: str) -> None:
    """Where ComfyUI has moved a method, or an argument, errors would be those of ComfyUI again, without a word."""
    parameters = list(inspect.signature(getattr(execution.PromptExecutor, name)).parameters)
    assert {argument: parameters.index(argument) for argument in WRAPPED[name]} == WRAPPED[name]
    assert hasattr(server.PromptServer, "add_on_prompt_handler")


@pytest.mark.parametrize("error", [UserError("The clip is too long."), NotFoundError("There is no such file.")])
def test_the_sentence_is_on_the_node_and_in_a_toast(browser: Browser, error: UserError) -> None:
    """ComfyUI's toast says that the node "threw an error during execution"; why was two clicks away. The node may be
    ComfyUI's own: a KSampler that our model stops."""
    data = report(error)
    assert browser.texts == [(str(error), "5", "mine")]
    told = {"node_ids": ["5"], "text": str(error), "is_refusal": False, "input": ""}
    assert browser.events == [("cogvideox.error", told, "mine")]
    assert data["exception_message"] == str(error)  # no line break, no second line
    assert data["exception_type"] == type(error).__name__  # was cogvideox.errors.UserError, or a path of folders


def test_what_the_node_has_said_in_this_run_stays_below(browser: Browser) -> None:
    """A warning that explains the error was replaced by it."""
    messages.show_on_node("3 keys are left out.", "5")
    report(UserError("No key is left."))
    assert browser.texts[-1][0] == "No key is left.\n\n3 keys are left out."


def test_other_errors_are_comfyuis(browser: Browser) -> None:
    """Other packs' errors, and bugs, keep their names and their traceback."""
    data = report(ValueError("a bug"))
    assert (data["exception_type"], data["exception_message"]) == ("builtins.ValueError", "a bug\n")
    assert not browser.texts and not browser.events


def test_markup_in_an_error(browser: Browser) -> None:
    """The node shows HTML, the toast text."""
    report(UserError(f"The key {MARKUP} fits nothing."))
    assert browser.texts[0][0] == "The key &lt;img src=x&gt; fits nothing."
    assert browser.events[0][1]["text"] == f"The key {MARKUP} fits nothing."


def begin_run(browser: Browser, run: str, reused: list[str]) -> None:
    browser.last_prompt_id = run
    executor: Any = SimpleNamespace(server=browser, status_messages=[])
    data = {"nodes": reused, "prompt_id": run}
    execution.PromptExecutor.add_message(executor, "execution_cached", data, broadcast=False)


def test_messages_of_one_run_are_gone_in_the_next(browser: Browser) -> None:
    """An error stayed on a node that the next run did not reach, and a warning on a stock node for ever. A node that
    does not run again keeps what was said of the result that is used again."""
    begin_run(browser, "first run", [])
    messages.show_on_node("16 of 18 keys matched.", "2")
    messages.show_on_running_node("A warning on VAE Decode.")
    report(UserError("The clip is too long."))
    browser.texts.clear()
    begin_run(browser, "second run", ["2"])
    assert sorted(browser.texts) == [(" ", "5", "mine"), (" ", "7", "mine")]
    browser.texts.clear()
    begin_run(browser, "third run", [])
    assert browser.texts == [(" ", "2", "mine")]


def test_other_browsers_keep_theirs(browser: Browser) -> None:
    """Somebody else's run on a shared server took one's own messages away."""
    messages.show_on_node("mine", "2")
    browser.client_id = "another"
    browser.texts.clear()
    begin_run(browser, "second run", [])
    assert not browser.texts
    browser.client_id = None  # queued through the API: nobody looks
    report(UserError("The clip is too long."))
    assert not browser.texts and not browser.events


def test_a_refused_prompt_says_why_on_the_node(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI says "rejected the value for frames"; the sentence was behind View details."""
    for name in ("validate_inputs", "validate_prompt"):
        original = getattr(execution, name)
        monkeypatch.setattr(execution, name, getattr(original, "__wrapped__", original))
    patches.wrap_validation({"CogVideoXEmptyLatent"})
    mappings = comfyui_nodes().NODE_CLASS_MAPPINGS
    monkeypatch.setitem(mappings, "CogVideoXEmptyLatent", CogVideoXEmptyLatent)
    inputs = {"width": 64, "height": 64, "frames": 50, "batch_size": 1}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "a"}}

    async def queue(client_id: str | None) -> None:
        # Two outputs need the node.
        request: dict[str, Any] = {"prompt": {"3": {"class_type": "CogVideoXEmptyLatent", "inputs": inputs}}}
        request["prompt"] |= {"4": save, "5": save}
        if client_id is not None:
            request["client_id"] = client_id
        browser.on_prompt_handlers[0](request)
        await execution.validate_prompt("a run", request["prompt"], None)

    why = "frames 50 is not 4k + 1 (8k + 1 as the models were trained): use 49 or 57, or else 53."
    asyncio.run(queue("mine"))
    assert browser.texts == [(why, "3", "mine")]
    told = {"node_ids": ["3"], "text": why, "is_refusal": True, "input": "frames"}
    assert browser.events == [("cogvideox.forget", {}, "mine"), ("cogvideox.error", told, "mine")]
    browser.texts.clear()
    inputs["frames"] = 49
    asyncio.run(queue("mine"))
    assert browser.texts == [(" ", "3", "mine")]
    inputs["frames"] = 50
    asyncio.run(queue(None))
    assert len(browser.texts) == 1


def test_a_toast_that_fails_stops_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of all packs pass the wrapper."""

    async def validate_prompt(*_: object) -> tuple:
        return True, None, ["4"], {}

    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(execution, "validate_inputs", execution.validate_inputs)
    monkeypatch.setattr(execution, "validate_prompt", validate_prompt)
    monkeypatch.setattr(patches, "tell_refusals", fail)
    patches.wrap_validation(())
    assert asyncio.run(execution.validate_prompt("a run", {}, None)) == (True, None, ["4"], {})


def test_a_workflow_of_wrong_nodes_makes_a_few_toasts(browser: Browser) -> None:
    """150 nodes with a file that is missing made 150 toasts, and the page did not answer for seconds; so did texts on
    200 nodes. One request's are one request's: the next prompt says its own."""
    for count in (600, 4):
        browser.texts.clear()
        browser.events.clear()
        browser.on_prompt_handlers[0]({"client_id": "mine"})
        for number in range(count):
            messages.show_refusal(f"There is no file {number}.", str(number))
            messages.show_refusal(f"There is no file {number}.", str(number))
        messages.tell_refusals()
        messages.show_refusal("There is no file 0.", "0")  # another pack has the same prompt checked once more
        messages.tell_refusals()
        texts = [text for text, _, _ in browser.texts if text != " "]
        assert texts == [f"There is no file {number}." for number in range(min(count, 50))]
        toasts = [data["text"] for event, data, _ in browser.events if event == "cogvideox.error"]
        assert toasts == [f"There is no file {number}." for number in range(3)]
        more = [data["text"] for event, data, _ in browser.events if event == "cogvideox.more_errors"]
        assert more == [
            "One more error is shown on its node." if count == 4 else "597 more errors are listed under View details."
        ]


def test_refusals_that_say_the_same_are_one_toast(browser: Browser) -> None:
    """Three loaders without their models made three toasts, which said nearly the same; six wrong numbers six. Each
    node keeps its own text."""
    kind = missing_models.KINDS["vae"]
    messages.begin_request({"client_id": "mine"})
    for number, name in enumerate(("a.gguf", "b.gguf", "")):
        messages.note_error(error := missing_models._error(missing_models.Missing(name, kind), "It was looked for."))
        messages.show_refusal(str(error), str(number), "vae_name")
    for number in "3456":
        messages.show_refusal("The width is odd.", number, "width")
    messages.show_refusal("The height is odd.", "3", "height")
    messages.tell_refusals()
    models, width, height = (data for event, data, _ in browser.events if event == "cogvideox.error")
    assert models["node_ids"] == ["0", "1", "2"]
    assert models["text"].startswith("Models are missing: 'a.gguf', 'b.gguf', VAE. Choose another one from the list.")
    assert (width["node_ids"], width["text"]) == (["3", "4", "5", "6"], "The width is odd.")
    assert (height["node_ids"], height["text"]) == (["3"], "The height is odd.")
    texts = {node: text for text, node, _ in browser.texts}
    assert len(texts) == 7 and texts["1"].startswith("There is no &#x27;b.gguf&#x27;. ")
    assert texts["2"].startswith("No VAE is chosen") and texts["3"] == "The width is odd.\n\nThe height is odd."


def test_two_errors_of_a_refused_node(browser: Browser) -> None:
    """The second one took the place of the first."""
    browser.on_prompt_handlers[0]({"client_id": "mine"})
    for text in ("The width is odd.", "The height is odd."):
        messages.show_refusal(text, "5")
    assert browser.texts[-1][0] == "The width is odd.\n\nThe height is odd."


def test_what_is_refused_stays_where_the_rest_of_the_prompt_runs(browser: Browser) -> None:
    """A graph with a second output, such as a Memory Forecast, runs without the refused one: its start took the
    sentence away before anybody had read it."""
    messages.begin_request({"client_id": "mine"})
    messages.show_refusal("The width is odd.", "3")
    begin_run(browser, "the same prompt", [])
    assert browser.texts == [("The width is odd.", "3", "mine")]
    messages.begin_request({"client_id": "mine"})
    assert browser.texts[-1] == (" ", "3", "mine")


def test_the_error_of_a_run_goes_with_the_next_prompt(browser: Browser) -> None:
    """Beside the refusal of that prompt it looked like a part of it. What a run has said of a node that the next one
    may reuse stays."""
    messages.show_on_running_node("The prompt is long.")
    messages.show_error("The width is odd.", "5")
    messages.begin_request({"client_id": "mine"})
    assert [text for text in browser.texts if text[0] == " "] == [(" ", "5", "mine")]


def test_a_script_has_no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no server at all, and nothing may fail for it."""
    monkeypatch.setattr(server.PromptServer, "instance", None, raising=False)
    messages.show_error("a text", "5")
    messages.clear_earlier_runs([])
    assert messages.begin_request({"prompt": {}}) == {"prompt": {}}
    messages.show_refusal("a text", "5")
    assert not messages._shown


@pytest.mark.parametrize("client_id", [[], {}, 7, None])
def test_a_prompt_of_no_browser_ends_nothing(browser: Browser, client_id: object) -> None:
    """A list as client_id reached ComfyUI's loop of messages, where it ended the program."""
    messages.begin_request({"client_id": client_id})
    messages.show_refusal("The width is odd.", "5")
    assert not browser.events and not browser.texts


def test_made_up_browsers_are_not_remembered(browser: Browser) -> None:
    """Each left its texts in memory for ever."""
    messages.begin_request({"client_id": "nobody"})
    messages.show_refusal("The width is odd.", "5")
    assert not messages._shown and not browser.texts


def test_a_failing_report_does_not_end_the_queue(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI reports an error outside its own try: the thread of the queue would end with it."""
    monkeypatch.setattr(browser, "send_progress_text", lambda *_: 1 / 0)
    assert report(UserError("The clip is too long."))["exception_message"] == "The clip is too long."
