"""Every change that the pack makes to what the whole process shares, ComfyUI's own modules first. There are no others:
tests/test_house.py looks for them, and tests/host/test_patches.py, in each version of ComfyUI, whether they still fit.

`comfy.lora.load_lora`, `comfy.lora.model_lora_keys_unet`, `comfy.sd.load_lora_for_models`
    are wrapped by wrap_stock_lora_nodes when the first CogVideoX model is loaded. ComfyUI has no hook through which its
    LoRA nodes could learn the names of a model's layers: model_lora_keys_unet knows ComfyUI's own model classes only.
`latent_preview.get_previewer`
    is wrapped by wrap_previewer at the same time, because ComfyUI's own previewer shows a video's first frame. While it
    runs for a latent of ours, `comfy.cli_args.args.preview_method` may have another value. A previewer that another
    pack has put there stays.
`execution.validate_inputs`, `execution.validate_prompt`
    are wrapped by wrap_validation when ComfyUI loads the nodes, because it repeats a message of a node's own checks for
    each of the node's inputs, in the language of the browser that asks, and because they do not see a typed value as it
    was sent. What they say is shown on the node as well, and once all nodes have been checked in toasts.
`execution.PromptExecutor.handle_execution_error`, `execution.PromptExecutor.add_message`
    are wrapped by wrap_run_reports at the same time: a UserError shows on the node that raised it, stock or ours, under
    its short name and in the browser's language, and what earlier runs have shown goes when a run begins. ComfyUI's own
    message of an error says that there was one; the sentence is two clicks away.
`server.PromptServer.instance`
    gets two handlers of queued prompts at the same time (handle_prompts): one changes none of them, the other one nodes
    of ComfyUI-CogVideoXWrapper on which ComfyUI would fail (nodes/replacing.py).
`app.custom_node_manager.CustomNodeManager.build_translations`, `app.custom_node_manager.glob`
    are wrapped by wrap_templates at the same time: the first says that the pack's templates stand under "CogVideoX",
    whatever its folder is called, the second lists every pack's templates by their names, not as the disk has them.
`comfy.quant_ops`
    learns the layout of GGUF blocks, under a name of ours, when host.quantized is imported (register_layout).
`comfy.model_management.in_training`, `comfy.ops.run_every_op`
    are switched by training_switches while a training runs in the graph, and restored.
a logger
    has a filter while a VAE asks ComfyUI for its defaults (without_warnings). It drops warnings of that thread only.
torch's number of threads
    is one while products are timed on a CPU (one_thread), which is for 0.1 s when the first model is loaded. Threads
    that have computed before keep theirs; one that computes for the first time just then would stay with one.
accelerate's states
    are those of the training while one runs in the graph (own_states); those of other packs are put back after it.
`diffusers.utils.import_utils`, `transformers.utils.import_utils`
    are told that a package is not installed which cannot be imported (hide_from_diffusers, hide_from_transformers):
    peft, accelerate or another without which CogVideoX runs. Both would fail for every pack; see
    host.optional_packages.

A wrapper hands every call for other models and latent formats on, unchanged: with whatever arguments a newer version of
ComfyUI has added.

Set elsewhere: the package's __init__.py enters the package in `sys.modules` under its proper name, and
host.start_check adds one route to ComfyUI's server and one function to those that aiohttp calls when it starts.
host.ray_environment, which `dev.py farm` shares, gives `os.environ` what Ray reads when it is imported, before the
first use of several cards: to ask for a token, report nothing, and listen on this machine alone. What the user has set
stays. Only in processes that are not ComfyUI, host.standalone sets `sys.path` and, while ComfyUI's options are parsed,
`sys.argv`, parallel.worker enters the package in `sys.modules`, and training.headless handles SIGINT and SIGTERM while
it trains.
"""

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import comfy.lora
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sd
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.cli_args import args as options

from ..errors import UserError
from .language import localized, localized_error
from .messages import (
    begin_request,
    clear_earlier_runs,
    prompt_server,
    requesting_client,
    show_error,
    show_refusal,
    tell_refusals,
)
from .protocols import LatentFormat
from .queue_errors import in_words, is_link, own_messages, refused, reported_once

# The frontend falls back to the folder's name, not to English, where a locale has no entry (st in src/i18n.ts).
_FRONTEND_LOCALES = ("en", "zh", "zh-TW", "ru", "ja", "ko", "fr", "es", "ar", "tr", "pt-BR", "fa", "he")
_MARK = "_cogvideox_wrapped"  # an attribute of every wrapper of ours
Format = TypeVar("Format", bound=LatentFormat)


def wrap_once(owner: ModuleType | type, name: str, wrap: Callable[[Callable], Callable]) -> None:
    """Replace a module's function, or a class's method, by wrap(function), unless that has been done."""
    original = getattr(owner, name)
    if not hasattr(original, _MARK):
        wrapper = functools.wraps(original)(wrap(original))
        setattr(wrapper, _MARK, True)
        setattr(owner, name, wrapper)


