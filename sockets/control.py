"""CONTROL_NET: a CogVideoX control net behind ComfyUI's socket."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import comfy.controlnet
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..errors import UserError
from ..host.protocols import ContextWindow, ModelSampling
from ..media.pictures import fit_pictures
from ..vae.geometry import SPATIAL, latent_frames, video_frames
from .families import FAMILIES, Family
from .model import CogVideoXModel

if TYPE_CHECKING:  # importing it loads diffusers
    from ..transformer.control_net import ControlConfig


class ControlInputs(NamedTuple):
    """What a transformer.control_net.CogVideoXControlNet takes in a step, of its dtype; see its forward."""

    x: torch.Tensor
    guide: torch.Tensor
    timestep: torch.Tensor
    context: torch.Tensor


class CogVideoXControl(comfy.controlnet.ControlBase):
    """CONTROL_NET: it travels in CONDITIONING, and ComfyUI asks it at every step what to add to the model's blocks."""

    cond_hint_original: Any  # the control video [F, C, H, W] in 0 .. 1, of set_cond_hint

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, hold_last_frame: bool = False):
        """patcher: holds a transformer.control_net.CogVideoXControlNet. hold_last_frame: repeat the last frame of a
        control video that is too short, instead of refusing it."""
        super().__init__()
        self.patcher = patcher
        self.hold_last_frame = hold_last_frame
        self.model_sampling: ModelSampling | None = None  # of the model that runs; None between runs
        self.guides: dict[tuple, torch.Tensor] = {}  # encoded guide videos of this run, by size and device

    def copy(self) -> "CogVideoXControl":
        out = CogVideoXControl(self.patcher, self.hold_last_frame)
        self.copy_to(out)
        return out

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> "CogVideoXControl":
        """A copy with weights of its own on another device, as ComfyUI's multi-GPU nodes ask for.

        They are loaded again: those of this one may be on its device in part, and loaded on demand.
        """
        out = self.copy()
        out.patcher = self.patcher.deepclone_multigpu(new_load_device=load_device)
        if autoregister:
            self.multigpu_clones[load_device] = out
        return out

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [*super().get_models(), self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes of the outputs, which stay until the model has used them: for prompt and negative prompt together, at
        the size and length that the control net was trained with, because ComfyUI does not say here what it runs. The
        activations of its own blocks are not counted: they are gone when those of the model, which are larger, are
        made."""
        net: Any = self.patcher.model
        c: ControlConfig = net.config
        tokens = latent_frames(c.sample_frames) * c.sample_height * c.sample_width // c.patch_size**2
        own = 2 * c.num_layers * tokens * c.output_dim * mm.dtype_size(net.dtype)
        return own + super().inference_memory_requirements(dtype)

    def pre_run(
        self, model: comfy.model_base.BaseModel, percent_to_timestep_function: Callable[[float], float]
    ) -> None:
        """Called before the first step. Raises UserError for a model that this control net was not trained for."""
        net: Any = self.patcher.model
        check_model(net.config, model)
        super().pre_run(model, percent_to_timestep_function)
        sampling: Any = model.model_sampling
        self.model_sampling = sampling
        # ComfyUI calls cleanup only after a run that has ended well: these may be left from one that was cancelled.
        self.guides = {}

    def cleanup(self) -> None:
        """Called after the last step."""
        super().cleanup()
        self.model_sampling = None
        self.guides = {}

    def get_control(
        self,
        x_noisy: torch.Tensor,
        t: torch.Tensor,
        cond: dict[str, Any],
        batched_number: int,
        transformer_options: dict[str, Any],
    ) -> dict[str, Any] | None:
        """{"input": [B, video tokens, D] to add after each of the model's first blocks}: this control net's, added to
        those of the control nets chained before it. Outside of its range of steps theirs alone, or None.

        x_noisy: [B, 16, T, H, W] at sigmas t [B], scaled, variance exploding. cond: the arguments of the model.
        batched_number: how many conditionings the batch holds.

        Raises UserError for a control video that is too short, at the first step even where the range begins later.
        """
        previous: Any = self.previous_controlnet
        if previous is not None:
            previous = previous.get_control(x_noisy, t, cond, batched_number, transformer_options)
        # The frames are counted before the range is looked at, so that a short control video is refused at once and not
        # in the middle of the run.
        window: ContextWindow | None = transformer_options.get("context_window")
        size = _video_size(x_noisy, window)
        self._require_frames(video_frames(size[0]))
        # timestep_range holds sigmas, which fall during the run: its start is the larger one.
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return previous
        assert self.model_sampling is not None  # pre_run has been called
        net: Any = self.patcher.model
        inputs = ControlInputs(
            self.model_sampling.calculate_input(t, x_noisy).to(net.dtype),
            _window_frames(self._encoded_guide(size, x_noisy.device), window),
            self.model_sampling.timestep(t).float(),
            cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x_noisy.device, net.dtype),
        )
        return self.added(inputs, previous, transformer_options)

    def added(
        self, inputs: ControlInputs, previous: dict[str, Any] | None, transformer_options: dict[str, Any]
    ) -> dict[str, Any]:
        """What the control net makes of `inputs`, times the strength, added to what the control nets before this one
        have returned."""
        net: Any = self.patcher.model
        return self.control_merge({"input": net(*inputs, transformer_options)}, previous, output_dtype=None)

    def _require_frames(self, needed: int) -> None:
        found = self.cond_hint_original.shape[0]
        if found < needed and not (self.hold_last_frame and found):
            raise UserError(
                f"The control video has {found} frame{'' if found == 1 else 's'}; the video to generate has {needed}. "
                f"Use {needed} frames or more, or generate a shorter video.",
                advice="hold the last control frame",
            )

    def _encoded_guide(self, size: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Encoded guide for latents of `size` (T, H, W): [1, C, T, H, W]. Computed once a run."""
        frames, height, width = size
        # Without the length: encode_control gives the same for the first frames however many follow, so that a longer
        # guide serves as well. _video_size may find a larger T at a later window.
        key = height, width, device
        if key not in self.guides or self.guides[key].shape[2] < frames:
            net: Any = self.patcher.model
            # [F, C, H, W] -> [F, H, W, C]
            pictures = self.cond_hint_original[: video_frames(frames)].movedim(1, -1)
            pixels = fit_pictures(pictures, width * SPATIAL, height * SPATIAL).movedim(-1, 1)
            # No frame at all where the control video is long enough. [F, 3, H, W]; 0 .. 1 -> -1 .. 1 below.
            held = pixels[-1:].expand(video_frames(frames) - pixels.shape[0], -1, -1, -1)
            pixels = torch.cat([pixels, held]).to(device, net.dtype) * 2 - 1
            self.guides[key] = net.encode_control(pixels[None])
        return self.guides[key][:, :, :frames]


def _video_size(x: torch.Tensor, window: ContextWindow | None) -> tuple[int, int, int]:
    """Latent (T, H, W) of the video, of which `x` [B, 16, T, H, W] may be one of ComfyUI's context windows."""
    size = list(x.shape[2:])
    # Windows along the batch (dim 0) leave the video as long as it is. Older versions of ComfyUI do not note
    # total_frames: the video is then taken to end with the window, and grows as later windows come.
    if window is not None and window.dim >= 2:
        size[window.dim - 2] = getattr(window, "total_frames", 0) or 1 + max(window.index_list)
    frames, height, width = size
    return frames, height, width


def _window_frames(guide: torch.Tensor, window: ContextWindow | None) -> torch.Tensor:
    """The part of a video's encoded guide [1, C, T, H, W] that belongs to a context window."""
    if window is None or window.dim < 2:
        return guide
    anchor = getattr(window, "causal_anchor_index", None)  # the frame that causal_window_fix puts in front
    indices = [] if anchor is None or anchor < 0 else [anchor]
    return guide.index_select(window.dim, torch.tensor(indices + list(window.index_list), device=guide.device))


def check_model(config: "ControlConfig", model: comfy.model_base.BaseModel) -> None:
    """Raises UserError unless a control net with `config` was trained for `model`."""
    base = base_family(config)
    found, fits = type(model).__name__, False
    if isinstance(model, CogVideoXModel):
        # By name and widths: fine-tunes of the same family fit, and so do smaller models of its architecture if the
        # control net was made for one.
        family, c = model.model_config.family, model.diffusion_model.config
        width = c.num_attention_heads * c.attention_head_dim
        found = f"{family.name} of width {width}, with text of width {c.text_embed_dim}"
        fits = (family.name, width, c.text_embed_dim) == (base.name, config.output_dim, config.text_embed_dim)
        # What is added to the model's tokens has to be as many.
        if fits and c.patch_size != config.patch_size:
            raise UserError(
                f"This control net makes tokens of {config.patch_size} x {config.patch_size} latents, the model of "
                f"{c.patch_size} x {c.patch_size}. Choose a control net for this model."
            )
    if not fits:
        raise UserError(
            f"This control net is for {base.name} and its fine-tunes of width {config.output_dim}, with text of width "
            f"{config.text_embed_dim}; the model is {found}. Choose a control net for this model, or a model for this "
            "control net."
        )


def base_family(config: "ControlConfig") -> Family:
    """The text to video model that a control net with `config` was trained for, known by its kind of positions."""
    rotary = config.use_rotary_positional_embeddings
    return next(f for f in FAMILIES if f.task == "text" and f.patch_size_t is None and f.rotary == rotary)


def chain_control(
    conditioning: list[list[list[Any]]],
    control_net: comfy.controlnet.ControlBase,
    control_video: torch.Tensor,
    strength: float,
    percent_range: tuple[float, float],
    hold_last_frame: bool,
) -> list[list[list[Any]]]:
    """Each CONDITIONING of `conditioning` with a copy of `control_net`, chained after those that it already has.

    control_video: [F, H, W, C] in 0 .. 1. percent_range: start and end, 0 .. 1, of the part of the run that it acts in.
    hold_last_frame: repeat the last frame of a control video that is too short.

    Raises UserError for a CONTROL_NET of another kind.

    Source: ComfyUI nodes.py, ControlNetApplyAdvanced.
    """
    if not isinstance(control_net, CogVideoXControl):
        raise UserError(
            f"The control net is a {type(control_net).__name__}, not a CogVideoX control net of this pack.",
            advice="load a control net",
        )
    hint = control_video.movedim(-1, 1)  # [F, H, W, C] -> [F, C, H, W]
    # previous control net -> the one chained to it. ComfyUI runs positive and negative as one batch only where both
    # have the very same control net object, so that one is made for both.
    chained: dict[comfy.controlnet.ControlBase | None, CogVideoXControl] = {}

    def with_control(previous: comfy.controlnet.ControlBase | None) -> CogVideoXControl:
        if previous not in chained:
            control = control_net.copy().set_cond_hint(hint, strength, percent_range)
            control.hold_last_frame = hold_last_frame
            chained[previous] = control.set_previous_controlnet(previous)
        return chained[previous]

    # With control_apply_to_uncond ComfyUI would give the positive prompt's control net to a negative prompt that has
    # none. Here every conditioning that is to be controlled has been handed in.
    return [
        [
            [text, {**extra, "control": with_control(extra.get("control")), "control_apply_to_uncond": False}]
            for text, extra in entries
        ]
        for entries in conditioning
    ]
