"""What ComfyUI's ModelPatcher lacks: patches on GGUF blocks, hooks and saving of quantised weights, patches in fp32."""

import collections
from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor

from .quantized import is_gguf, is_quantized, quantized_state_dict, with_patches

_Backup = collections.namedtuple("_Backup", ("weight", "inplace_update"))  # the fields that ModelPatcher reads
_Dynamic = getattr(comfy.model_patcher, "ModelPatcherDynamic", None)  # None in ComfyUI before dynamic VRAM
_DynamicBase: Any = _Dynamic or comfy.model_patcher.ModelPatcher


def adopt_patcher(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Give ComfyUI's patcher the class of the pack, in place. Subclasses of other packs stay as they are.

    The class is exchanged afterwards because ComfyUI chooses it when a patcher is made: on the CPU its dynamic class
    gives a plain ModelPatcher, and comfy.sd.CLIP makes its patcher itself.
    """
    adopted = {comfy.model_patcher.ModelPatcher: WeightPatcher, _Dynamic: DynamicWeightPatcher}
    patcher.__class__ = adopted.get(type(patcher), type(patcher))


class _PatchesWeights(comfy.model_patcher.ModelPatcher):
    """Patches of weights that ComfyUI's own code would patch otherwise: see _patched."""

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        **options: Any,
    ) -> torch.Tensor | None:
        """As ComfyUI's, with the weight that _patched gives."""
        weight = comfy.utils.get_attr(self.model, key)
        patched = self._patched(key, weight, device_to)
        if patched is None:
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight, **options)
        if return_weight or patched is weight:
            return patched
        # A quantised weight is replaced: it takes no copy of another one.
        in_place = (self.weight_inplace_update or inplace_update) and not is_quantized(weight)
        # From this entry ComfyUI's unpatch_model puts the unpatched weight back.
        if key not in self.backup:
            self.backup[key] = _Backup(weight.to(device=self.offload_device, copy=in_place), in_place)
        write = comfy.utils.copy_to_param if in_place else comfy.utils.set_attr_param
        write(self.model, key, patched)
        return None

    def _patched(self, key: str, weight: torch.Tensor, device_to: torch.device | None) -> torch.Tensor | None:
        """The weight called `key` with its patches, on `device_to`; None where ComfyUI's own code is to make it.

        fp32 weights get their patches, such as a LoRA, in fp32. ComfyUI computes them in fp16 on every card that has it
        (lora_compute_dtype), and so rounds the weight too: after a LoRA an fp32 model would be one in fp16, with an
        error of 8e-4 on an H100.
        """
        if key not in self.patches or weight.dtype != torch.float32 or is_quantized(weight):
            return None
        return comfy.lora.calculate_weight(self.patches[key], weight.to(device=device_to, copy=True), key)


class _SavesQuantized(_PatchesWeights):
    """Quantised weights in a state dict for saving.

    ComfyUI's own code makes a Parameter that requires gradients of every weight that it writes. torch refuses that for
    the integers of int8. GGUF blocks have no format in a safetensors file at all.
    """

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> dict[str, torch.Tensor]:
        """As ComfyUI's: with patches applied, each weight computed when it is written. GGUF is saved unpacked."""
        # ComfyUI's method sees the other weights only; the quantised ones are added in a form of our own.
        model = self.model if model is None else model
        saved = super().model_state_dict_for_saving(_WithoutQuantized(model), prefix)
        return saved | _deferred_tensors(self, model, prefix)

    def state_dict_for_saving(self, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        """As ComfyUI's, with model_state_dict_for_saving's weights."""
        saved = super().state_dict_for_saving(*arguments, **options)
        if not hasattr(super(), "model_state_dict_for_saving"):  # before 0.24 ComfyUI had no such method to override
            model: Any = self.model
            deferred = _deferred_tensors(self, model.diffusion_model, "diffusion_model.")
            saved |= model.model_config.process_unet_state_dict_for_saving(deferred)
        return saved


class WeightPatcher(_SavesQuantized):
    """ModelPatcher of a model of the pack."""

    def _patched(self, key: str, weight: torch.Tensor, device_to: torch.device | None) -> torch.Tensor | None:
        """A GGUF weight keeps its patches next to its blocks and applies them when it is unpacked; without any it is
        the weight itself."""
        if not is_gguf(weight):
            return super()._patched(key, weight, device_to)
        return with_patches(weight, key, self.patches[key], device_to) if key in self.patches else weight

    def patch_cached_hook_weights(self, cached_weights: dict[str, Any], key: str, memory_counter: Any) -> None:
        """Put weights in place that ComfyUI has kept for a hook, such as a LoRA in some steps only.

        ComfyUI copies them into the old weight. A quantised one takes no copy of a plain one and is replaced instead.
        """
        weight = comfy.utils.get_attr(self.model, key)
        if not is_quantized(weight):
            return super().patch_cached_hook_weights(cached_weights, key, memory_counter)
        self.hook_backup.setdefault(key, (weight, weight.device))
        patched, device = cached_weights[key]
        comfy.utils.set_attr_param(self.model, key, patched.to(device=device, dtype=weight.dtype))
        return None

    def unpatch_hooks(self, whitelist_keys_set: Any = None) -> None:
        """As ComfyUI's, for the weights that patch_cached_hook_weights has replaced as well.

        whitelist_keys_set: names of the weights to restore; None restores all.
        """
        for key in [key for key, (weight, _) in self.hook_backup.items() if is_quantized(weight)]:
            if not whitelist_keys_set or key in whitelist_keys_set:
                weight, device = self.hook_backup.pop(key)
                comfy.utils.set_attr_param(self.model, key, weight.to(device=device))
        super().unpatch_hooks(whitelist_keys_set)


class DynamicWeightPatcher(_SavesQuantized, _DynamicBase):
    """ComfyUI's patcher that loads on demand: it streams and patches fp8 and int8 itself."""

    def clone(self, *arguments: Any, **options: Any) -> comfy.model_patcher.ModelPatcher:
        """As ComfyUI's. For hooks ComfyUI makes a clone of its other class, which needs adopting in turn."""
        cloned = super().clone(*arguments, **options)
        adopt_patcher(cloned)
        return cloned


def _quantized_layers(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, QuantizedTensor]]:
    """(name, layer, weight) of each layer with a quantised weight."""
    for name, layer in model.named_modules():
        weight = layer._parameters.get("weight", None)
        if is_quantized(weight):
            yield name, layer, weight


