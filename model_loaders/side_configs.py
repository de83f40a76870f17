"""Whether a config.json describes some weights: it may lie in a folder with files of several models."""

from collections.abc import Mapping
from typing import Any

from ..host.component_classes import components_named
from .variants import HasShape, convolved_patch, sides, transformer_differences, transformer_shape

# component -> what the first side of a tensor is -> the tensor and its dimensions
_FIRST_SIDES = {
    "vae": {
        "first channels": ("encoder.conv_in.conv.weight", 5),
        "last channels": ("decoder.conv_in.conv.weight", 5),
    },
    "text_encoder": {"d_model": ("encoder.final_layer_norm.weight", 1)},
}


def is_of_another_kind(component: str, config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is another component's. One that says nothing may be anything's."""
    kinds = components_named(config)
    return bool(kinds) and component not in kinds


def is_of_this_kind(component: str, config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that it is this component's, and no other's."""
    return components_named(config) == {component}


def config_differences(
    component: str, config: Mapping[str, Any], entries: Mapping[str, HasShape], source: str
) -> list[str]:
    """What a config says that the weights contradict, in words; [] where it describes them.

    entries: of the weights, by diffusers' names. source: path for messages.

    Raises UserError for weights without a shape by which they could be compared.
    """
    if is_of_another_kind(component, config):
        return [f"it is of {config.get('_class_name', 'another model')}"]
    if component == "transformer":
        shape = transformer_shape(entries, source, config)
        return transformer_differences(config, shape, shape.pop("dim"))
    if component == "controlnet":
        return control_differences(config, control_shape(entries, source))
    found, claimed = {}, dict(config)
    for name, (tensor, dimensions) in _FIRST_SIDES[component].items():
        if tensor in entries:
            found[name] = sides(entries, tensor, (dimensions,), source)[0]
    if channels := config.get("block_out_channels"):
        claimed |= {"first channels": channels[0], "last channels": channels[-1]}
    return [f"{name} {claimed[name]} against {v}" for name, v in found.items() if claimed.get(name, v) != v]


def control_differences(config: Mapping[str, Any], shape: Mapping[str, Any]) -> list[str]:
    """What a control net's config says and its weights contradict, in words. shape: of control_shape."""
    # The defaults are those of transformer.control_net.ControlConfig.
    width = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)
    # Pixels are unshuffled before the first layer, which thus has colours * downscale^2 input channels (3 * 8^2 = 192).
    pixels = config.get("in_channels", 3) * config.get("downscale_coef", 8) ** 2
    pairs = {"width": (width, shape["dim"]), "pixels per latent": (pixels, shape["pixels"])}
    pairs |= {name: (config[name], value) for name, value in shape.items() if name in config}
    return [f"{name} {ours} against {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def control_shape(state_dict: Mapping[str, HasShape], source: str) -> dict[str, Any]:
    """The part of a control net's config that follows from the shapes of its weights, "dim" and "pixels".

    dim: the width. pixels: the values of the control video that go into one latent pixel, channels included.
    Raises UserError as variants.sides does.
    """
    dim, text_embed_dim = sides(state_dict, "patch_embed.text_proj.weight", (2,), source)
    # Two stages encode the control video, to a half and then a quarter of its channels; patch_embed takes the result
    # concatenated with the latent.
    pixels = sides(state_dict, "controlnet_encode_first.0.weight", (4,), source)[1]
    proj = sides(state_dict, "patch_embed.proj.weight", (4,), source)
    # A control net that is narrower than its model has projectors; their rows are the model's width.
    projector = "out_projectors.0.weight"
    return {
        "dim": dim,
        "pixels": pixels,
        "vae_channels": proj[1] - pixels // 4,
        "patch_size": convolved_patch(proj, source),
        # Counted, and not taken from the largest index, which a file may set to a billion.
        "num_layers": len({k.split(".")[1] for k in state_dict if k.startswith("transformer_blocks.")}),
        "time_embed_dim": sides(state_dict, "time_embedding.linear_1.weight", (2,), source)[0],
        "text_embed_dim": text_embed_dim,
        "out_proj_dim": sides(state_dict, projector, (2,), source)[0] if projector in state_dict else None,
    }
