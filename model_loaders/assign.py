"""The tensors of a file become a module's parameters."""

import torch

from .checkpoints import require_fit
from .precision import Precision
from .quantization import convert_transformer_weights


def assign_weights(
    module: torch.nn.Module,
    state_dict: dict[str, torch.Tensor],
    cast: bool,
    source: str,
    precision: Precision = Precision(torch.float32, None),
) -> None:
    """Make the mapped tensors, which are taken out of `state_dict`, the module's parameters.

    cast: to the types that the module has on the meta device; what has its type already is not copied.
    precision: what is quantised, or stays so; plain by default.

    Raises UserError naming what is missing, left over or of another shape.
    """
    require_fit({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state_dict, source)
    module.load_state_dict(convert_transformer_weights(module, state_dict, precision, cast), assign=True)
    module.requires_grad_(False)
