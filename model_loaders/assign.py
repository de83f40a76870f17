"""Make the tensors of a file the parameters of a module."""

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
    """Make the memory-mapped tensors of `state_dict`, which is emptied, the parameters of `module`.

    cast: to the dtypes that the module has on the meta device; a tensor that has its dtype already is not copied.
    precision: which weights are quantised; none by default.

    Raises UserError, which names tensors that are missing, unknown or of another shape.
    """
    require_fit({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state_dict, source)
    module.load_state_dict(convert_transformer_weights(module, state_dict, precision, cast), assign=True)
    module.requires_grad_(False)
