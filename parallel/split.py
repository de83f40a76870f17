"""How a model's predictions are divided over ranks."""

from typing import NamedTuple

from ..errors import UserError

AUTO, GUIDANCE, SEQUENCE, BOTH = "auto", "cfg", "sequence", "both"
SPLITS = (AUTO, GUIDANCE, SEQUENCE, BOTH)
_PROMPTS = 2  # prompt and negative prompt


class Split(NamedTuple):
    """guidance: groups of ranks among which the prompts are divided. sequence: ranks of a group, which share the
    tokens."""

    guidance: int
    sequence: int

    def used_for(self, batch: int) -> "Split":
        """What a batch of `batch` prompts is divided by: one prompt alone leaves no group without work."""
        return self if batch % self.guidance == 0 else Split(1, self.guidance * self.sequence)


def choose_split(split: str, ranks: int, machines: int) -> Split:
    """How `ranks` on `machines` divide a model.

    split: one of SPLITS. "auto" divides the tokens inside a machine and the prompts between two: an attention's
    exchange takes gigabytes a step, a prediction's a few megabytes.

    Raises UserError where the ranks cannot be divided in this way.
    """
    if split == AUTO:
        between = machines == _PROMPTS and ranks % _PROMPTS == 0
        return Split(_PROMPTS, ranks // _PROMPTS) if between else Split(1, ranks)
    if split == SEQUENCE:
        return Split(1, ranks)
    if ranks == 1:
        raise UserError(f'There is one card, and split "{split}" is for two or more. Set split to "{AUTO}".')
    if split == GUIDANCE and ranks != _PROMPTS:
        other = SEQUENCE if ranks % _PROMPTS else BOTH
        raise UserError(
            f'split "{GUIDANCE}" gives prompt and negative prompt a card each; there are {ranks} cards. Set cards to '
            f'{_PROMPTS}, or split to "{other}".'
        )
    if ranks % _PROMPTS:
        raise UserError(
            f'split "{BOTH}" divides the cards between prompt and negative prompt; {ranks} is an odd number. Set cards '
            f'to {ranks - 1} or {ranks + 1}, or split to "{SEQUENCE}".'
        )
    return Split(_PROMPTS, ranks // _PROMPTS)
