"""Which settings a model of a name gets. Standard library only."""

import re
from collections.abc import Mapping

from cogvideox.host.toy import MODELS, NAME
from cogvideox.nano.toy_settings import suited_to
from cogvideox.official_settings import OFFICIAL, Settings

from ..errors import DevError

TOYS: Mapping[str, Settings] = {f"{NAME} {model}": suited_to(model) for model in MODELS}
# The toy for what is given, where no model is named.
TOY_FOR = {"": f"{NAME} 5b", "image": f"{NAME} 5b-I2V", "video": f"{NAME} 5b"}


def recommended_for(model: str, like: str | None, label: str) -> Settings:
    """The settings of a model: those of the checkpoint `like`, else of the one that its name contains.

    label: what a message calls the option like. Raises: DevError where neither is one of OFFICIAL.
    """
    if like is None and model in TOYS:
        return TOYS[model]
    known = {_plain(name): name for name in OFFICIAL}
    plain = _plain(like or model)
    if like is not None and plain not in known:
        raise DevError(f"{label} is {like!r}, which is none of the checkpoints: {', '.join(OFFICIAL)}.")
    within = [name for name in known if name in plain]
    if not within:
        raise DevError(
            f"The name {model!r} does not tell which settings the model needs. Give --like with the checkpoint that it "
            f"was made from: {', '.join(OFFICIAL)}."
        )
    return OFFICIAL[known[max(within, key=len)]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
