"""Which language a browser shows ComfyUI in, and messages in that language.

Messages are translated where they reach a person: on nodes (host/messages.py) and in the errors that ComfyUI sends to
the browser (host/patches.py). The log and its tracebacks stay English: they are what people search for and send to
others, and a server may have users of several languages.
"""

import sys
from types import SimpleNamespace
from typing import Any

from comfy.cli_args import args as options

from ..errors import UserError
from ..locales.translations import translate
from .protocols import PromptServer

LANGUAGES = {"zh": "zh", "zh-TW": "zh"}  # ComfyUI's locale -> a folder of locales/
_ENGLISH = "en"
# What the frontend 1.47 can show (its i18n module). It takes the first of a browser's languages that is one of these.
_SHOWN = ("en", "zh", "ru", "ja", "ko", "fr", "es", "ar", "tr", "pt", "fa", "he")
_NOBODY = SimpleNamespace(headers={})  # a request without a user is one of ComfyUI's user "default"


def localized(text: str, client_id: str | None) -> str:
    """`text` in the language of the browser `client_id`, or of those that are open if ComfyUI does not say which."""
    language = LANGUAGES.get(locale_of(prompt_server(), client_id))
    return translate(text, language) if language else text


def localized_for(request: Any, text: str) -> str:
    """`text` in the language of the page that sends a request (aiohttp's), which may have no connection open yet."""
    server = prompt_server()
    chosen = None if server is None or options.multi_user else _setting(server)
    locale = chosen if isinstance(chosen, str) else _default_locale(_languages_of(request))
    language = LANGUAGES.get(locale)
    return translate(text, language) if language else text


def localized_error(error: UserError, client_id: str | None) -> str:
    """An error's message with its next step, in the language of the browser `client_id`."""
    # The two are translated apart: where one ends need not be looked for.
    message, step = (localized(part, client_id) for part in error.parts())
    return f"{message}{'' if message.endswith('。') else ' '}{step}".strip()


def locale_of(server: PromptServer | None, client_id: str | None) -> str:
    """ComfyUI's locale in a browser: the setting Comfy.Locale, or, as long as nobody has set it, the frontend's default
    for the browser's languages. English in a script, and whenever something is not as expected.

    With --multi-user nobody says whose a browser is: there its languages decide.
    """
    if server is None:
        return _ENGLISH
    chosen = None if options.multi_user else _setting(server)
    if isinstance(chosen, str):
        return chosen
    sockets = getattr(server, "sockets", {})
    asked = [sockets[client_id]] if client_id in sockets else list(sockets.values()) if client_id is None else []
    locales = {_default_locale(_accepted_languages(socket)) for socket in asked}
    return locales.pop() if len(locales) == 1 else _ENGLISH


def prompt_server() -> PromptServer | None:
    """ComfyUI's server; None in a script, which must not import its database and its routes for a message."""
    server: Any = sys.modules.get("server")
    return None if server is None else getattr(server.PromptServer, "instance", None)


def _setting(server: PromptServer) -> object:
    try:
        found = server.user_manager.settings.get_settings(_NOBODY)
    except Exception:  # another pack's user manager, an unreadable file: a message in English is better than none
        return None
    return found.get("Comfy.Locale") if isinstance(found, dict) else None


def _accepted_languages(socket: Any) -> list[str]:
    """A browser's languages, its favourite first: from the request that opened its connection (aiohttp keeps it)."""
    return _languages_of(getattr(socket, "_req", None))


def _languages_of(request: Any) -> list[str]:
    headers = getattr(request, "headers", {})
    return [entry.split(";")[0].strip() for entry in str(headers.get("Accept-Language", ""))[:200].split(",")]


def _default_locale(languages: list[str]) -> str:
    for language in languages:
        if language.lower() == "zh-tw":
            return "zh-TW"
        if language.lower().split("-")[0] in _SHOWN:
            return language.lower().split("-")[0]
    return _ENGLISH
