"""The transformer of a RemoteModel."""

from typing import Any

import torch

from ..keys import read_positions
from ..transformer.dit import CogVideoXDiT
from .remote_control import asked_controls, computed_here
from .remote_weights import RemoteWeights
from .sendable import require_sendable


class RemoteDiT(CogVideoXDiT):
    """CogVideoXDiT on the meta device, whose predictions other processes make. What wraps a transformer's forward, such
    as EasyCache and context windows, works in this process."""

    weights: RemoteWeights
    has_weights = False

    def _forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        ofs: torch.Tensor | None,
        transformer_options: dict[str, Any],
        control: dict[str, Any] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        is_exact = require_sendable(transformer_options)
        # As in one process: what does not fit is refused before anything is sent.
        frames, height, width = x.shape[2:]
        extra = -frames % (self.config.patch_size_t or 1)
        self.token_grid((frames + extra, height, width), transformer_options)
        positions = read_positions(transformer_options)
        controls = asked_controls(control)
        v = self.weights.predict(x, timestep, context, ofs, positions, is_exact, controls)
        if v is not None:
            return v
        network = self.weights.alone().model.diffusion_model
        computed = computed_here(control, transformer_options)
        return network._forward(x, timestep, context, ofs, transformer_options, control=computed)

    def forget_run(self) -> None:
        super().forget_run()
        self.weights.end_run()