def argument(args: tuple, kwargs: dict[str, Any], position: int, name: str) -> Any:
    """An argument of a call, by its position or its name; None where it has none."""
    return args[position] if position < len(args) else kwargs.get(name)


def with_argument(args: tuple, kwargs: dict[str, Any], position: int, name: str, value: Any) -> tuple[tuple, dict]:
    """The arguments of a call with `value` in the place of one, or as one more."""
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def wrap_stock_lora_nodes(
    model_class: type[torch.nn.Module],
    is_ours: Callable[[dict[str, Any]], bool],
    layer_aliases: Callable[[Any], dict[str, Any]],
    load: Callable[[dict[str, Any], dict[str, Any], Callable], dict[str, Any]],
    prepare: Callable[[comfy.model_patcher.ModelPatcher, dict[str, Any], dict[str, str] | None], dict[str, Any]],
) -> None:
    """Make Load LoRA, and every node that calls the same functions, work with models of `model_class`.

    is_ours: whether a key map is that of such a model. layer_aliases: model -> the names that LoRA files have for its
    weights, for the key map. load: (LoRA, key map, ComfyUI's load_lora for the two) -> patches. prepare: (MODEL, LoRA,
    header of its file) -> the LoRA, checked, with the header's alpha.
    """

    # A LoRA node calls load_lora_for_models, and that calls model_lora_keys_unet for the key map, then load_lora with
    # it. Each wrapper therefore knows our models by what it is given: the model, the key map, the MODEL.
    def keys(original: Callable) -> Callable:
        def model_lora_keys_unet(*args: Any, **kwargs: Any) -> dict[str, Any]:
            model = argument(args, kwargs, 0, "model")
            if not isinstance(model, model_class):
                return original(*args, **kwargs)
            if argument(args, kwargs, 1, "key_map") is None:
                # ComfyUI's default is one dict for all calls: the names would appear in the next model's key map.
                args, kwargs = with_argument(args, kwargs, 1, "key_map", {})
            names: dict[str, Any] = original(*args, **kwargs)
            names.update(layer_aliases(model))
            return names

        return model_lora_keys_unet

    def patches(original: Callable) -> Callable:
        def load_lora(*args: Any, **kwargs: Any) -> dict[str, Any]:
            lora, key_map = argument(args, kwargs, 0, "lora"), argument(args, kwargs, 1, "to_load")
            if lora is None or key_map is None or not is_ours(key_map):
                return original(*args, **kwargs)

            def load_with_comfyui(lora: dict[str, Any], key_map: dict[str, Any]) -> dict[str, Any]:
                changed = with_argument(args, kwargs, 0, "lora", lora)
                changed = with_argument(*changed, 1, "to_load", key_map)
                return original(*changed[0], **changed[1])

            return load(lora, key_map, load_with_comfyui)

        return load_lora

    def apply(original: Callable) -> Callable:
        def load_lora_for_models(*args: Any, **kwargs: Any) -> tuple:
            model, lora = argument(args, kwargs, 0, "model"), argument(args, kwargs, 2, "lora")
            if lora is not None and isinstance(getattr(model, "model", None), model_class):
                # Older versions of ComfyUI do not hand the file's header on.
                header = argument(args, kwargs, 5, "lora_metadata")
                args, kwargs = with_argument(args, kwargs, 2, "lora", prepare(model, lora, header))
            return original(*args, **kwargs)

        return load_lora_for_models

    wrap_once(comfy.lora, "model_lora_keys_unet", keys)
    wrap_once(comfy.lora, "load_lora", patches)
    wrap_once(comfy.sd, "load_lora_for_models", apply)


def wrap_previewer(
    format_class: type[Format], make_previewer: Callable[[torch.device, Format, bool], latent_preview.LatentPreviewer]
) -> None:
    """Preview latents of `format_class` with what `make_previewer` returns; every other latent as before.

    make_previewer: (device, latent format, whether the user has asked for a decoder's pictures) -> previewer.
    """

    def wrap(original: Callable) -> Callable:
        def get_previewer(*args: Any, **kwargs: Any) -> latent_preview.LatentPreviewer | None:
            latent_format = argument(args, kwargs, 1, "latent_format")
            if not isinstance(latent_format, format_class):
                return original(*args, **kwargs)
            method = options.preview_method
            with_decoder = method == LatentPreviewMethod.TAESD
            if with_decoder:
                # ComfyUI has no decoder for our format and would warn that a file called "None" is missing.
                options.preview_method = LatentPreviewMethod.Latent2RGB
            try:
                previewer = original(*args, **kwargs)
            finally:
                options.preview_method = method
            # Anything else means that previews are switched off or that another pack's wrapper has returned a previewer
            # of its own, which may be a subclass: hence not isinstance.
            if type(previewer) is not latent_preview.Latent2RGBPreviewer:
                return previewer
            return make_previewer(argument(args, kwargs, 0, "device"), latent_format, with_decoder)

        return get_previewer

    wrap_once(latent_preview, "get_previewer", wrap)


