"""Which component a config.json describes, by the classes that it names: one table for the lists and for loading."""

from collections.abc import Iterable, Mapping
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


# Parts of the names that other families have in diffusers, and their classes that are named after none. A fine-tune of
# CogVideoX may be called anything else, as ConsisIDTransformer3DModel is.
_OTHER_FAMILIES = (
    *("Allegro", "AnyFlow", "ChronoEdit", "Cosmos", "EasyAnimate", "Flux", "Helios", "Hunyuan", "JoyImage", "KVAE"),
    *("Kandinsky", "LTX", "Latte", "Magvit", "MiniMax", "Mochi", "Proteina", "Qwen", "SD3", "Sana", "SkyReels"),
    *("Sparse", "TemporalDecoder", "UNet", "VidTok", "Wan", "ZImage"),
)
_OTHER_CLASSES = frozenset(
    f"{kind}{other}"
    for kind, others in {
        "Autoencoder": ("DC", "KL", "Oobleck", "RAE", "SAME", "Tiny"),
        "AsymmetricAutoencoder": ("KL",),
        "ControlNet": ("Model", "UnionModel", "XSAdapter"),
        "MultiControlNet": ("Model", "UnionModel"),
    }.items()
    for other in others
)


def components_named(config: Mapping[str, Any]) -> frozenset[str]:
    """The components whose classes a config.json names; none where it names no class.

    More than one where a class's name has parts of several: a control net may be called a transformer's, and the
    reverse. diffusers writes _class_name, transformers architectures.
    """
    return _components(_class_names(config))


def components_offered(config: Mapping[str, Any]) -> frozenset[str]:
    """components_named without the classes of other families of models, which are not offered in a list."""
    return _components(name for name in _class_names(config) if not _is_of_another_family(name))


def _components(names: Iterable[str]) -> frozenset[str]:
    return frozenset(kind for name in names for part, kind in _PARTS.items() if part in name)


def _class_names(config: Mapping[str, Any]) -> list[str]:
    architectures = config.get("architectures") if "_class_name" not in config else None
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    return [name for name in names if isinstance(name, str)]


def _is_of_another_family(name: str) -> bool:
    is_other = name in _OTHER_CLASSES or any(family in name for family in _OTHER_FAMILIES)
    return is_other and "CogVideoX" not in name
