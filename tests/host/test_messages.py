"""What is sent to the browser for a node to show."""

from collections.abc import Iterator

import pytest
import server

from cogvideox.errors import MAX_CHARACTERS, QUOTED_CHARACTERS, quoted
from cogvideox.host import messages
from cogvideox.sockets.tokenizer import lost_text_message


class Browser:
    """ComfyUI's server: who has queued the run, which node runs, and what was sent."""

    def __init__(self) -> None:
        self.client_id: str | None = "mine"
        self.last_node_id: str | None = "7"
        self.last_prompt_id = "first run"
        self.sent: list[tuple[str, str, str | None]] = []
        self.events: list[tuple[str, dict, str | None]] = []

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self.sent.append((text, node_id, sid))

    def send_sync(self, event: str, data: dict, sid: str | None = None) -> None:
        self.events.append((event, data, sid))


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    made = Browser()
    monkeypatch.setattr(server.PromptServer, "instance", made, raising=False)
    yield made
    messages._shown.clear()


def test_markup_is_sent_as_text(browser: Browser) -> None:
    """The frontend puts the text into the page as HTML: a name in a stranger's workflow ran as script in it."""
    messages.show_on_node("""<img src=x onerror=alert(1)> & "a" 'b'""", "7")
    sent = browser.sent[0][0]
    assert sent == "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;a&quot; &#x27;b&#x27;"


@pytest.mark.parametrize(
    "text", ["https://evil.example/x", "www.evil.example", "WWW.evil.example", "[[click|https://evil.example]]"]
)
def test_no_links_are_made(browser: Browser, text: str) -> None:
    """A link in a message of ours looks as if we recommended it."""
    messages.show_on_node(text, "7")
    sent = browser.sent[0][0]
    assert "://" not in sent and "www." not in sent.lower() and "[[" not in sent


def test_what_cannot_be_encoded(browser: Browser) -> None:
    """A name of a file that is not UTF-8 ended the node in an error, and one with commands changed the terminal."""
    messages.show_on_running_node("a\ud800b\x1b[2Jc\nd")
    assert browser.sent[0][0] == "a\ufffdb\ufffd[2Jc\nd"


def test_only_the_browser_that_queued_the_run_gets_it(browser: Browser) -> None:
    """Everybody on a shared server read the end of one's prompt and the names of one's files."""
    messages.show_on_node("a text", "7")
    assert browser.sent == [("a text", "7", "mine")]
    browser.client_id = None  # queued through the API
    messages.show_on_node("a text", "7")
    messages.clear_running_node()
    assert len(browser.sent) == 1


def test_a_text_goes_with_its_reason(browser: Browser) -> None:
    """A warning that stays after the next run was read as one about that run."""
    messages.clear_running_node()
    assert not browser.sent
    messages.show_on_running_node("a warning")
    messages.clear_running_node()  # of the same run: a decode after an encode, a second video of a batch
    assert [text for text, _, _ in browser.sent] == ["a warning"]
    browser.last_prompt_id = "second run"
    messages.clear_running_node()
    messages.clear_running_node()
    assert [text for text, _, _ in browser.sent] == ["a warning", " "]


def test_all_that_a_run_has_to_say_stays(browser: Browser) -> None:
    """The frontend has one text for a node: the second warning took the first one away."""
    for text in ("no end image", "another kernel", "no end image"):
        messages.show_on_running_node(text)
    assert browser.sent[-1][0] == "no end image\n\nanother kernel" and len(browser.sent) == 2
    browser.last_prompt_id = "second run"
    messages.show_on_running_node("another kernel")
    assert browser.sent[-1][0] == "another kernel"


def test_a_warning_is_sent_for_apps_too(browser: Browser) -> None:
    """An app hides the nodes, and with them that the toy was not trained with this size. A report is no warning."""
    for text in ("far from that", "far from that", "<i>\ud800"):
        messages.show_on_running_node(text)
    messages.show_on_node("Saved x.mp4.", "8")
    messages.show_on_node("The toy does not know: zebra.", "9", is_warning=True)
    assert browser.events == [
        (messages.WARNING_EVENT, {"node_ids": [node], "text": text}, "mine")
        for node, text in (("7", "far from that"), ("7", "<i>\ufffd"), ("9", "The toy does not know: zebra."))
    ]


def test_a_node_that_runs_for_each_entry_of_a_list(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """Each run of it added a message: the text of ten thousand was made ten thousand times."""
    for number in range(1000):
        messages.show_on_running_node(f"Entry {number} is left out.")
    assert len(browser.sent) == 21
    assert browser.sent[-1][0].endswith("Further messages of this node are in ComfyUI&#x27;s log.")
    assert "Entry 19 is" in browser.sent[-1][0] and "Entry 20 is" not in browser.sent[-1][0]
    assert len(caplog.records) == 1000


def test_texts_have_an_end(browser: Browser) -> None:
    """A prompt of a megabyte, repeated on a node, froze the page."""
    messages.show_on_node("<" * 100_000, "7")
    assert len(browser.sent[0][0]) < 5 * MAX_CHARACTERS
    assert quoted("x" * QUOTED_CHARACTERS) == "x" * QUOTED_CHARACTERS
    assert quoted("x" * 5000) == "x" * QUOTED_CHARACTERS + " …"
    assert len(lost_text_message("word " * 1000, 226)) < 300


def test_a_script_has_no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no server at all, and nothing may fail for it."""
    monkeypatch.setattr(server.PromptServer, "instance", None, raising=False)
    messages.show_on_running_node("a text")
    messages.clear_running_node()
    assert not messages._shown


def test_what_makes_a_node_wait_goes_again(browser: Browser) -> None:
    """A minute without a bar looks like a program that hangs; a text that stays looks as if it still waited."""
    with messages.shown_meanwhile("Starting."):
        assert browser.sent[-1][0] == "Starting."
        messages.show_on_running_node("A warning.")
        assert browser.sent[-1][0] == "Starting.\n\nA warning."
    assert browser.sent[-1][0] == "A warning."
    browser.last_node_id = "8"
    with pytest.raises(ValueError), messages.shown_meanwhile("Starting."):
        raise ValueError
    assert browser.sent[-1] == (" ", "8", "mine")
    assert not any(event == messages.WARNING_EVENT and "Starting" in data["text"] for event, data, _ in browser.events)
