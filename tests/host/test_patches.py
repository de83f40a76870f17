"""What the pack changes for the whole process: it fits this version of ComfyUI, and other packs notice nothing."""

import inspect
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.latent_formats
import comfy.lora
import comfy.model_management as mm
import comfy.ops
import comfy.quant_ops
import comfy.sd
import execution
import latent_preview
import pytest
import torch
from comfy.cli_args import args as options

from cogvideox.host import patches
from cogvideox.host.quantized import GGUF_LAYOUT
from cogvideox.keys import Latent
from cogvideox.model_loaders.lora.names import SIGNATURE_KEY
from cogvideox.model_loaders.lora.stock import enable_stock_lora_nodes
from cogvideox.sockets.model import CogVideoXLatent, CogVideoXModel
from cogvideox.sockets.preview_renderers import enable_previews
from cogvideox.sockets.vae import CogVideoXVAE, _set_host_defaults
from cogvideox.tests.support import host_lacks

# What is wrapped, and the arguments that the wrappers read by position or by name.
WRAPPED: list[tuple[ModuleType | type, str, dict[str, int]]] = [
    (comfy.lora, "model_lora_keys_unet", {"model": 0, "key_map": 1}),
    (comfy.lora, "load_lora", {"lora": 0, "to_load": 1}),
    (comfy.sd, "load_lora_for_models", {"model": 0, "lora": 2}),
    (latent_preview, "get_previewer", {"device": 0, "latent_format": 1}),
    (execution, "validate_inputs", {"prompt": 1, "item": 2, "validated": 3}),
    (execution, "validate_prompt", {}),
    (execution.PromptExecutor, "handle_execution_error", {"self": 0, "error": 5, "ex": 6}),
]


@pytest.mark.fast
@pytest.mark.parametrize(("module", "name", "read"), WRAPPED, ids=[name for _, name, _ in WRAPPED])
def test_comfyui_has_what_is_wrapped(module: ModuleType | type, name: str, read: dict[str, int]) -> None:
    """Where ComfyUI has moved a function, or an argument, the wrapper would do nothing, without an error."""
    parameters = list(inspect.signature(getattr(module, name)).parameters)  # of the original, through __wrapped__
    assert {argument: parameters.index(argument) for argument in read} == read


def test_comfyui_reads_what_is_switched() -> None:
    """A switch under a name that ComfyUI no longer reads would leave kernels without gradients in a training."""
    assert isinstance(mm.in_training, bool)
    assert inspect.signature(comfy.ops.run_every_op).parameters == {}
    assert options.preview_method in latent_preview.LatentPreviewMethod
    assert comfy.quant_ops.get_layout_class(GGUF_LAYOUT) is not None
    before = comfy.ops.run_every_op
    with pytest.raises(ValueError), patches.training_switches():
        assert mm.in_training and comfy.ops.run_every_op is not before
        raise ValueError
    assert not mm.in_training and comfy.ops.run_every_op is before


def test_comfyui_lists_templates_through_what_is_wrapped() -> None:
    """Moved elsewhere, the templates would stand in the disk's order under the folder's name, without an error."""
    from app import custom_node_manager

    routes = inspect.getsource(custom_node_manager.CustomNodeManager.add_routes)
    assert "glob.glob(" in routes and "self.build_translations()" in routes
    assert list(inspect.signature(custom_node_manager.CustomNodeManager.build_translations).parameters) == ["self"]


def test_comfyui_hands_a_lora_file_s_header_on_where_it_is_read() -> None:
    """ComfyUI 0.24 and newer hand it on, as the sixth argument: an alpha may stand nowhere else."""
    parameters = list(inspect.signature(comfy.sd.load_lora_for_models).parameters)
    if "lora_metadata" not in parameters:
        pytest.skip(host_lacks("LoRA node that hands the file's header on"))
    assert parameters.index("lora_metadata") == 5


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """The calls of the wrapped functions of a ComfyUI that has given each of them more arguments."""
    calls: list[tuple[tuple, dict]] = []

    def replacement(names: str) -> Callable:
        def stock(*args: Any, **kwargs: Any) -> dict:
            calls.append((args, kwargs))
            return {}

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names.split()]
        setattr(stock, "__signature__", inspect.Signature(parameters))  # noqa: B010 - a function has no such attribute
        return stock

    monkeypatch.setattr(comfy.lora, "model_lora_keys_unet", replacement("model key_map on_device"))
    monkeypatch.setattr(comfy.lora, "load_lora", replacement("lora to_load log_missing on_device"))
    monkeypatch.setattr(comfy.sd, "load_lora_for_models", replacement("model clip lora a b lora_metadata on_device"))
    monkeypatch.setattr(latent_preview, "get_previewer", replacement("device latent_format on_device"))
    enable_stock_lora_nodes(CogVideoXModel, logging.warning)
    enable_previews(lambda device: None)
    return calls


