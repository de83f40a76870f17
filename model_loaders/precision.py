"""From the user's `weight_dtype` to the types weights are stored and computed in."""

import comfy.model_management as mm
import torch

WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


def choose_dtypes(
    weight_dtype: str, trained: torch.dtype, stored: torch.dtype, parameters: int, device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """(storage type, compute type or None where it is the same) for a model on `device`.

    trained: the checkpoint's own precision, preferred where the device computes in it.
    stored: the type most weights have on disk.
    """
    other = torch.float16 if trained == torch.bfloat16 else torch.bfloat16
    supported = [trained, other, torch.float32] if trained != torch.float32 else [torch.float32]
    storage = WEIGHT_DTYPES[weight_dtype]
    if storage is None:
        storage = mm.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=stored)
    return storage, mm.unet_manual_cast(storage, device, supported)


def parameter_dtype(name: str, ndim: int, storage: torch.dtype, compute: torch.dtype | None) -> torch.dtype:
    """The type one transformer parameter is stored in.

    fp8 holds only the blocks' attention and feed-forward matrices: norms, biases, embeddings and the time path lose
    too much in it and weigh little.
    """
    if storage == torch.float8_e4m3fn and not (ndim == 2 and (".attn1.to_" in name or ".ff.net." in name)):
        return compute or torch.float32
    return storage
