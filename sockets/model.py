"""MODEL: a CogVideoX transformer as ComfyUI's BaseModel, its noise levels and its latent format."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch

from ..errors import NonFiniteError, UserError
from ..host.memory_rules import free_for_run
from ..host.ops import adopt_ops
from ..host.optional_packages import prepare_diffusers
from ..host.quantized import dequantized
from ..host.stock_patches import compared_options
from ..keys import FINITE_WATCH, read_concat, with_positions
from ..samplers.conditioning import concat_channels, image_scale
from ..samplers.finite import FiniteWatch
from ..samplers.front import join_front, lacks_frame, prepend, prepend_noise, split_front
from ..samplers.noise import adds_noise, read_stream
from ..samplers.schedule import alphas_cumprod
from ..transformer.memory_modes import LADDER, Mode, modes_to_try
from ..transformer.parameter_types import parameter_dtype
from .families import Family
from .meta_model import model_on_meta

if TYPE_CHECKING:  # importing it loads diffusers
    from ..transformer.dit import CogVideoXDiT

# One row a latent channel, one column a colour. Fitted for CogVideoX's 16-channel latent by the author of
# ComfyUI-CogVideoXWrapper (kijai/ComfyUI-CogVideoXWrapper, latent_preview.py), rounded here.
LATENT_RGB_FACTORS = [
    [0.1195, 0.0992, -0.0048],
    [-0.0012, 0.0550, 0.0213],
    [-0.0141, -0.0087, -0.0210],
    [0.0306, 0.1219, 0.0140],
    [0.0927, 0.0303, 0.0508],
    [0.0379, 0.0494, 0.0586],
    [0.0177, 0.0088, 0.0360],
    [0.1061, 0.0234, 0.0572],
    [0.1274, -0.0110, 0.0433],
    [-0.0187, 0.0822, 0.1061],
    [0.0084, 0.0762, 0.0930],
    [0.1294, 0.1236, 0.0448],
    [0.0457, 0.0411, -0.0177],
    [0.0002, -0.0140, 0.0533],
    [0.0808, 0.1155, -0.0215],
    [-0.0152, -0.0058, 0.0722],
]
OFS = 2.0  # of CogVideoX 1.5's image to video models (diffusers pipeline_cogvideox_image2video.py)


class CogVideoXLatent(comfy.latent_formats.LatentFormat):
    """16 channels, 8 times smaller in space, 4 times in time.

    LATENT holds latents as the VAE makes them, unscaled; process_in and process_out multiply and divide by the VAE's
    scaling factor on the way into a run and out of it.
    """

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 4

    def __init__(self, scale_factor: float, fps: float):
        """scale_factor: the VAE's. fps: frames a second at which previews play."""
        self.scale_factor = scale_factor
        self.preview_fps = fps
        self.latent_rgb_factors = LATENT_RGB_FACTORS
        self.latent_rgb_factors_bias: list[float] | None = None
        self.suits_tiny_decoder = True  # taecvx, which is fitted to the official VAE

    def take_colours(self, factors: list[list[float]], bias: list[float]) -> None:
        """For latents of another VAE than the official one: the colours of its previews, in the shape of
        LATENT_RGB_FACTORS, and what is added to each."""
        self.latent_rgb_factors, self.latent_rgb_factors_bias = factors, bias
        self.suits_tiny_decoder = False


class CogVideoXSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """CogVideoX's noise levels for every ComfyUI sampler: v-prediction, SNR shift, zero terminal SNR."""

    sigmas: torch.Tensor  # a buffer, [1000], ascending, which ComfyUI registers in set_sigmas

    def __init__(self, model_config: "CogVideoXConfig"):
        self.patch_size_t = model_config.family.patch_size_t
        # ComfyUI's constructor makes a schedule of its own, without SNR shift; set_sigmas below replaces it.
        super().__init__(model_config)
        alphas = alphas_cumprod(model_config.sampling_settings["snr_shift_scale"])
        # A plain attribute and not a buffer, so that no cast or move of the model touches it: our own samplers compute
        # with it in float64 on the CPU.
        self.alphas = alphas.clone()
        # At zero terminal SNR the last alpha is 0 and its sigma infinite, and ComfyUI's samplers would compute NaN with
        # it. This is the value that rescale_zero_terminal_snr_sigmas of comfy/model_sampling.py puts instead; it makes
        # the last sigma 4518.7.
        alphas[-1] = 4.8973451890853435e-08
        self.set_sigmas(((1 - alphas) / alphas).sqrt())

    def __getattr__(self, name: str) -> Any:
        # ModelNoiseScale of ComfyUI's nodes_model_advanced.py asks any model for them.
        if name in ("set_parameters", "shift", "multiplier"):
            raise NoSuchEntryError(f"CogVideoX's noise schedule has no {name}: this node is for flow matching.")
        return super().__getattr__(name)

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        """The sample that a run starts from, variance exploding.

        At zero terminal SNR it is pure noise: ComfyUI's own formula would leave a trace of the latent in it. A run that
        adds no noise continues from its latent as it is.

        noise, latent_image: [B, 16, T, H, W]. Outside of a run, and of an odd T, CogVideoX 1.5 returns 2 + T frames
            (samplers.front): whoever adds noise to a latent has to take the shape of the result.
        max_denoise: whether the run begins at the largest of the model's sigmas.
        """
        if not lacks_frame(latent_image.shape[2], self.patch_size_t):
            return self._scaled(sigma, noise, latent_image, max_denoise)
        # Inside a run frames come in pairs (samplers.outer_sample). This is AddNoise, which makes a latent for a run
        # that adds none: with the same frame in front as if the run had added the noise.
        front, frames = split_front(latent_image)
        noise = prepend_noise(noise[:, :, noise.shape[2] - frames.shape[2] :], read_stream(noise))
        frames = prepend(frames, front)
        noisy = self._scaled(sigma, noise, frames, max_denoise)
        return join_front(noisy[:, :, :1], noisy[:, :, 1:])

    def _scaled(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool
    ) -> torch.Tensor:
        # Without added noise (`noise` is all zeros) the latent is the noisy sample of an earlier run and must stay.
        if max_denoise and adds_noise(noise):
            latent_image = torch.zeros_like(latent_image)
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)


class NoSuchEntryError(UserError, AttributeError, KeyError):
    """What another family of models has: a node that is made for that family asks for it.

    As an AttributeError it leaves hasattr to say no, as a KeyError `in` and get."""

    def __init__(self, message: str):
        super().__init__(message, advice="take the node out")


class _UNetConfig(dict):
    """A dictionary in which the entries of ComfyUI's U-Nets are missed with a sentence: FreeU reads model_channels of
    any model."""

    def __missing__(self, key: str) -> Any:
        raise NoSuchEntryError(f"CogVideoX is not a U-Net and has no {key}, which this node reads.")


class CogVideoXConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's BaseModel asks for, filled from diffusers' configs."""

    unet_extra_config = {}
    memory_usage_factor = 1.0

    def __init__(
        self,
        transformer_config: dict[str, Any],
        family: Family,
        scale_factor: float,
        snr_shift_scale: float,
        inverts_image_scale: bool = False,
    ):
        """transformer_config: diffusers' config.json. scale_factor: the VAE's scaling_factor, by which latents are
        multiplied. inverts_image_scale: a start image's latents are divided by it instead."""
        super().__init__({"in_channels": transformer_config["in_channels"]})
        self.unet_config = _UNetConfig(self.unet_config)
        self.transformer_config = transformer_config
        self.family = family
        self.inverts_image_scale = inverts_image_scale
        # CogVideoX 1.5, known by its patch_size_t, was trained at 16 frames a second, CogVideoX 1.0 at 8.
        self.latent_format = CogVideoXLatent(scale_factor, fps=16.0 if family.patch_size_t else 8.0)
        self.sampling_settings = {"snr_shift_scale": snr_shift_scale}


