"""Runs that are cut into parts, and members of a batch that are sampled alone: each must equal the run in one piece.

Three latent frames are an odd number, for which CogVideoX 1.5 samples one more in front (samplers.front)."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.samplers.front import join_front, split_front
from cogvideox.samplers.noise import NoiseStream
from cogvideox.tests.support import check_parity, relative_error
from cogvideox.tests.tasks import HEIGHT, SEED, WIDTH, Task, pictures
from cogvideox.tests.tiers import long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
STEPS, CFG = 6, 6.0
ODD, EVEN = 9, 13  # frames of 3 and 4 latents
CONDITIONS = {
    "1.5-5B": lambda task, frames, batch: (
        task.positive,
        task.negative,
        task.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=frames, batch_size=batch)[0],
    ),
    "1.5-5B-I2V": lambda task, frames, batch: task.condition(
        "image", "CogVideoXImageToVideo", frames, batch, start_image=pictures(1)
    ),
    "Fun-V1.5-5b-InP": lambda task, frames, batch: task.condition(
        "fun", "CogVideoXFunInpaint", frames, batch, start_image=pictures(1)
    ),
    "Fun-V1.5-5b-Control": lambda task, frames, batch: task.condition(
        "fun",
        "CogVideoXFunControl",
        frames,
        batch,
        control_video=pictures(frames),
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    ),
}
Handed = Callable[[dict[str, Any]], dict[str, Any]]


class Cuts(Task):
    """Parts of runs through ComfyUI's own nodes."""

    def __init__(self, variant: str, folder: Path):
        super().__init__(folder)
        self.variant = variant
        self._conditioned: dict[tuple[int, int], tuple[Any, Any, dict[str, Any]]] = {}

    def conditioned(self, frames: int, batch_size: int = 1) -> tuple[Any, Any, dict[str, Any]]:
        """positive, negative and latent, each made once."""
        key = frames, batch_size
        if key not in self._conditioned:
            self._conditioned[key] = CONDITIONS[self.variant](self, *key)
        return self._conditioned[key]

    def advanced(self, frames: int, cuts: Sequence[int] = (), handed: Handed = dict) -> torch.Tensor:
        """KSamplerAdvanced once, or cut at these steps; `handed` stands for what happens to a latent in between."""
        positive, negative, latent = self.conditioned(frames)
        for start, end in zip((0, *cuts), (*cuts, 10000)):
            node = comfyui_nodes().KSamplerAdvanced()
            add, leftover = ("enable" if flag else "disable" for flag in (start == 0, end < STEPS))
            args = (self.model, add, SEED, STEPS, CFG, "euler", "simple", positive, negative, handed(latent))
            latent = node.sample(*args, start, end, leftover)[0]
        return latent["samples"]

    def custom(self, noise: Any, latent: dict[str, Any], sigmas: torch.Tensor, sampler: str = "ddim") -> dict[str, Any]:
        """SamplerCustomAdvanced with this pack's equations."""
        from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced

        guider: Any = CFGGuider
        run: Any = SamplerCustomAdvanced
        positive, negative, _ = self.conditioned(ODD)
        guided = guider.execute(self.model, positive, negative, CFG).args[0]
        return run.execute(
            noise, guided, self.node("sample", "CogVideoXSampler", sampler=sampler)[0], sigmas, latent
        ).args[0]

    def sigmas(self) -> torch.Tensor:
        return self.node("sample", "CogVideoXScheduler", model=self.model, steps=STEPS, denoise=1.0)[0]

    def noise(self, kind: str) -> Any:
        """A NOISE of this pack, of ComfyUI, or none at all."""
        from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise

        if kind == "ours":
            return self.node("sample", "CogVideoXNoise", seed=SEED)[0]
        return Noise_RandomNoise(SEED) if kind == "stock" else Noise_EmptyNoise()


