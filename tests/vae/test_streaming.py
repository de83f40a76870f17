"""Every way through the VAE gives diffusers' numbers, at a memory that does not grow, and goes on when it runs out."""

import copy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import comfy.ops
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.ops import adopt_ops
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.fake_card import CARD, failing_convolutions, fake_card
from cogvideox.tests.half_precision import RoundedOnce
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.tests.support import VAE_TOLERANCE, check_at_most, check_parity, relative_error
from cogvideox.tests.tiers import long_after, long_but_one_in
from cogvideox.vae import blocks, streaming
from cogvideox.vae import plan as plans
from cogvideox.vae.network import CogVideoXAutoencoder
from cogvideox.vae.plan import OffloadPlan

CPU = torch.device("cpu")
Networks = tuple[CogVideoXAutoencoder, Any]  # ours and diffusers'
WAYS = (*plans.LADDER, plans.in_bands(plans.LOW, 1), plans.in_bands(plans.LEAST, 300))
# Latents [T, h, w] and frames [T, H, W]: one chunk and more, even counts too. The smallest bands are of eight rows.
LATENTS = ((1, 6, 2), (2, 2, 5), (3, 2, 4), (6, 3, 2), (9, 3, 2), (13, 3, 2))
FRAMES = ((1, 48, 16), (5, 16, 40), (9, 24, 40), (13, 32, 16), (17, 40, 24), (25, 24, 16))


def each_way(sizes: tuple[tuple[int, int, int], ...]) -> pytest.MarkDecorator:
    """Every plan at every size; two sizes of each plan, of one chunk and of more, in every run."""
    cases = long_but_one_in(3, WAYS, sizes)
    return pytest.mark.parametrize(("plan", "size"), cases, ids=case_name)


def case_name(value: OffloadPlan | tuple[int, int, int]) -> str:
    return f"{value.name}-{value.band_pixels}" if isinstance(value, OffloadPlan) else "x".join(map(str, value))


@pytest.fixture(scope="module")
def networks() -> Networks:
    """Ours and diffusers', with unlike widths and groups of several channels, as the official one has."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    config: dict[str, Any] = {"block_out_channels": (16, 32, 32, 48), "layers_per_block": 1, "norm_num_groups": 8}
    theirs, ours = AutoencoderKLCogVideoX(**config).eval(), CogVideoXAutoencoder(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    adopt_ops(ours, comfy.ops.disable_weight_init)
    return ours, theirs


def video(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def decode(network: torch.nn.Module, z: torch.Tensor, plan: OffloadPlan, **options: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(streaming.decode_stream(network, z, plan, CPU, z.dtype, **options)), dim=2)


def reference_decode(network: Any, z: torch.Tensor) -> torch.Tensor:
    """diffusers' decode; of an even number of latents, with the last one repeated."""
    even = z.shape[2] % 2 == 0
    with torch.inference_mode():
        frames = network.decode(torch.cat([z, z[:, :, -1:]], dim=2) if even else z).sample
    return frames[:, :, : 4 * z.shape[2] - 3]


@each_way(LATENTS)
def test_decode(networks: Networks, plan: OffloadPlan, size: tuple[int, int, int]) -> None:
    """A band, a cache or a frame at the wrong index shows as a seam, a jump or a shift of colours."""
    got = decode(networks[0], video(1, 16, *size), plan)
    reference, exact = decoded_by_diffusers(networks, size)
    assert relative_error(got, exact) <= 2 * relative_error(reference, exact)
    check_parity(f"VAE decode, {plan.name}", got, reference, VAE_TOLERANCE)


