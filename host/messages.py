"""Messages to the user while a node runs."""

import html
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..errors import MAX_CHARACTERS, JoinableError, UserError, printable, shortened
from .language import localized, prompt_server
from .protocols import PromptServer
from .queued_workflow import note_workflow
from .toast_text import toast_text

Notify = Callable[[str], object]  # takes a sentence for the user


class _Shown(NamedTuple):
    """What is on a node: the run that it is from, and its texts, in the browser's language: each is translated once.

    is_error: of a run; a refusal is of no run.
    """

    run: str | None
    texts: tuple[str, ...]
    is_error: bool = False


class _Refusal(NamedTuple):
    """What the check of one node says of an input. text: in English. told: in the browser's language."""

    node_id: str
    text: str
    told: str
    input_name: str


class _Request(NamedTuple):
    """A prompt that is being queued.

    client_id: the browser that asks. told: what its nodes have said, (node, text). refusals: what of it no toast says
    yet. errors: those that the checks have raised, by their messages: ComfyUI hands on the messages alone.
    shown: the nodes with a text of this request.
    """

    client_id: str | None
    told: set[tuple[str, str]]
    refusals: list[_Refusal]
    errors: dict[str, UserError]
    shown: set[str]


_shown: dict[tuple[str, str], _Shown] = {}  # by (browser, node)
# Of the request that is answered now: ComfyUI checks a prompt in the task that has received it.
_request: ContextVar[_Request | None] = ContextVar("cogvideox_request", default=None)
_IN_THE_QUEUE = "not run"  # in the place of a run, for what is shown of a prompt that was refused
# web/js/error_toast.js listens to these.
ERROR_EVENT, MORE_EVENT, FORGET_EVENT = "cogvideox.error", "cogvideox.more_errors", "cogvideox.forget"
WARNING_EVENT = "cogvideox.warning"  # of a run that goes on
# A workflow may have any number of nodes, and a hundred toasts cover the page and stop it for seconds. Those that say
# nearly the same are one.
_MOST_TOASTS = 3  # of a request
# The frontend makes an element of the page for each text, and moves all of them at each drawing: with 200 it did not
# answer for many seconds. It marks every refused node itself, and lists what each says.
_MOST_NODES = 50  # with a text, of a request
_MOST_TEXTS = 20  # of a run, on one node: it may run once for each entry of a list
_REST_IN_LOG = "Further messages of this node are in ComfyUI's log."


def show_on_node(text: str, node_id: str | None, is_warning: bool = False) -> None:
    """Show `text` on the node `node_id`, the one that runs. (ComfyUI's ui.PreviewText shows nothing on custom nodes.)

    Only the browser that queued the run gets it: a text may contain prompts and names of files. Nothing happens
    without a node, a browser or a server, as in scripts. is_warning: an app, which hides the node, shows it as well.
    """
    server = prompt_server()
    if node_id is None or server is None or server.client_id is None:
        return
    told = localized(text, server.client_id)
    _show(server, server.client_id, node_id, (told,))
    if is_warning:
        _warn_app(server, server.client_id, node_id, told)


def show_on_running_node(text: str) -> None:
    """Warn: show `text` on whichever node runs now, below what this run has shown there before, in the log, and in an
    app as a toast.

    For the `notify` that nodes hand to the rooms below: stock nodes run their code as well.
    """
    logging.warning(printable(text))
    server = prompt_server()
    if server is None or server.client_id is None or server.last_node_id is None:
        return
    texts = _texts_of_run(server, server.client_id, server.last_node_id)
    if len(texts) > _MOST_TEXTS:
        return
    told = localized(text if len(texts) < _MOST_TEXTS else _REST_IN_LOG, server.client_id)
    if told not in texts:
        _show(server, server.client_id, server.last_node_id, (*texts, told))
        _warn_app(server, server.client_id, server.last_node_id, told)


@contextmanager
def shown_meanwhile(text: str) -> Iterator[None]:
    """Show `text` on whichever node runs now, below what this run has shown there before, for as long as the `with`
    block takes: for what makes a node wait without a progress bar."""
    logging.info(printable(text))
    server = prompt_server()
    if server is None or server.client_id is None or server.last_node_id is None:
        yield
        return
    client_id, node_id = server.client_id, server.last_node_id
    told = localized(text, client_id)
    _show(server, client_id, node_id, (*_texts_of_run(server, client_id, node_id), told))
    try:
        yield
    finally:
        left = tuple(shown for shown in _texts_of_run(server, client_id, node_id) if shown != told)
        if left:
            _show(server, client_id, node_id, left)
        else:
            _clear(server, client_id, node_id)


