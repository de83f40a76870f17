"""MODEL whose weights are in other processes: ComfyUI's samplers and nodes see the one that they know."""

from functools import partial
from typing import Any
from uuid import UUID

import comfy.model_patcher
import comfy.patcher_extension
import torch

from ..errors import UserError
from ..sockets.model import CogVideoXModel, no_weights_error, require_cogvideox_model
from .engine import all_cards
from .remote_control import sample_with_remote_controls
from .remote_weights import RemoteWeights
from .teams import drop_with, team_of

_HOOKS_HERE = "transformer_options"  # go to the ranks, or are refused, as those of a MODEL


class RemoteModel(CogVideoXModel):
    """CogVideoXModel without weights, whose transformer is remote_dit.RemoteDiT."""

    current_weight_patches_uuid: UUID | None  # ComfyUI's, of the patches that the ranks have

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, Any] = {}) -> float:
        """0: the activations are on other cards, where both prompts fit as one batch, or are computed in parts."""
        return 0.0


class RemotePatcher(comfy.model_patcher.ModelPatcher):
    """ComfyUI's handle of a RemoteModel. Loading puts the weights on the ranks' cards, with this patcher's patches.

    The first rank shares a card with the graph's process: what its weights take there is told to ComfyUI, which
    unloads them as those of any model where another one needs the room.
    """

    model: RemoteModel

    def partially_load(self, device_to: torch.device, extra_memory: int = 0, force_patch_weights: bool = False) -> int:
        """As ComfyUI's; how much of the weights fits on its card each rank decides by itself."""
        self.patch_model(load_weights=False)
        self.weights.prepare(self.patches, self.patches_uuid)
        self.model.device = device_to
        self.model.current_weight_patches_uuid = self.patches_uuid
        return 0

    def load(self, device_to: Any = None, *_: Any, **__: Any) -> None:
        """As ComfyUI's."""
        self.partially_load(device_to)

    def loaded_size(self) -> int:
        return self.weights.loaded_bytes()

    def partially_unload(self, device_to: torch.device, memory_to_free: int = 0, *_: Any, **__: Any) -> int:
        """All of them: what a rank streams instead would cost every step of all ranks."""
        return self.weights.unload()

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        """As ComfyUI's. The weights leave the ranks' cards with `unpatch_weights`; their processes keep them."""
        super().unpatch_model(None, unpatch_weights=False)
        if unpatch_weights:
            self.weights.unload()
            self.model.current_weight_patches_uuid = None
            if device_to is not None:
                self.model.device = device_to

    @property
    def weights(self) -> RemoteWeights:
        return self.model.diffusion_model.weights  # type: ignore[attr-defined]

    def register_all_hook_patches(self, hooks: Any, *arguments: Any, **options: Any) -> Any:
        """As ComfyUI's, which asks for it before a run. Raises UserError for hooks that change what is elsewhere."""
        kinds = sorted({hook.hook_type.value for hook in hooks.hooks} - {_HOOKS_HERE}) if hooks else []
        if kinds:
            raise UserError(
                f"The conditioning has hooks ({', '.join(kinds)}): a LoRA or another change that acts in some steps or "
                "for one prompt only, which cannot be sent to other processes. Take the node out that has created "
                "them, or run on one card without CogVideoX Parallel."
            )
        return super().register_all_hook_patches(hooks, *arguments, **options)

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Raises UserError: there are no weights to merge or to save here."""
        raise no_weights_error()

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """Raises UserError, as get_key_patches does."""
        raise no_weights_error()

    def state_dict_for_saving(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """Raises UserError, as get_key_patches does."""
        raise no_weights_error()


def spread(
    model: comfy.model_patcher.ModelPatcher, cards: int, split: str, address: str, goes_on_alone: bool
) -> comfy.model_patcher.ModelPatcher:
    """`model` as a MODEL whose predictions `cards` cards compute together, each with all of the weights, which it loads
    from their file. What other nodes have put on the MODEL goes along, and so does what is put on the result.

    cards: 0 takes all. split: of split.SPLITS. address: of a Ray cluster; "" for this machine. goes_on_alone: a run
    that loses its ranks goes on in this process, from the step that was lost.

    Raises UserError where the model cannot be spread, naming what stands in the way.
    """
    require_cogvideox_model(model)
    _require_spreadable(model)
    loaded: Any = model.model
    team = team_of(address, cards or all_cards(), split)
    # The class makes a transformer without values, on the meta device, as it does for every model.
    remote = RemoteModel(loaded.model_config)
    # Not at the top: it imports diffusers, which whoever has a model has imported.
    from .remote_dit import RemoteDiT

    assert model.cached_patcher_init is not None  # _require_spreadable
    load_again, arguments = model.cached_patcher_init[:2]
    network: Any = remote.diffusion_model
    network.__class__ = RemoteDiT
    network.weights = RemoteWeights(team, load_again, arguments, loaded.get_dtype_inference(), goes_on_alone)
    drop_with(network, team, network.weights.name)
    patcher = RemotePatcher(remote, model.load_device, model.offload_device, model.model_size())
    _take_over(patcher, model)
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    wrapper = partial(sample_with_remote_controls, network.weights)
    patcher.add_wrapper_with_key(kind, "cogvideox ranks", wrapper)
    patcher.cached_patcher_init = (_refuse_second_copy, ())
    return patcher


def _take_over(patcher: comfy.model_patcher.ModelPatcher, model: comfy.model_patcher.ModelPatcher) -> None:
    """Everything that nodes have put on `model`, as its clone has it."""
    source = model.clone()
    for name in ("patches", "patches_uuid", "object_patches", "model_options", "wrappers", "callbacks", "attachments"):
        setattr(patcher, name, getattr(source, name))


def _require_spreadable(model: Any) -> None:
    problems = {
        "was made by another node from weights in memory": not (model.cached_patcher_init or [None])[0],
        "has a LoRA or another change of weights that acts in some steps only (hooks)": model.hook_patches,
        "has layers that another node has put into it (injections)": model.injections,
        "is divided over cards already": isinstance(model, RemotePatcher) or model.additional_models.get("multigpu"),
        "has modules that another node has replaced": any(
            key.startswith("diffusion_model") for key in model.object_patches
        ),
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UserError(
                f"The model {problem}, which cannot be sent to other processes. Take that node out, or run on one card "
                "without CogVideoX Parallel."
            )


def _refuse_second_copy(*_: Any, **__: Any) -> None:
    raise UserError(
        "This model is divided over several cards by CogVideoX Parallel, and another node wants a copy of its weights, "
        "such as MultiGPU CFG Split or TorchCompileModel. Use one of the two."
    )