class CogVideoXModel(comfy.model_base.BaseModel):
    """BaseModel around CogVideoXDiT."""

    model_config: CogVideoXConfig
    latent_format: CogVideoXLatent
    diffusion_model: "CogVideoXDiT"

    def __init__(self, model_config: CogVideoXConfig):
        # BaseModel calls this as it would call a network's class: with the entries of unet_config (in_channels, dtype),
        # a device, and the operations that it has picked. The network is made on the meta device in any case.
        def build(dtype: torch.dtype, device: torch.device | None, operations: type, **_: Any) -> torch.nn.Module:
            return build_dit(model_config.transformer_config, dtype, model_config.manual_cast_dtype, operations)

        unet_model: Any = build
        super().__init__(model_config, comfy.model_base.ModelType.V_PREDICTION, unet_model=unet_model)
        self.diffusion_model.stretches_positions = model_config.family.stretches_positions
        # In place of the one that BaseModel has made for V_PREDICTION, which has neither shift nor zero terminal SNR.
        self.model_sampling = CogVideoXSampling(model_config)

    def _apply_model(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] = {},
        concat_sigmas: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """ComfyUI's: x [B, 16, T, H, W] at sigmas t [B], scaled, variance exploding -> x0, same shape and scale.

        c_concat: the channels to concatenate. They are zeroed where the sigma is not within concat_sigmas, (highest,
        lowest).

        Raises UserError as soon as a prediction is known to contain NaN or Inf: in a run the FiniteWatch in
        transformer_options decides when. Otherwise the user would get a black video after the last step.
        """
        if c_concat is not None and concat_sigmas is not None:
            # All entries of t are the same sigma: ComfyUI batches conditionings of one step only. The comparison stays
            # on the card, which the host would have to wait for.
            is_within = (t[0] >= concat_sigmas[1]) & (t[0] <= concat_sigmas[0])
            c_concat = torch.where(is_within, c_concat, 0)
        watch: FiniteWatch | None = transformer_options.get(FINITE_WATCH)
        # Without the watch, which torch.compile need not look into.
        options = {key: value for key, value in transformer_options.items() if key != FINITE_WATCH}
        if hasattr(self.diffusion_model, "_orig_mod"):  # TorchCompileModel has put torch.compile's module there
            kwargs["compared"] = compared_options(options, len(self.diffusion_model.transformer_blocks))
        denoised = super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)
        is_finite, error = torch.isfinite(denoised).all(), partial(self._non_finite_error, t)
        if watch is not None:
            watch.note(is_finite, error)
        elif not is_finite:
            raise error()
        return denoised

    def _non_finite_error(self, t: torch.Tensor) -> UserError:
        """For a prediction at sigmas `t` [B]: which weights contain NaN or Inf, or the likely cause."""
        timestep = int(self.model_sampling.timestep(t[:1]))
        found = f"The model's prediction at timestep {timestep} contains NaN or Inf."
        broken = non_finite_weights(self.diffusion_model)
        if broken:
            return UserError(
                f"{found} So do weights of the model: {', '.join(broken[:3])}"
                f"{f' and {len(broken) - 3} more' if len(broken) > 3 else ''}. Download the checkpoint again, or "
                "remove the LoRA that was applied last."
            )
        family = self.model_config.family
        return NonFiniteError(
            f"{found} The likely cause is the precision: the model computes in {self.get_dtype_inference()}, and "
            f"{family.name} was trained in {family.trained_dtype}. Load it with weight_dtype bf16 or fp32; if that is "
            "set already, the weights or a LoRA are damaged."
        )

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """ComfyUI's: the arguments of _apply_model that come from CONDITIONING, as comfy.conds objects.

        The text is a CONDRegular, which ComfyUI batches only with texts of the same length. CONDCrossAttn, which
        BaseModel makes, would repeat the tokens of prompt and negative prompt until they are equally many. That changes
        nothing in cross-attention, but in joint attention the repeated tokens take attention away from the video's.
        """
        out = super().extra_conds(**kwargs)
        if kwargs.get("cross_attn") is not None:
            out["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
        if self.model_config.transformer_config.get("ofs_embed_dim"):
            # [1]; ComfyUI repeats it for the batch.
            out["ofs"] = comfy.conds.CONDRegular(torch.full((1,), float(kwargs.get("ofs", OFS))))
        start, end = read_concat(kwargs).get("cogvideox_range", (0.0, 1.0))
        if "c_concat" in out and (start, end) != (0.0, 1.0):
            # percent_to_sigma gives about 1e9 for the start of a run and 0 for its end, so that both are included.
            sigmas = tuple(float(self.model_sampling.percent_to_sigma(percent)) for percent in (start, end))
            out["concat_sigmas"] = comfy.conds.CONDConstant(sigmas)
        return out

    def concat_cond(self, **kwargs: Any) -> torch.Tensor | None:
        """The channels to concatenate with the noisy video, [B, C, T, h, w], scaled; None for a text to video model.

        BaseModel.extra_conds calls it, once a run for each conditioning; samplers.checks has refused those that do not
        fit.
        """
        config, concat = self.model_config, read_concat(kwargs)
        if config.family.task == "text":
            return None
        factor = config.latent_format.scale_factor
        # Only the start image's latents may have another factor than the video's (Family.inverts_image_scale).
        scale = factor
        if config.family.task == "image":
            scale = image_scale(concat.get("cogvideox_scale", "checkpoint"), factor, config.inverts_image_scale)
        latents, known = concat.get("concat_latent_image"), concat.get("cogvideox_known")
        assert latents is not None
        return concat_channels(latents, known, kwargs["noise"].shape, scale, factor).to(kwargs["device"])

    def resize_cond_for_context_window(
        self,
        cond_key: str,
        cond_value: Any,
        window: Any,
        x_in: torch.Tensor,
        device: torch.device,
        retain_index_list: list[int] = [],
    ) -> Any:
        """The part of a condition that belongs to one of ComfyUI's context windows: the window's frames of the
        concatenated channels, and all of everything else.

        Without this method ComfyUI cuts every tensor that is as long as the video in the dimension of frames: that of a
        text is its width.
        """
        if cond_key == "c_concat":
            frames = window.get_tensor(cond_value.cond, device, dim=2, retain_index_list=retain_index_list)
            return cond_value._copy_with(frames)
        return cond_value

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, Any] = {}) -> float:
        """Bytes of activations for one forward on latents of `input_shape` [B, C, T, H, W].

        ComfyUI keeps as many weights on the card as leave this free. It is told what the default mode takes, and what
        the lean mode does only where not even one video fits in the default mode: weights are streamed while the card
        computes, and two passes of the default mode take no longer than one batch of the lean.
        """
        # Not at the top: it imports diffusers, which whoever has a model has imported.
        from ..transformer.block import has_lean_mode

        dit, dtype = self.diffusion_model, self.get_dtype_inference()
        text_tokens = dit.config.max_text_seq_length

        patcher = getattr(self, "current_patcher", None)  # of the run, whose options have other nodes' patches
        # Select Model Device may have put the model on another card than ComfyUI's own.
        device = patcher.load_device if patcher is not None else mm.get_torch_device()
        options = patcher.model_options.get("transformer_options", {}) if patcher is not None else {}

        def needed(mode: Mode, shape: Sequence[int]) -> float:
            return dit.step_bytes(mode, shape, text_tokens, dtype, device, options)

        ladder = LADDER if has_lean_mode(dit.transformer_blocks, options) else LADDER[:1]
        mode = modes_to_try(ladder, lambda mode: needed(mode, (1, *input_shape[1:])), free_for_run(device))[0]
        return needed(mode, input_shape)


