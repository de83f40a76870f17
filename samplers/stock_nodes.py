"""Nodes of ComfyUI, and of other packs, that patch a MODEL in a way that CogVideoX cannot use: refused before the first
step where they would fail, waste passes or destroy the video, and named where they only have no effect.

docs/stock_nodes.md has the table of ComfyUI's own nodes.
"""

from collections.abc import Iterator
from typing import Any

import comfy.model_sampling

from ..errors import UserError
from ..host.messages import Notify
from ..host.protocols import Guider
from ..host.stock_patches import foreign_patches, owner_of, unserved_patches

# Nodes whose functions cannot work here, by their class, and why. A function is known by where it was defined.
_REFUSED = {
    "SelfAttentionGuidance": "blurs the prediction as a picture, without an axis of frames",
    "LTXVReferenceAudio": "guides by a reference voice, which CogVideoX does not take, and costs a pass at each step",
}
_REFUSED_WRAPPERS = {"hidream_o1_patch_seam_smoothing": "HiDreamO1PatchSeamSmoothing"}  # key -> node
# Entries of transformer_options that only other models read -> the node that makes them.
_FOREIGN_ENTRIES = {"rope_options": "ScaleROPE", "ar_config": "ARVideoI2V"}
_BATCH = (
    "spreads the guidance over a batch of pictures, the frames of a video in Stable Video Diffusion. A video of "
    "CogVideoX is one member of a batch: all of its frames get min_cfg."
)
# Guidance that acts in another way than it does on pictures, by the node's class, and how.
_GUIDANCE = {
    "VideoLinearCFGGuidance": _BATCH,
    "VideoTriangleCFGGuidance": _BATCH,
    # It takes the deviation over three dimensions, which leaves out a video's columns: 1 to 2 % off the formula.
    "RescaleCFG": (
        "rescales the guidance for an image, with the deviation of each column of the latent alone. The formula for a "
        "video, with the deviation of all of it, is guidance_rescale of the CogVideoX nodes for sampling."
    ),
}
_NO_EFFECT = ("ChromaRadianceOptions",)


def check_stock_nodes(guider: Guider, notify: Notify) -> None:
    """Raises UserError for what a node has put on the MODEL that would fail in the run; `notify` gets a sentence about
    what has no effect."""
    options = guider.model_options
    transformer_options = options.get("transformer_options", {})
    sampling = guider.model_patcher.get_model_object("model_sampling")
    _check_sampling(sampling)
    _check_functions(options)
    foreign = foreign_patches(transformer_options)
    if foreign:
        raise UserError(
            f"{_listed(foreign)} {'patches' if len(foreign) == 1 else 'patch'} another of ComfyUI's models and cannot "
            "work on CogVideoX.",
            advice="take the node out",
        )
    blocks = len(guider.model_patcher.model.diffusion_model.transformer_blocks)
    _tell_of_no_effect(options, blocks, notify)
    guidance = owner_of(options["sampler_cfg_function"]) if options.get("sampler_cfg_function") else None
    if guidance in _GUIDANCE:
        notify(f"{guidance} {_GUIDANCE[guidance]}")
    if not hasattr(sampling, "alphas"):
        notify(
            "A node has replaced the model's noise schedule. CogVideoX was trained with its own (zero SNR at the end, "
            "and for CogVideoX-2b a shift): videos get worse with another."
        )


def _check_sampling(sampling: Any) -> None:
    predicts_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    if not predicts_v or isinstance(sampling, comfy.model_sampling.EDM):
        bases = [base.__name__ for base in type(sampling).__mro__ if base.__module__ == "comfy.model_sampling"]
        raise UserError(
            f"A node has replaced how the model is sampled ({', '.join(bases[:2])}); CogVideoX predicts v, and would "
            "paint noise.",
            advice="keep the schedule",
        )


def _check_functions(options: dict[str, Any]) -> None:
    functions = [*options.get("sampler_post_cfg_function", ()), *options.get("sampler_pre_cfg_function", ())]
    for owner in map(owner_of, functions):
        if owner in _REFUSED:
            raise UserError(f"{owner} {_REFUSED[owner]}: it cannot work on CogVideoX.", advice="take the node out")
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    for key, node in _REFUSED_WRAPPERS.items():
        if any(key in several for several in wrappers.values()):
            raise UserError(
                f"{node} smooths the seams of another model's patches and cannot work on a video.",
                advice="take the node out",
            )


def _tell_of_no_effect(options: dict[str, Any], blocks: int, notify: Notify) -> None:
    found = dict[str, list[str]]()
    for node, what in _without_effect(options, blocks):
        kinds = found.setdefault(node, [])
        if what not in kinds:
            kinds.append(what)
    if found:
        named = [f"{node} ({', '.join(kinds)})" for node, kinds in found.items()]
        verb, them = ("has", "the node") if len(named) == 1 else ("have", "the nodes")
        notify(
            f"{_listed(named)} {verb} no effect on CogVideoX, whose transformer has no such place or takes it in "
            f"another form. Remove {them}."
        )


def _without_effect(options: dict[str, Any], blocks: int) -> Iterator[tuple[str, str]]:
    """(node, what it has set) for everything that the run will not read."""
    transformer_options = options.get("transformer_options", {})
    yield from unserved_patches(transformer_options, blocks)
    for entry, node in _FOREIGN_ENTRIES.items():
        if entry in transformer_options:
            yield node, entry
    wrapper = options.get("model_function_wrapper")
    if wrapper is not None and owner_of(wrapper) in _NO_EFFECT:
        yield owner_of(wrapper), "options of another model"


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
