"""LATENTs, sigmas and seeds that no node of ours makes: a sentence that names the cause, before the first step."""

import copy
from pathlib import Path
from typing import Any

import comfy.samplers
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.keys import rng_offset
from cogvideox.samplers.comfy_sampler import SAMPLERS, SeededNoise, build_sampler
from cogvideox.samplers.follow import read_trajectory
from cogvideox.samplers.latent_entries import read_batch_index, read_rng_offset
from cogvideox.samplers.noise import start_stream
from cogvideox.sockets.conditioning_images import RepeatedPicture, encode_start_and_end
from cogvideox.tests.guard import bounded
from cogvideox.tests.tasks import Task

pytestmark = pytest.mark.usefixtures("inference")
EMPTY = torch.zeros(2, 16, 1, 8, 12)
NAN = float("nan")


@pytest.fixture(scope="module")
def task(tiny_pipelines: dict[str, Path]) -> Task:
    return Task(tiny_pipelines["5b"])


def latent(**entries: Any) -> Any:
    return {"samples": EMPTY, **entries}


BATCH_INDEXES: list[Any] = [[-1, 0], [0.5, 1], [], [0], [0, 1, 2], "ab", 3, [NAN, 0], ["0", "1"], [None]]
DRAWN: list[Any] = [
    *((5, 10**15), (5, 2**29 + 16), (5, -16), (5, 0.5), (5, 3), "ab", (5,), 7),
    *((5, "16"), ("5", 16), (5.0, 16), (5, 16, 1), [None, None], {"a": 1}),
]
ENTRIES = [{"batch_index": value} for value in BATCH_INDEXES] + [{"cogvideox_drawn": value} for value in DRAWN]


@pytest.mark.parametrize("entries", ENTRIES, ids=str)
def test_entries_of_other_nodes(task: Task, entries: dict[str, Any]) -> None:
    """Raw errors of torch and of Python, or forty terabytes of random numbers."""
    with bounded(), pytest.raises(UserError, match=f"The latent's {next(iter(entries))} is .*; it should"):
        SeededNoise(5).generate_noise(latent(**entries))
    with pytest.raises(UserError, match="Connect the node that made the latent directly"):
        sample(task, latent(**entries))


def sample(task: Task, latent_image: Any, **changes: Any) -> torch.Tensor:
    return task.sample(task.positive, task.negative, latent_image, **{"steps": 1, "cfg": 1.0} | changes)


def test_entries_of_ours() -> None:
    """What ComfyUI's and our own nodes write, a list from a file among it."""
    assert read_batch_index(latent()) is read_batch_index(latent(batch_index=None)) is None
    for given in ([3, 3], (3, 3), torch.tensor([3, 3])):
        assert read_batch_index(latent(batch_index=given)) == (3, 3)
    for given in ((5, 64), [5, 64]):
        assert read_rng_offset(latent(cogvideox_drawn=given), 5) == rng_offset(latent(cogvideox_drawn=given), 5) == 64
        assert read_rng_offset(latent(cogvideox_drawn=given), 6) == 0


def test_a_stream_is_skipped_in_parts() -> None:
    """As many numbers at once as a batch of videos has would take its memory."""
    count = (1 << 22) * 2 + 160
    whole = torch.Generator().manual_seed(3)
    torch.randn(count, generator=whole)
    with bounded(seconds=5.0, mebibytes=40):
        skipped = start_stream(3, count)
    assert torch.equal(torch.randn(64, generator=skipped), torch.randn(64, generator=whole))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise_mask": "x"}, "noise_mask is a str"),
        ({"noise_mask": torch.full((1, 64, 96), NAN)}, "The mask of the latent contains NaN or Inf before the first"),
        ({"samples": EMPTY * NAN, "denoise": 0.5}, "The latent contains NaN or Inf before the first step"),
        ({"samples": torch.zeros(1, 16, 1, 1, 1)}, "height of 8 pixels is less .* use 16 .*width of 8 .* use 16"),
        ({"samples": torch.zeros(1, 16, 3, 8, 1)}, "The latent's width of 8 pixels is less than the smallest"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_the_cause_is_named(task: Task, changes: dict[str, Any], words: str) -> None:
    """The model's weights were suspected, or a size of "16 or 16" advised."""
    settings = {"denoise": changes.pop("denoise")} if "denoise" in changes else {}
    with pytest.raises(UserError, match=words):
        sample(task, latent(**changes), **settings)


def test_a_run_from_noise_does_not_look_at_its_latent(task: Task) -> None:
    """Empty latents of other packs hold whatever was in the memory before."""
    assert torch.equal(sample(task, latent(samples=EMPTY * NAN)), sample(task, latent()))


@pytest.mark.parametrize("name", ["positive", "negative"])
def test_a_prompt_without_numbers(task: Task, name: str) -> None:
    broken = [[text * NAN, values] for text, values in task.positive]
    with pytest.raises(UserError, match=f"The {name} conditioning has a text that contains NaN or Inf"):
        positive, negative = (broken if name == which else task.positive for which in ("positive", "negative"))
        task.sample(positive, negative, latent())


@pytest.mark.parametrize("sampler", [*SAMPLERS, "euler", "dpmpp_2m", "uni_pc"])
@pytest.mark.parametrize("first", [1e30, 3e38, 2e6])
def test_sigmas_out_of_range(task: Task, sampler: str, first: float) -> None:
    """Their squares overflow; precision and weights were suspected."""
    guider = comfy.samplers.CFGGuider(task.model)
    guider.set_conds(task.positive, task.negative)
    chosen = build_sampler(sampler) if sampler in SAMPLERS else comfy.samplers.sampler_object(sampler)
    noise = SeededNoise(1).generate_noise(latent())
    with pytest.raises(UserError, match="The run begins at sigma .* overflow.* 4518.7"):
        guider.sample(noise, EMPTY, chosen, torch.tensor([first, 1.0, 0.0]), disable_pbar=True)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_every_seed_draws_two_pictures(task: Task, seed: int) -> None:
    """The second picture's seed is one more, which the last of all seeds has not."""
    picture = torch.rand(1, 64, 96, 3)
    given = (task.vae, picture, picture, (96, 64, 9), "crop", 0.1, seed, seed)
    drawn, count = encode_start_and_end(*given)
    assert torch.isfinite(drawn).all() and count == 16 * 8 * 12
    assert not torch.equal(drawn[:, :, :1], drawn[:, :, -1:])


def test_every_seed_draws_a_repeated_picture(task: Task) -> None:
    """Its posterior has the next seed as well; and a node of another pack may copy the CONDITIONING that holds it."""
    made = RepeatedPicture(task.vae, torch.rand(1, 64, 96, 3), (96, 64), "crop", 0.1, 2**64 - 1, 2**64 - 1, 1)
    assert torch.isfinite(copy.deepcopy(made)(2)).all()


X = torch.zeros(1, 16, 1, 8, 12)
TRAJECTORIES: list[Any] = [
    *(3, "x", {}, {"timesteps": [1]}, {"timesteps": [], "samples": []}, {"timesteps": [1, 2], "samples": [X]}),
    *({"timesteps": [NAN], "samples": [X]}, {"timesteps": [1], "samples": [None]}, {"timesteps": 1, "samples": X}),
    {"timesteps": [1, 2], "samples": [X, X[:, :, :, :1]]},
]


@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=lambda given: str(given)[:20])
def test_trajectories_of_nobody(trajectory: Any) -> None:
    with pytest.raises(UserError, match="trajectory is not that of an inversion"):
        read_trajectory(latent(cogvideox_trajectory=trajectory), 0.0, 1.0)
