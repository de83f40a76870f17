"""Image to video."""

import torch
from comfy_api.latest import io

from ..keys import image_concat, with_rng_offset
from ..samplers.conditioning import IMAGE_SCALES
from ..sockets.conditioning_images import RepeatedPicture, encode_start_and_end
from ..sockets.vae import CogVideoXVAE
from ..vae.geometry import empty_latent
from .input_checks import check_all_sizes, check_vae, checked
from .inputs import (
    conditioned,
    conditioned_outputs,
    fit_input,
    noise_augmentation_input,
    posterior_inputs,
    prompt_inputs,
    size_inputs,
    vae_input,
)
from .search_words import SEARCH_WORDS


@checked(check_all_sizes, check_vae)
class CogVideoXImageToVideo(io.ComfyNode):
    """CONDITIONING with the latents of a start image (and an end image) as concat conditioning; an empty LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXImageToVideo",
            display_name="CogVideoX Image to Video",
            category="CogVideoX/condition",
            search_aliases=SEARCH_WORDS["CogVideoXImageToVideo"],
            description="Start a video from an image, with CogVideoX-5b-I2V, 1.5-5B-I2V or 2b-img2vid.",
            inputs=[
                *prompt_inputs(),
                vae_input(),
                *size_inputs(),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The first frame; or the last 4k + 1 frames of a clip that the video continues.",
                ),
                io.Image.Input(
                    "end_image", optional=True, tooltip="The last frame. The official models were not trained for one."
                ),
                noise_augmentation_input(
                    "Standard deviation of noise added to the image (pixels from -1 to 1). Some noise gives more "
                    "motion; in training it was around 0.05."
                ),
                io.Boolean.Input(
                    "training_noise",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Draw the strength of the noise at random as in training, exp(N(-3, 0.5)), instead of the "
                    "value above.",
                ),
                fit_input(),
                io.Combo.Input(
                    "image_scale",
                    options=list(IMAGE_SCALES),
                    default="checkpoint",
                    optional=True,
                    advanced=True,
                    tooltip="How the image's latent is scaled. checkpoint: as the VAE's config says. For "
                    "CogVideoX1.5-5B-I2V diffusers uses divided, and the authors' own code unscaled.",
                ),
                *posterior_inputs(),
            ],
            outputs=conditioned_outputs("the image"),
        )

    @classmethod
    def execute(
        cls,
        positive: list,
        negative: list,
        vae: CogVideoXVAE,
        width: int,
        height: int,
        frames: int,
        batch_size: int,
        start_image: torch.Tensor | None = None,
        end_image: torch.Tensor | None = None,
        noise_augmentation: float = 0.0,
        training_noise: bool = False,
        fit: str = "crop",
        image_scale: str = "checkpoint",
        sample_posterior: bool = False,
        seed: int = 0,
    ) -> io.NodeOutput:
        sigma = None if training_noise else noise_augmentation  # None: media.pictures.augment_pictures draws it
        posterior_seed = seed if sample_posterior else None
        latents, drawn = encode_start_and_end(
            vae, start_image, end_image, (width, height, frames), fit, sigma, seed, posterior_seed, batch_size
        )
        # diffusers draws the posterior's sample and then the run's noise from one generator: the latent tells the
        # sampler how many numbers of the seed's stream are used up.
        latent = with_rng_offset({"samples": empty_latent(width, height, frames, batch_size)}, seed, drawn)
        repeated = None
        if start_image is not None and start_image.shape[0] == 1 and end_image is None:
            repeated = RepeatedPicture(vae, start_image, (width, height), fit, sigma, seed, posterior_seed, batch_size)
        values = image_concat(latents, image_scale, end_image is not None, repeated)
        return conditioned(positive, negative, values, latent)
