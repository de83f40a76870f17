"""Which memory mode a decode or an encode runs in, and what it asks ComfyUI to free."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.sockets import vae as vae_socket
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.fake_card import CARD, SizedCard, SizedPatcher, failing_convolutions
from cogvideox.vae import plan as plans
from cogvideox.vae.plan import OffloadPlan

# bytes that a made-up video needs in each mode
NEEDED = {"fast": 400, "medium": 300, "low": 200, "least": 100}
WEIGHTS = 50


@pytest.fixture(scope="module")
def vae(tiny_pipelines: dict[str, Path]) -> CogVideoXVAE:
    return load_vae(tiny_pipelines["5b"], "fp32")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that ComfyUI is asked to free, each time that weights are to be loaded."""
    asked: list[int] = []
    load = mm.load_models_gpu

    def load_models_gpu(models: list, memory_required: int = 0, **options: Any) -> None:
        asked.append(memory_required)
        load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(mm, "load_models_gpu", load_models_gpu)
    return asked


def needed(shape: torch.Size, dtype: torch.dtype, plan: OffloadPlan) -> int:
    return NEEDED[plan.name]


RESERVED = 5000


def chosen(vae: CogVideoXVAE, memory: str, free: int, loaded: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mode that a decode runs in with `free` bytes free, beside those that stay reserved (--reserve-vram), and
    `loaded` of WEIGHTS bytes of weights on the device."""
    monkeypatch.setattr(mm, "extra_reserved_memory", lambda: RESERVED)
    monkeypatch.setattr(mm, "get_free_memory", lambda device=None, **_: free + RESERVED)
    monkeypatch.setattr(mm, "current_loaded_models", [])
    monkeypatch.setattr(mm, "load_models_gpu", lambda models, memory_required=0, **_: None)
    monkeypatch.setattr(vae, "size", WEIGHTS)
    monkeypatch.setattr(vae.patcher, "loaded_size", lambda: loaded)
    return vae.load(memory, None, torch.Size((1, 16, 3, 8, 12)), needed).name


@pytest.mark.parametrize("mode", NEEDED)
def test_auto_takes_the_fastest_mode_that_fits(vae: CogVideoXVAE, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte too few, and the decode would run out of memory on its way, start again and take twice as long."""
    leaner = {"fast": "medium", "medium": "low", "low": "least", "least": "least"}
    assert chosen(vae, "auto", NEEDED[mode], WEIGHTS, monkeypatch) == mode
    assert chosen(vae, "auto", NEEDED[mode] - 1, WEIGHTS, monkeypatch) == leaner[mode]


@pytest.mark.parametrize("loaded", (0, 20, WEIGHTS))
def test_auto_leaves_room_for_weights_still_to_load(
    vae: CogVideoXVAE, loaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VAE is seldom on the card when a decode begins: its weights take their part of what is free."""
    room = NEEDED["fast"] + WEIGHTS - loaded
    assert chosen(vae, "auto", room, loaded, monkeypatch) == "fast"
    assert chosen(vae, "auto", room - 1, loaded, monkeypatch) == "medium"


def loaded_on(
    card: SizedCard, vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch, needs: dict[str, int], weights: SizedPatcher
) -> str:
    """The mode of an automatic decode on `card`, with the VAE's `weights` loaded by ComfyUI itself."""
    card.add(weights)
    monkeypatch.setattr(vae, "patcher", weights)
    monkeypatch.setattr(vae, "size", weights.bytes)
    monkeypatch.setattr(vae, "device", CARD)
    plan = vae.load("auto", None, torch.Size((1, 16, 13, 60, 90)), lambda shape, dtype, plan: needs[plan.name])
    return plan.name


GIB = 1 << 30
NEEDS = {"fast": 6 * GIB, "medium": 4 * GIB, "low": 2 * GIB, "least": GIB}


@pytest.mark.parametrize("shares", ((10,), (6, 4)))
def test_a_full_card_is_emptied_for_the_fastest_mode(
    vae: CogVideoXVAE, shares: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After sampling the diffusion model fills the card: auto took the leanest mode, minutes slower, although ComfyUI
    would have let the model go. It lets go of as much as the decode needs, and of no more."""
    models = [SizedPatcher(share * GIB, share * GIB) for share in shares]
    card, weights = SizedCard(monkeypatch, 11 * GIB, *models), SizedPatcher(GIB // 2)
    assert loaded_on(card, vae, monkeypatch, NEEDS, weights) == "fast"
    assert weights.on_card == weights.bytes and NEEDS["fast"] <= card.free() < NEEDS["fast"] + 2 * GIB
    assert sum(model.on_card for model in models) > 2 * GIB


def test_what_comfyui_cannot_unload_does_not_count(vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --highvram unloaded models stay on the card, and what another program holds there is not ComfyUI's: a mode
    chosen for it would run out of memory."""
    kept = SizedPatcher(6 * GIB, 6 * GIB, offload_device=CARD)
    card = SizedCard(monkeypatch, 11 * GIB, kept)
    assert loaded_on(card, vae, monkeypatch, NEEDS, SizedPatcher(GIB // 2)) == "medium"
    assert kept.on_card == 6 * GIB
    card = SizedCard(monkeypatch, 11 * GIB, SizedPatcher(2 * GIB, 2 * GIB))
    card.add(SizedPatcher(7 * GIB, 7 * GIB))  # of another program: ComfyUI knows nothing of it
    assert loaded_on(card, vae, monkeypatch, NEEDS, SizedPatcher(GIB // 2)) == "low"


def test_weights_of_the_vae_itself_are_not_counted_as_room(vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are needed for the decode: counted as what can go, they would take the place of its frames."""
    weights = SizedPatcher(2 * GIB, 2 * GIB)
    card = SizedCard(monkeypatch, 7 * GIB, weights)
    assert loaded_on(card, vae, monkeypatch, NEEDS, weights) == "medium"


def test_shared_memory_is_counted_once(vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac a model that is unloaded stays in the same memory."""
    card = SizedCard(monkeypatch, 11 * GIB, SizedPatcher(8 * GIB, 8 * GIB))
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.SHARED)
    assert loaded_on(card, vae, monkeypatch, NEEDS, SizedPatcher(GIB // 2)) == "low"


@pytest.mark.parametrize(("memory", "mode"), (("fast", "fast"), ("low", "low")))
@pytest.mark.parametrize("free", (0, 1000))
def test_a_mode_that_the_user_names_is_taken(
    vae: CogVideoXVAE, memory: str, mode: str, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a mode knows better than the count."""
    assert chosen(vae, memory, free, WEIGHTS, monkeypatch) == mode


def test_comfyui_is_asked_for_what_the_mode_needs(vae: CogVideoXVAE, asked: list[int]) -> None:
    """Asked for nothing, ComfyUI leaves the diffusion model on the card, and the decode runs out of memory."""
    z = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    for memory, plan in (("fast", plans.FAST), ("low", plans.LOW)):
        frames = vae.decode(z, {"memory": memory})
        assert asked.pop() == vae.memory_used_decode(z.shape, vae.vae_dtype, plan) > frames.nbytes
    vae.encode(frames[0])
    assert asked.pop() == vae.memory_used_encode((1, 3, 9, 64, 96), vae.vae_dtype, plans.FAST) > frames.nbytes
    vae.decode_tiled(z, tile_x=8, tile_y=8)
    plan = plans.in_bands(plans.LOW, 64 * 64)
    assert asked.pop() == vae.memory_used_decode(z.shape, vae.vae_dtype, plan)
    assert not asked


def test_stock_nodes_ask_for_as_much(vae: CogVideoXVAE) -> None:
    """ComfyUI's own nodes call memory_used_decode and memory_used_encode with a shape and a type."""
    small, large = (vae.memory_used_decode((1, 16, 3, size, size), torch.float32) for size in (16, 64))
    assert 0 < 4 * small < large
    small, large = (vae.memory_used_encode((1, 3, 9, size, size), torch.float32) for size in (128, 512))
    assert 0 < 4 * small < large


@pytest.mark.parametrize("way", ("decode", "encode"))
def test_tiled_ways_work_on_no_more_than_a_tile(vae: CogVideoXVAE, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tiles has little memory: a tile that is ignored runs out of it."""
    used: list[OffloadPlan] = []
    stream = getattr(vae_socket, f"{way}_stream")

    def record(network: torch.nn.Module, video: torch.Tensor, plan: OffloadPlan, *rest: Any) -> Iterator[torch.Tensor]:
        used.append(plan)
        return stream(network, video, plan, *rest)

    monkeypatch.setattr(vae_socket, f"{way}_stream", record)
    for tile_x, tile_y in ((64, 64), (128, 64), (512, 512)):
        if way == "decode":
            vae.decode_tiled(torch.zeros(1, 16, 1, 8, 12), tile_x=tile_x // 8, tile_y=tile_y // 8)
        else:
            vae.encode_tiled(torch.zeros(1, 64, 96, 3), tile_x=tile_x, tile_y=tile_y)
    largest = plans.LOW.band_pixels
    assert [plan.band_pixels for plan in used] == [64 * 64, 128 * 64, largest] and largest is not None
    assert all(plan.name == "low" for plan in used)
    # of the bands that the tile of 64 x 64 makes of a wide frame, none is larger
    assert all((stop - start) * 256 <= 64 * 64 for start, stop in used[0].bands(480, 256))


@pytest.mark.parametrize("way", ("decode", "encode"))
def test_running_out_of_memory_goes_on_leaner(vae: CogVideoXVAE, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of sampling, or a long clip, must not be lost; and without a word the user would wonder why this run is
    slow, and why that one was not."""
    messages: list[str] = []
    monkeypatch.setattr(vae, "notify", messages.append)
    pixels = torch.rand(9, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    call: Callable[[], torch.Tensor]
    call = partial(vae.encode, pixels) if way == "encode" else partial(vae.decode, vae.encode(pixels))
    want = call()
    failing_convolutions(monkeypatch, lambda plan, number: number == 3)
    assert torch.equal(call(), want)
    assert messages == [
        f"{way.capitalize()[:-1]}ing in memory mode fast needs more memory than there is: it continues in mode medium, "
        "slower and with the same result."
    ]