class _WithoutQuantized:
    """A model whose state dict lacks its quantised weights, their scales and formats; all else is the model's."""

    def __init__(self, model: torch.nn.Module):
        self._model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        suffixes = ("weight", "weight_scale", "comfy_quant")
        hidden = {f"{name}.{suffix}" for name, _, _ in _quantized_layers(self._model) for suffix in suffixes}
        return {name: value for name, value in self._model.state_dict().items() if name not in hidden}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _DeferredWeight:
    """One quantised weight with its patches, computed when the first of its tensors is written."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, key: str, layer: torch.nn.Module, prefix: str):
        """key: of the weight in the patcher's model. prefix: of the layer in the file, with its dot."""
        self.patcher, self.key, self.layer, self.prefix = patcher, key, layer, prefix
        self.tensors: dict[str, torch.Tensor] | None = None

    def take(self, name: str) -> torch.Tensor:
        """The tensor called `name` in the file, on the CPU; each can be taken once."""
        if self.tensors is None:
            weight: Any = self.layer.weight
            # ComfyUI sets this where it has applied the patches to the weight itself, which must not happen twice.
            if not getattr(self.layer, "comfy_patched_weights", False):
                weight = self.patcher.patch_weight_to_device(self.key, self.patcher.load_device, return_weight=True)
            if is_gguf(weight):
                tensors = {f"{self.prefix}weight": weight.dequantize()}
            else:
                tensors = quantized_state_dict(weight, self.prefix)
            self.tensors = {key: value.cpu() for key, value in tensors.items()}
        return self.tensors.pop(name)


def _deferred_tensors(
    patcher: comfy.model_patcher.ModelPatcher, model: torch.nn.Module, prefix: str
) -> dict[str, torch.Tensor]:
    """The quantised weights of `model` as its state dict for saving names them, none of them computed yet.

    prefix: the name of `model` within the patcher's model, with its dot.
    """
    tensors = {}
    for name, layer, weight in _quantized_layers(model):
        deferred = _DeferredWeight(patcher, f"{prefix}{name}.weight", layer, f"{name}.")
        forms = {f"{name}.weight": weight} if is_gguf(weight) else quantized_state_dict(weight, f"{name}.")
        tensors |= {key: _DeferredTensor(deferred, key, form) for key, form in forms.items()}
    return tensors


class _DeferredTensor(torch.nn.Parameter):
    """A tensor of a _DeferredWeight, computed only when it is written: with all of them computed beforehand the model
    would be in memory twice. safetensors moves every tensor to the CPU that is not there before it writes it; this one
    says that it is on another device, and is computed when it is moved.

    Source of the method: ComfyUI comfy/model_patcher.py, LazyCastingParam.
    """

    def __new__(cls, deferred: _DeferredWeight, name: str, form: torch.Tensor) -> "_DeferredTensor":
        """form: of the shape and type that the tensor will have."""
        return super().__new__(cls, torch.empty(form.shape, dtype=form.dtype, device="meta"), requires_grad=False)

    def __init__(self, deferred: _DeferredWeight, name: str, form: torch.Tensor):
        self.deferred, self.name_in_file = deferred, name

    @property
    def device(self) -> Any:
        """What ComfyUI's own deferred weights give."""
        return comfy.model_patcher.CustomTorchDevice

    def to(self, *_: Any, **__: Any) -> torch.Tensor:
        """The computed tensor, on the CPU."""
        return self.deferred.take(self.name_in_file)
