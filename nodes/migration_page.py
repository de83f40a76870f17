"""What the page asks for where somebody opens a workflow of ComfyUI-CogVideoXWrapper: a notice, and the same workflow
in this pack's nodes. Nothing is written on disk. web/js/migration.js shows both.

Whoever may open the page may send anything here, as to ComfyUI's own routes, whose check of the origin counts here too.
"""

import asyncio
import json
import logging
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..host.language import localized_for
from ..host.page_routes import new_routes
from ..system.daemon_threads import DaemonThreads

ROUTE = "/cogvideox/migration"
# Python parses JSON without a pause in which it could serve others: 4 MiB take some hundredths of a second. Workflows
# of hundreds of nodes have less than one; `dev.py migrate` reads more.
MAX_BYTES = 4 * 2**20
MAX_SECONDS = 20.0
_MOST_LINES = 500  # of a report: the page shows them all
_THREADS = DaemonThreads(1, "cogvideox-migration")  # one at a time: a workflow may keep a core busy for seconds
_FOLDER = Path(__file__).resolve().parent.parent


def serve_migration() -> None:
    """Answer the page; nothing in a process without a server."""
    routes = new_routes("migration")
    if routes is None:
        return
    from aiohttp import web

    async def get_notice(request: Any) -> Any:
        return web.json_response(notice(partial(localized_for, request)))

    async def post_workflow(request: Any) -> Any:
        answer = await answer_workflow(request)
        return web.Response(text=answer, content_type="application/json")

    routes.get(ROUTE)(get_notice)
    routes.post(ROUTE)(post_workflow)


def notice(told: Any) -> dict[str, Any]:
    """What the page says, and of which types of nodes. told: a text -> the same in the page's language."""
    texts = {
        "what": "This workflow is made for ComfyUI-CogVideoXWrapper, whose nodes are not installed. CogVideoX can "
        "rewrite it for its own nodes; the workflow that is open stays as it is.",
        "how": "Or save it as a file and run this in a terminal:",
        "migrate": "Open it rewritten",
        "leave_out": "Leave out what has no counterpart",
        "close": "Close the notice",
        "failed": "ComfyUI does not answer. Start it again, and open the workflow again.",
    }
    from ..migration.wrapper_nodes import NAMES

    shown = {name: told(text) for name, text in texts.items()}
    return {**shown, "types": sorted(NAMES), "command": f'cd "{_FOLDER}"\npython3 dev.py migrate "workflow.json"'}


async def answer_workflow(request: Any) -> str:
    """The JSON of the answer to a posted workflow: {workflow: its nodes rewritten or null, title: a sentence, report:
    lines, may_leave_out: whether the rest of it might be rewritten}.

    request: aiohttp's.
    """
    told = partial(localized_for, request)
    try:
        text = await asyncio.wait_for(_read(request), MAX_SECONDS)
        work = _THREADS.submit(partial(rewrite, text, request.query.get("leave_out") == "1", told))
        return await asyncio.wait_for(asyncio.wrap_future(work), MAX_SECONDS)
    except asyncio.TimeoutError:
        sentence = f"The workflow takes more than {MAX_SECONDS:.0f} seconds. Run `python3 dev.py migrate` instead."
    except UserError as error:
        sentence = str(error)
    return _answer(None, told(sentence), [], False)


def rewrite(text: str, leave_out: bool, told: Any) -> str:
    """The answer for the JSON of a workflow. leave_out: as in Options. Raises UserError."""
    # Imported here: ComfyUI need not wait at its start for what few pages ask for.
    from ..migration.migrate_graph import migrate_workflow
    from ..migration.migration_report import REFUSED, Options, report_lines
    from ..migration.workflow_format import parse_workflow

    document, work = migrate_workflow(parse_workflow(text), Options(leave_out=leave_out))
    if document is None:
        title = told("The workflow is not rewritten. The lines of the report say why.")
    else:
        title = told("This is the workflow in CogVideoX's nodes. Look at what differs before you run it.")
    may_leave_out = document is None and not leave_out and bool(work.of(REFUSED))
    try:
        return _answer(document, title, list(islice(report_lines(work, told), _MOST_LINES)), may_leave_out)
    except ValueError as error:  # NaN, which Python reads and no browser does
        logging.debug("A rewritten workflow is not JSON.", exc_info=True)
        raise UserError(
            "The workflow contains NaN or infinity, which a page cannot read. Save it with ComfyUI again."
        ) from error


async def _read(request: Any) -> str:
    """The text that is posted. Raises UserError for one that is too long or no text."""
    data = bytearray()
    async for part in request.content.iter_chunked(1 << 16):
        data += part
        if len(data) > MAX_BYTES:
            raise UserError(
                f"The workflow has more than {MAX_BYTES >> 20} MiB. Save it as a file and run `python3 dev.py migrate`."
            )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("The workflow is not text in UTF-8. Save it with ComfyUI again.") from error


def _answer(document: dict[str, Any] | None, title: str, report: list[str], may_leave_out: bool) -> str:
    answer = {"workflow": document, "title": title, "report": report, "may_leave_out": may_leave_out}
    return json.dumps(answer, allow_nan=False)
