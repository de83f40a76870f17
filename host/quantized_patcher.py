"""What ComfyUI's ModelPatcher lacks for quantised weights: patches on GGUF blocks, hooks, saving."""

import collections
from collections.abc import Iterator

import comfy.model_patcher
import comfy.utils
import torch

from .quantized import is_gguf, is_quantized, quantized_state_dict, with_patches

_Backup = collections.namedtuple("_Backup", ("weight", "inplace_update"))  # as ModelPatcher's own
_Dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)  # older hosts have none


def adopt_patcher(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Make ComfyUI's patcher one for quantised weights, in place; other packs' subclasses stay as they are."""
    adopted = {comfy.model_patcher.ModelPatcher: QuantizedPatcher, _Dynamic: DynamicQuantizedPatcher}
    patcher.__class__ = adopted.get(type(patcher), type(patcher))


class _SavesQuantized:
    """Quantised weights in a state dict for saving.

    ComfyUI's own way fails on int8 that is not loaded (it asks for gradients of integers), and knows no GGUF.
    """

    def model_state_dict_for_saving(self, model: torch.nn.Module | None = None, prefix: str = "") -> dict:
        """As ComfyUI's: patches applied, one weight at a time while they are written. GGUF is saved unpacked."""
        model = self.model if model is None else model
        saved = super().model_state_dict_for_saving(_WithoutQuantized(model), prefix)
        return saved | _quantized_pieces(self, model, prefix)

    def state_dict_for_saving(self, *arguments: object, **options: object) -> dict:
        saved = super().state_dict_for_saving(*arguments, **options)
        if not hasattr(super(), "model_state_dict_for_saving"):  # hosts before 0.24 build the whole of it here
            pieces = _quantized_pieces(self, self.model.diffusion_model, "diffusion_model.")
            saved |= self.model.model_config.process_unet_state_dict_for_saving(pieces)
        return saved


class QuantizedPatcher(_SavesQuantized, comfy.model_patcher.ModelPatcher):
    """ModelPatcher of a model with quantised weights."""

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        **options: object,
    ) -> torch.Tensor | None:
        """As ComfyUI's; patches of a GGUF weight are kept beside its blocks and applied when it is unpacked."""
        weight = comfy.utils.get_attr(self.model, key)
        if not is_gguf(weight):
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight, **options)
        if key not in self.patches:
            return weight
        patched = with_patches(weight, key, self.patches[key], device_to)
        if return_weight:
            return patched
        if key not in self.backup:
            self.backup[key] = _Backup(weight.to(device=self.offload_device), False)
        comfy.utils.set_attr_param(self.model, key, patched)
        return None

    def patch_cached_hook_weights(self, cached_weights: dict, key: str, memory_counter: object) -> None:
        """ComfyUI writes over the old weight, which a quantised one does not allow: put the new one in its place."""
        weight = comfy.utils.get_attr(self.model, key)
        if not is_quantized(weight):
            return super().patch_cached_hook_weights(cached_weights, key, memory_counter)
        self.hook_backup.setdefault(key, (weight, weight.device))
        patched, device = cached_weights[key]
        comfy.utils.set_attr_param(self.model, key, patched.to(device=device, dtype=weight.dtype))
        return None

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        for key in [key for key, (weight, _) in self.hook_backup.items() if is_quantized(weight)]:
            if not whitelist_keys_set or key in whitelist_keys_set:
                weight, device = self.hook_backup.pop(key)
                comfy.utils.set_attr_param(self.model, key, weight.to(device=device))
        super().unpatch_hooks(whitelist_keys_set)


class DynamicQuantizedPatcher(_SavesQuantized, _Dynamic or comfy.model_patcher.ModelPatcher):
    """ComfyUI's patcher that loads on demand: it streams and patches fp8 and int8 itself."""

    def clone(self, *arguments: object, **options: object) -> comfy.model_patcher.ModelPatcher:
        """A clone that does not load on demand (ComfyUI makes one for hooks) is for quantised weights as well."""
        cloned = super().clone(*arguments, **options)
        adopt_patcher(cloned)
        return cloned


def _quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    return (
        (name, layer) for name, layer in model.named_modules() if is_quantized(layer._parameters.get("weight", None))
    )


class _WithoutQuantized:
    """A model whose state dict lacks its quantised weights and what belongs to them."""

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        suffixes = ("weight", "weight_scale", "comfy_quant")
        hidden = {f"{name}.{suffix}" for name, _ in _quantized_layers(self._model) for suffix in suffixes}
        return {name: value for name, value in self._model.state_dict().items() if name not in hidden}

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


class _Packed:
    """One quantised weight as a file has it, patched when the first of its tensors is written."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, key: str, layer: torch.nn.Module, prefix: str):
        self.patcher, self.key, self.layer, self.prefix = patcher, key, layer, prefix
        self.tensors: dict[str, torch.Tensor] | None = None

    def take(self, name: str) -> torch.Tensor:
        if self.tensors is None:
            weight = self.layer.weight
            if not getattr(self.layer, "comfy_patched_weights", False):
                weight = self.patcher.patch_weight_to_device(self.key, self.patcher.load_device, return_weight=True)
            self.tensors = {key: value.cpu() for key, value in _file_tensors(weight, self.prefix).items()}
        return self.tensors.pop(name)


def _file_tensors(weight: torch.Tensor, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}weight": weight.dequantize()} if is_gguf(weight) else quantized_state_dict(weight, prefix)


def _quantized_pieces(
    patcher: comfy.model_patcher.ModelPatcher, model: torch.nn.Module, prefix: str
) -> dict[str, torch.Tensor]:
    """What stands for the quantised weights of `model` in its state dict, nothing of it computed yet.

    prefix: the name of `model` within the patcher's model, with its dot.
    """
    pieces = {}
    for name, layer in _quantized_layers(model):
        packed, weight = _Packed(patcher, f"{prefix}{name}.weight", layer, f"{name}."), layer.weight
        forms = {f"{name}.weight": weight} if is_gguf(weight) else quantized_state_dict(weight, f"{name}.")
        pieces |= {key: _ComputedWhenSaved(packed, key, form) for key, form in forms.items()}
    return pieces


class _ComputedWhenSaved(torch.nn.Parameter):
    """Stands for a tensor; safetensors asks every tensor that is not on the CPU to come there."""

    def __new__(cls, packed: _Packed, name: str, form: torch.Tensor) -> "_ComputedWhenSaved":
        return super().__new__(cls, torch.empty(form.shape, dtype=form.dtype, device="meta"), requires_grad=False)

    def __init__(self, packed: _Packed, name: str, form: torch.Tensor):
        self.packed, self.name_in_file = packed, name

    @property
    def device(self) -> object:
        return comfy.model_patcher.CustomTorchDevice

    def to(self, *_: object, **__: object) -> torch.Tensor:
        return self.packed.take(self.name_in_file)
