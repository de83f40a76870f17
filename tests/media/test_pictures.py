"""Pictures of every shape become the pixels that a VAE takes."""

import pytest
import torch
import torch.nn.functional as F

from cogvideox.errors import GeometryError
from cogvideox.media import pictures
from cogvideox.tests.support import relative_error


def square(rows: int, columns: int, side: int) -> torch.Tensor:
    """A white square in the middle of a black picture [1, rows, columns, 3]."""
    image = torch.zeros(1, rows, columns, 3)
    top, left = (rows - side) // 2, (columns - side) // 2
    image[:, top : top + side, left : left + side] = 1
    return image


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fit", pictures.FITS)
@pytest.mark.parametrize(("rows", "columns"), [(300, 300), (480, 720), (200, 640), (640, 200), (123, 457), (31, 47)])
def test_a_square_stays_a_square(rows: int, columns: int, fit: str) -> None:
    """Stretched faces are the first thing that anyone sees."""
    side = min(rows, columns) // 3
    fitted = pictures.fit_pictures(square(rows, columns, side), 96, 64, fit)[0, :, :, 0]
    assert fitted.shape == (64, 96)
    width, height = fitted.sum(dim=1).max(), fitted.sum(dim=0).max()  # of the square, in pixels and parts of them
    scale = (max if fit == "crop" else min)(96 / columns, 64 / rows)
    # whole pixels: half of one in what is cut and half of one in what is shown
    assert width == pytest.approx(side * scale, abs=0.6 + scale / 2)
    assert width / height == pytest.approx(1, abs=(0.6 + scale / 2) / (side * scale))


@pytest.mark.parametrize("fit", pictures.FITS)
@pytest.mark.parametrize(("rows", "columns"), [(200, 640), (640, 200), (90, 96), (999, 333)])
def test_the_middle_stays_in_the_middle(rows: int, columns: int, fit: str) -> None:
    """What a picture shows stands in its middle: a crop from a corner beheads people."""
    fitted = pictures.fit_pictures(square(rows, columns, min(rows, columns) // 3), 96, 64, fit)[0, :, :, 0]
    for weights, middle in ((fitted.sum(dim=0), 47.5), (fitted.sum(dim=1), 31.5)):
        centre = float((weights * torch.arange(len(weights))).sum() / weights.sum())
        assert centre == pytest.approx(middle, abs=0.6)


@pytest.mark.parametrize(("rows", "columns", "bars"), [(64, 192, (16, 0)), (128, 96, (0, 24)), (10, 10, (0, 16))])
def test_letterbox_shows_everything_between_black_bars(rows: int, columns: int, bars: tuple[int, int]) -> None:
    """Bars must be black and equal, and nothing of the picture may be lost or darkened."""
    fitted = pictures.fit_pictures(torch.ones(2, rows, columns, 3), 96, 64, "letterbox")
    top, left = bars
    expected = torch.zeros(2, 64, 96, 3)
    expected[:, top : 64 - top, left : 96 - left] = 1
    assert torch.allclose(fitted, expected, atol=1e-6)


@pytest.mark.parametrize("fit", pictures.FITS)
def test_same_size_changes_nothing(fit: str) -> None:
    """Frames of a video that has the right size must reach the VAE bit for bit."""
    images = noise(3, 64, 96, 3)
    assert torch.equal(pictures.fit_pictures(images, 96, 64, fit), images)


def test_only_what_must_be_cut_is_cut() -> None:
    """A video of the right height is cropped, not resampled: its pixels stay as sharp as they were."""
    images = noise(2, 64, 128, 3)
    assert torch.equal(pictures.fit_pictures(images, 96, 64), images[:, :, 16:112])


def test_grey_and_alpha() -> None:
    """Grey pictures become grey ones of three channels; what is transparent shows the colours it hides, as in
    ComfyUI."""
    grey = noise(1, 50, 70, 1)
    assert torch.equal(pictures.fit_pictures(grey, 96, 64), pictures.fit_pictures(grey.expand(-1, -1, -1, 3), 96, 64))
    colours = noise(1, 50, 70, 4)
    assert torch.equal(pictures.fit_pictures(colours, 96, 64), pictures.fit_pictures(colours[..., :3], 96, 64))
    assert torch.equal(pictures.fit_pictures(noise(1, 64, 96, 4), 96, 64), noise(1, 64, 96, 4)[..., :3])


@pytest.mark.parametrize("fit", pictures.FITS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 10000), (10000, 1), (2, 3), (6000, 8000), (17, 4001)])
def test_extreme_sizes(rows: int, columns: int, fit: str) -> None:
    """A picture of one line must not end in an error of torch or in all memory of the machine."""
    fitted = pictures.fit_pictures(torch.full((1, rows, columns, 3), 0.5), 96, 64, fit)
    assert fitted.shape == (1, 64, 96, 3)
    assert fitted.dtype == torch.float32
    shown = fitted[fitted > 0.1]
    assert shown.numel() and torch.allclose(shown, torch.tensor(0.5), atol=1e-5)
    assert fit == "letterbox" or shown.numel() == fitted.numel()


