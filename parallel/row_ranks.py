"""Which rows of a video a rank of the VAE has, and what the ranks exchange: a row with each neighbour before a
convolution in the plane, and the moments of all before a norm."""

import torch
import torch.distributed as dist

from .token_ranks import largest, parts_of


class RowRanks:
    """The ranks that share the rows of one video; vae.shared_rows.SharedRows says what the VAE asks of them.

    The rows are divided where one latent row ends and the next begins, so that nothing between two of the network's
    sizes is cut apart. sent_bytes: what this rank has sent to the others since it was last set to 0.
    """

    def __init__(self, group: dist.ProcessGroup, latent_rows: int):
        """latent_rows: of the video, as many as there are ranks or more."""
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.above, self.below = int(self.rank > 0), int(self.rank + 1 < self.size)
        self.sent_bytes = 0
        counts = parts_of(latent_rows, self.size)
        self._start, self.latent_rows = sum(counts[: self.rank]), counts[self.rank]

    def own(self, x: torch.Tensor, zoom: int) -> torch.Tensor:
        """This rank's rows of x [1, C, T, H, W] and those of its neighbours next to them. zoom: rows of x for each of
        the latents'."""
        stop = zoom * (self._start + self.latent_rows) + 1 if self.below else x.shape[3]
        return x[:, :, :, zoom * self._start - self.above : stop]

    def neighbours(self, first: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """See SharedRows."""
        # [1, C, n, W] -> [1, n, W, C], which is how frames lie in memory but for fp32 on a CPU.
        mine = first.movedim(1, -1).contiguous(), last.movedim(1, -1).contiguous()
        operations, known = [], list[torch.Tensor | None]([None, None])
        for side, (is_there, step) in enumerate(((self.above, -1), (self.below, 1))):
            if is_there:
                peer = dist.get_global_rank(self.group, self.rank + step)
                rows = known[side] = torch.empty_like(mine[side])
                operations.append(dist.P2POp(dist.isend, mine[side], peer, self.group))
                operations.append(dist.P2POp(dist.irecv, rows, peer, self.group))
                self.sent_bytes += rows.nbytes
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        above, below = (None if rows is None else rows.movedim(-1, 1) for rows in known)
        return above, below

    def gathered(self, moments: torch.Tensor) -> torch.Tensor:
        """See SharedRows."""
        out = moments.new_empty(self.size, *moments.shape)
        self.sent_bytes += moments.nbytes * (self.size - 1)
        dist.all_gather(list(out.unbind()), moments, group=self.group)
        return out

    def agree(self, choice: int) -> int:
        """The largest `choice` of all ranks: of memory modes, which exchange different rows."""
        return largest(choice, self.group)