def wrap_validation(
    node_ids: Collection[str],
    find_converted: Callable[[str, Any, Callable[[Any], bool]], dict[str, str]] = lambda node_id, given, is_link: {},
) -> None:
    """Report what the checks of these nodes find once, where ComfyUI repeats it for each of their inputs, and what they
    cannot find, since ComfyUI converts a typed value before it asks them.

    ComfyUI calls a node's validate_inputs once for all inputs that it names, and has no way to be told which of them
    was wrong. find_converted: (node id, inputs in the prompt, whether a value is a link) -> messages by input. ComfyUI
    does not get to see these inputs: it takes null for what is not known yet, and fails on a list that is no link.
    """
    # In a script no prompt is queued: importing ComfyUI's server for this would take seconds.
    execution = sys.modules.get("execution")
    if execution is None:
        return

    def wrap(original: Callable) -> Callable:
        async def validate_inputs(*args: Any, **kwargs: Any) -> Any:
            prompt, node = argument(args, kwargs, 1, "prompt"), argument(args, kwargs, 2, "item")
            # For each further output that needs the node ComfyUI gives back what it has found for the first one.
            is_new = node not in (argument(args, kwargs, 3, "validated") or ())
            if not is_new or (class_type := prompt[node]["class_type"]) not in node_ids:
                return await original(*args, **kwargs)
            given = prompt[node]["inputs"]
            classes = execution.nodes.NODE_CLASS_MAPPINGS
            converted = find_converted(class_type, given, lambda value: is_link(value, prompt, classes))
            before = [(name, given.pop(name)) for name in converted]
            try:
                result = refused(await original(*args, **kwargs), converted)
            finally:
                given.update(before)
            if converted:
                argument(args, kwargs, 3, "validated")[node] = result
            found = reported_once(result[1])
            own = own_messages(found)
            told = {message: localized(message, requesting_client()) for _, message in own}
            # ComfyUI keeps the same list for nodes that come later.
            result[1][:] = in_words(found, told.__getitem__)
            for name, message in own:
                show_refusal(message, node, name, told[message])
            return result

        return validate_inputs

    def wrap_all(original: Callable) -> Callable:
        async def validate_prompt(*args: Any, **kwargs: Any) -> Any:
            try:
                return await original(*args, **kwargs)
            finally:
                try:
                    tell_refusals()
                except Exception:  # the prompts of every pack pass here, and ComfyUI would refuse them without a reason
                    logging.debug("Why a prompt is refused could not be shown as a toast.", exc_info=True)

        return validate_prompt

    wrap_once(execution, "validate_inputs", wrap)
    wrap_once(execution, "validate_prompt", wrap_all)


def wrap_run_reports() -> None:
    """Show the sentence of a UserError where one looks, and take away what earlier runs have shown.

    ComfyUI reports an error as the full name of its class and a text with a line break after it.
    """
    execution = sys.modules.get("execution")
    if execution is None:  # in a script
        return

    def errors(original: Callable) -> Callable:
        def handle_execution_error(*args: Any, **kwargs: Any) -> Any:
            error, raised = argument(args, kwargs, 5, "error"), argument(args, kwargs, 6, "ex")
            if isinstance(raised, UserError):  # which ComfyUI has written to the log before, in English
                server = prompt_server()
                text = str(raised)
                try:
                    text = localized_error(raised, server.client_id if server else None)
                    show_error(text, error["node_id"])
                except Exception:  # ComfyUI calls this outside its try: an error here would end its queue for good
                    logging.debug("An error could not be shown on its node.", exc_info=True)
                error = {**error, "exception_type": type(raised).__name__, "exception_message": text}
                args, kwargs = with_argument(args, kwargs, 5, "error", error)
            return original(*args, **kwargs)

        return handle_execution_error

    def messages(original: Callable) -> Callable:
        def add_message(*args: Any, **kwargs: Any) -> Any:
            if argument(args, kwargs, 1, "event") == "execution_cached":
                try:
                    clear_earlier_runs(argument(args, kwargs, 2, "data")["nodes"])
                except Exception:  # as above
                    logging.debug("What earlier runs have shown could not be cleared.", exc_info=True)
            return original(*args, **kwargs)

        return add_message

    wrap_once(execution.PromptExecutor, "handle_execution_error", errors)
    wrap_once(execution.PromptExecutor, "add_message", messages)
    handle_prompts(begin_request)


