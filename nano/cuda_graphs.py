"""A loss and its gradients, captured once as CUDA graphs and replayed.

A step of CogVideoX-nano is a thousand kernels that take longer to launch than to run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

_MOST_DIFFERENCE = 0.02  # relative, between a replayed loss and the same one computed: bf16 sums in another order


def captured(loss: torch.nn.Module, batch: Sequence[torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`loss` for batches of the shapes of `batch`, on their card; to be called where autocast's cache is off.

    loss(*batch) gives a scalar. What this returns can be taken backwards as that of `loss` can. Whatever else `loss`
    reads on the card must stay where it is: nobody may call positions.forget_tables meanwhile.

    Raises RuntimeError where the replayed loss differs from the computed one.
    """
    computed = float(loss(*batch))
    replay: Any = torch.cuda.make_graphed_callables(loss, tuple(batch), allow_unused_input=True)
    replayed = float(replay(*batch))
    if not abs(replayed - computed) <= _MOST_DIFFERENCE * abs(computed):
        raise RuntimeError(f"The replayed loss is {replayed}, the computed one {computed}.")
    return replay
