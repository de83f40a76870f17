"""Sequence parallelism: which tokens a rank holds, and attention over the tokens of all ranks.

A rank holds its part of the text and its part of the video, so that each has about as many of both. Around an attention
the ranks exchange heads for tokens: each then has all tokens of its share of the heads, as the attention kernels need
them (DeepSpeed-Ulysses, Jacobs et al. 2023). Joint attention has no mask and the order of the tokens does not matter to
it, so that any number of tokens can be divided; heads that do not divide are filled up with zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


class TokenRanks:
    """The ranks that share the tokens of one forward; keys.SharedTokens says what the transformer asks of them.

    sent_bytes: what this rank has sent to the others since it was last set to 0.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.sent_bytes = 0
        self._tokens: list[int] = []  # of text and video, of each rank
        self._video_tokens: list[int] = []

    def share(
        self, text: torch.Tensor, video: torch.Tensor, rotary: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """This rank's part of everything that has an entry for each token: text [B, L, D], video [B, N, D] and rotary
        [1, L + N, ...]. What a control net adds to the video's tokens has been computed for the part alone."""
        self._video_tokens = parts_of(video.shape[1], self.size)
        self._tokens = [a + b for a, b in zip(parts_of(text.shape[1], self.size), self._video_tokens)]
        if rotary is not None:
            tables = rotary.split([text.shape[1], video.shape[1]], dim=1)
            rotary = torch.cat([self._own(table) for table in tables], dim=1)
        return self._own(text).contiguous(), self._own(video).contiguous(), rotary

    def gather(self, video: torch.Tensor) -> torch.Tensor:
        """[B, this rank's video tokens, C] -> [B, video tokens, C] of all ranks, on each of them."""
        # Every rank gets as much as the first one has, which is at most one token more.
        filled = F.pad(video, (0, 0, 0, self._video_tokens[0] - video.shape[1])).contiguous()
        parts = [torch.empty_like(filled) for _ in self._video_tokens]
        self.sent_bytes += filled.nbytes * (self.size - 1)
        dist.all_gather(parts, filled, group=self.group)
        return torch.cat([part[:, :count] for part, count in zip(parts, self._video_tokens)], dim=1)

    def agree(self, choice: int) -> int:
        """The largest `choice` of all ranks: of memory modes, each of which exchanges other numbers of heads."""
        return largest(choice, self.group)

    def across(self, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`attend`, one of ComfyUI's attention functions, over the tokens of all ranks.

        It is called as f(q, k, v, heads, skip_reshape=True, ...) with q [B, heads, this rank's tokens, D], and returns
        [B, this rank's tokens, heads * D].
        """

        def attend_to_all(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, **options: Any
        ) -> torch.Tensor:
            lacking = -heads % self.size
            query, key, value = (self._to_heads(x, lacking) for x in (query, key, value))
            out = attend(query, key, value, query.shape[1], **options)  # [B, all tokens, heads / size * D]
            return self._to_tokens(out.unflatten(2, (query.shape[1], -1)))[:, :, :heads].flatten(2)

        return attend_to_all

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        return x.tensor_split(self.size, dim=1)[self.rank]

    def _to_heads(self, x: torch.Tensor, lacking: int) -> torch.Tensor:
        """[B, heads, this rank's tokens, D] -> [B, heads / size, all tokens, D]. lacking: heads to add, all zeros."""
        x = F.pad(x, (0, 0, 0, 0, 0, lacking)) if lacking else x
        batch, heads, tokens, width = x.shape
        # [B, size, heads / size, tokens, D] -> [size * tokens, B, heads / size, D], ordered by receiver.
        parts = x.unflatten(1, (self.size, heads // self.size)).permute(1, 3, 0, 2, 4).flatten(0, 1).contiguous()
        out = x.new_empty(sum(self._tokens), batch, heads // self.size, width)
        self._exchange(out, parts, self._tokens, [tokens] * self.size)
        return out.permute(1, 2, 0, 3)

    def _to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[B, all tokens, heads / size, D] -> [B, this rank's tokens, heads, D]."""
        batch, _, heads, width = x.shape
        tokens = self._tokens[self.rank]
        out = x.new_empty(self.size * tokens, batch, heads, width)
        # [B, all tokens, heads / size, D] -> [all tokens, B, heads / size, D], ordered by receiver.
        self._exchange(out, x.transpose(0, 1).contiguous(), [tokens] * self.size, self._tokens)
        return out.unflatten(0, (self.size, tokens)).permute(2, 1, 0, 3, 4).flatten(2, 3)

    def _exchange(self, out: torch.Tensor, parts: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> None:
        """Send sent[i] rows of `parts` to rank i, and get received[i] rows of `out` from it."""
        self.sent_bytes += parts[0].nbytes * (sum(sent) - sent[self.rank])
        dist.all_to_all_single(out, parts, list(received), list(sent), group=self.group)


def largest(choice: int, group: dist.ProcessGroup) -> int:
    """The largest `choice` of all ranks of a group."""
    # On the CPU where the group can: the host has decided, and would wait for the card to hear of it.
    choices = torch.tensor([choice], device=_device_of(group))
    dist.all_reduce(choices, dist.ReduceOp.MAX, group=group)
    return int(choices)


def parts_of(count: int, size: int) -> list[int]:
    """How many of `count` tokens, or rows, each rank holds: torch.tensor_split's parts."""
    return [count // size + (rank < count % size) for rank in range(size)]


def _device_of(group: dist.ProcessGroup) -> str:
    return "cuda" if dist.get_backend(group) == "nccl" else "cpu"
