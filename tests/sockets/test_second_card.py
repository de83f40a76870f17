"""ComfyUI's Select CLIP Device and Select VAE Device: the pack's objects on another card than ComfyUI's own."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.host import several_cards
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.sockets import vae as vae_socket
from cogvideox.sockets.clip import CogVideoXClip
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.second_card import CPU, SECOND, multigpu_nodes

pytestmark = pytest.mark.usefixtures("inference")
CARD = torch.device("cuda", 1)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    return multigpu_nodes(monkeypatch)


@pytest.fixture(scope="module")
def clip(tiny_pipelines: dict[str, Path]) -> Any:
    return load_text_encoder(tiny_pipelines["5b"], "fp32")


@pytest.fixture
def vae(tiny_pipelines: dict[str, Path]) -> CogVideoXVAE:
    return load_vae(tiny_pipelines["5b"], "fp32")


def encoded(clip: Any, text: str = "A panda plays a guitar.") -> torch.Tensor:
    return clip.encode_from_tokens(clip.tokenize(text))


def test_the_encoder_of_the_chosen_card_encodes(nodes: Any, clip: Any) -> None:
    """ComfyUI's node exchanges the patcher alone: the weights of the first card were copied to the other for each
    prompt, while those that it had loaded there stayed unused."""
    want = encoded(clip)
    moved = nodes.SelectCLIPDeviceNode.execute(clip, "gpu:1").args[0]
    assert isinstance(moved, CogVideoXClip) and moved.patcher.load_device == SECOND
    assert moved.cond_stage_model is moved.patcher.model is not clip.cond_stage_model
    assert torch.equal(encoded(moved), want)
    back = nodes.SelectCLIPDeviceNode.execute(moved, "default").args[0]
    assert back.patcher.load_device == CPU and torch.equal(encoded(back), want)
    assert torch.equal(encoded(clip), want)


def test_what_is_patched_on_the_chosen_card_counts(nodes: Any, clip: Any) -> None:
    """A LoRA of the text encoder, put on after the card was chosen."""
    key = next(key for key in clip.patcher.model_state_dict() if key.endswith("DenseReluDense.wo.weight"))
    shape = clip.patcher.model_state_dict()[key].shape
    change = {key: ("diff", (torch.ones(shape),))}
    results = []
    for chosen in (clip, nodes.SelectCLIPDeviceNode.execute(clip, "gpu:1").args[0]):
        patched = chosen.clone()
        assert patched.add_patches(change, 0.1)
        results.append(encoded(patched))
    assert torch.equal(*results) and not torch.equal(results[0], encoded(clip))


def test_options_stay_with_a_copy(clip: Any) -> None:
    """CLIP Set Last Layer and the like are set on a clone."""
    clip.clone().clip_layer(-2)
    cloned = clip.clone()
    cloned.clip_layer(-2)
    assert cloned.layer_idx == -2 and cloned.clone().layer_idx == -2 and clip.layer_idx is None


def test_the_vae_of_the_chosen_card_decodes(nodes: Any, vae: CogVideoXVAE) -> None:
    """ComfyUI's node gives a copy of the VAE another network and another device."""
    latents = torch.randn(1, 16, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    want = vae.decode(latents)
    moved = nodes.SelectVAEDeviceNode.execute(vae, "gpu:1").args[0]
    moved.device = SECOND  # in the place of the stand-in that the node has looked at
    assert type(moved) is CogVideoXVAE and moved.patcher.load_device == SECOND
    assert moved.first_stage_model is moved.patcher.model is not vae.first_stage_model
    assert torch.equal(moved.decode(latents), want)
    assert torch.equal(moved.encode(want[0]), vae.encode(want[0]))
    assert torch.equal(moved.decode_tiled(latents, 8, 8), vae.decode_tiled(latents, 8, 8))
    loaded = [model.model for model in mm.current_loaded_models]
    assert moved.patcher in loaded
    assert torch.equal(vae.decode(latents), want)


def test_the_chosen_card_s_memory_is_counted(vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --cpu-vae and Select VAE Device the count would go on for the CPU, which keeps everything in one memory; and
    the first network would be kept alive by its count."""
    counted = []

    def count_peak(walk: Any, network: Any, size: Any, dtype: Any, plan: Any, device: Any, *_: Any) -> int:
        counted.append((network, device))
        return 1

    monkeypatch.setattr("cogvideox.vae.memory.count_peak", count_peak)
    latents = torch.randn(1, 16, 1, 8, 12)
    moved = copy.copy(vae)
    moved.first_stage_model, moved.device = copy.deepcopy(vae.first_stage_model), SECOND
    moved.decode(latents)
    vae.decode(latents)
    assert counted == [(moved.first_stage_model, SECOND), (vae.first_stage_model, CPU)]
    assert moved.memory_used_decode.__self__ is not vae.memory_used_decode.__self__


def test_kernels_are_launched_on_the_chosen_card(vae: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on CUDA's current device, and not where tensors are; between two parts of a video the device is
    that of whoever takes them."""
    current = [torch.device("cuda", 0)]

    class Current:
        def __init__(self, device: torch.device):
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device)

        def __exit__(self, *_: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Current)
    seen: list[torch.device] = []

    def made(kind: str) -> Any:
        def stream(*given: Any) -> Iterator[torch.Tensor]:
            for _ in range(2):
                seen.append(current[-1])
                yield torch.zeros(1, 32 if kind == "encode" else 3, 1, 8, 8)

        return stream

    for kind in ("decode", "encode"):
        monkeypatch.setattr(vae_socket, f"{kind}_stream", made(kind))
    monkeypatch.setattr(vae, "load", lambda *_: None)
    monkeypatch.setattr(vae, "device", CARD)
    for _ in vae.decode_stream(torch.zeros(1, 16, 3, 1, 1)):
        assert current == [torch.device("cuda", 0)]
    vae.encode(torch.zeros(5, 8, 8, 3))
    assert seen == 4 * [CARD] and len(current) == 1
    with several_cards.on_card(torch.device("cuda")), several_cards.on_card(CPU):
        assert len(current) == 1  # no card in particular