def test_other_models_calls_are_handed_on_unchanged(newer: list[tuple[tuple, dict]]) -> None:
    """A ComfyUI that gave load_lora an argument more could load no LoRA of any model once the pack had been used."""
    other, key_map, wan = object(), {"layer": "layer.weight"}, comfy.latent_formats.Wan21()
    called: list[tuple[Callable, tuple, dict]] = [
        (comfy.lora.model_lora_keys_unet, (other,), {}),
        (comfy.lora.model_lora_keys_unet, (other, key_map, "cuda"), {}),
        (comfy.lora.model_lora_keys_unet, (), {"model": other, "key_map": key_map, "on_device": "cuda"}),
        (comfy.lora.load_lora, ({}, key_map, True, "cuda"), {}),
        (comfy.lora.load_lora, (), {"lora": {}, "to_load": key_map, "on_device": "cuda"}),
        (comfy.sd.load_lora_for_models, (other, None, {}, 1.0, 1.0, None, "cuda"), {}),
        (comfy.sd.load_lora_for_models, (), {"model": other, "clip": None, "lora": {}, "on_device": "cuda"}),
        (latent_preview.get_previewer, ("cpu", wan, "cuda"), {}),
        (latent_preview.get_previewer, (), {"device": "cpu", "latent_format": wan, "on_device": "cuda"}),
    ]
    for function, args, kwargs in called:
        function(*args, **kwargs)
    assert newer == [(args, kwargs) for _, args, kwargs in called]


def test_our_models_calls_keep_what_comfyui_has_added(newer: list[tuple[tuple, dict]]) -> None:
    """What a newer ComfyUI asks for, such as a device, holds for our models as well."""
    ours = {SIGNATURE_KEY: SIGNATURE_KEY}
    load_lora: Any = comfy.lora.load_lora
    get_previewer: Any = latent_preview.get_previewer
    load_lora({}, ours, False, "cuda")
    load_lora(lora={}, to_load=ours, on_device="cuda")
    get_previewer("cpu", latent_format=CogVideoXLatent(0.7, 8.0), on_device="cuda")
    (first, second, third) = newer
    assert (first[0][2:], first[1]) == ((False, "cuda"), {})
    assert second[0] == () and second[1]["on_device"] == "cuda" and set(second[1]) == {"lora", "to_load", "on_device"}
    assert third[0] == ("cpu",) and third[1]["on_device"] == "cuda"


def test_names_of_our_layers_stay_in_our_key_map(tiny_pipelines: dict[str, Path]) -> None:
    """ComfyUI's default key map is one dict for every call: another model's LoRA would meet our names in it."""
    from cogvideox.model_loaders.load_model import load_model

    model = load_model(tiny_pipelines["5b"], "fp32").model
    names = comfy.lora.model_lora_keys_unet(model)
    assert SIGNATURE_KEY in names
    given: dict[str, Any] = {"clip": "kept"}
    assert comfy.lora.model_lora_keys_unet(model, given) is given and given["clip"] == "kept"
    original: Any = inspect.unwrap(comfy.lora.model_lora_keys_unet)
    assert SIGNATURE_KEY not in original.__defaults__[0]


