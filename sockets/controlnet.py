"""CONTROL_NET: a CogVideoX control net behind ComfyUI's socket."""

import copy
from collections.abc import Callable

import comfy.controlnet
import comfy.model_management as mm
import comfy.model_patcher
import torch

from ..errors import UserError
from ..media.pictures import fit_pictures
from ..vae.geometry import SPATIAL, latent_frames, video_frames
from .families import FAMILIES, Family
from .model import CogVideoXModel


class CogVideoXControl(comfy.controlnet.ControlBase):
    """CONTROL_NET: what ComfyUI chains to CONDITIONING, and asks at every step what to add to the model's blocks."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, hold_last_frame: bool = False):
        """patcher: holds a transformer.control_net.CogVideoXControlNet. hold_last_frame: repeat the last frame of a
        control video that is too short, instead of refusing it."""
        super().__init__()
        self.patcher = patcher
        self.hold_last_frame = hold_last_frame
        self.model_sampling = None
        self.guides: dict[tuple, torch.Tensor] = {}  # encoded guide videos of this run by size and device

    def copy(self) -> "CogVideoXControl":
        out = CogVideoXControl(self.patcher, self.hold_last_frame)
        self.copy_to(out)
        return out

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> "CogVideoXControl":
        """A copy with weights of its own on another device, as ComfyUI's multi-GPU nodes ask for."""
        out = self.copy()
        out.patcher = comfy.model_patcher.ModelPatcher(
            copy.deepcopy(self.patcher.model), load_device=load_device, offload_device=self.patcher.offload_device
        )
        if autoregister:
            self.multigpu_clones[load_device] = out
        return out

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        return [*super().get_models(), self.patcher]

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes of the outputs, which stay until the model has used them: for prompt and negative prompt together, at
        the size and length that the control net was trained with. What its blocks need for themselves is less than
        the model does, and not at the same time."""
        c = self.patcher.model.config
        tokens = latent_frames(c.sample_frames) * c.sample_height * c.sample_width // c.patch_size**2
        own = 2 * c.num_layers * tokens * c.output_dim * mm.dtype_size(self.patcher.model.dtype)
        return own + super().inference_memory_requirements(dtype)

    def pre_run(self, model: torch.nn.Module, percent_to_timestep_function: Callable) -> None:
        """Called before the first step. Raises UserError for a model that this control net is not for."""
        check_model(self.patcher.model.config, model)
        super().pre_run(model, percent_to_timestep_function)
        self.model_sampling = model.model_sampling
        self.guides = {}  # ComfyUI does not clean up after an interrupted run

    def cleanup(self) -> None:
        super().cleanup()
        self.model_sampling = None
        self.guides = {}

    def get_control(
        self, x_noisy: torch.Tensor, t: torch.Tensor, cond: dict, batched_number: int, transformer_options: dict
    ) -> dict | None:
        """{"input": tensors to add to the video tokens after the first blocks}, together with those of control nets
        chained before; None outside the range of steps.

        x_noisy: [B, 16, T, H, W] at sigmas t [B], as ComfyUI keeps it.
        Raises UserError for a guide video that is too short, at the first step even where the range begins later.
        """
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        window = transformer_options.get("context_window")
        size = _whole_size(x_noisy, window)
        self._require_frames(video_frames(size[0]))
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return previous
        net = self.patcher.model
        outputs = net(
            self.model_sampling.calculate_input(t, x_noisy).to(net.dtype),
            _window_of(self._encoded_guide(size, x_noisy.device), window),
            self.model_sampling.timestep(t).float(),
            cond.get("crossattn_controlnet", cond["c_crossattn"]).to(x_noisy.device, net.dtype),
            transformer_options,
        )
        return self.control_merge({"input": outputs}, previous, output_dtype=None)

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
        key = height, width, device
        if key not in self.guides or self.guides[key].shape[2] < frames:
            net = self.patcher.model
            # [F, C, H, W] -> [F, H, W, C]
            pictures = self.cond_hint_original[: video_frames(frames)].movedim(1, -1)
            pixels = fit_pictures(pictures, width * SPATIAL, height * SPATIAL).movedim(-1, 1)
            held = pixels[-1:].expand(video_frames(frames) - pixels.shape[0], -1, -1, -1)
            pixels = torch.cat([pixels, held]).to(device, net.dtype) * 2 - 1
            self.guides[key] = net.encode_control(pixels[None])
        return self.guides[key][:, :, :frames]


def _whole_size(x: torch.Tensor, window: object | None) -> tuple[int, int, int]:
    """Latent (T, H, W) of the whole video, where `x` [B, 16, T, H, W] is one of ComfyUI's context windows of it."""
    size = list(x.shape[2:])
    if window is not None and window.dim >= 2:
        size[window.dim - 2] = getattr(window, "total_frames", 0) or 1 + max(window.index_list)
    return tuple(size)


