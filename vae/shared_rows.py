"""Rows of a video that several processes compute together: what the pass through the network asks of the others."""

from typing import Protocol

import torch


class SharedRows(Protocol):
    """Processes of which each computes some rows of every frame: parallel.row_ranks.RowRanks."""

    @property
    def above(self) -> int:
        """How many rows of the process above this one knows: 1, or 0 at the picture's edge."""
        ...

    @property
    def below(self) -> int:
        """The same of the process below."""
        ...

    def neighbours(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The rows above `first` and below `last`, for n frames at once, [1, C, n, W] each; None at the picture's edge.

        first, last: this process's own first and last rows of these frames, which the others get.
        """
        ...

    def gathered(self, moments: torch.Tensor) -> torch.Tensor:
        """`moments` [3, C], fp32, of all processes: [processes, 3, C]."""
        ...
