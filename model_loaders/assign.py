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

    cast: to the dtypes that the module has on the meta device; a tensor that has its dtype already is not copied. Under
    dynamic VRAM it is False: ComfyUI casts each weight on its way to the device, and a copy in memory would undo the
    mapping.
    precision: which weights are quantised; none by default.

    Raises UserError, which names tensors that are missing, unknown or of another shape.
    """
    # Before anything is converted, and instead of load_state_dict's own check, which lists every name that differs.
    require_fit({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}, state_dict, source)
    # With assign=True the tensors of the file become the parameters. Without it torch copies into the parameters of the
    # module, which are on the meta device: the weights would be lost.
    module.load_state_dict(convert_transformer_weights(module, state_dict, precision, cast), assign=True)
    module.requires_grad_(False)
