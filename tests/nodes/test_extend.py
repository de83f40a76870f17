"""Videos longer than one clip: the nodes as a user chains them, on the tiny checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.keys import Latent
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes import extend
from cogvideox.nodes.decode import CogVideoXDecode
from cogvideox.nodes.sample import CogVideoXSample
from cogvideox.nodes.text import CogVideoXEncodeText
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.support import TEXT_TO_VIDEO, relative_error

pytestmark = pytest.mark.usefixtures("inference")
WIDTH, HEIGHT = 96, 64


def clip_of(frames: int, width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> torch.Tensor:
    """A video whose frames all differ: [frames, height, width, 3]."""
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


class Models:
    """MODEL, VAE and prompts of one tiny checkpoint, and the nodes that use them."""

    def __init__(self, folder: Path):
        self.model = load_model(folder, "fp32")
        self.vae = load_vae(folder, "fp32")
        clip = load_text_encoder(folder, "fp32")
        encode = CogVideoXEncodeText
        self.positive, self.negative = (encode.execute(clip, text).args[0] for text in ("A panda walks", ""))

    def continued(self, images: torch.Tensor, frames: int, overlap: int, **more: Any) -> tuple:
        """latent, last_frames and overlap of CogVideoXContinueVideo."""
        return extend.CogVideoXContinueVideo.execute(self.vae, images, frames, overlap, **more).args

    def sample(self, latent: Latent, sampler: str = "ddim", steps: int = 3) -> torch.Tensor:
        node = CogVideoXSample
        out = node.execute(self.model, self.positive, self.negative, latent, 7, steps, 6.0, sampler, False, 1.0)
        return out.args[0]["samples"]

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return CogVideoXDecode.execute(self.vae, {"samples": samples}, "fast").args[0]


@pytest.fixture(scope="module", params=TEXT_TO_VIDEO)
def models(request: pytest.FixtureRequest, tiny_pipelines: dict[str, Path]) -> Models:
    with torch.inference_mode():
        return Models(tiny_pipelines[request.param])


@pytest.fixture(scope="module")
def vae(tiny_pipelines: dict[str, Path]) -> object:
    with torch.inference_mode():
        return load_vae(tiny_pipelines["5b"], "fp32")


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
@pytest.mark.parametrize(("frames", "overlap"), [(9, 1), (9, 5), (13, 5), (17, 9)])
def test_sampler_keeps_the_known_latents(models: Models, frames: int, overlap: int, sampler: str) -> None:
    """Where the clips meet they must be the same: a known latent that drifts is a jump in the video."""
    latent, _, _ = models.continued(clip_of(9), frames, overlap)
    known = (overlap - 1) // 4 + 1
    assert latent["samples"].shape == (1, 16, (frames - 1) // 4 + 1, HEIGHT // 8, WIDTH // 8)
    out = models.sample(latent, sampler)
    assert relative_error(out[:, :, :known], latent["samples"][:, :, :known]) < 1e-6
    assert out[:, :, known:].std() > 0.3, "nothing was painted"


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_known_latents_stay_where_a_run_ends_short_of_clean(models: Models, sampler: str) -> None:
    """7 does not divide 1000: such a run ends with a trace of noise, which would be seen where the clips meet."""
    latent, _, _ = models.continued(clip_of(9), 13, 5)
    out = models.sample(latent, sampler, steps=7)
    assert torch.equal(out[:, :, :2], latent["samples"][:, :, :2])


def test_new_frames_follow_the_known_ones(models: Models) -> None:
    """A continuation that does not see where it begins is another video, glued on."""
    one, other = (models.sample(models.continued(clip_of(9, seed=seed), 13, 5)[0]) for seed in (0, 1))
    assert relative_error(one[:, :, 2:], other[:, :, 2:]) > 1e-3


def test_latent_is_that_of_the_last_frames(models: Models) -> None:
    """The known latents must be those that the VAE makes of the clip's end, and the mask must cover just them."""
    images = clip_of(11)
    latent, last, overlap = models.continued(images, 17, 5)
    assert overlap == 5 and torch.equal(last, images[6:])
    assert torch.equal(latent["samples"][:, :, :2], models.vae.encode(images[6:]))
    assert not latent["samples"][:, :, 2:].any()
    assert latent["noise_mask"].amax(dim=(0, 1, 3, 4)).tolist() == [0, 0, 1, 1, 1]
    assert latent["noise_mask"].amin(dim=(0, 1, 3, 4)).tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("overlap", [1, 5])
