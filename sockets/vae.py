"""VAE: a CogVideoX autoencoder behind ComfyUI's socket."""

import logging
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ..errors import UserError, quoted
from ..host.compat import available_memory, model_patcher_class
from ..host.messages import Notify, clear_running_node
from ..host.ops import adopt_ops
from ..host.optional_packages import prepare_diffusers
from ..host.patches import without_warnings
from ..host.several_cards import made_on_card
from ..samplers.front import split_front
from ..vae.activation import Activation, modulated_silu
from ..vae.compiled import compiled_modulated_silu
from ..vae.geometry import CHANNELS, SPATIAL, TEMPORAL, check_latents, latent_frames, video_frames
from ..vae.memory import PeakMemory
from ..vae.plan import FAST, LADDER, LEAST, LOW, OffloadPlan, first_fitting, in_bands
from ..vae.streaming import decode_stream, encode_stream
from .meta_model import model_on_meta
from .model import non_finite_weights

if TYPE_CHECKING:  # importing it loads diffusers
    from ..vae.network import CogVideoXAutoencoder


class CogVideoXVAE(comfy.sd.VAE):
    """Stock VAE socket over CogVideoXAutoencoder: exact in every mode, at a memory that does not grow with length."""

    first_stage_model: "CogVideoXAutoencoder"
    _counts: PeakMemory | None = None

    def __init__(self, config: dict[str, Any], dtype: torch.dtype | None, notify: Notify, disable_dynamic: bool):
        """A VAE without weights. Call weights_assigned once they are loaded.

        config: the VAE's config.json. dtype: of the weights and of the computation; None lets ComfyUI choose.
        notify: gets a sentence when memory runs out and a leaner mode takes over.
        """
        # First, because it sets every attribute, also those that newer versions of ComfyUI have added. What differs for
        # this VAE is set after it.
        _set_host_defaults(self)
        self.notify = notify
        self.latent_channels, self.latent_dim = CHANNELS, 3
        # For frames, height and width: functions or factors from which comfy.sd.VAE works out sizes for its nodes.
        self.upscale_ratio = (video_frames, SPATIAL, SPATIAL)
        self.downscale_ratio = (latent_frames, SPATIAL, SPATIAL)
        self.upscale_index_formula = self.downscale_index_formula = (TEMPORAL, SPATIAL, SPATIAL)
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        self.not_video, self.handles_tiling = False, True
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.vae_dtype = dtype or mm.vae_dtype(self.device, self.working_dtypes)
        # From here on as in comfy.sd.VAE.__init__, which has returned before it.
        self.first_stage_model = build_autoencoder(config, self.vae_dtype)
        mm.archive_model_dtypes(self.first_stage_model)
        self.patcher = model_patcher_class(disable_dynamic)(
            self.first_stage_model, load_device=self.device, offload_device=mm.vae_offload_device()
        )
        self._count_memory()

    def _count_memory(self) -> PeakMemory:
        """In place of the defaults, which estimate what an image VAE takes: of the network and the device as they are.
        ComfyUI's Select VAE Device gives a copy of this object others."""
        if self._counts is None or not self._counts.is_of(self.first_stage_model, self.device):
            self._counts = PeakMemory(self.first_stage_model, self.device)
            self.memory_used_decode, self.memory_used_encode = self._counts.decode_bytes, self._counts.encode_bytes
        return self._counts

    def weights_assigned(self) -> None:
        """Have ComfyUI count the size of the weights again: it was computed without them."""
        self.size = None
        self.model_size()

    def decode(self, samples_in: torch.Tensor, vae_options: dict | None = None) -> torch.Tensor:
        """Latents [B, 16, n, h, w], unscaled, to frames [B, 4 n - 3, 8 h, 8 w, 3] in 0 .. 1.

        vae_options: memory = "auto", "fast" or "low"; compile = True to go through torch.compile.
        Raises UserError for another model's latent, and for a result that contains NaN or Inf.
        """
        return self._decode(samples_in, **(vae_options or {}))

    def decode_tiled(
        self, samples: torch.Tensor, tile_x: int | None = None, tile_y: int | None = None, *_: Any, **__: Any
    ) -> torch.Tensor:
        """decode in bands that hold as many pixels as a tile of tile_x x tile_y latents, with the same result.

        The tiles' overlap is ignored: bands leave no seams, because each is computed with the rows next to it. Time is
        never cut.
        """
        return self._decode(samples, "low", tile_pixels(tile_x, tile_y, SPATIAL))

    def _decode(
        self, samples: torch.Tensor, memory: str = "auto", band_pixels: int | None = None, compile: bool = False
    ) -> torch.Tensor:
        check_latents(samples)
        _, samples = split_front(samples)  # of a run that stopped early, and no part of the video
        out = torch.empty(
            (samples.shape[0], video_frames(samples.shape[2]), *(SPATIAL * side for side in samples.shape[3:]), 3),
            device=self.output_device,
            dtype=output_dtype(self),
        )
        bar = comfy.utils.ProgressBar(out.shape[0] * out.shape[1])
        # One video of the batch after the other, so that only `out` grows with the batch.
        for video, latents in zip(out, samples.split(1)):
            done = 0
            for frames in self.decode_stream(latents, memory, band_pixels, compile):
                video[done : done + len(frames)] = frames
                done += len(frames)
                bar.update(len(frames))
        return out

    def decode_stream(
        self, latents: torch.Tensor, memory: str = "auto", band_pixels: int | None = None, compile: bool = False
    ) -> Generator[torch.Tensor, None, None]:
        """Frames [t, H, W, 3] in 0 .. 1 of latents [1, 16, n, h, w], at most 9 at a time, on the output device."""
        clear_running_node()
        for frames in self._decoded(latents, memory, band_pixels, compile):
            # Checked before process_output, which clamps: an Inf would become an ordinary white or black.
            # [1, 3, t, H, W] -> [t, H, W, 3]
            frames = frames[0].movedim(0, -1).to(self.output_device, output_dtype(self))
            yield self.process_output(self._checked(frames, "decoded"))
            frames = None  # frees their memory before the next ones are made

    def _decoded(
        self, latents: torch.Tensor, memory: str, band_pixels: int | None, compile: bool
    ) -> Iterator[torch.Tensor]:
        """[1, 16, n, h, w] -> frames [1, 3, t, 8 h, 8 w], about -1 .. 1, a few at a time."""
        plan = self.load(memory, band_pixels, latents.shape, self._count_memory().decode_bytes)
        network, fell_back = self.first_stage_model, partial(self._report_fallback, "Decoding")
        activation = self.activation(compile)
        parts = decode_stream(network, latents, plan, self.device, self.vae_dtype, fell_back, activation)
        yield from made_on_card(self.device, parts)

    def activation(self, compile: bool) -> Activation:
        """What norms are followed by; with `compile` as torch.compile makes it."""
        return compiled_modulated_silu(self.device, self.vae_dtype, self.notify) if compile else modulated_silu

    def encode(
        self, pixel_samples: torch.Tensor, posterior_seed: int | None = None, sample_count: int = 1
    ) -> torch.Tensor:
        """Frames [F, H, W, 3] (or [B, F, H, W, 3]) in 0 .. 1 -> [B, 16, (F - 1) // 4 + 1, H / 8, W / 8], unscaled.

        posterior_seed: take a sample of the posterior, drawn as a CPU generator with this seed does in diffusers,
        instead of its mode. sample_count: how many samples to draw of each video, one after the other from the same
        generator: B * sample_count are returned.
        """
        return self._encode(pixel_samples, "auto", posterior_seed=posterior_seed, sample_count=sample_count)

    def encode_posterior(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames [F, H, W, 3] in 0 .. 1 -> mean and standard deviation of the posterior, each
        [1, 16, (F - 1) // 4 + 1, H / 8, W / 8], fp32, unscaled."""
        video = self.vae_encode_crop_pixels(frames)
        moments = self._checked(self._moments(video.movedim(-1, 0)[None], "auto", None).float(), "encoded")
        return mean_and_deviation(moments)

    def encode_tiled(
        self,
        pixel_samples: torch.Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """encode in bands that hold tile_x x tile_y pixels, with the same result, as decode_tiled."""
        return self._encode(pixel_samples, "low", tile_pixels(tile_x, tile_y, 1))

    def _encode(
        self,
        images: torch.Tensor,
        memory: str,
        band_pixels: int | None = None,
        posterior_seed: int | None = None,
        sample_count: int = 1,
    ) -> torch.Tensor:
        # One video at a time: ComfyUI's function crops all dimensions between the first and the last, which are height
        # and width of [F, H, W, 3], but frames, height and width of [B, F, H, W, 3].
        videos = [self.vae_encode_crop_pixels(video) for video in (images if images.ndim == 5 else images[None])]
        # [F, H, W, 3] -> [1, 3, F, H, W]
        moments = torch.cat([self._moments(video.movedim(-1, 0)[None], memory, band_pixels) for video in videos])
        if posterior_seed is not None:
            moments = moments.repeat_interleave(sample_count, dim=0)
        return self._checked(posterior(moments, posterior_seed).to(output_dtype(self)), "encoded")

    def _moments(self, video: torch.Tensor, memory: str, band_pixels: int | None) -> torch.Tensor:
        """[1, 3, F, H, W], 0 .. 1 -> [1, 32, n, H / 8, W / 8] on the output device."""
        bar = comfy.utils.ProgressBar(latent_frames(video.shape[2]))
        parts = []
        for part in self._encoded(video, memory, band_pixels):
            parts.append(part.to(self.output_device))
            bar.update(part.shape[2])
        return torch.cat(parts, dim=2)

    def _encoded(self, video: torch.Tensor, memory: str, band_pixels: int | None) -> Iterator[torch.Tensor]:
        """[1, 3, F, H, W], 0 .. 1 -> moments [1, 32, n, H / 8, W / 8], a few at a time."""
        plan = self.load(memory, band_pixels, video.shape, self._count_memory().encode_bytes)
        network, fell_back = self.first_stage_model, partial(self._report_fallback, "Encoding")
        parts = encode_stream(network, video, plan, self.device, self.vae_dtype, fell_back, self.process_input)
        yield from made_on_card(self.device, parts)

    def load(
        self, memory: str, band_pixels: int | None, shape: tuple[int, ...], needed: Callable[..., int]
    ) -> OffloadPlan:
        """Bring the weights to the device with room for what the plan needs, and return the plan.

        needed: PeakMemory.decode_bytes or encode_bytes, for a video of `shape`.
        """
        # What ComfyUI unloads for us counts: after sampling the diffusion model fills the card, and it can go. The
        # weights that are still to be loaded take their part, and what the user has reserved (--reserve-vram) stays.
        free = available_memory(self.patcher) - (self.size - self.patcher.loaded_size()) - mm.extra_reserved_memory()
        plans = {"fast": (FAST,), "low": (LOW,) if band_pixels is None else (LOW, LEAST), "auto": LADDER}[memory]
        plans = [in_bands(plan, band_pixels) for plan in plans]
        plan = first_fitting(plans, lambda plan: needed(shape, self.vae_dtype, plan), free)
        mm.load_models_gpu([self.patcher], memory_required=needed(shape, self.vae_dtype, plan))
        return plan

    def _report_fallback(self, what: str, plan: OffloadPlan, leaner: OffloadPlan) -> None:
        self.notify(
            f"{what} in memory mode {plan.name} needs more memory than there is: it continues in mode {leaner.name}, "
            "slower and with the same result."
        )

    def _checked(self, result: torch.Tensor, what: str) -> torch.Tensor:
        if torch.isfinite(result).all():
            return result
        broken = non_finite_weights(self.first_stage_model)
        if broken:
            raise UserError(
                f"What the VAE has {what} contains NaN or Inf, and so do its weights: {', '.join(broken[:3])}. "
                "Download the VAE again."
            )
        raise UserError(
            f"What the VAE has {what} contains NaN or Inf. It computes in {self.vae_dtype}: load it with weight_dtype "
            "bf16 or fp32; if that is set already, its input contains NaN or Inf."
        )


def posterior(moments: torch.Tensor, seed: int | None) -> torch.Tensor:
    """The mode of a posterior, or with a seed a sample of it: [B, 32, ...] -> [B, 16, ...]."""
    mean, deviation = mean_and_deviation(moments)
    if seed is None:
        return mean
    # On the CPU whatever the device, since a card's generator would give other numbers for the same seed.
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed)).to(mean)
    return mean + deviation * noise


def mean_and_deviation(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of a posterior: [B, 32, ...] -> twice [B, 16, ...].

    Source: diffusers autoencoders/vae.py, DiagonalGaussianDistribution.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30, 20))


