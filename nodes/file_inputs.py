"""Inputs that name a file: their nodes run again when it has been replaced under the same name, and it is read in a
thread when a prompt is queued."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from comfy_api.latest import io

from ..errors import UserError
from ..host import folders
from ..model_loaders.file_stamps import hash_of, stamp_of

Node = TypeVar("Node", bound=type[io.ComfyNode])


def reads_file(name: str, find: Callable[[str], Path], categories: tuple[str, ...], *components: str) -> Callable:
    """Decorate a loader's class, above its `checked`.

    ComfyUI keeps its result until the times and sizes change of what it reads. The checks that run when a prompt is
    queued leave the event loop, which serves all clients: a header may take seconds, and a disk in a network for ever.

    name: the input that names the file. find: its path. categories: the model folders that it is looked for in.
    components: as in stamp_of.
    """

    def decorate(node: Node) -> Node:
        def fingerprint_inputs(cls: type[io.ComfyNode], **inputs: Any) -> str:
            value = inputs.get(name)
            if value is None:
                # Linked: ComfyUI does not know the name yet. It may be any, and a change of any of them counts.
                return hash_of(folders.paths_of_files(*categories))
            try:
                return stamp_of(find(value), *components)
            except UserError as error:  # not there: the node itself says so when it runs
                return str(error)

        changing: Any = node
        changing.fingerprint_inputs = classmethod(fingerprint_inputs)
        check: Any = node.__dict__["validate_inputs"].__func__

        async def validate_inputs(cls: type[io.ComfyNode], **inputs: Any) -> bool | str:
            return await asyncio.to_thread(check, cls, **inputs)

        queued: Any = validate_inputs
        queued.__signature__ = check.__signature__  # where ComfyUI reads which inputs it names
        changing.validate_inputs = classmethod(queued)
        return node

    return decorate
