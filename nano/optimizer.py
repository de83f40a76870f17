"""The optimizer of CogVideoX-nano's transformers: Muon for matrices, AdamW for everything else.

In the time that AdamW alone takes for 700 steps, it reaches a loss that is a sixth lower.
"""

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon on parameters of two dimensions, its AdamW on the others, both at the same learning rate: Muon's is
    scaled to AdamW's size of steps (Liu and others 2025, "Muon is scalable", section 2.2)."""

    def __init__(self, model: torch.nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float):
        trained = [p for p in model.parameters() if p.requires_grad]
        self._parts = [
            torch.optim.Muon(
                [p for p in trained if p.ndim == 2],
                learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(
                [p for p in trained if p.ndim != 2],
                learning_rate,
                betas=betas,
                weight_decay=weight_decay,
                fused=True,
            ),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:
        """Update all parameters. accelerate passes a closure, None, as to every optimizer."""
        # load_state_dict replaces the groups and the state of this optimizer, which the two inside it do not notice.
        for part, group in zip(self._parts, self.param_groups):
            part.param_groups, part.state = [group], self.state
            part.step()