def test_intermediate_pictures_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized before it is cut, a panorama of 10000 x 1 pixels would be one of 640000 x 64."""
    made = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size, **kw: made.append((x, size)) or interpolate(x, size, **kw))
    for rows, columns in ((1, 10000), (10000, 1), (100, 30000)):
        for fit in pictures.FITS:
            pictures.fit_pictures(torch.ones(2, rows, columns, 3), 96, 64, fit)
    assert len(made) == 12, "frame by frame"
    assert all(size[0] <= 64 and size[1] <= 96 and x.shape[0] == 1 for x, size in made)


def test_values_stay_in_range() -> None:
    """Bicubic overshoots at edges; the VAE was trained on -1 .. 1."""
    checkers = (torch.arange(40)[:, None] // 2 + torch.arange(40)[None] // 2) % 2
    fitted = pictures.fit_pictures(checkers[None, :, :, None].expand(-1, -1, -1, 3).float(), 96, 64)
    assert fitted.min() == 0 and fitted.max() == 1


def test_a_large_photo_does_not_shimmer() -> None:
    """Without antialiasing fine lines become coarse ones that flicker in the video."""
    lines = (torch.arange(640) % 2).float()[None, None, :, None].expand(1, 640, 640, 3)
    assert pictures.fit_pictures(lines, 64, 64)[:, 8:-8, 8:-8].std() < 0.01


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((0, 64, 96, 3), "no picture"),
        ((64, 96, 3), "[64, 96, 3]"),
        ((1, 64, 96, 2), "2]"),
        ((0, 3, 0, 0), "no picture"),
    ],
)
def test_what_is_no_picture(shape: tuple[int, ...], found: str) -> None:
    """A video of no frames must say so, not fail inside the VAE."""
    with pytest.raises(GeometryError) as error:
        pictures.fit_pictures(torch.zeros(shape), 96, 64)
    assert found in str(error.value) and "channels" in str(error.value)


# --- clips whose size is their own -----------------------------------------------------------------------------------


def test_clip_of_its_own_size_is_only_cut() -> None:
    """A clip of 100 x 70 pixels continues as 96 x 64 of its own pixels: resampling again and again would blur it."""
    images = noise(2, 70, 100, 3)
    assert torch.equal(pictures.fit_clip(images, 0, 0), images[:, 3:67, 2:98])
    assert pictures.fit_clip(images, 64, 0).shape == (2, 64, 64, 3)
    assert pictures.fit_clip(images, 0, 32, "letterbox").shape == (2, 32, 96, 3)


def test_clip_too_small_to_be_cut() -> None:
    """There is no multiple of 16 below 16: the message must say what to do."""
    with pytest.raises(GeometryError, match="100 x 8 pixels.*Set the width and the height"):
        pictures.fit_clip(torch.zeros(1, 8, 100, 3), 0, 0)
    assert pictures.fit_clip(torch.zeros(1, 8, 100, 3), 96, 64).shape == (1, 64, 96, 3)


# --- noise on the start image ----------------------------------------------------------------------------------------


def reference_noise(image: torch.Tensor, sigma: torch.Tensor, draw: torch.Tensor, spare_black: bool) -> torch.Tensor:
    """What training added, on pixels in -1 .. 1."""
    added = draw * sigma
    return image + (torch.where(image == -1, torch.zeros_like(image), added) if spare_black else added)


@pytest.mark.parametrize("skip_black", [False, True])
@pytest.mark.parametrize("sigma", [None, 0.05, 1.0])
def test_noise_is_that_of_training(sigma: float | None, skip_black: bool) -> None:
    """The models know start images with this noise; on 0 .. 1 it is half as strong."""
    images = noise(1, 16, 24, 3)
    images[:, :4] = 0
    got = pictures.augment_pictures(images, sigma, torch.Generator().manual_seed(9), skip_black)
    generator = torch.Generator().manual_seed(9)
    if sigma is None:
        sigma = float(torch.exp(-3 + 0.5 * torch.randn([], generator=generator)))
    want = reference_noise(
        images * 2 - 1, torch.as_tensor(sigma), torch.randn(images.shape, generator=generator), skip_black
    )
    assert relative_error(got * 2 - 1, want) < 1e-6
    assert torch.equal(got[:, :4], images[:, :4]) == skip_black


def test_strength_drawn_for_each_video() -> None:
    """exp(N(-3, 0.5)): 0.05 in the middle, one strength for all frames of a video."""
    grey = torch.full((2, 32, 48, 3), 0.5)
    sigmas = torch.stack(
        [
            2 * (pictures.augment_pictures(grey, None, torch.Generator().manual_seed(seed)) - grey).std(dim=(1, 2, 3))
            for seed in range(300)
        ]
    )
    assert sigmas.log().mean() == pytest.approx(-3, abs=0.1)
    assert sigmas[:, 0].log().std() == pytest.approx(0.5, abs=0.06)
    assert torch.allclose(sigmas[:, 0], sigmas[:, 1], rtol=0.1)


def test_no_noise_changes_nothing() -> None:
    """0 is the default, and the reference pipelines add none: the picture must stay bit for bit."""
    images = noise(1, 16, 24, 3)
    assert torch.equal(pictures.augment_pictures(images, 0.0, torch.Generator()), images)
