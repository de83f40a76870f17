"""The pack's templates under titles in another language.

ComfyUI's page shows the name of a template's file as its title, and asks for the file, and for its picture, by that
name: it has no other title for a pack's template. So web/js/translated_templates.js lists the translated titles in the
place of the names, and each is answered here with the file of the English one, unchanged.
"""

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

from .page_routes import new_routes

# The folder in whose place the page asks for them, as in web/js/translated_templates.js -> the language.
SERVED_AS = {"CogVideoX-zh": "zh"}
_ENDINGS = (".json", ".jpg")


def serve_translated_templates(folder: Path) -> None:
    """Answer for the titles in locales/<language>/main.json; nothing in a process without a server.

    folder: the pack's.
    """
    routes = new_routes("translated_templates")
    if routes is None:
        return
    from aiohttp import web

    for place, language in SERVED_AS.items():

        async def get_template(request: Any, language: str = language) -> Any:
            file = find_template(folder, language, request.match_info["file"])
            if file is None:
                raise web.HTTPNotFound()
            return web.FileResponse(file)

        routes.get(f"/workflow_templates/{place}/{{file}}")(get_template)


def find_template(folder: Path, language: str, name: str) -> Path | None:
    """The file of a template, or its picture, by its translated title with an ending; None where there is none."""
    title, dot, ending = name.rpartition(".")
    english = english_titles(folder, language).get(title)
    if english is None or dot + ending not in _ENDINGS:
        return None
    file = folder / "example_workflows" / f"{english}{dot}{ending}"
    return file if file.is_file() else None


@cache
def english_titles(folder: Path, language: str) -> dict[str, str]:
    """{translated title: the English one}, read once. None of an unreadable file: the page then lists the English."""
    path = folder / "locales" / language / "main.json"
    try:
        titles = json.loads(path.read_text("utf-8"))["cogvideoxTemplates"]["titles"]
        return {told: english for english, told in titles.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning(f"CogVideoX's templates have English titles: {path} cannot be read ({error}).")
        return {}