@pytest.fixture(scope="module")
def cuts_of(tiny_pipelines: dict[str, Path]) -> Callable[[str], Cuts]:
    """Each is made once."""
    return cache(lambda variant: Cuts(variant, tiny_pipelines[variant]))


@pytest.fixture(params=CONDITIONS)
def cuts(request: pytest.FixtureRequest, cuts_of: Callable[[str], Cuts]) -> Cuts:
    with torch.inference_mode():
        return cuts_of(request.param)


@pytest.fixture
def text(cuts_of: Callable[[str], Cuts]) -> Cuts:
    with torch.inference_mode():
        return cuts_of("1.5-5B")


@pytest.mark.parametrize("frames", (ODD, pytest.param(EVEN, marks=pytest.mark.long)))  # to even ones none is added
def test_ksampler_advanced_in_parts(cuts: Cuts, frames: int) -> None:
    """The frame in front was dropped after the first part and invented for the second: 0.33 off with an odd count."""
    whole = cuts.advanced(frames)
    for parts in ((3,), (1, 4)):
        check_parity("a run in parts, KSamplerAdvanced", cuts.advanced(frames, parts), whole, 5e-6)
    assert whole.shape[2] == (frames - 1) // 4 + 1


@pytest.mark.parametrize(("cuts", "noise"), long_but_one_in(2, tuple(CONDITIONS), ("ours", "stock")), indirect=["cuts"])
def test_split_sigmas(cuts: Cuts, noise: str) -> None:
    """SplitSigmas and this pack's own sampler, with noise of either origin."""
    latent, sigmas = cuts.conditioned(ODD)[2], cuts.sigmas()
    whole = cuts.custom(cuts.noise(noise), latent, sigmas)
    half = cuts.custom(cuts.noise(noise), latent, sigmas[:4])
    got = cuts.custom(cuts.noise("none"), half, sigmas[3:])
    check_parity("a run in parts, SplitSigmas", got["samples"], whole["samples"], 5e-6)


def test_a_latent_file_in_between(text: Cuts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SaveLatent keeps nothing but the samples: what the second part needs must be among them."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_annotated_filepath", lambda name: str(tmp_path / name))

    def through_a_file(latent: dict[str, Any]) -> dict[str, Any]:
        if not latent["samples"].any():
            return latent
        save, load = comfyui_nodes().SaveLatent(), comfyui_nodes().LoadLatent()
        save.output_dir = str(tmp_path)
        (saved,) = save.save(latent, "cut")["ui"]["latents"]
        (loaded,) = load.load(saved["filename"])
        return loaded

    check_parity("a run in parts, saved", text.advanced(ODD, (2, 4), through_a_file), text.advanced(ODD), 5e-6)


