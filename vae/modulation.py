"""A norm and what the latents do to it, as one scale and one shift."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Modulation:
    """x * scale + shift. scale, shift: [1, C, n, m] fp32, each value for a patch of zoom_y x zoom_x pixels.

    In the decoder a patch is what one latent pixel becomes: 1 x 1 pixels at the latents' size, 8 x 8 at the video's. In
    the encoder, whose group norms do not depend on a position, it is the whole frame.

    above: how many pixels of the first row of patches lie above the frame's row 0, where other processes have the rows.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    zoom_y: int
    zoom_x: int
    above: int = 0

    def in_layout(self, layout: torch.memory_format) -> "Modulation":
        """The same for frames in `layout`.

        With channels first, torch multiplies quickly only along rows in which every pixel has its own value, so values
        are repeated in x. With channels last its inner loop goes over the channels, and patches stay as they are.
        """
        if layout == torch.channels_last:
            return self
        scale, shift = (values.repeat_interleave(self.zoom_x, dim=3) for values in (self.scale, self.shift))
        return Modulation(scale, shift, self.zoom_y, 1, self.above)
