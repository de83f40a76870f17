"""Pictures through the VAE: what image to video, video to video and the Fun models take in addition to the prompt."""

from collections import OrderedDict

import torch

from ..errors import UserError
from ..keys import Latent, with_rng_offset
from ..media.masks import fun_mask
from ..media.pictures import augment_pictures, check_pictures, fit_clip, fit_pictures
from ..vae.geometry import CHANNELS, SPATIAL, latent_frames, video_frames
from .vae import CogVideoXVAE

_SEEDS = 1 << 64  # that a generator takes: the one after the last is the first


def encode_start_and_end(
    vae: CogVideoXVAE,
    start: torch.Tensor | None,
    end: torch.Tensor | None,
    size: tuple[int, int, int],
    fit: str,
    sigma: float | None,
    noise_seed: int,
    posterior_seed: int | None,
    batch_size: int = 1,
) -> tuple[torch.Tensor, int]:
    """The channels to concatenate with an image to video model's video, unscaled, and how many random numbers were
    drawn from the posterior's seed.

    start: [F, H, W, C], 4k + 1 frames; end: [1, H, W, C]. size: (width, height, frames) of the clip.
    sigma: of the noise on both (media.pictures.augment_pictures). posterior_seed: None takes the posterior's mode.
    batch_size: of the run. As in diffusers each of its videos gets a sample of its own, the next one of the stream.
    Returns [b, 16, 1, h, w] where there is no more than one start image (samplers.conditioning.fit_frames adds the
    zeros), else [b, 16, T, h, w] with zeros for the frames that are not given; b is batch_size where samples are drawn,
    otherwise 1.

    Raises UserError. Source: diffusers pipeline_cogvideox_image2video.py, prepare_latents.
    """
    width, height, frames = size
    _check_start_and_end(start, end, frames)
    generator = torch.Generator().manual_seed(noise_seed)
    encoded, drawn = [], 0
    for pictures in (start, end):
        if pictures is not None:
            pictures = augment_pictures(fit_pictures(pictures, width, height, fit), sigma, generator)
            # The first picture's samples are drawn from the run's own seed, as in diffusers. A second picture, which
            # diffusers does not take, gets the next seed: with the same one both samples would have the same noise.
            seed = None if posterior_seed is None else (posterior_seed + len(encoded)) % _SEEDS
            encoded.append(vae.encode(pictures, seed, batch_size))
    # Only the first picture's samples have used up numbers of the run's own stream (keys.rng_offset).
    if posterior_seed is not None and encoded:
        drawn = encoded[0].numel()
    if start is not None and end is None and encoded[0].shape[2] == 1:
        return encoded[0], drawn
    # Frames that are not given are zeros in the latent, as in diffusers; a black frame, encoded, is something else.
    count, length = (encoded[0].shape[0], latent_frames(frames)) if encoded else (1, 1)
    blank = torch.zeros(count, CHANNELS, length, height // SPATIAL, width // SPATIAL)
    if start is not None:
        blank[:, :, : encoded[0].shape[2]] = encoded[0]
    if end is not None:
        blank[:, :, -1:] = encoded[-1]
    return blank, drawn


class RepeatedPicture:
    """The latents of a video that shows one picture from its first frame to its last.

    They are made in a run on a model that takes them, and once: other models' users need not wait for an encode of a
    whole video.
    """

    def __init__(
        self,
        vae: CogVideoXVAE,
        picture: torch.Tensor,
        size: tuple[int, int],
        fit: str,
        sigma: float | None,
        noise_seed: int,
        posterior_seed: int | None,
        batch_size: int,
    ):
        """picture: [1, H, W, C]. size: (width, height). The others are those of encode_start_and_end."""
        self._vae, self._picture, self._size, self._fit = vae, picture, size, fit
        self._sigma, self._noise_seed = sigma, noise_seed
        self._posterior_seed, self._batch_size = posterior_seed, batch_size
        self._made: dict[int, torch.Tensor] = {}

    def __call__(self, frames: int) -> torch.Tensor:
        """[b, 16, frames, h, w], unscaled; b is batch_size where samples of the posterior are drawn, otherwise 1."""
        if frames not in self._made:
            generator = torch.Generator().manual_seed(self._noise_seed)
            # One noise for all frames: the video stands still.
            still = augment_pictures(fit_pictures(self._picture, *self._size, self._fit), self._sigma, generator)
            video = still.expand(video_frames(frames), -1, -1, -1)
            # The next seed, for the run draws its noise from the stream of this one behind a single frame's sample.
            seed = None if self._posterior_seed is None else (self._posterior_seed + 1) % _SEEDS
            self._made = {frames: self._vae.encode(video, seed, self._batch_size)}
        return self._made[frames]

    def __deepcopy__(self, memo: dict[int, object]) -> "RepeatedPicture":
        """Nodes of other packs copy CONDITIONING; the VAE and what it has made are shared."""
        return self

    def __reduce__(self) -> tuple:
        """Saved with a CONDITIONING it is lost, instead of a VAE being saved with it."""
        return OrderedDict, ()


def _check_start_and_end(start: torch.Tensor | None, end: torch.Tensor | None, frames: int) -> None:
    for pictures in (start, end):
        if pictures is not None:
            check_pictures(pictures)
    if end is not None and end.shape[0] != 1:
        raise UserError(f"end_image has {end.shape[0]} pictures. Use one picture, the video's last frame.")
    # A clip of one frame takes one picture all the same: hence the 2.
    if start is not None and ((start.shape[0] - 1) % 4 or start.shape[0] >= max(frames, 2)):
        raise UserError(
            f"start_image has {start.shape[0]} pictures; the video has {frames} frames. Use one picture, or the last "
            "5, 9, ... (4k + 1) frames of a clip, fewer than the video has."
        )


def encode_video(
    vae: CogVideoXVAE,
    images: torch.Tensor,
    width: int,
    height: int,
    fit: str,
    posterior_seed: int | None,
    batch_size: int = 1,
) -> Latent:
    """LATENT of a video [F, H, W, C], F = 4k + 1: samples [batch_size, 16, T, h, w], unscaled.

    width, height: 0 takes the video's own, cropped to a multiple of 16. posterior_seed: None takes the posterior's
    mode, which is the same for all of a batch; otherwise each gets a sample of its own, the next one of the stream.

    Raises UserError. Source: diffusers pipeline_cogvideox_video2video.py, prepare_latents.
    """
    samples = vae.encode(fit_clip(images, width, height, fit), posterior_seed, batch_size)
    if posterior_seed is None:
        samples = samples.repeat(batch_size, 1, 1, 1, 1)
    latent: Latent = {"samples": samples}
    return latent if posterior_seed is None else with_rng_offset(latent, posterior_seed, samples.numel())


def encode_masked_video(
    vae: CogVideoXVAE,
    video: torch.Tensor,
    mask: torch.Tensor,
    sigma: float | None,
    noise_seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The channels to concatenate with a Fun InP model's video, both unscaled.

    video: [F, H, W, 3] in 0 .. 1, F = 4k + 1. mask: [F, H, W], 1 where the video is inpainted.
    Returns the masked video's latents [1, 16, T, h, w] and the inverted mask [1, 1, T, h, w], 1 where the video is
    given. Both are zeros where everything is inpainted.

    Source: CogVideoX-Fun pipeline_cogvideox_inpaint.py, __call__: masked pixels are black, -1 for the VAE.
    """
    frames, height, width = mask.shape
    size = latent_frames(frames), height // SPATIAL, width // SPATIAL
    inpainted = mask >= 0.5
    # Nothing is given: as in the reference the model gets zeros, not the latents of a black video.
    if inpainted.all():
        return torch.zeros(1, CHANNELS, *size), torch.zeros(1, 1, *size)
    masked = video.masked_fill(inpainted[..., None], 0.0)
    # skip_black: noise on the masked pixels would look like something that is known.
    masked = augment_pictures(masked, sigma, torch.Generator().manual_seed(noise_seed), skip_black=True)
    return vae.encode(masked), fun_mask(mask, *size)


def known_clip(
    video: torch.Tensor | None,
    mask: torch.Tensor | None,
    start: torch.Tensor | None,
    end: torch.Tensor | None,
    size: tuple[int, int, int],
    fit: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip and its mask from the parts of it that are given.

    video: [F, H, W, C], as long as the clip or longer. mask: [1 or F, H, W] of the video's own size or the clip's, 1
    where it is inpainted; None keeps all of the video. start, end: pictures [n, H, W, C] for the clip's start and end.
    size: (width, height, frames) of the clip.
    Returns [frames, height, width, 3] in 0 .. 1 and [frames, height, width].

    Raises UserError.
    """
    width, height, frames = size
    clip, mask_out = torch.zeros(frames, height, width, 3), torch.ones(frames, height, width)
    if video is not None:
        check_pictures(video)
        require_length(video, frames, "The video")
        clip[:] = fit_pictures(video[:frames], width, height, fit)
        # [1, h, w] is held over the clip by broadcasting.
        mask_out[:] = 0.0 if mask is None else _fit_mask(mask, video, size, fit)
    elif mask is not None:
        raise UserError("There is a mask and no video to apply it to. Connect the video as well.")
    for name, pictures, at_end in (("start_image", start, False), ("end_image", end, True)):
        if pictures is not None:
            check_pictures(pictures)
            count = pictures.shape[0]
            if count > frames:
                raise UserError(f"{name} has {count} pictures, the clip {frames} frames. Use fewer pictures.")
            covered = slice(frames - count, frames) if at_end else slice(0, count)
            clip[covered], mask_out[covered] = fit_pictures(pictures, width, height, fit), 0.0
    return clip, mask_out


def _fit_mask(mask: torch.Tensor, video: torch.Tensor, size: tuple[int, int, int], fit: str) -> torch.Tensor:
    width, height, frames = size
    # [..., H, W] -> [F, H, W]
    mask = mask.reshape(-1, *mask.shape[-2:])
    counts, sizes = (1, frames, video.shape[0]), ((height, width), tuple(video.shape[1:3]))
    if mask.shape[0] not in counts or tuple(mask.shape[1:]) not in sizes:
        raise UserError(
            f"The mask is {mask.shape[2]} x {mask.shape[1]} pixels with {mask.shape[0]} frames; the video is "
            f"{video.shape[2]} x {video.shape[1]} with {video.shape[0]}, the clip {width} x {height} with {frames}. "
            "Make the mask of the video's or the clip's size, with one frame or as many as they have."
        )
    # As a grey picture, so that it is scaled and cropped exactly as its video is.
    return fit_pictures(mask[:frames, :, :, None], width, height, fit)[..., 0]


def require_length(images: torch.Tensor, frames: int, what: str) -> None:
    """Raises UserError where `images` [F, H, W, C] are fewer than `frames`."""
    if images.shape[0] < frames:
        raise UserError(
            f"{what} has {images.shape[0]} frames, the clip {frames}. Use a longer one, or make the clip shorter.",
            advice="hold the last frame",
        )
