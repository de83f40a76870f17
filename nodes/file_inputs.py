"""Inputs that name a file: their nodes run again when it has been replaced under the same name, and files are looked at
in a thread when a prompt is queued."""

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from comfy_api.latest import io

from ..errors import UserError
from ..model_loaders.file_stamps import stamp_of
from ..system.daemon_threads import DaemonThreads

# Not asyncio's own threads, from which ComfyUI's page is served: a disk in a network may hold them for ever. As many as
# there may be prompts that wait for such a disk before the next one waits with them.
_THREADS = DaemonThreads(32, "cogvideox-checks")
Node = TypeVar("Node", bound=type[io.ComfyNode])


def reads_file(name: str, find: Callable[[str], Path], *components: str) -> Callable:
    """Decorate a loader's class, above its `checked`.

    ComfyUI keeps its result until the times and sizes change of what it reads. Its checks run as checks_files says.

    name: the input that names the file. find: its path. components: as in stamp_of.
    """

    def decorate(node: Node) -> Node:
        def fingerprint_inputs(cls: type[io.ComfyNode], **inputs: Any) -> str:
            value = inputs.get(name)
            if value is None:
                # Linked: ComfyUI does not know the name yet. What writes or downloads the file runs before this node,
                # and this one after it. Were all files of the folder looked at, each new one would run a video again.
                return ""
            try:
                return stamp_of(find(value), *components)
            except UserError as error:  # not there: the node itself says so when it runs
                return str(error)

        changing: Any = node
        changing.fingerprint_inputs = classmethod(fingerprint_inputs)
        return checks_files(node)

    return decorate


def checks_files(node: Node) -> Node:
    """Decorate a node's class, above its `checked`, where a check looks at files, be it only whether a name is taken.

    The checks that run when a prompt is queued leave the event loop, which serves all clients: a header may take
    seconds, and a disk in a network for ever.
    """
    check: Any = node.__dict__["validate_inputs"].__func__

    async def validate_inputs(cls: type[io.ComfyNode], **inputs: Any) -> bool | str:
        # With what host/ has noted of the request, which a thread does not see by itself.
        run = copy_context().run
        return await asyncio.wrap_future(_THREADS.submit(partial(run, check, cls, **inputs)))

    queued: Any = validate_inputs
    queued.__signature__ = check.__signature__  # where ComfyUI reads which inputs it names
    changing: Any = node
    changing.validate_inputs = classmethod(queued)
    return node
