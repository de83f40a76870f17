"""A norm and what the latents do to it, as one scale and one shift."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Modulation:
    """x * scale + shift. scale, shift: [1, C, n, m] fp32, each value for zoom_y x zoom_x pixels."""

    scale: torch.Tensor
    shift: torch.Tensor
    zoom_y: int
    zoom_x: int

    def in_layout(self, layout: torch.memory_format) -> "Modulation":
        """The same for frames in `layout`: with channels first, torch is quick only with a value for each pixel."""
        if layout == torch.channels_last:
            return self
        scale, shift = (values.repeat_interleave(self.zoom_x, dim=3) for values in (self.scale, self.shift))
        return Modulation(scale, shift, self.zoom_y, 1)