def test_a_vae_silences_nobody_else(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While a VAE was being loaded, warnings of other packs' threads were lost."""

    def stock(self: comfy.sd.VAE, sd: dict) -> None:
        logging.warning("No VAE weights detected")
        logging.error("a real error")
        other = threading.Thread(target=logging.warning, args=("another pack's warning",))
        other.start()
        other.join()

    filters, disabled = list(logging.root.filters), logging.root.manager.disable
    monkeypatch.setattr(comfy.sd.VAE, "__init__", stock)
    _set_host_defaults(object.__new__(CogVideoXVAE))
    assert caplog.messages == ["a real error", "another pack's warning"]
    monkeypatch.setattr(comfy.sd.VAE, "__init__", lambda self, sd: sd["missing"])
    with pytest.raises(KeyError):
        _set_host_defaults(object.__new__(CogVideoXVAE))
    assert (logging.root.filters, logging.root.manager.disable) == (filters, disabled)


def test_comfyui_s_vae_warns_of_missing_weights_and_ours_does_not(caplog: pytest.LogCaptureFixture) -> None:
    """ "No VAE weights detected" at every load would send users looking for a file that is there."""
    comfy.sd.VAE(sd={})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    vae = object.__new__(CogVideoXVAE)
    _set_host_defaults(vae)
    assert not caplog.records and vae.latent_channels


def test_another_pack_s_accelerate_outlives_a_training() -> None:
    """accelerate has one state for a process: a training in the graph took it from the pack that had set it up."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from cogvideox.training.parallelize import single_process

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        theirs = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
        for _ in range(2):
            with pytest.raises(ValueError), single_process(torch.float32, on_cpu=True) as ours:
                assert ours.mixed_precision == "no" and ours.gradient_accumulation_steps == 1
                assert theirs.mixed_precision == "bf16" and theirs.device.type == "cpu"
                raise ValueError
        assert theirs.mixed_precision == AcceleratorState().mixed_precision == "bf16"
        assert theirs.gradient_accumulation_steps == GradientState().num_steps == 3
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def known_loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(item for item in known if isinstance(item, logging.Logger))]


def shared_state(loggers: list[logging.Logger]) -> dict[str, object]:
    """Settings of the process that another pack, or ComfyUI, may rely on."""
    torch_flags = {
        name: getattr(torch, name)()
        for name in (
            "are_deterministic_algorithms_enabled",
            "get_default_device",
            "get_default_dtype",
            "get_float32_matmul_precision",
            "get_num_interop_threads",
            "get_num_threads",
            "is_grad_enabled",
            "is_inference_mode_enabled",
        )
    }
    backends = torch.backends
    sdpa = [getattr(backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math", "cudnn")]
    cudnn = [getattr(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")]
    return torch_flags | {
        "environment": dict(os.environ),
        "paths": list(sys.path),
        "arguments": list(sys.argv),
        "folder": os.getcwd(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": (logging.root.manager.disable, logging.raiseExceptions),
        "loggers": [(item, item.level, list(item.filters), list(item.handlers), item.disabled) for item in loggers],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr, sys.gettrace()),
        "limits": (sys.getrecursionlimit(), socket.getdefaulttimeout()),
        "random": random.getstate(),
        "sdpa": sdpa,
        "cudnn": cudnn,
        "tf32": backends.cuda.matmul.allow_tf32,
        "mkldnn": backends.mkldnn.enabled,
        "start method": torch.multiprocessing.get_start_method(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
    }


def test_a_run_leaves_the_process_as_it_was(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A setting that the pack changes and leaves is a bug in somebody else's workflow, where nobody looks for it."""
    import accelerate
    import diffusers
    import peft
    import server
    import transformers

    from cogvideox.tests.tasks import Task, pictures
    from cogvideox.training.config import TrainConfig
    from cogvideox.training.graph import train_lora

    # What these set when they are imported is not ours; nor are the loggers of what they import later.
    assert accelerate and diffusers and peft and server and transformers
    loggers = known_loggers()
    before, numbers = shared_state(loggers), torch.get_rng_state()
    task = Task(tiny_pipelines["5b"])
    with torch.inference_mode():
        latent: Latent = {"samples": task.vae.encode(pictures(9))}
        samples = task.sample(task.positive, task.negative, latent, steps=1)
        task.vae.decode(samples)
        train_lora(task.model, [latent], [task.positive], TrainConfig(max_steps=1, rank=2), tmp_path)
    after = shared_state(loggers)
    assert [name for name in before if before[name] != after[name]] == []
    assert torch.equal(numbers, torch.get_rng_state())
