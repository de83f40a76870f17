"""What a run takes, counted before it begins, against what is then asked for, counted or measured."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.text_encoders.t5
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.benchmarks import bench_sizes
from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.host.memory_rules import GIB, RESERVED_BYTES, Card, card_of, layer_sizes
from cogvideox.model_loaders import forecast as module
from cogvideox.model_loaders.downloads.repositories import REPOSITORIES
from cogvideox.model_loaders.forecast import Autoencoder, Forecast, TextEncoder, VideoSize, forecast_run
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import T5_XXL, load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.compile import CogVideoXCompile
from cogvideox.sockets.families import FAMILIES
from cogvideox.tests.fake_card import CARD, SizedCard, SizedPatcher
from cogvideox.tests.figures.cells import Cell
from cogvideox.tests.hollow_files import OFFICIAL, hollow_model
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.tests.quantized_models import KINDS, load
from cogvideox.tests.tiers import long_after, long_rows_after
from cogvideox.transformer import token_passes

OFFICIAL_NAMES = ("CogVideoX-2b", "CogVideoX-5b", "CogVideoX-5b-I2V", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V")
built = cache(hollow_model)  # a forecast changes nothing of a model
SMALL, LARGE = VideoSize(720, 480, 49), VideoSize(1360, 768, 81)
TINY = VideoSize(96, 64, 9)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return module.official_text_encoder()


@pytest.fixture(scope="module")
def vae() -> Autoencoder:
    return module.official_vae(card_of(8))


@pytest.fixture(scope="module")
def models() -> dict[str, ModelPatcher]:
    return {name: built(name) for name in ("CogVideoX-5b", "CogVideoX1.5-5B")}


@pytest.fixture
def tiny(tiny_pipelines: dict[str, Path]) -> ModelPatcher:
    return load_model(tiny_pipelines["5b"], "fp32")


@pytest.mark.parametrize("name", long_after(2, reversed(OFFICIAL_NAMES)))
def test_the_disk_is_at_most_the_download(name: str, encoder: TextEncoder, vae: Autoencoder) -> None:
    """The forecast counts 16 bits; the published VAEs are in fp32, and so is the text encoder of 1.5."""
    size = LARGE if "1.5" in name else SMALL
    found = forecast_run(built(name), size, card_of(24), encoder, vae)
    (repository,) = (entry for entry in REPOSITORIES if entry.name == name)
    assert found.family == name
    fp32_gb = 0.43 + (9.52 if "1.5" in name else 0.0)
    assert found.disk_bytes / 1e9 == pytest.approx(repository.gigabytes - fp32_gb, abs=0.2)
    # all weights and the frames are in main memory as well
    frames = size.frames * size.width * size.height * 3 * 4
    assert found.host_bytes == pytest.approx(found.disk_bytes + frames, rel=0.03)


@pytest.mark.parametrize(("free_gib", "within"), ((8, 0.1), (4, 0.1), (2.75, 0.12)))
def test_an_h100_took_as_much(
    free_gib: float, within: float, models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder
) -> None:
    """A forecast that no card confirms is a guess: 5b was run in parts of an H100, with all else taken."""
    part = Card(CARD, free_gib * GIB, RESERVED_BYTES)
    found = forecast_run(models["CogVideoX-5b"], SMALL, part, encoder, vae)

    def measured(after: str) -> float:
        row = f"5b run in {free_gib:g} GiB of the card"
        return Cell("cuda", "gpu", "5b on a part of the card", (row,), "found", after)()

    assert found.denoiser.peak_bytes / GIB == pytest.approx(measured("peak "), rel=within)
    assert found.denoiser.weights.resident_bytes / GIB == pytest.approx(measured("of which "), abs=0.2)
    assert found.denoiser.weights.bytes / GIB == pytest.approx(10.38, abs=0.01)
    assert not found.in_one_batch  # as there: batches of [1]


@pytest.mark.parametrize("name", long_after(2, reversed(OFFICIAL_NAMES)))
def test_the_step_is_what_its_tensors_take(name: str, encoder: TextEncoder, vae: Autoencoder) -> None:
    """Counted tensor by tensor, with 1.5's frame in front. Too low a forecast ends a run, a high one sells a card."""
    size = LARGE if "1.5" in name else SMALL
    model, latents = built(name), bench_sizes.MODELS[name]
    found = forecast_run(model, size, card_of(80), encoder, vae)
    assert found.in_one_batch
    assert found.denoiser.working_bytes == model.model.memory_required([2, 16, *latents])
    counted = bench_sizes.step_bytes(name, latents)
    assert counted <= found.denoiser.working_bytes <= 1.1 * counted


