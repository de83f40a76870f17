"""A second card for ComfyUI's multi-GPU nodes: the CPU under another name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.tests.support import host_lacks

CPU, SECOND = torch.device("cpu"), torch.device("cpu", 0)  # torch takes them for unequal, and computes on both


class _Choice:
    """SECOND where ComfyUI's nodes look at what was chosen: they treat a CPU apart, and refuse it for a VAE."""

    type = "card"


def multigpu_nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ComfyUI's nodes for several cards, which find two: "gpu:1" is SECOND."""
    nodes = pytest.importorskip("comfy_extras.nodes_multigpu", reason=host_lacks("multi-GPU nodes"))
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda exclude_current=False: [CPU, SECOND][exclude_current:])
    monkeypatch.setattr(mm, "resolve_gpu_device_option", {"default": None, "gpu:1": _Choice}.get)
    retarget = nodes._retarget_patcher

    def to_second(patcher: Any, load: Any, offload: Any) -> Any:
        return retarget(patcher, SECOND if load is _Choice else load, offload)

    monkeypatch.setattr(nodes, "_retarget_patcher", to_second)
    monkeypatch.setattr(mm, "unet_manual_cast", lambda *_, **__: None)
    # ComfyUI's node fails where an earlier test's model is still listed and its patcher is gone.
    monkeypatch.setattr(mm, "current_loaded_models", [])
    return nodes


@contextmanager
def batches_by_card(model: Any) -> Iterator[dict[torch.device, list[int]]]:
    """Device -> the batch of each forward of the transformer there, while this lasts."""
    seen: dict[torch.device, list[int]] = {}
    handles = []
    for patcher in (model, *model.get_additional_models_with_key("multigpu")):
        found = seen.setdefault(patcher.load_device, [])
        norm = patcher.model.diffusion_model.transformer_blocks[0].attn1.norm_q

        def note(_: Any, inputs: Any, __: Any, found: list[int] = found) -> None:
            found.append(inputs[0].shape[0])

        handles.append(norm.register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
