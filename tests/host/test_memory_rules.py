"""ComfyUI's rules of a card's memory as the forecast knows them, against ComfyUI itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sampler_helpers
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.host import memory_rules as rules
from cogvideox.host.memory_rules import GIB, Card
from cogvideox.keys import Latent
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes import sample as nodes
from cogvideox.nodes.controlnet import CogVideoXApplyControlNet
from cogvideox.nodes.long import CogVideoXContextWindows
from cogvideox.tests.fake_card import CARD, SizedCard, SizedPatcher
from cogvideox.tests.quantized_models import needs_int8

CPU = torch.device("cpu")
# Of ComfyUI's load_models_gpu. Its sizes may be floats; their default is 0, so that a type checker takes them for int.
LoadModels = Callable[..., None]
SIZES_GIB = (1, 2.75, 4, 8, 12, 16, 24)  # of what is free


def card(free: float, **more: Any) -> Card:
    return Card(CARD, free, mm.extra_reserved_memory(), mm.MIN_WEIGHT_MEMORY_RATIO, **more)


@pytest.mark.parametrize("ratio", (0.0, 0.4), ids=("NVIDIA", "others"))
@pytest.mark.parametrize("told_gib", (0, 1.3, 6.7))
@pytest.mark.parametrize("free_gib", SIZES_GIB)
def test_comfyui_loads_as_many_weights(
    free_gib: float, told_gib: float, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forecast with rules of its own would promise what ComfyUI then does not do."""
    monkeypatch.setattr(mm, "MIN_WEIGHT_MEMORY_RATIO", ratio)
    model: Any = SizedPatcher(int(10.4 * GIB))
    SizedCard(monkeypatch, int(free_gib * GIB), model)
    load: LoadModels = mm.load_models_gpu
    load([model], memory_required=2 * told_gib * GIB, minimum_memory_required=told_gib * GIB)
    budget = rules.weight_budget(card(free_gib * GIB), told_gib * GIB)
    assert min(model.bytes, int(budget)) == pytest.approx(model.on_card, abs=1)