def _window_of(guide: torch.Tensor, window: object | None) -> torch.Tensor:
    """The part of a whole video's guide [1, C, T, H, W] that a context window sees."""
    if window is None or window.dim < 2:
        return guide
    anchor = getattr(window, "causal_anchor_index", None)  # a frame that some models want in front
    indices = [] if anchor is None or anchor < 0 else [anchor]
    return guide.index_select(window.dim, torch.tensor(indices + list(window.index_list), device=guide.device))


def check_model(config: object, model: torch.nn.Module) -> None:
    """Raises UserError unless a control net with `config` is made for `model` (a ComfyUI BaseModel)."""
    base = base_family(config)
    found, fits = type(model).__name__, False
    if isinstance(model, CogVideoXModel):
        family, c = model.model_config.family, model.diffusion_model.config
        width = c.num_attention_heads * c.attention_head_dim
        found = f"{family.name} of width {width}, with text of width {c.text_embed_dim}"
        fits = (family.name, width, c.text_embed_dim) == (base.name, config.output_dim, config.text_embed_dim)
    if not fits:
        raise UserError(
            f"This control net is for {base.name} and its fine-tunes of width {config.output_dim}, with text of width "
            f"{config.text_embed_dim}; the model is {found}. Choose the control net or the model that belongs to the "
            "other."
        )


def base_family(config: object) -> Family:
    """The text to video model whose positions a control net with `config` has."""
    rotary = config.use_rotary_positional_embeddings
    return next(f for f in FAMILIES if f.task == "text" and f.patch_size_t is None and f.rotary == rotary)


def chain_control(
    conditioning: list[list],
    control_net: CogVideoXControl,
    control_video: torch.Tensor,
    strength: float,
    percent_range: tuple[float, float],
    hold_last_frame: bool,
) -> list[list]:
    """Each CONDITIONING of `conditioning` with `control_net` behind the control nets that it already has.

    control_video: [F, H, W, C] in 0 .. 1. percent_range: start and end, 0 .. 1, of the part of the run that it acts in.

    Raises UserError for a CONTROL_NET of another kind.

    Source: ComfyUI nodes.py, ControlNetApplyAdvanced.
    """
    if not isinstance(control_net, CogVideoXControl):
        raise UserError(
            f"The control net is a {type(control_net).__name__}, not a CogVideoX control net of this pack.",
            advice="load a control net",
        )
    hint = control_video.movedim(-1, 1)  # [F, H, W, C] -> [F, C, H, W]
    # positive and negative share one, so that they run as one batch
    chained: dict[comfy.controlnet.ControlBase | None, CogVideoXControl] = {}

    def with_control(previous: comfy.controlnet.ControlBase | None) -> CogVideoXControl:
        if previous not in chained:
            control = control_net.copy().set_cond_hint(hint, strength, percent_range)
            control.hold_last_frame = hold_last_frame
            chained[previous] = control.set_previous_controlnet(previous)
        return chained[previous]

    return [
        [
            [text, {**extra, "control": with_control(extra.get("control")), "control_apply_to_uncond": False}]
            for text, extra in entries
        ]
        for entries in conditioning
    ]
