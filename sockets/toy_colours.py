"""The colours of CogVideoX-nano's live previews: it has a VAE of its own, and those of the official one show teal for
blue."""

from typing import Any

import comfy.model_patcher

# As LATENT_RGB_FACTORS of model.py, fitted by least squares to the toy's own VAE on 64 drawn clips, and printed, by
# nano/preview_colours.py.
TOY_RGB_FACTORS = [
    [-0.0012, -0.0027, 0.0241],
    [0.0063, 0.0159, -0.0185],
    [0.0206, -0.0024, 0.0057],
    [-0.4095, 0.0310, 0.0855],
    [0.0211, -0.1337, -0.0711],
    [0.0363, -0.1279, 0.0840],
    [-0.0473, -0.1944, 0.0031],
    [-0.0255, 0.0744, 0.0023],
    [0.0449, -0.0356, -0.0219],
    [0.0052, -0.0086, 0.0111],
    [-0.0582, -0.1358, 0.1645],
    [-0.0063, 0.0134, -0.0045],
    [-0.0304, -0.4279, -0.2758],
    [0.1507, -0.0698, 0.1706],
    [-0.0072, -0.0197, -0.0273],
    [-0.0910, -0.0277, 0.1103],
]
TOY_RGB_BIAS = [0.2038, 0.1281, 0.0304]


def show_toy_colours(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Let previews of a MODEL of the toy, just loaded, have its colours."""
    loaded: Any = patcher.model
    loaded.latent_format.take_colours(TOY_RGB_FACTORS, TOY_RGB_BIAS)
