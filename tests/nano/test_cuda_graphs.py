"""A training step that was captured on a card is the step that is computed."""

import pytest
import torch

from cogvideox.nano.cuda_graphs import captured


class Loss(torch.nn.Module):
    """A regression with a parameter that its loss does not use."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = torch.nn.Linear(8, 4), torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return ((self.layer(x) - wanted) ** 2).mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replayed_steps_train_as_computed_ones_do() -> None:
    """Replayed with the batch or weights of its capture, a training would learn from one step for ever."""
    torch.manual_seed(0)
    replayed, computed = Loss().cuda(), Loss().cuda()
    computed.load_state_dict(replayed.state_dict())
    batches = [(torch.randn(16, 8, device="cuda"), torch.randn(16, 4, device="cuda")) for _ in range(4)]
    fast = captured(replayed, batches[0])
    for model, loss_of in ((replayed, fast), (computed, computed)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for batch in batches:
            optimizer.zero_grad()
            loss_of(*batch).backward()
            optimizer.step()
    for ours, theirs in zip(replayed.parameters(), computed.parameters()):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
