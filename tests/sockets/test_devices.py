"""A card without a card: fake tensors that know their device, and dynamic VRAM's bookkeeping."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from cogvideox.host import async_copies
from cogvideox.host.compat import is_dynamic
from cogvideox.host.quantized import is_quantized
from cogvideox.host.weight_patcher import DynamicWeightPatcher, WeightPatcher
from cogvideox.model_loaders.load_model import load_model
from cogvideox.samplers.comfy_sampler import schedule_sigmas
from cogvideox.tests.support import ALL_VARIANTS, host_lacks
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.transformer import attention

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")


def move_tensors(
    self: torch.nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> torch.nn.Module:
    """nn.Module._apply without its in-place swaps, which fake tensors refuse."""
    for module in self.modules() if recurse else [self]:
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(function(value.data), requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = function(value)
    return self


@pytest.mark.parametrize(("variant", "share"), long_but_one_in(3, ALL_VARIANTS, (None, 0.3, 0.0001)))
def test_no_tensor_is_left_on_the_wrong_device(
    tiny_pipelines: dict[str, Path], variant: str, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table or weight left on the CPU works in every test without a card and fails on every card."""
    monkeypatch.setattr(mm, "get_torch_device", lambda: CARD)
    monkeypatch.setattr(mm, "unet_offload_device", lambda: CPU)
    monkeypatch.setattr(mm, "pin_memory", lambda weight: False)
    monkeypatch.setattr(async_copies.args, "disable_pinned_memory", True)  # a fake tensor cannot be pinned
    # where all weights are streamed, the lean mode
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: 0 if share == 0.0001 else 1 << 40)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "_apply", move_tensors)
    # a host started for the CPU would measure the memory of a card that is not there
    monkeypatch.setattr(attention, "attention_for", lambda device: attention_pytorch)
    model = load_model(tiny_pipelines[variant], "fp32", disable_dynamic=True)
    assert model.load_device == CARD
    dit = model.model.diffusion_model
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    move_tensors(dit, fake.from_tensor)
    # tables are cached by device: none of this test's fakes may reach another
    from cogvideox.transformer import positions

    tables: list[Any] = [getattr(positions, name).__wrapped__ for name in ("rotary_table", "sincos_table")]
    with fake:
        if share is None:
            model.patch_model(device_to=CARD)
        else:
            model.partially_load(CARD, extra_memory=int(model.model_size() * share))
        size = (2, 8, 12) if dit.config.patch_size_t else (3, 8, 12)
        latents = torch.randn(1, dit.config.in_channels, *size, device=CARD)
        context = torch.randn(1, 226, dit.config.text_embed_dim, device=CARD)
        ofs = torch.full((1,), 2.0, device=CARD)
        with torch.no_grad():
            out = dit(latents, torch.full((1,), 500.0, device=CARD), context=context, ofs=ofs)
    for table in tables:
        table.cache_clear()
    assert out.device == CARD and out.shape[1] == 16
    assert any(p.device == CPU for p in dit.parameters()) == (share is not None)


class _HostBuffer:
    """Stands for the native buffer in pinned memory."""

    def __init__(self, *_: object):
        self.size = 0

    def truncate(self, *_: object, **__: object) -> None: ...


class _Pages:
    """Stands for the native allocator of dynamic VRAM."""

    def prioritize(self) -> None: ...

    def alloc(self, size: int) -> tuple:
        return ("page", size)

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, amount: int) -> int:
        return 0


# the stand-ins below are those of the dynamic VRAM that 0.24 brought
@pytest.mark.skipif(not hasattr(mm, "pinned_hostbuf_size"), reason=host_lacks("dynamic VRAM of this kind"))
@pytest.mark.parametrize("weight_dtype", ("bf16", "fp8_e4m3fn"))
def test_dynamic_vram_stages_every_weight(
    tiny_pipelines: dict[str, Path], weight_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under dynamic VRAM a leaf that is not ComfyUI's is loaded by force and silently loses its LoRA."""
    host_buffer = comfy.model_patcher.comfy_aimdo.host_buffer
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda path, **_: load_file(path))
    monkeypatch.setattr(host_buffer, "HostBuffer", _HostBuffer)
    monkeypatch.setattr(mm, "pinned_hostbuf_size", lambda size: 0)
    pages, patcher_class = _Pages(), comfy.model_patcher.ModelPatcherDynamic
    monkeypatch.setattr(patcher_class, "_vbar_get", lambda self, create=False: pages)
    # on a CPU it makes a plain patcher of itself
    monkeypatch.setattr(patcher_class, "__new__", lambda cls, *a, **k: object.__new__(cls))
    monkeypatch.setattr(patcher_class, "detach", lambda self, *a, **k: None)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    model = load_model(tiny_pipelines["2b"], weight_dtype)
    dit = model.model.diffusion_model
    leaf = dit.transformer_blocks[0].ff.net[0].proj
    key = "diffusion_model.transformer_blocks.0.ff.net.0.proj.weight"
    model.add_patches({key: ("diff", (torch.ones(256, 64),))}, 1.0)
    model.load(CPU)
    # ComfyUI itself loads leaves of up to 16 KiB by force
    large = [m for m in dit.modules() if sum(p.nbytes for p in m.parameters(recurse=False)) > 64 * 1024]
    assert type(model) is DynamicWeightPatcher
    if weight_dtype == "bf16":
        assert len(large) >= 4 and all(hasattr(m, "_v") for m in large), "loaded by force"
        # the file's fp32 stays mapped; ComfyUI casts each weight to the type that the model was built with
        assert leaf.weight.dtype == torch.float32 and leaf.weight_comfy_model_dtype == torch.bfloat16
    else:
        assert hasattr(leaf, "_v") and leaf._v[1] < 256 * 64 * 2, "counted at full size"
        assert is_quantized(leaf.weight)
        assert not is_dynamic(model.clone(disable_dynamic=True))
        assert type(model.clone(disable_dynamic=True)) is WeightPatcher
    assert leaf.weight_lowvram_function is not None


def test_sigmas_of_a_model_on_the_card(tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a model has been on the card its noise levels stay there; the scheduler node must still give CPU sigmas."""
    monkeypatch.setattr(torch.nn.Module, "_apply", move_tensors)
    sampling = load_model(tiny_pipelines["5b"], "fp32").model.model_sampling
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        move_tensors(sampling, lambda tensor: fake.from_tensor(tensor).to(CARD))
        assert sampling.sigmas.device == CARD
        assert schedule_sigmas(sampling, 7, 1.0).device == CPU