def _texts_of_run(server: PromptServer, client_id: str, node_id: str) -> tuple[str, ...]:
    """What the run that goes on has shown on a node."""
    before = _shown.get((client_id, node_id))
    return before.texts if before is not None and before.run == _run_of(server) else ()


def _warn_app(server: PromptServer, client_id: str, node_id: str, told: str) -> None:
    """Send a warning, in the browser's language, for a toast: the page shows it in app mode, and else on the node."""
    # Whole, as far as a text on a node is: an app shows it nowhere else.
    text = printable(shortened(told, MAX_CHARACTERS))
    server.send_sync(WARNING_EVENT, {"node_ids": [node_id], "text": text}, client_id)


def _show(server: PromptServer, client_id: str, node_id: str, texts: tuple[str, ...]) -> None:
    _show_texts(server, client_id, node_id, _run_of(server), texts)


def _show_texts(
    server: PromptServer,
    client_id: str,
    node_id: str,
    run: str | None,
    texts: tuple[str, ...],
    is_error: bool = False,
) -> None:
    # The frontend has one text for a node: the next one takes its place.
    _shown[client_id, node_id] = _Shown(run, texts, is_error)
    server.send_progress_text(as_html("\n\n".join(texts)), node_id, client_id)


def _show_toast(
    server: PromptServer, client_id: str, node_ids: Sequence[str], text: str, is_refusal: bool, input_name: str = ""
) -> None:
    # A toast is text for the frontend, not HTML.
    told = {"node_ids": [*node_ids], "text": printable(toast_text(text)), "is_refusal": is_refusal, "input": input_name}
    server.send_sync(ERROR_EVENT, told, client_id)


def clear_running_node() -> None:
    """Take away what an earlier run has shown on the node that runs now; what this run has shown stays.

    ComfyUI's frontend keeps a text until another one comes for the same node: a warning would outlive its reason.
    """
    server = prompt_server()
    if server is None or server.client_id is None or server.last_node_id is None:
        return
    key = server.client_id, server.last_node_id
    if key in _shown and _shown[key].run != _run_of(server):
        _clear(server, *key)


def clear_earlier_runs(reused: Collection[str]) -> None:
    """Take away what earlier runs have shown on any node, once ComfyUI knows which nodes the run that begins reuses.

    reused: the nodes that do not run again. Their results are those of an earlier run, and so is what was said of them.
    """
    server = prompt_server()
    if server is None or server.client_id is None:
        return
    for client_id, node_id in [key for key in _shown if key[0] == server.client_id]:
        # ComfyUI runs what it can of a prompt and refuses the rest: that stays until the next prompt is queued.
        if node_id not in reused and _shown[client_id, node_id].run not in (_run_of(server), _IN_THE_QUEUE):
            _clear(server, client_id, node_id)


def show_error(text: str, node_id: str) -> None:
    """Show the error that has ended the run: on the node `node_id`, above what it has said before, and as a toast.

    text: in the browser's language.
    """
    server = prompt_server()
    if server is None or server.client_id is None:
        return
    warnings = _texts_of_run(server, server.client_id, node_id)
    _show_texts(server, server.client_id, node_id, _run_of(server), (text, *warnings), is_error=True)
    _show_toast(server, server.client_id, [node_id], text, is_refusal=False)


def begin_request(request: dict[str, Any]) -> dict[str, Any]:
    """What ComfyUI calls with each prompt that a browser queues, before the prompt is checked. Returns it unchanged.

    What the last refused prompt has left on its nodes goes, and so do the error of the last run and the toasts.
    """
    server, client_id = prompt_server(), request.get("client_id")
    if not isinstance(client_id, str):  # anybody may send anything, and a list would end ComfyUI's loop of messages
        client_id = None
    _request.set(_Request(client_id, set(), [], {}, set()))
    note_workflow(request)
    if server is not None and client_id is not None:
        # The error of an earlier run goes as well: beside a refusal it would look like a part of it.
        for key in [key for key, shown in _shown.items() if key[0] == client_id and _is_over(shown)]:
            _clear(server, *key)
        server.send_sync(FORGET_EVENT, {}, client_id)
    return request


def requesting_client() -> str | None:
    """The browser whose prompt is checked now; None where nobody says."""
    request = _request.get()
    return request.client_id if request is not None else None


def note_error(error: UserError) -> None:
    """Remember, in this task, an error that a check raises while a prompt is checked: show_refusal gets its message."""
    if (request := _request.get()) is not None:
        request.errors[str(error)] = error


