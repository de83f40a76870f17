"""Which component a config.json describes, by the classes that it names: the same for the lists and for loading."""

from collections.abc import Mapping
from typing import Any

# A part of a class's name -> the component. Fine-tunes have classes of their own names.
_PARTS = {
    "Autoencoder": "vae",
    "Control": "controlnet",
    "Transformer3D": "transformer",
    "T5": "text_encoder",
    "Scheduler": "scheduler",
    "Pipeline": "pipeline",
}


def components_named(config: Mapping[str, Any]) -> frozenset[str]:
    """The components whose classes a config.json names; none where it names no class.

    More than one where a class's name has parts of several: a control net may be called a transformer's, and the
    reverse. diffusers writes _class_name, transformers architectures.
    """
    architectures = config.get("architectures") if "_class_name" not in config else None
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return frozenset(kind for name in names if isinstance(name, str) for part, kind in _PARTS.items() if part in name)
