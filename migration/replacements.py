"""The wrapper's nodes for which ComfyUI itself can offer a replacement, one node for one.

ComfyUI replaces a node whose type no installed pack defines: in the browser where the user agrees, and in a prompt that
is sent to the API. It can rename inputs, set values and renumber outputs, and nothing else. Only nodes are offered that
are the same with no more than that. The others need the whole workflow, and `python3 dev.py migrate` for it:

- the loaders: one becomes two, and a LoRA that is linked to one would be lost without a word;
- CogVideoTextEncode: ComfyUI's CLIPLoader before it would stay, which pads a prompt to another length;
- the sampler, the encoders, LoRAs, context windows and CogVideoControlNet: sockets and numbers mean something else.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Replacement(NamedTuple):
    """new: the node's id here. widgets: the old widgets in their order. inputs: new name -> old name, of an input that
    the old node cannot run without, since ComfyUI fails where a prompt lacks it. values: of inputs that are new. The
    first output is the first one."""

    new: str
    widgets: tuple[str, ...]
    inputs: Mapping[str, str]
    values: Mapping[str, str]


REPLACEMENTS: Mapping[str, Replacement] = {
    "CogVideoDecode": Replacement(
        "CogVideoXDecode",
        (
            "enable_vae_tiling",
            "tile_sample_min_height",
            "tile_sample_min_width",
            "tile_overlap_factor_height",
            "tile_overlap_factor_width",
            "auto_tile_size",
        ),
        {"vae": "vae", "samples": "samples"},
        {"memory": "auto"},
    ),
    "CogVideoXVAELoader": Replacement(
        "CogVideoXLoadVAE", ("model_name", "precision"), {"vae_name": "model_name", "weight_dtype": "precision"}, {}
    ),
    "DownloadAndLoadCogVideoControlNet": Replacement(
        "CogVideoXLoadControlNet", ("model",), {"control_net_name": "model"}, {"weight_dtype": "default"}
    ),
}