def output_dtype(vae: comfy.sd.VAE) -> torch.dtype:
    """The type of IMAGE and LATENT in this ComfyUI; newer versions have an option for it."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32


def tile_pixels(tile_x: int | None, tile_y: int | None, zoom: int) -> int | None:
    """Pixels of a tile, given in units of `zoom` pixels."""
    return tile_x * tile_y * zoom**2 if tile_x and tile_y else None


def _set_host_defaults(vae: comfy.sd.VAE) -> None:
    """Set every attribute that comfy.sd.VAE has in this version of ComfyUI: given no weights, its __init__ sets them,
    warns that there are none, and returns. Attributes written down here would be those of one version."""
    with without_warnings(logging.getLogger()):  # ComfyUI has no logger of its own
        comfy.sd.VAE.__init__(vae, sd={})


def build_autoencoder(config: dict[str, Any], dtype: torch.dtype) -> "CogVideoXAutoencoder":
    """An empty CogVideoXAutoencoder on the meta device, every leaf a ComfyUI operation.

    config: the VAE's config.json, within the limits of model_loaders.config_limits.

    Raises UserError where it does not describe a CogVideoX VAE, and as prepare_diffusers does.
    """
    prepare_diffusers()
    from ..vae.network import CogVideoXAutoencoder

    try:
        model: CogVideoXAutoencoder = model_on_meta(CogVideoXAutoencoder, config)
    # Numbers that do not fit each other, such as channels that do not divide into groups.
    except ValueError as error:
        raise UserError(
            f"The VAE's config does not describe a CogVideoX VAE ({quoted(str(error))}). Download its config.json "
            "again."
        ) from error
    torch.nn.Module.to(model, dtype)  # diffusers' ModelMixin.to would warn at the cast
    # The operations of ComfyUI's own VAEs, which cast no dtype: weights and frames both have the one that was chosen.
    adopt_ops(model, comfy.ops.disable_weight_init)
    return model.eval()