def test_three_clips_chained(models: Models, overlap: int) -> None:
    """What the nodes are for: no frame lost, none shown twice, however often a video is continued."""
    video = models.decode(models.sample({"samples": torch.zeros(1, 16, 3, HEIGHT // 8, WIDTH // 8)}))
    for length in (9, 9, 9):
        before = video
        latent, _, count = models.continued(video, length, overlap)
        clip = models.decode(models.sample(latent))
        assert clip.shape[0] == length
        video = extend.CogVideoXJoinVideos.execute(video, clip, count, False).args[0]
        assert video.shape[0] == before.shape[0] + length - overlap
        assert torch.equal(video[: len(before)], before)
        assert torch.equal(video[len(before) :], clip[overlap:])
    steps = (video[1:] - video[:-1]).abs().mean(dim=(1, 2, 3))
    assert steps.min() > 1e-4, "a frame stands still"


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "more", "expected"),
    [
        ((96, 64), {}, (96, 64)),
        ((100, 70), {}, (96, 64)),
        ((96, 64), {"width": 64}, (64, 64)),
        ((96, 64), {"width": 48, "height": 32}, (48, 32)),
        ((96, 64), {"width": 64, "height": 64, "fit": "letterbox"}, (64, 64)),
    ],
)
def test_size_of_the_continuation(
    vae: CogVideoXVAE, size: tuple[int, int], more: dict, expected: tuple[int, int]
) -> None:
    """A clip from a camera has any size; pictures and latent must agree on the new one."""
    latent, last, _ = extend.CogVideoXContinueVideo.execute(vae, clip_of(5, *size), 9, 5, **more).args
    width, height = expected
    assert last.shape == (5, height, width, 3)
    assert latent["samples"].shape[-2:] == latent["noise_mask"].shape[-2:] == (height // 8, width // 8)


@pytest.mark.parametrize(
    ("images", "frames", "overlap", "more", "words"),
    [
        ((9, 96, 64), 9, 3, {}, "overlap 3 is not 4k + 1 (1, 5, 9, ...): use 1 or 5"),
        ((9, 96, 64), 9, 0, {}, "overlap is 0: use 1 to 1025."),
        ((9, 96, 64), 9, 9, {}, "overlap 9 leaves nothing new in a clip of 9 frames"),
        ((3, 96, 64), 9, 5, {}, "has 3 frames; overlap 5 takes more. Use an overlap of 1 or less"),
        ((0, 96, 64), 9, 1, {}, "no picture in the images"),
        ((9, 96, 64), 10, 1, {}, "frames 10 is not 4k + 1"),
        ((9, 96, 64), 9, 1, {"width": 40}, "width 40 is not divisible by 16: use 32 or 48"),
        ((9, 96, 64), 9, 1, {"height": -16}, "height is -16: use 0 to 16384."),
        ((9, 96, 64), 2001, 1, {}, "frames is 2001: use 1 to 1025"),
        ((9, 96, 8), 9, 1, {}, "96 x 8 pixels, less than 16 x 16. Set the width and height"),
    ],
)
def test_what_cannot_be_continued(
    vae: CogVideoXVAE, images: tuple[int, int, int], frames: int, overlap: int, more: dict, words: str
) -> None:
    """Each slip must say what to type instead, before anything is encoded."""
    with pytest.raises(UserError) as error:
        extend.CogVideoXContinueVideo.execute(vae, clip_of(*images), frames, overlap, **more)
    assert words in str(error.value)


def test_problems_are_told_before_the_run() -> None:
    """A typed value must be refused when the workflow is queued; a linked one (None) is not known yet."""
    check = extend.CogVideoXContinueVideo.validate_inputs
    assert check(frames=49, overlap=1, width=0, height=0) is True
    assert check(frames=None, overlap=None, width=None, height=None) is True
    assert check(frames=None, overlap=5, width=720, height=480) is True
    assert check(frames=49, overlap=None) is True
    assert "use 1 or 5" in str(check(frames=None, overlap=3, width=0, height=0))
    assert "nothing new" in str(check(frames=9, overlap=9, width=0, height=0))
    assert "width 100" in str(check(frames=9, overlap=1, width=100, height=0))


def test_vae_of_another_loader() -> None:
    """ComfyUI's own VAE code encodes these frames to other numbers."""
    with pytest.raises(UserError, match="Load CogVideoX VAE"):
        another: Any = object()
        extend.CogVideoXContinueVideo.execute(another, clip_of(9), 9, 1)


# --- joining ---------------------------------------------------------------------------------------------------------


def join(before: torch.Tensor, after: torch.Tensor, overlap: int, blend: bool = False) -> torch.Tensor:
    return extend.CogVideoXJoinVideos.execute(before, after, overlap, blend).args[0]


@pytest.mark.parametrize("overlap", [0, 1, 3, 5])
def test_join_leaves_the_overlap_out(overlap: int) -> None:
    """A doubled frame is a stutter at every seam."""
    before, after = clip_of(7, seed=1), clip_of(5, seed=2)
    assert torch.equal(join(before, after, overlap), torch.cat([before, after[overlap:]]))


def test_blend_fades_from_one_into_the_other() -> None:
    """The seam must move evenly, and nothing but the overlap may change."""
    before, after = torch.zeros(7, 4, 6, 3), torch.ones(5, 4, 6, 3)
    video = join(before, after, 3, blend=True)
    assert video[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    before, after = clip_of(5, seed=1), clip_of(5, seed=2)
    assert torch.equal(join(before, after, 0, blend=True), torch.cat([before, after]))
    whole = join(before, after, 5, blend=True)
    assert whole.shape == before.shape and torch.allclose(whole[2], (before[2] + after[2]) / 2)


@pytest.mark.parametrize(
    ("before", "after", "overlap", "words"),
    [
        ((5, 96, 64), (5, 64, 96), 1, "96 x 64 pixels with 3 channels and 64 x 96"),
        ((5, 96, 64), (3, 96, 64), 4, "overlap is 4, the videos have 5 and 3 frames: use 0 to 3"),
        ((2, 96, 64), (9, 96, 64), 3, "use 0 to 2"),
        ((5, 96, 64), (5, 96, 64), -1, "overlap is -1: use 0 to 1025."),
        ((0, 96, 64), (5, 96, 64), 0, "no picture in the images"),
    ],
)
def test_videos_that_cannot_be_joined(before: tuple, after: tuple, overlap: int, words: str) -> None:
    """An overlap that one video does not have would silently cut the other short."""
    with pytest.raises(UserError) as error:
        join(clip_of(*before), clip_of(*after), overlap)
    assert words in str(error.value)
