"""Rewrite a whole workflow of the wrapper."""

from functools import partial
from typing import Any

from ..errors import UserError, quoted
from .loader_mapping import LOADERS, conditioning_of, load_control_net, load_model, load_text_encoder, load_vae
from .migration_report import REFUSED, CannotConvert, Options, Work
from .node_graph import BYPASSED, CARRIERS, MUTED, Link, Node, sort_by_links
from .sampler_mapping import convert_decoder, convert_sampler
from .workflow_format import read_graph, write_graph
from .workflow_limits import TooLargeError
from .wrapper_nodes import NAMES, UNSUPPORTED

_PROMPTS = ("CogVideoTextEncode", "CogVideoTextEncodeCombine")


def migrate_workflow(document: dict[str, Any], options: Options) -> tuple[dict[str, Any] | None, Work]:
    """The workflow in this pack's nodes, in the format that it has, and the report. None where it is refused.

    document: as parse_workflow gives it; it stays as it is.

    Raises UserError for a workflow that is damaged, or has no node of the wrapper.
    """
    graph = read_graph(document)
    theirs = [node for node in sort_by_links(graph) if node.type in NAMES]
    if not theirs:
        raise UserError("The workflow has no node of ComfyUI-CogVideoXWrapper: there is nothing to migrate.")
    work = Work(graph, options)
    active = [node for node in theirs if node.mode not in (MUTED, BYPASSED)]
    for node in theirs:
        if node.mode == MUTED:
            work.left_out(node, "it is muted and does not run.")
    for node in active:
        if node.type in UNSUPPORTED:
            work.lacks(node, UNSUPPORTED[node.type])
    unread = [node for node in active if node.problem]
    for node in unread:
        work.refuse(node, node.problem)
    if not unread:
        _convert(work, theirs, active)
    return (None if work.of(REFUSED) else write_graph(document, graph)), work


def _convert(work: Work, theirs: list[Node], active: list[Node]) -> None:
    """active: in the order of their links, so that what a node asks for is there: a recursion along a chain of
    thousands of nodes would end in an error."""
    graph = work.graph
    before = graph.used_outputs()
    convert_rest = partial(_convert_rest, used=before)
    for converts, kinds in (
        (convert_rest, _PROMPTS),
        (convert_sampler, ("CogVideoSampler",)),
        (convert_decoder, ("CogVideoDecode",)),
        (convert_rest, NAMES.difference(_PROMPTS)),
    ):
        for node in active:
            if node.type in kinds:
                _attempt(work, node, converts)
    if work.of(REFUSED):
        return
    for node in active:
        if node.id not in before and Link(node.id, 0) not in graph.moved:
            work.left_out(node, "nothing uses what it makes.")
    _move_links(work, theirs)
    _prune(work, theirs, before)


def _attempt(work: Work, node: Node, convert: Any) -> None:
    try:
        convert(work, node)
    except CannotConvert:
        pass  # the report says why
    except TooLargeError:
        raise
    except UserError as error:  # of the links to it
        work.refuse(node, str(error))


def _convert_rest(work: Work, node: Node, used: dict[str, set[int]]) -> None:
    """A prompt, or a node that no sampler has asked for, and others than the wrapper's may use. used: the outputs of
    each node that something is linked to."""
    slots = used.get(node.id, set())
    if node.type in LOADERS:
        if 0 in slots:
            load_model(work, node)
        if 1 in slots:
            load_vae(work, Link(node.id, 1), node)
    elif node.type == "CogVideoXVAELoader" and slots:
        load_vae(work, Link(node.id, 0), node)
    elif node.type == "DownloadAndLoadCogVideoControlNet" and slots:
        load_control_net(work, node, node)
    elif node.type in _PROMPTS:
        if 0 in slots:
            holder = Node(node.id, node.type, {"prompt": Link(node.id, 0)})
            conditioning_of(work, holder, "prompt")
        if 1 in slots:
            load_text_encoder(work, Link(node.id, 1), node)


def _move_links(work: Work, theirs: list[Node]) -> None:
    """Let every link from a replaced output begin at what stands for it, and report those that nothing stands for."""
    graph, gone = work.graph, {node.id for node in theirs}
    for node in graph.nodes.values():
        if node.id in gone:
            continue
        for name, value in list(node.inputs.items()):
            # A new node is given the outputs themselves; a user's own node may be behind a carrier or a bypassed node.
            if isinstance(value, Link) and node.is_new and value.node not in graph.nodes:
                del node.inputs[name]
            if not isinstance(value, Link) or value.node not in gone:
                continue
            found = graph.resolve(value)
            moved = graph.moved.get(found) if isinstance(found, Link) else None
            if moved is not None:
                node.inputs[name] = moved
                _note_latents(work, node, value)
            elif isinstance(found, Link) and found.node not in gone:
                node.inputs[name] = found
            else:
                _lose_link(work, node, name, value)


def _note_latents(work: Work, node: Node, value: Link) -> None:
    source = work.graph.nodes[value.node]
    if source.type == "CogVideoSampler" and not node.is_new and node.type not in CARRIERS:
        work.changed(
            source,
            f"{node.label} gets latents in ComfyUI's layout, unscaled; the wrapper's are [B, T, C, H, W] and scaled.",
        )


def _lose_link(work: Work, node: Node, name: str, value: Link) -> None:
    del node.inputs[name]
    source = work.graph.nodes[value.node]
    if source.mode in (MUTED, BYPASSED) or node.mode in (MUTED, BYPASSED):
        return
    text = f"{node.label} takes {quoted(name)} from it, and no output of this pack's nodes is the same."
    if source.type in ("CogVideoImageEncode", "CogVideoImageEncodeFunInP"):
        text += " The wrapper's latents are [B, T, C, H, W] and scaled, ComfyUI's [B, C, T, H, W] and unscaled."
    work.note(REFUSED, source, text)


def _prune(work: Work, theirs: list[Node], before: dict[str, set[int]]) -> None:
    """Remove the wrapper's nodes, and those that only fed them: text encoders, empty latents, reroutes."""
    graph = work.graph
    for node in theirs:
        del graph.nodes[node.id]
    kinds = (*CARRIERS, "CLIPLoader", "EmptyLatentImage", "EmptySD3LatentImage", "PrimitiveNode")
    graph.remove_idle([node.id for node in graph.nodes.values() if node.type in kinds and node.id in before])
