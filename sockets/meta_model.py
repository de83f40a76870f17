"""diffusers' models on the meta device, from a stranger's config."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch


def model_on_meta(kind: type, config: Mapping[str, Any]) -> Any:
    """A model of the diffusers class `kind`, with weights of a shape and without values.

    Fine-tunes add entries of their own to config.json: what `kind` does not take is left out, for diffusers would warn
    about each. Raises whatever diffusers and torch raise for values that do not describe a model.
    """
    constructor: Any = kind
    known = inspect.signature(constructor.__init__).parameters
    with torch.device("meta"):
        return constructor.from_config({key: value for key, value in config.items() if key in known})
