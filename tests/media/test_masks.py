"""Masks of pixels and frames become masks of latents."""

import pytest
import torch
import torch.nn.functional as F

from cogvideox.errors import UserError
from cogvideox.media import masks
from cogvideox.tests.support import check_parity

T, H, W = 3, 8, 12  # of the latent: 9 frames of 96 x 64


def random_mask(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("frame", range(9))
def test_latent_is_regenerated_where_one_of_its_frames_is(frame: int) -> None:
    """A latent holds four frames (the first one): kept for a mask on one of them, the change would not be seen."""
    mask = torch.zeros(9, H, W)
    mask[frame] = 1
    regenerated = masks.latent_mask(mask, T, H, W).amax(dim=(0, 1, 3, 4))
    assert regenerated.nonzero().flatten().tolist() == [0 if frame == 0 else 1 + (frame - 1) // 4]


@pytest.mark.parametrize("frames", [1, 3, 9])
@pytest.mark.parametrize("size", [(H, W), (8 * H, 8 * W)])
def test_every_shape_that_fits(frames: int, size: tuple[int, int]) -> None:
    """One mask for the clip or one a frame, painted on pixels or on latents: all of them are in use."""
    mask = random_mask(frames, *size)
    space = mask if size == (H, W) else mask.unflatten(1, (H, 8)).unflatten(3, (W, 8)).mean(dim=(2, 4))
    rows = {1: [[0], [0], [0]], 3: [[0], [1], [2]], 9: [[0], [1, 2, 3, 4], [5, 6, 7, 8]]}[frames]
    want = torch.stack([space[row].amax(dim=0) for row in rows])[None, None]
    assert torch.allclose(masks.latent_mask(mask, T, H, W), want, atol=1e-6)
    assert torch.allclose(masks.latent_mask(mask[:, None], T, H, W), want, atol=1e-6)
    assert torch.allclose(masks.latent_mask(mask[None, None], T, H, W), want, atol=1e-6)


def test_mask_without_frames() -> None:
    """A single painted mask comes as [H, W] from some nodes."""
    mask = random_mask(H, W)
    assert torch.equal(masks.latent_mask(mask, T, H, W), mask.expand(1, 1, T, H, W))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((2, 64, 96), "2 frames of 96 x 64"),
        ((8, 8, 12), "8 frames of 12 x 8"),
        ((9, 64, 90), "9 frames of 90 x 64"),
        ((9, 96, 64), "9 frames of 64 x 96"),
        ((1, 32, 48), "1 frames of 48 x 32"),
    ],
)
def test_mask_that_does_not_fit(shape: tuple[int, ...], found: str) -> None:
    """Stretched silently, it would no longer cover what was painted."""
    with pytest.raises(UserError) as error:
        masks.latent_mask(torch.zeros(shape), T, H, W)
    for words in (found, "1, 3 or 9 frames of 96 x 64 pixels", "12 x 8", "Resize the mask"):
        assert words in str(error.value)


@pytest.mark.parametrize("shape", [(96,), (0, 64, 96), (2, 3, 64, 96)])
def test_what_is_no_mask(shape: tuple[int, ...]) -> None:
    """No frames at all, or a batch of masks: a message, not an error of torch."""
    for make in (masks.latent_mask, masks.fun_mask):
        with pytest.raises(UserError, match=".frames, height, width. with at least one frame is expected"):
            make(torch.zeros(shape), T, H, W)


def resize_known(known: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """As CogVideoX-Fun does: the first frame alone, then the others together."""
    first = F.interpolate(known[:, :, :1], size=(1, *size[1:]), mode="trilinear")
    if size[0] == 1:
        return first
    return torch.cat([first, F.interpolate(known[:, :, 1:], size=(size[0] - 1, *size[1:]), mode="trilinear")], dim=2)


@pytest.mark.parametrize("size", [(H, W), (64, 96), (50, 70)])
@pytest.mark.parametrize("latent_frames", [1, 2, 3, 13])
def test_fun_mask_equals_its_pipeline(latent_frames: int, size: tuple[int, int]) -> None:
    """The InP models read where the video is known from this channel alone."""
    mask = random_mask(4 * latent_frames - 3, *size)
    known = (mask < 0.5).float()[None, None]
    got = masks.fun_mask(mask, latent_frames, H, W)
    check_parity("Fun mask", got, resize_known(known, (latent_frames, H, W)), 1e-6)


def test_fun_mask_of_one_frame_holds_for_the_clip() -> None:
    """A painted mask is one picture: every frame of the clip is known and unknown there."""
    mask = random_mask(1, 64, 96)
    assert torch.equal(masks.fun_mask(mask, T, H, W), masks.fun_mask(mask.expand(9, -1, -1), T, H, W))


def test_fun_mask_of_another_length() -> None:
    """Its frames would slide against the video's."""
    with pytest.raises(UserError, match="5 frames and the video 9.*1 or 9"):
        masks.fun_mask(torch.zeros(5, 64, 96), T, H, W)


def test_last_frame_is_held() -> None:
    """A control video that is too short stands still at its end, and keeps every frame that it has."""
    frames = random_mask(3, 4, 5, 3)
    held = masks.hold_last(frames, 5)
    assert torch.equal(held[:3], frames) and torch.equal(held[3:], frames[[2, 2]])
    assert torch.equal(masks.hold_last(frames, 2), frames)
    with pytest.raises(UserError, match="no frame"):
        masks.hold_last(frames[:0], 5)