def handle_prompts(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have ComfyUI call `handler` with each prompt that is queued, before it is checked, and go on with its result."""
    server = prompt_server()
    if server is not None and handler not in server.on_prompt_handlers:
        server.add_on_prompt_handler(handler)


class _SortedGlob:
    """The module glob, whose glob() returns paths in the order of their names without the ending."""

    def __init__(self, original: ModuleType):
        self._original = original

    def glob(self, *args: Any, **kwargs: Any) -> list[str]:
        return sorted(self._original.glob(*args, **kwargs), key=lambda path: os.path.splitext(path)[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def wrap_templates(folders: Collection[str], title: str) -> None:
    """Have ComfyUI list templates in order, and the pack's under `title`.

    folders: the pack's name below custom_nodes, and those under which the page lists its templates in its place.

    ComfyUI names a group of templates after the folder, and has no way to be told another name; its frontend does
    translate that name, by the key `templateWorkflows.category` (src/platform/workflow/templates/repositories/
    workflowTemplatesStore.ts), in which a dot is written as an underscore.
    """
    manager: Any = sys.modules.get("app.custom_node_manager")
    if manager is None:  # a script
        return

    def wrap(original: Callable) -> Callable:
        def build_translations(*args: Any, **kwargs: Any) -> dict[str, Any]:
            translations = dict(original(*args, **kwargs))  # ComfyUI keeps the same dict for later requests
            for locale in {*_FRONTEND_LOCALES, *translations}:
                texts = dict(translations.get(locale, {}))
                workflows = dict(texts.get("templateWorkflows", {}))
                # A name that a pack's locales give is kept.
                ours = {folder.replace(".", "_"): title for folder in folders}
                workflows["category"] = {**ours, **workflows.get("category", {})}
                translations[locale] = {**texts, "templateWorkflows": workflows}
            return translations

        return build_translations

    wrap_once(manager.CustomNodeManager, "build_translations", wrap)
    if not isinstance(manager.glob, _SortedGlob):
        manager.glob = _SortedGlob(manager.glob)


def register_layout(name: str, layout: type) -> None:
    """Make a layout of ours known to ComfyUI's QuantizedTensor."""
    comfy.quant_ops.register_layout_class(name, layout)


@contextmanager
def one_thread() -> Iterator[None]:
    """While this lasts torch computes in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def training_switches() -> Iterator[None]:
    """While this lasts ComfyUI uses no kernels without gradients and does not cancel a run by itself."""
    was_training = getattr(mm, "in_training", False)  # versions of ComfyUI without it have no such kernels
    every_op = getattr(comfy.ops, "run_every_op", None)
    try:
        # comfy.ldm.flux.math.apply_rope1, among others, takes torch's operations then in place of a fused kernel.
        mm.in_training = True
        if every_op:
            # Every layer calls it, and it raises once the user has cancelled. A training has to write a checkpoint of
            # its complete steps first.
            comfy.ops.run_every_op = lambda: None
        yield
    finally:
        mm.in_training = was_training
        if every_op:
            comfy.ops.run_every_op = every_op


@contextmanager
def without_warnings(logger: logging.Logger) -> Iterator[None]:
    """While this lasts `logger` drops what this thread logs, unless it is an error; other threads go on as before."""
    thread = threading.get_ident()

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def hide_from_diffusers(import_utils: ModuleType, flags: Iterable[str]) -> None:
    """Have diffusers go without packages that cannot be imported. flags: the names by which it knows that they are
    installed, such as `_peft_available`."""
    for flag in flags:
        setattr(import_utils, flag, False)


def hide_from_transformers(import_utils: ModuleType, package: str) -> None:
    """Have transformers go without a package that cannot be imported. What it has imported already stays."""
    is_available = getattr(import_utils, f"is_{package}_available")
    if not hasattr(is_available, "cache_clear"):  # transformers 4
        setattr(import_utils, f"_{package}_available", False)
        return
    # Its modules hold the function itself, which keeps its first answer: it is asked again while nothing is there.
    utils: Any = import_utils
    true_look = utils._is_package_available
    utils._is_package_available = lambda *args, **kwargs: (False, "0")
    try:
        is_available.cache_clear()
        is_available()
    finally:
        utils._is_package_available = true_look


@contextmanager
def own_states(*classes: type) -> Iterator[None]:
    """While this lasts accelerate's `classes` begin without a state, whatever state another pack has given them.

    accelerate keeps one state for a process, in a dict that every object of the class shares (accelerate/state.py).
    Objects that exist go on using the one that they have.
    """
    name = "_shared_state"
    before = [(owner, vars(owner)[name]) for owner in classes]  # not getattr: it may be a descriptor
    try:
        for owner in classes:
            setattr(owner, name, {})
        yield
    finally:
        for owner, state in before:
            setattr(owner, name, state)
