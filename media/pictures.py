"""A user's pictures, converted to the pixels that a VAE takes: sizes, channels, and the noise of image to video."""

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..host.compat import throw_if_interrupted
from ..vae.geometry import SIZE_STEP
from ..video_limits import check_amount

FITS = ("crop", "letterbox")
# Of the normal distribution that the logarithm of sigma has, where sigma is the standard deviation of the noise that
# image to video models were trained with on their first frame. Source: CogVideo sat/diffusion_video.py.
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -3.0, 0.5


def fit_pictures(images: torch.Tensor, width: int, height: int, fit: str = "crop") -> torch.Tensor:
    """`images` at width x height pixels, never stretched: [F, H, W, C] -> [F, height, width, 3], fp32 in 0 .. 1.

    images: 1 (grey, repeated), 3 or 4 (alpha, dropped) channels.
    fit: "crop" cuts what is too wide or too high off both sides alike; "letterbox" shows all of it on black.
    Pictures that already have this size keep their values.
    Raises UserError where there is no picture.
    """
    check_pictures(images)
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}: use {' or '.join(FITS)}.")
    count, rows, columns, channels = images.shape
    check_amount(width, height, count)
    if (rows, columns) == (height, width):
        return _rgb(images)
    inner_width, inner_height = width, height
    if fit == "crop":
        images = _crop_to_aspect(images, width, height)
    else:
        scale = min(width / columns, height / rows)
        inner_width = min(width, max(1, round(columns * scale)))
        inner_height = min(height, max(1, round(rows * scale)))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    fitted = torch.zeros([count, height, width, 3], dtype=torch.float32, device=images.device)
    # One by one: resized as a whole, a long video would be in memory a second time, as fp32 at its full size.
    for picture, out in zip(images, fitted):
        throw_if_interrupted()
        out[top : top + inner_height, left : left + inner_width] = _resize(picture, inner_width, inner_height)
    return fitted


def fit_clip(images: torch.Tensor, width: int, height: int, fit: str = "crop") -> torch.Tensor:
    """`images` as fit_pictures gives them. A width or height of 0 takes the pictures' own, cut to a multiple of 16 on
    both sides alike; with both 0 nothing is resized.

    Raises UserError where there is no picture, or one below 16 pixels has no size to be enlarged to.
    """
    check_pictures(images)
    rows, columns = images.shape[1:3]
    if (not width and columns < SIZE_STEP) or (not height and rows < SIZE_STEP):
        raise UserError(
            f"The pictures have {columns} x {rows} pixels, less than {SIZE_STEP} x {SIZE_STEP}. Set the width and "
            "height that they are to be enlarged to."
        )
    own_width, own_height = columns // SIZE_STEP * SIZE_STEP, rows // SIZE_STEP * SIZE_STEP
    if not width and not height:
        images = _centre(images, own_width, own_height)
    return fit_pictures(images, width or own_width, height or own_height, fit)


def check_pictures(images: torch.Tensor) -> None:
    """Raises UserError unless `images` is [F, H, W, C] with at least one pixel and 1, 3 or 4 channels."""
    expected = "use pictures [frames, height, width, channels] with 1, 3 or 4 channels"
    # Stock nodes give [0, 0, 0, 3] or [0, 3, 0, 0] for a damaged video, so that the channels are no help here.
    if images.ndim == 4 and 0 in images.shape:
        raise UserError(
            f"There is no picture in the images: their shape is {list(images.shape)}; {expected} and at least one "
            "frame. Check the video or the range of frames that they come from."
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise UserError(f"The images have shape {list(images.shape)}; {expected}. Connect an IMAGE output.")


def augment_pictures(
    images: torch.Tensor, sigma: float | None, generator: torch.Generator, skip_black: bool = False
) -> torch.Tensor:
    """`images` with the noise that the image to video models saw on their first frame: [F, H, W, 3], same shape out.

    images: 0 .. 1; the result is not clamped, as in training.
    sigma: the noise's standard deviation on pixels in -1 .. 1; None draws one for the video, exp(N(-3, 0.5)).
    skip_black: leave values of 0 (-1 to the model) as they are: to CogVideoX-Fun they mean "nothing known here".
    Source: CogVideo sat/diffusion_video.py, add_noise_to_first_frame; with skip_black CogVideoX-Fun's
    add_noise_to_reference_video.
    """
    if sigma is None:
        draw = torch.randn([], generator=generator, device=generator.device)
        sigma = float(torch.exp(LOG_SIGMA_MEAN + LOG_SIGMA_STD * draw))
    if sigma == 0:
        return images
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    # Compared in -1 .. 1 as in the reference: there the smallest values above 0 are rounded to -1 as well.
    if skip_black:
        noise = noise.masked_fill(2 * images - 1 == -1, 0.0)
    return images + noise * (sigma / 2)  # -1 .. 1 is twice as wide as 0 .. 1


def _crop_to_aspect(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The middle of `images` [F, H, W, C] with the aspect width / height, to the nearest pixel and at least one."""
    rows, columns = images.shape[1:3]
    kept_columns = min(columns, max(1, round(rows * width / height)))
    kept_rows = min(rows, max(1, round(columns * height / width)))
    return _centre(images, kept_columns, kept_rows)


def _centre(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """The middle width x height pixels of `images` [F, H, W, C]."""
    left, top = (images.shape[2] - width) // 2, (images.shape[1] - height) // 2
    return images[:, top : top + height, left : left + width]


def _resize(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """[H, W, C] -> [height, width, 3], bicubic and antialiased: without that, most lines of a large photo would not be
    looked at."""
    pixels = _rgb(picture)
    if pixels.shape[:2] == (height, width):
        return pixels
    pixels = pixels.permute(2, 0, 1)[None]  # [H, W, C] -> [1, C, H, W]
    resized = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    # Bicubic interpolation overshoots at edges.
    return resized[0].permute(1, 2, 0).clamp(0, 1)


def _rgb(images: torch.Tensor) -> torch.Tensor:
    """[..., C] -> [..., 3], fp32."""
    images = images.expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images[..., :3]
    return images.float()