@pytest.mark.parametrize(
    "handed",
    (
        lambda x: x.half().float(),  # 16-bit intermediates
        lambda x: x.flip(-1).flip(-1),
        lambda x: (x * 0.5) * 2,  # LatentMultiply
    ),
)
def test_front_survives_what_other_nodes_do(text: Cuts, handed: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Rounded and scaled samples lose precision, not the frame in front."""
    got = text.advanced(ODD, (3,), lambda latent: {**latent, "samples": handed(latent["samples"])})
    assert got.shape[2] == 3
    assert relative_error(got, text.advanced(ODD)) < 2e-3


def test_the_user_is_told_where_it_is_missing(text: Cuts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent whose frame in front is lost must not give another video without a word; nor may one be told of it
    where nothing is missing."""
    told: list[str] = []
    monkeypatch.setattr(text, "model", load_model(text.folder, "fp32", told.append))
    text.advanced(ODD, (3,))
    text.advanced(EVEN, (3,), lambda latent: {**latent, "samples": latent["samples"].clone()})
    assert told == []
    text.advanced(ODD, (3,), lambda latent: {**latent, "samples": split_front(latent["samples"])[1]})
    assert len(told) == 1 and "adds no noise, and its latent does not hold the frame in front" in told[0]


@pytest.mark.parametrize(("cuts", "noise"), long_but_one_in(2, tuple(CONDITIONS), ("stock", "ours")), indirect=["cuts"])
def test_add_noise_equals_a_run_that_adds_it(cuts: Cuts, noise: str) -> None:
    """AddNoise, then a run with DisableNoise: the noise in front must be the one that the run itself would take."""
    from comfy_extras.nodes_custom_sampler import AddNoise

    add: Any = AddNoise
    latent, sigmas = cuts.conditioned(ODD)[2], cuts.sigmas()
    whole = cuts.custom(cuts.noise(noise), latent, sigmas)
    noisy = add.execute(cuts.model, cuts.noise(noise), sigmas, latent).args[0]
    got = cuts.custom(cuts.noise("none"), noisy, sigmas)
    check_parity("AddNoise before the run", got["samples"], whole["samples"], 5e-6)


def test_add_noise_between_two_parts(text: Cuts) -> None:
    """Noise that is put into the latent of a first part must leave the count of frames as it is."""
    from comfy_extras.nodes_custom_sampler import AddNoise

    add: Any = AddNoise
    latent, sigmas = text.conditioned(ODD)[2], text.sigmas()
    half = text.custom(text.noise("ours"), latent, sigmas[:4])
    noisy = add.execute(text.model, text.noise("stock"), sigmas[3:4], half).args[0]
    assert noisy["samples"].shape == half["samples"].shape
    assert split_front(noisy["samples"])[0] is not None
    assert text.custom(text.noise("none"), noisy, sigmas[3:])["samples"].shape[2] == 3


@pytest.mark.parametrize("noise", ("ours", "stock"))
@pytest.mark.parametrize("frames", (ODD, EVEN))
def test_a_member_of_a_batch_alone(text: Cuts, frames: int, noise: str) -> None:
    """LatentFromBatch: member 1 of 3 was 1.3 away from itself with an odd count, for its noise was recognised by its
    value and not by where it came from."""
    batch, sigmas = text.conditioned(frames, 3)[2], text.sigmas()
    (member,) = comfyui_nodes().LatentFromBatch().frombatch(batch, 1, 1)
    assert member["batch_index"] == [1]
    together = text.custom(text.noise(noise), batch, sigmas)["samples"]
    alone = text.custom(text.noise(noise), member, sigmas)["samples"]
    check_parity("a member of a batch, ddim", alone, together[1:2], 5e-6)


@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
@pytest.mark.parametrize("frames", (ODD, EVEN))
def test_fixed_seed_of_a_batch(text: Cuts, frames: int, sampler: str) -> None:
    """LatentBatchSeedBehavior "fixed": every member is the video of a batch of one."""
    import comfy_extras.nodes_post_processing  # noqa: F401  (nodes_latent imports it, and it nodes_latent)
    from comfy_extras.nodes_latent import LatentBatchSeedBehavior

    behave: Any = LatentBatchSeedBehavior
    fixed = behave.execute(text.conditioned(frames, 2)[2], "fixed").args[0]
    assert fixed["batch_index"] == [0, 0]
    one = text.custom(text.noise("ours"), text.conditioned(frames)[2], text.sigmas(), sampler)["samples"]
    got = text.custom(text.noise("ours"), fixed, text.sigmas(), sampler)["samples"]
    check_parity(f"a batch of one seed, {sampler}", got, one.repeat(2, 1, 1, 1, 1), 5e-6)


def test_dpm_does_not_draw_the_starting_noise_again(text: Cuts) -> None:
    """For a member of a batch, the steps' noise has to begin after the noise of all members before it."""
    stream = NoiseStream(SEED, batch_index=(1,))
    first, step = stream.draw((1, 16, 2, 4, 4)), stream.draw_steps((1, 16, 2, 4, 4))()
    assert not torch.equal(first, step)
    both = torch.randn(4, 2, 16, 4, 4, generator=torch.Generator().manual_seed(SEED)).transpose(1, 2)
    assert torch.equal(first, both[1:2]) and torch.equal(step, both[3:4])


def test_a_run_that_stops_early_can_be_decoded(text: Cuts) -> None:
    """The frame in front is no part of the video: a decoder leaves it out."""
    latent, sigmas = text.conditioned(ODD)[2], text.sigmas()
    half = text.custom(text.noise("ours"), latent, sigmas[:4])["samples"]
    assert half.shape[2] == 5
    assert torch.equal(text.vae.decode(half), text.vae.decode(half[:, :, 2:]))
    whole = text.custom(text.noise("ours"), {"samples": half}, sigmas)["samples"]  # new noise, the old latent's size
    assert whole.shape[2] == 3


def test_what_counts_as_a_frame_in_front() -> None:
    """An empty latent's first frames are each other's negative as well, and a video's never."""
    x = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    front, rest = split_front(join_front(x[:, :, :1], x))
    assert front is not None and torch.equal(front, x[:, :, :1]) and torch.equal(rest, x)
    for other in (x, torch.zeros(1, 16, 3, 4, 4), x[:, :, :2], x[:, :, 0], x > 0):
        assert split_front(other)[0] is None


def between_parts(seed: int) -> torch.Tensor:
    """Two latents of three frames after the first part of a run."""
    x = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return join_front(x[:, :, :1] * 3, x)


TORN = {
    "two joined": torch.cat([between_parts(0), between_parts(1)], dim=2),
    "three joined": torch.cat([between_parts(0), between_parts(1), between_parts(2)], dim=2),
    "behind another": torch.cat([between_parts(0)[:, :, 2:], between_parts(1)], dim=2),
    "with one more frame": torch.cat([between_parts(0), between_parts(1)[:, :, 2:3]], dim=2),
    "cut at the end": between_parts(0)[:, :, :4],
    "the frame alone": between_parts(0)[:, :, :2],
    "only one of the batch": torch.cat([between_parts(0)[:1], between_parts(1)[:1].roll(1, 2)]),
}


@pytest.mark.parametrize("what", TORN)
def test_a_frame_in_front_that_is_not_in_front(what: str) -> None:
    """LatentConcat and LatentCut between two parts of a run: the noise became frames of the video, without a word."""
    for x in (TORN[what], TORN[what].to(torch.bfloat16)):
        with pytest.raises(UserError, match="in front of an unfinished video.* latent frame [14].*Join and cut"):
            split_front(x)


def test_joined_parts_are_not_sampled(text: Cuts) -> None:
    """Two odd videos make an even one, to which no frame is missing: here joined as LatentConcat does it."""

    def joined(latent: dict[str, Any]) -> dict[str, Any]:
        begun = latent["samples"].any()
        return {**latent, "samples": torch.cat([latent["samples"]] * (2 if begun else 1), dim=2)}

    with pytest.raises(UserError, match="in front of an unfinished video"):
        text.advanced(ODD, (3,), joined)


@pytest.mark.parametrize("sampler", ("ddim", "dpm"))
def test_a_part_without_a_step(text: Cuts, sampler: str) -> None:
    """SplitSigmas at the beginning or the end gives one sigma: nothing is to be done, and nothing may fail."""
    latent, sigmas = text.conditioned(ODD)[2], text.sigmas()
    whole = text.custom(text.noise("ours"), latent, sigmas, "ddim")
    after = text.custom(text.noise("none"), whole, sigmas[-1:], sampler)
    assert torch.equal(after["samples"], whole["samples"])
    begun = text.custom(text.noise("ours"), latent, sigmas[:1], sampler)
    got = text.custom(text.noise("none"), begun, sigmas, "ddim")
    check_parity("a part without a step", got["samples"], whole["samples"], 5e-6)