def non_finite_weights(module: torch.nn.Module) -> list[str]:
    """The names of parameters and tables that contain NaN or Inf."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    # Of a model whose weights are in other processes nothing can be said here.
    return [
        name
        for name, tensor in tensors
        if not tensor.is_meta and not torch.isfinite(dequantized(tensor, torch.float32)).all()
    ]


def build_dit(
    config: dict[str, Any], storage: torch.dtype, compute: torch.dtype | None, operations: type
) -> "CogVideoXDiT":
    """An empty CogVideoXDiT on the meta device, every leaf a ComfyUI operation, every parameter of its final type.

    config: diffusers' config.json. storage, compute: as for transformer.parameter_types.parameter_dtype.

    Raises UserError where the config does not describe a CogVideoX model, and as prepare_diffusers does.
    """
    # Importing diffusers takes seconds, which ComfyUI's start should not wait for.
    prepare_diffusers()
    from ..transformer.dit import CogVideoXDiT

    try:
        model: CogVideoXDiT = model_on_meta(CogVideoXDiT, config)
    # Wrong values in a damaged config.json raise all kinds of errors from within diffusers and torch.
    except Exception as error:
        raise UserError(
            f"The transformer's config does not describe a CogVideoX model ({type(error).__name__}: "
            f"{str(error)[:200]}). Download its config.json again."
        ) from error
    model.dtype = storage
    if not config.get("use_learned_positional_embeddings"):
        # CogVideoX-2b's sincos table is a buffer in diffusers that no checkpoint holds, so that on the meta device it
        # would stay without values. positions.sincos_table computes it for the video's size instead.
        model.patch_embed._buffers.pop("pos_embedding", None)
    # On the meta device a cast moves no data: it only notes the dtype that the weights are to have.
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(name, parameter.ndim, storage, compute))
    adopt_ops(model, operations)
    return model.eval()


def require_cogvideox_model(model: object) -> None:
    """Raises UserError for a MODEL that this pack has not loaded."""
    if not isinstance(getattr(model, "model", None), CogVideoXModel):
        raise UserError(
            f"The model is a {type(getattr(model, 'model', model)).__name__}, not a CogVideoX model of this pack.",
            advice="load with this pack",
        )


def require_weights(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raises UserError for a model of this pack whose weights are in other processes (parallel/)."""
    if not model.model.diffusion_model.has_weights:
        raise no_weights_error()


def no_weights_error() -> UserError:
    """For a node that merges, saves or trains weights which are in other processes."""
    return UserError(
        "This model's weights are in other processes, one for each card, and there are none here.",
        advice="connect before the ranks",
    )


def patch_positions(
    model: comfy.model_patcher.ModelPatcher, riflex: bool, resample: bool
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` with other positions than those that it was trained with.

    riflex: for rotary positions, transformer.positions.slow_repetition. resample: for a learned table,
    transformer.positions.resampled_table.

    Raises UserError where the model has no such positions.
    """
    config = getattr(model.get_model_object("diffusion_model"), "config", {})
    missing = {
        "rotary positions, which RIFLEx slows down": riflex and not config.get("use_rotary_positional_embeddings"),
        "learned position table to resample": resample and not config.get("use_learned_positional_embeddings"),
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise UserError(f"This model has no {what}. Switch that off, or choose another model.")
    patched = model.clone()
    options = patched.model_options.get("transformer_options", {})
    patched.model_options["transformer_options"] = with_positions(options, {"riflex": riflex, "resample": resample})
    return patched