@pytest.mark.parametrize(
    ("name", "video", "free_gib"),
    (("CogVideoX-5b", SMALL, 1.7), ("CogVideoX1.5-5B", LARGE, 2.0)),
    ids=("5b", "1.5-5B"),
)
def test_all_of_a_run_on_the_smallest_cards(
    name: str,
    video: VideoSize,
    free_gib: float,
    models: dict[str, ModelPatcher],
    encoder: TextEncoder,
    vae: Autoencoder,
) -> None:
    """There the denoiser takes its lean mode, with streamed weights. docs/speed.md has the sizes."""
    found = forecast_run(models[name], video, Card(CARD, free_gib * GIB, RESERVED_BYTES), encoder, vae)
    assert not found.missing_bytes
    assert all(part.peak_bytes <= (free_gib - 0.25) * GIB for part in found.parts.values())
    assert found.denoiser.weights.streamed_bytes > 0.95 * found.denoiser.weights.bytes
    more = forecast_run(models[name], video, card_of(80), encoder, vae)
    assert found.denoiser.working_bytes < (0.35 if found.in_one_batch else 0.2) * more.denoiser.working_bytes


@pytest.mark.parametrize(
    ("gigabytes", "video"),
    long_rows_after(4, [(6, SMALL), (8, LARGE), (12, SMALL), (24, LARGE), *itertools.product((4, 16), (SMALL, LARGE))]),
)
def test_the_vae_takes_that_mode(
    gigabytes: int, video: VideoSize, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` chooses by its own rule: another one here would name a mode that no decode runs in."""
    real = load_vae(tiny_pipelines["5b"], "bf16")
    card = card_of(gigabytes)
    official = module.official_vae(card)
    monkeypatch.setattr(real, "first_stage_model", official.network)
    peak = module.PeakMemory(official.network, CARD)
    weights: Any = SizedPatcher(official.bytes)
    monkeypatch.setattr(real, "patcher", weights)
    monkeypatch.setattr(real, "size", official.bytes)
    monkeypatch.setattr(real, "device", CARD)
    monkeypatch.setattr(module.mm, "extra_reserved_memory", lambda: RESERVED_BYTES)
    full = SizedPatcher(2 * GIB, 2 * GIB)  # what a run has left there
    SizedCard(monkeypatch, int(card.free_bytes), weights, full)
    shape = torch.Size((1, *video.latent_shape[1:]))
    chosen = real.load("auto", None, shape, peak.decode_bytes)
    found = module._vae_part(card, official, video, "decode")
    assert (found.mode, found.working_bytes) == (chosen.name, peak.decode_bytes(shape, torch.bfloat16, chosen))
    assert weights.on_card == found.weights.resident_bytes


def test_a_leaner_mode_holds_more_in_main_memory(vae: Autoencoder) -> None:
    """On a small card the VAE moves gigabytes to main memory, which a small machine may not have."""
    found = {gb: module._vae_part(card_of(gb), vae, LARGE, "decode") for gb in (24, 12, 8, 4)}
    assert [part.mode for part in found.values()] == ["fast", "medium", "low", "least"]
    held = [part.host_bytes for part in found.values()]
    assert held[0] == 0 and held == sorted(held) and held[1] > GIB
    # What leaves the card arrives there.
    assert held[1] >= 0.9 * (found[24].working_bytes - found[12].working_bytes)


@pytest.mark.parametrize("gigabytes", long_after(3, (8, 24, 80, 6, 12, 16, 48)))
def test_the_advice_leaves_less_to_stream(
    gigabytes: int, models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder
) -> None:
    """Eight bits cost some exactness: they are advised where they gain something, and nowhere else."""
    for model, video in zip(models.values(), (SMALL, LARGE)):
        found = forecast_run(model, video, card_of(gigabytes), encoder, vae)
        name, smaller = found.eight_bits
        assert smaller is not None and name in ("int8", "fp8_e4m3fn")
        streamed = found.denoiser.weights.streamed_bytes
        assert found.weight_dtype == (name if streamed else "default")
        assert smaller.weights.streamed_bytes < streamed or not streamed
        assert not found.missing_bytes
        assert all(part.peak_bytes <= found.card.free_bytes for part in found.parts.values())


def test_a_larger_card_streams_less(models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder) -> None:
    """The figures have to lead somewhere: to a card that holds all of it, in one batch."""
    cards = [card_of(gb) for gb in (4, 8, 16, 48)]
    found = [forecast_run(models["CogVideoX1.5-5B"], LARGE, card, encoder, vae) for card in cards]
    streamed = [each.denoiser.weights.streamed_bytes for each in found]
    assert streamed == sorted(streamed, reverse=True) and streamed[0] > 0 == streamed[-1]
    assert [each.in_one_batch for each in found] == sorted(each.in_one_batch for each in found)
    assert found[-1].in_one_batch and not found[0].in_one_batch


def test_dynamic_vram_makes_room_for_both_prompts(
    models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder
) -> None:
    """There weights give way to the step, as an H100 with 6 GiB free has shown: batches of two, where the same memory
    without dynamic VRAM gave batches of one."""
    free = {is_dynamic: Card(CARD, 6 * GIB, RESERVED_BYTES, is_dynamic=is_dynamic) for is_dynamic in (False, True)}
    found = {key: forecast_run(models["CogVideoX-5b"], SMALL, card, encoder, vae) for key, card in free.items()}
    assert found[True].in_one_batch and not found[False].in_one_batch
    more = found[True].denoiser.weights.streamed_bytes - found[False].denoiser.weights.streamed_bytes
    assert more == pytest.approx(found[False].denoiser.working_bytes, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_are_counted_as_they_are_loaded(
    kind: str, wide: Path, encoder: TextEncoder, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What weight_dtype saves is said before it is tried; weights that are quantised already need no such advice."""
    model = load(wide, kind, monkeypatch)
    found = forecast_run(model, TINY, card_of(1.1), encoder, vae)
    assert found.eight_bits == ("", None) and found.weight_dtype == "default"
    assert found.denoiser.weights.bytes == model.model_size()
    if kind not in ("int8", "fp8_e4m3fn"):
        return
    plain = load_model(wide, "fp32")
    want, got = (
        sorted((layer.bytes, layer.streamed_bytes) for layer in layers)
        for layers in (
            layer_sizes(model),
            module.eight_bit_layers(plain.model.diffusion_model, model.model.get_dtype_inference()),
        )
    )
    # A few bytes of ComfyUI's note on the format stand beside each matrix, and fp8 has one scale instead of many.
    assert len(got) == len(want)
    for expected, counted in zip(want, got):
        assert counted == pytest.approx(expected, rel=0.02, abs=128)


def test_a_lora_takes_main_memory(tiny: ModelPatcher, encoder: TextEncoder, vae: Autoencoder) -> None:
    """A LoRA of a gigabyte stays in main memory, beside the weights."""
    patched = tiny.clone()
    key = "diffusion_model.transformer_blocks.1.ff.net.2.weight"
    delta = torch.zeros(tiny.model.diffusion_model.transformer_blocks[1].ff.net[2].weight.shape)
    patched.add_patches({key: ("diff", (delta,))}, 0.7)
    small = Card(CARD, 1.3 * GIB, RESERVED_BYTES)
    plain, found = (forecast_run(model, TINY, small, encoder, vae) for model in (tiny, patched))
    assert found.host_bytes == plain.host_bytes + delta.nbytes
    assert found.denoiser.weights.bytes == plain.denoiser.weights.bytes
    assert tiny.patches == {}


def test_a_lora_of_a_file_is_counted() -> None:
    """ComfyUI keeps LoRAs as objects with `weights`, in tuples with strengths and functions among the tensors."""

    class Adapter:
        weights = (torch.zeros(4, 8), torch.zeros(8, 4), 1.0, None)

    patches = {
        "a": [(1.0, Adapter(), 1.0, None, lambda x: x)],
        "b": [(0.5, ("diff", (torch.zeros(3),)), 1.0, None, None)],
    }
    assert module.patch_bytes(patches) == 4 * (32 + 32 + 3)


def test_control_nets_take_their_share(
    tiny: ModelPatcher, tmp_path: Path, encoder: TextEncoder, vae: Autoencoder
) -> None:
    """A control net is on the card together with the denoiser, and so are its outputs."""
    control = load_controlnet(write_controlnet(tmp_path / "net", "5b", 7, torch.float32), "fp32")
    plain, found = (forecast_run(tiny, TINY, card_of(8), encoder, vae, net) for net in (None, control))
    weights = sum(each.model_size() for each in control.get_models())
    assert sum(each.resident_bytes for each in found.control) == weights > 0 == len(plain.control)
    added = control.inference_memory_requirements(torch.float32)
    assert found.denoiser.working_bytes == plain.denoiser.working_bytes + added
    assert found.host_bytes == plain.host_bytes + weights
    # and on a card that they fill together
    tight = Card(CARD, card_of(8).least_bytes + 0.5 * weights, RESERVED_BYTES)
    squeezed = forecast_run(tiny, TINY, tight, encoder, vae, control)
    assert squeezed.control[0].streamed_bytes > 0


# one of every task first, and of every shape
COUNTED = ("CogVideoX-2b", "CogVideoX1.5-5B-I2V", "CogVideoX-Fun-5b-InP", "CogVideoX-Fun-V1.5-5b-Control", "VOID")


@pytest.mark.parametrize(
    "family",
    long_after(len(COUNTED), sorted((f for f in FAMILIES if f.name in OFFICIAL), key=lambda f: f.name not in COUNTED)),
    ids=lambda f: f.name,
)
def test_every_family_is_counted(family: Any, encoder: TextEncoder, vae: Autoencoder) -> None:
    """Models that are given a picture or a video encode it before sampling: that is a peak too."""
    found = forecast_run(built(family.name), SMALL, card_of(12), encoder, vae)
    assert (found.encode is None) == (family.task == "text")
    if found.encode is not None and family.task != "image":
        picture = module._vae_part(card_of(12), vae, SMALL, "encode", 1)
        assert found.encode.working_bytes > picture.working_bytes


def test_compiled_blocks_do_without_the_kernels(
    models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step in a graph has none of the kernels that halve its memory: with half of it free, it would be computed in
    parts, without the graph."""
    model = models["CogVideoX-5b"]
    monkeypatch.setattr(model, "load_device", CARD)
    monkeypatch.setattr(token_passes, "_has_triton", lambda: True)
    plain, found = (
        forecast_run(each, SMALL, card_of(24), encoder, vae)
        for each in (model, CogVideoXCompile.execute(model).args[0])
    )
    assert found.denoiser.working_bytes > 1.7 * plain.denoiser.working_bytes


@pytest.mark.parametrize("gigabytes", long_after(2, (0.5, 2, 1, 1.5, 3)))
def test_what_does_not_fit_is_said(
    gigabytes: float, models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder
) -> None:
    """A card that is far too small has no negative figures and no mode that runs."""
    found = forecast_run(models["CogVideoX1.5-5B"], LARGE, card_of(gigabytes), encoder, vae)
    assert "denoiser" in found.missing_bytes and found.decode.mode == "least"
    for part in found.parts.values():
        assert 0 <= part.weights.resident_bytes <= part.weights.bytes
        assert part.weights.buffer_bytes >= 0 < part.peak_bytes


@pytest.mark.parametrize("video", (VideoSize(16, 16, 1), VideoSize(16384, 16, 1, 64), VideoSize(1920, 1088, 1025)))
def test_sizes_at_the_limits(
    video: VideoSize, models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder
) -> None:
    """The smallest and the largest videos of the nodes' inputs end in figures, not in an error."""
    found = forecast_run(models["CogVideoX-5b"], video, card_of(24), encoder, vae)
    assert found.denoiser.working_bytes > 0 < found.decode.working_bytes


def test_a_size_without_positions_is_refused(encoder: TextEncoder, vae: Autoencoder) -> None:
    """CogVideoX-5b-I2V cannot run at this size: figures for it would send the user into a refusal."""
    with pytest.raises(UserError, match="480"):
        forecast_run(built("CogVideoX-5b-I2V"), VideoSize(1024, 1024, 49), card_of(24), encoder, vae)


def test_the_batch_is_part_of_the_step(models: dict[str, ModelPatcher], encoder: TextEncoder, vae: Autoencoder) -> None:
    """Four videos of one run are one batch of the denoiser, and are decoded one after the other."""
    one, four = (
        forecast_run(models["CogVideoX-5b"], VideoSize(720, 480, 49, count), card_of(80), encoder, vae)
        for count in (1, 4)
    )
    # but for the table of positions, which serves all
    assert four.denoiser.working_bytes == pytest.approx(4 * one.denoiser.working_bytes, rel=0.01)
    assert four.decode == one.decode
    assert four.host_bytes - one.host_bytes == 3 * 49 * 480 * 720 * 3 * 4


def test_what_is_loaded_is_counted(tiny_pipelines: dict[str, Path], tiny: ModelPatcher) -> None:
    """With the user's own VAE and text encoder connected, the figures are theirs."""
    folder = tiny_pipelines["5b"]
    clip, real = load_text_encoder(folder, "fp32"), load_vae(folder, "fp32")
    found: Forecast = forecast_run(tiny, TINY, card_of(8), module.text_encoder_of(clip), module.vae_of(real))
    assert found.text_encoder.weights.bytes == clip.patcher.model_size()
    assert found.decode.weights.bytes == pytest.approx(real.model_size(), rel=1e-3)
    assert found.encode is None


class _NoT5:
    class patcher:
        model = torch.nn.Linear(2, 2)


def test_another_text_encoder_is_refused() -> None:
    """A CLIP of another model is found here, before the run fails at its width."""
    clip: Any = _NoT5
    with pytest.raises(UserError, match="is a Linear, and CogVideoX reads the T5-XXL"):
        module.text_encoder_of(clip)


def test_t5_takes_what_is_counted() -> None:
    """ComfyUI reserves no more for T5 than for anything; what it takes is counted on ComfyUI's own T5."""
    layers = 2
    with torch.device("meta"):
        t5: Any = comfy.text_encoders.t5.T5(
            T5_XXL | {"num_layers": layers}, torch.bfloat16, torch.device("meta"), comfy.ops.manual_cast
        )
        tokens = torch.zeros(1, 226, dtype=torch.long)
        with torch.inference_mode(), PeakBytes() as used:
            t5(tokens, None, dtype=torch.float32)
    shapes = {name: tuple(value.shape) for name, value in t5.named_parameters()}
    counted = module._text_working_bytes(shapes)
    assert used.peak <= 1.05 * counted <= 1.4 * used.peak