@pytest.mark.parametrize(
    ("state", "all_stay"),
    ((mm.VRAMState.NORMAL_VRAM, False), (mm.VRAMState.HIGH_VRAM, True), (mm.VRAMState.NO_VRAM, False)),
)
def test_options_of_the_command_line_count(
    state: mm.VRAMState, all_stay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --highvram nothing is streamed and with --novram everything is, whatever the card."""
    model: Any = SizedPatcher(8 * GIB)
    SizedCard(monkeypatch, 4 * GIB, model)
    monkeypatch.setattr(mm, "vram_state", state)
    mm.load_models_gpu([model], memory_required=GIB, minimum_memory_required=GIB)
    here = rules.this_card(model)
    assert here.keeps_all == all_stay and here.keeps_none == (state == mm.VRAMState.NO_VRAM)
    if not all_stay:
        here = here._replace(free_bytes=4 * GIB)
        assert rules.weight_budget(here, GIB) == pytest.approx(model.on_card, abs=1)


def test_this_card_has_what_comfyui_can_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run the card is full of models that ComfyUI lets go: they are no reason to advise other settings. What
    another program holds is."""
    model, other = SizedPatcher(3 * GIB, 2 * GIB), SizedPatcher(4 * GIB, 4 * GIB)
    full = SizedCard(monkeypatch, 12 * GIB, model, other)
    full.add(SizedPatcher(GIB, GIB))  # of another program
    found = rules.this_card(model)  # type: ignore[arg-type]
    assert found.free_bytes == 11 * GIB and found.device == CARD
    assert found.reserved_bytes == mm.extra_reserved_memory()


KEY = "diffusion_model.transformer_blocks.1.ff.net.2.weight"


def with_lora(model: ModelPatcher) -> ModelPatcher:
    patched = model.clone()
    weight = model.model.diffusion_model.transformer_blocks[1].ff.net[2].weight
    patched.add_patches({KEY: ("diff", (torch.zeros(weight.shape),))}, 0.7)
    return patched


@pytest.mark.parametrize("streams", (0, 2))
@pytest.mark.parametrize(
    ("dtype", "lora"),
    (("fp32", False), ("fp32", True), ("fp8_e4m3fn", False), pytest.param("int8", True, marks=needs_int8)),
)
def test_the_same_layers_stay(
    tiny_pipelines: dict[str, Path], dtype: str, lora: bool, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers stay whole, a LoRA and a cast need room of their own, and streams hold what follows: on a small card these
    are a good part of it."""
    monkeypatch.setattr(mm, "NUM_STREAMS", streams)
    model = load_model(tiny_pipelines["5b"], dtype)
    model = with_lora(model) if lora else model
    size, layers = model.model_size(), rules.layer_sizes(model)
    seen = set()
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.2):
        model.partially_load(CPU, extra_memory=int(size * share))
        loaded = model.loaded_size()
        model.detach()
        free = int(size * share) + 2 * GIB
        small = Card(CARD, free, 0.0, streams=streams)
        found = rules.weights_on_card(small._replace(), size, layers, 2 * GIB)
        assert found.resident_bytes == loaded, share
        assert found.streamed_bytes == size - loaded
        seen.add(loaded)
    assert len(seen) > 3 and size in seen


def test_nothing_is_streamed_on_a_cpu(tiny_pipelines: dict[str, Path]) -> None:
    """On a CPU weights lie where they are computed with."""
    model = load_model(tiny_pipelines["5b"], "fp32")
    found = rules.weights_on_card(rules.this_card(model), model.model_size(), rules.layer_sizes(model), 1e15)
    assert found.streamed_bytes == 0


def run(model: ModelPatcher, frames: int = 2, control: Any = None) -> None:
    """One step of CogVideoX Sampler with guidance, on `frames` latents of 64 x 96 pixels."""
    width = model.model.diffusion_model.config.text_embed_dim
    text = [[[torch.randn(1, 226, width, generator=torch.Generator().manual_seed(n)), {}]] for n in (3, 4)]
    if control is not None:
        video = torch.rand(4 * frames - 3, 64, 96, 3)
        text = list(CogVideoXApplyControlNet.execute(text[0], text[1], control, video, 1.0, 0.0, 1.0).args)
    latent: Latent = {"samples": torch.zeros(1, 16, frames, 8, 12)}
    nodes.CogVideoXSample.execute(model, text[0], text[1], latent, 7, 1, 6.0, "ddim", False, 1.0)


def plain(model: ModelPatcher) -> ModelPatcher:
    return model


def windows(model: ModelPatcher) -> ModelPatcher:
    return CogVideoXContextWindows.execute(model, 9, 4, "standard_static", "pyramid", False).args[0]


@pytest.mark.parametrize(
    ("variant", "frames", "change"),
    (("5b", 3, plain), ("1.5-5B", 3, plain), ("1.5-5B", 4, plain), ("5b", 9, windows), ("2b", 3, with_lora)),
)
def test_comfyui_is_told_the_same(
    tiny_pipelines: dict[str, Path],
    variant: str,
    frames: int,
    change: Callable[[ModelPatcher], ModelPatcher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The forecast and the run ask the same function for the same size: 1.5's frame in front and windows included."""
    asked: list[tuple[float, float]] = []
    load: LoadModels = mm.load_models_gpu

    def record(models: list, memory_required: float = 0, minimum_memory_required: Any = None, **more: Any) -> None:
        asked.append((memory_required, minimum_memory_required))
        load(models, memory_required=memory_required, minimum_memory_required=minimum_memory_required, **more)

    model = change(load_model(tiny_pipelines[variant], "fp32"))
    monkeypatch.setattr(mm, "load_models_gpu", record)
    run(model, frames)
    even = frames + (variant.startswith("1.5") and frames % 2)
    assert asked == [rules.told_memory(model, (1, 16, even, 8, 12))]


def test_a_control_net_is_told_of(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs stay on the card through the step, and its weights are loaded with the model."""
    asked: list[tuple[list, float]] = []
    load: LoadModels = mm.load_models_gpu

    def record(models: list, memory_required: float = 0, **more: Any) -> None:
        asked.append((models, memory_required))
        load(models, memory_required=memory_required, **more)

    model = load_model(tiny_pipelines["5b"], "fp32")
    control = load_controlnet(write_controlnet(tmp_path / "net", "5b", 7, torch.float32), "fp32")
    monkeypatch.setattr(mm, "load_models_gpu", record)
    run(model, 2, control)
    models, told = asked[0]
    dtype = model.model_dtype()
    assert dtype is not None
    added = control.inference_memory_requirements(dtype)
    assert told == rules.told_memory(model, (1, 16, 2, 8, 12))[0] + added > added > 0
    # As forecast_run asks for it: the control net and what is chained before it.
    assert models[1:] == control.get_models() and len(models) == 2


@pytest.mark.parametrize("enough", (True, False))
def test_comfyui_batches_both_prompts_then(
    tiny_pipelines: dict[str, Path], enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two passes take half the memory of one batch: what is forecast for the other way is off by the step."""
    model = load_model(tiny_pipelines["5b"], "fp32")
    both, _ = rules.told_memory(model, (1, 16, 2, 8, 12))
    free = 1.5 * both + (1 if enough else -1)
    # What is free is asked of the patcher, before each step, once the weights are there.
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: free)
    sizes: list[int] = []
    forward = model.model.diffusion_model.forward

    def record(x: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        sizes.append(len(x))
        return forward(x, *args, **more)

    monkeypatch.setattr(model.model.diffusion_model, "forward", record)
    run(model)
    kept = rules.Weights(GIB, GIB)
    assert rules.both_in_one_batch(card(free + GIB), kept, both) == enough
    # Dynamic VRAM would give up the weights for it.
    assert rules.both_in_one_batch(card(free + GIB, is_dynamic=True), kept, both)
    assert sizes == ([2] if enough else [1, 1])


def test_nodes_on_the_model_are_left_as_they_are(tiny_pipelines: dict[str, Path]) -> None:
    """A forecast that adds the wrappers to the MODEL a second time would halve its windows, or double its memory."""
    model = windows(load_model(tiny_pipelines["5b"], "fp32"))
    first = rules.told_memory(model, (1, 16, 9, 8, 12))
    assert rules.told_memory(model, (1, 16, 9, 8, 12)) == first
    assert comfy.sampler_helpers.estimate_memory(model, [1, 16, 3, 8, 12], {}) == first
    assert not model.model_options["transformer_options"].get("wrappers")
