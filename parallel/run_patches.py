"""A run's patches on a model that was loaded from its file once more."""

import uuid
from typing import Any

import comfy.model_patcher


def with_patches(
    patcher: comfy.model_patcher.ModelPatcher, patches: dict[str, list[Any]]
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `patcher` with `patches`, as another ModelPatcher.patches has them.

    They are taken as they are: add_patches would take them apart and leave out those of keys that it does not know.
    """
    patched = patcher.clone()
    for key, entries in patches.items():
        patched.patches.setdefault(key, []).extend(entries)
    patched.patches_uuid = uuid.uuid4()  # by which ComfyUI sees that the weights have to be patched once more
    return patched