@cache
def decoded_by_diffusers(networks: Networks, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(in fp32, in float64), once for all ways of ours."""
    z = video(1, 16, *size)
    return reference_decode(networks[1], z), reference_decode(copy.deepcopy(networks[1]).double(), z.double())


@cache
def encoded_by_diffusers(networks: Networks, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for an encode."""
    pixels = video(1, 3, *size)
    with torch.inference_mode():
        return networks[1]._encode(pixels), copy.deepcopy(networks[1]).double()._encode(pixels.double())


@each_way(FRAMES)
def test_encode(networks: Networks, plan: OffloadPlan, size: tuple[int, int, int]) -> None:
    """Image to video and every edit start from these numbers. These weights blow rounding up to 1e-6 in diffusers as
    well, so both are compared with float64; test_network.py compares them with each other."""
    pixels = video(1, 3, *size)
    with torch.inference_mode():
        got = torch.cat(list(streaming.encode_stream(networks[0], pixels, plan, CPU, pixels.dtype)), dim=2)
    reference, exact = encoded_by_diffusers(networks, size)
    assert relative_error(got, exact) <= 2 * relative_error(reference, exact) <= 4e-6
    check_at_most("VAE encode, noisy weights, against float64", relative_error(got, exact), 4e-6)
    check_at_most("VAE encode of diffusers, noisy weights, against float64", relative_error(reference, exact), 2e-6)
    check_parity(f"VAE encode, {plan.name}, noisy weights", got, reference, 3e-6)


@pytest.mark.parametrize("frames", (2, 3, 8, 12, 16, 20))
def test_frames_that_fill_no_latent_are_left_out(networks: Networks, frames: int) -> None:
    """diffusers cuts such a video in a way that depends on its length, and loses frames in the middle."""
    pixels, kept = video(1, 3, frames, 16, 24), (frames - 1) // 4 * 4 + 1
    with torch.inference_mode():
        got = torch.cat(list(streaming.encode_stream(networks[0], pixels, plans.FAST, CPU, pixels.dtype)), dim=2)
        assert relative_error(got, networks[1]._encode(pixels[:, :, :kept])) <= 3e-6


@pytest.fixture(scope="module", params=(torch.bfloat16, torch.float16), ids=("bf16", "fp16"))
def half(request: pytest.FixtureRequest, networks: Networks) -> SimpleNamespace:
    """Our network in half precision, latents, what they are in fp32, and diffusers' error on them."""
    ours, theirs = networks
    z = video(1, 16, 5, 2, 3)
    want = reference_decode(theirs, z)
    theirs = torch.nn.Module.to(copy.deepcopy(theirs), request.param)
    with RoundedOnce():
        error = relative_error(reference_decode(theirs, z.to(request.param)), want)
    rounded = {name: value.to(request.param) for name, value in ours.state_dict().items()}
    network = CogVideoXAutoencoder(**ours.config).eval()
    torch.nn.Module.to(network, request.param).load_state_dict(rounded)
    adopt_ops(network, comfy.ops.disable_weight_init)
    return SimpleNamespace(network=network, z=z.to(request.param), want=want, reference_error=error)


# medium and least keep the same numbers elsewhere
@pytest.mark.parametrize(
    "plan", long_after(2, (plans.FAST, plans.LOW, plans.MEDIUM, plans.LEAST)), ids=lambda plan: plan.name
)
def test_half_precision_loses_no_more_than_diffusers(half: SimpleNamespace, plan: OffloadPlan) -> None:
    """Rounding once where the reference rounds five times; the other way round colours would band."""
    with RoundedOnce():
        error = relative_error(decode(half.network, half.z, plan), half.want)
    check_at_most("VAE decode in half precision, error over diffusers'", error / half.reference_error, 1.02)


def test_memory_does_not_grow_with_length(networks: Networks) -> None:
    """161 frames must fit where 49 do."""
    peaks = []
    for count in (5, 7, 19):  # two chunks, the third, after which all are alike, and nine
        z = video(1, 16, count, 2, 3)
        with torch.inference_mode(), PeakBytes() as used:
            for frames in streaming.decode_stream(networks[0], z, plans.FAST, CPU, z.dtype):
                assert frames.shape[2] <= 9
                frames = None
        peaks.append(used.peak)
    assert peaks[2] <= 1.02 * peaks[1] <= 1.2 * peaks[0]  # the latents themselves grow


def test_memory_of_an_encode_does_not_grow_with_length(networks: Networks) -> None:
    """A clip of hundreds of frames to be changed must fit where a short one does."""
    peaks = []
    for count in (25, 185):  # what a chunk leaves behind is small beside the peak
        pixels = video(1, 3, count, 16, 16)
        with torch.inference_mode(), PeakBytes() as used:
            for moments in streaming.encode_stream(networks[0], pixels, plans.FAST, CPU, pixels.dtype):
                assert moments.shape[2] <= 4
                moments = None
        peaks.append(used.peak - pixels.nbytes)
    assert peaks[1] <= 1.02 * peaks[0]


@pytest.mark.parametrize(
    "plan", long_after(1, (plans.LEAST, plans.FAST, plans.MEDIUM, plans.LOW)), ids=lambda plan: plan.name
)
def test_everything_is_where_it_is_computed(networks: Networks, plan: OffloadPlan) -> None:
    """What was offloaded to host memory must come back to the card, and the frames must leave from there: with weights
    on the host too, as ComfyUI streams them."""
    ours = networks[0]
    dtype = torch.float32 if plan in (plans.FAST, plans.LOW) else torch.bfloat16
    with fake_card():
        for stream, shape in (
            (streaming.decode_stream, (1, 16, 5, 1, 1)),
            (streaming.encode_stream, (1, 3, 17, 8, 8)),
        ):
            for part in stream(ours, torch.empty(shape), plan, CARD, dtype):
                assert part.device == CARD and part.dtype == dtype


@pytest.mark.parametrize("at", (1, 30, 50, 66))
def test_out_of_memory_goes_on_leaner(networks: Networks, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of sampling must not be lost for the last frames; and none may come twice, or be missing."""
    z = video(1, 16, 7, 2, 2)
    want = reference_decode(networks[1], z)
    failing_convolutions(monkeypatch, lambda plan, number: number == at)
    fallbacks: list[tuple[str, str]] = []
    got = decode(
        networks[0], z, plans.FAST, on_fallback=lambda plan, leaner: fallbacks.append((plan.name, leaner.name))
    )
    assert fallbacks == [("fast", "medium")]
    assert relative_error(got, want) <= VAE_TOLERANCE


def test_out_of_memory_goes_down_the_ladder(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mode in turn, the leanest too, and then the error as it is."""
    z = video(1, 16, 3, 4, 4)
    want = reference_decode(networks[1], z)
    failing_convolutions(monkeypatch, lambda plan, number: plan.name != "least")
    fallbacks: list[str] = []
    got = decode(networks[0], z, plans.FAST, on_fallback=lambda plan, leaner: fallbacks.append(leaner.name))
    assert fallbacks == ["medium", "low", "least"] and relative_error(got, want) <= VAE_TOLERANCE
    failing_convolutions(monkeypatch, lambda plan, number: True)
    with pytest.raises(torch.OutOfMemoryError):
        decode(networks[0], z, plans.FAST, on_fallback=lambda plan, leaner: None)


@pytest.mark.parametrize("at", (1, 10, 20))  # 14 in each of the two chunks
def test_an_encode_out_of_memory_goes_on_leaner(networks: Networks, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on the way in, in the first chunk and in those after it."""
    pixels = video(1, 3, 17, 16, 24)
    with torch.inference_mode():
        want = torch.cat(list(streaming.encode_stream(networks[0], pixels, plans.FAST, CPU, pixels.dtype)), dim=2)
        failing_convolutions(monkeypatch, lambda plan, number: number == at)
        fallbacks: list[tuple[str, str]] = []
        parts = streaming.encode_stream(
            networks[0],
            pixels,
            plans.FAST,
            CPU,
            pixels.dtype,
            lambda *two: fallbacks.append((two[0].name, two[1].name)),
        )
        got = torch.cat(list(parts), dim=2)
    assert fallbacks == [("fast", "medium")]
    assert torch.equal(got, want)


def test_other_errors_are_not_taken_for_it(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect must not send the user through four modes."""

    def broken(*_: object) -> object:
        raise RuntimeError("a defect")

    monkeypatch.setattr(blocks, "causal_convolution", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        decode(networks[0], video(1, 16, 3, 4, 4), plans.FAST, on_fallback=lambda *_: pytest.fail("fell back"))


@pytest.fixture(scope="module")
def vae(tiny_pipelines: dict[str, Path]) -> CogVideoXVAE:
    return load_vae(tiny_pipelines["5b"], "fp32")


@pytest.mark.parametrize(
    ("shape", "words"),
    (
        ((1, 16, 0, 8, 8), r"\[1, 16, 0, 8, 8\].*nothing in it"),
        ((0, 16, 3, 8, 8), "nothing in it"),
        ((1, 4, 3, 8, 8), r"\[1, 4, 3, 8, 8\].*16"),
        ((1, 16, 8, 8), r"\[1, 16, 8, 8\].*frames"),
    ),
)
def test_invalid_latents(vae: CogVideoXVAE, shape: tuple[int, ...], words: str) -> None:
    """Named before any work, not as a failure inside a convolution."""
    for decode_with in (vae.decode, vae.decode_tiled):
        with pytest.raises(UserError, match=words):
            decode_with(torch.zeros(shape))


def test_broken_latents_are_named_by_frame(vae: CogVideoXVAE) -> None:
    """Which frame is broken tells whether the sampler or what it was given is at fault."""
    z = torch.zeros(2, 16, 5, 8, 8)
    z[1, 3, 2, 0, 0], z[0, 0, 4, 1, 1] = float("nan"), float("inf")
    words = r"latent frames 2, 4 of 5 \(video frames 5 to 16\)"
    with pytest.raises(UserError, match=words):
        vae.decode(z)


def test_interrupt_stops_at_once(vae: CogVideoXVAE) -> None:
    """A long decode on a slow machine must stop when told to, and the next one must work."""
    z = video(1, 16, 3, 8, 12)
    want = vae.decode(z)
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        vae.decode(z)
    assert torch.equal(vae.decode(z), want)


def test_batches_of_clips_are_encoded_each_by_itself(vae: CogVideoXVAE) -> None:
    """[B, F, H, W, 3]: as many latents, none knowing of the other."""
    clips = torch.rand(2, 9, 32, 48, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(vae.encode(clips), torch.cat([vae.encode(clip) for clip in clips]))