def show_refusal(text: str, node_id: str, input_name: str = "", told: str | None = None) -> None:
    """Show why a prompt is not queued, on the node `node_id` if not too many have a text; tell_refusals shows it as a
    toast. ComfyUI checks a node once for each output that needs it: each browser is told once.

    text: in English. input_name: the input that it is about. told: the text in the browser's language, where the caller
    has it: a translation takes its time.
    """
    server, request = prompt_server(), _request.get()
    if server is None or request is None or request.client_id is None:
        return
    # A made-up browser reads nothing; kept for ever, its texts fill memory.
    if request.client_id not in server.sockets or (node_id, text) in request.told:
        return
    told = localized(text, request.client_id) if told is None else told
    request.told.add((node_id, text))
    request.refusals.append(_Refusal(node_id, text, told, input_name))
    if node_id not in request.shown and len(request.shown) >= _MOST_NODES:
        return
    request.shown.add(node_id)
    before = _shown.get((request.client_id, node_id))
    texts = before.texts if before is not None and before.run == _IN_THE_QUEUE else ()
    _show_texts(server, request.client_id, node_id, _IN_THE_QUEUE, (*texts, told))


def tell_refusals() -> None:
    """Show as toasts, once a prompt has been checked, why it is not queued: refusals that say nearly the same as one,
    which names all of their nodes, and after the first ones how many errors more there are."""
    server, request = prompt_server(), _request.get()
    if server is None or request is None or request.client_id is None or not request.refusals:
        return
    groups = list(_alike(request))
    for group in groups[:_MOST_TOASTS]:
        node_ids = list(dict.fromkeys(refusal.node_id for refusal in group))
        text = _joined(group, request)
        _show_toast(server, request.client_id, node_ids, text, is_refusal=True, input_name=group[0].input_name)
    if more := sum(map(len, groups[_MOST_TOASTS:])):
        if len({refusal.node_id for refusal in request.refusals}) > _MOST_NODES:
            counted = f"{more} more errors are listed under View details."
        else:
            counted = (
                "One more error is shown on its node." if more == 1 else f"{more} more errors are shown on their nodes."
            )
        server.send_sync(MORE_EVENT, {"text": localized(counted, request.client_id)}, request.client_id)
    request.refusals.clear()


def _alike(request: _Request) -> Iterator[list[_Refusal]]:
    """The refusals of a prompt in groups: of one class of errors that can be joined, or of one text."""
    groups: dict[object, list[_Refusal]] = {}
    # ComfyUI checks the nodes in another order each time.
    for refusal in sorted(request.refusals, key=lambda refusal: refusal.node_id.rjust(20)):
        error = request.errors.get(refusal.text)
        groups.setdefault(type(error) if isinstance(error, JoinableError) else refusal.text, []).append(refusal)
    yield from groups.values()


def _joined(group: Sequence[_Refusal], request: _Request) -> str:
    """The text of a group of refusals, in the browser's language."""
    texts = dict.fromkeys(refusal.text for refusal in group)
    if len(texts) == 1:
        return group[0].told
    first, *others = [error for text in texts if isinstance(error := request.errors.get(text), JoinableError)]
    return localized(first.joined(others), request.client_id)


def _is_over(shown: _Shown) -> bool:
    """Whether a text says why a prompt was refused or has failed, which is of no use once another prompt is queued."""
    return shown.is_error or shown.run == _IN_THE_QUEUE


def _clear(server: PromptServer, client_id: str, node_id: str) -> None:
    _shown.pop((client_id, node_id), None)
    server.send_progress_text(" ", node_id, client_id)  # the frontend ignores an empty text


def as_html(text: str) -> str:
    """`text` for the frontend, which puts it into the page as HTML (those of ComfyUI 0.16.3 and 0.18.2 unfiltered).

    It may contain names and keys from a stranger's workflow or file. The frontend also makes links, of addresses and of
    [[label|address]]: none of ours is meant as one.
    """
    escaped = html.escape(printable(shortened(text, MAX_CHARACTERS)), quote=True)
    escaped = escaped.replace("://", ":&#47;/").replace("[[", "[&#91;")
    return re.sub(r"(www)\.", r"\1&#46;", escaped, flags=re.IGNORECASE)


def running_prompt() -> str | None:
    """The id of the prompt that runs now; None in a script."""
    server = prompt_server()
    return None if server is None else _run_of(server)


def _run_of(server: PromptServer) -> str | None:
    return getattr(server, "last_prompt_id", None)
