"""Messages about a LoRA: how many of its keys matched, or why it does not fit the model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import quoted
from ...sockets.families import FAMILIES
from ..variants import describe_weights
from .names import OWN_PREFIX, split_key
from .other_models import guess_family

MOST_LINES = 100  # of each reason in the log


@dataclass(frozen=True)
class LoraReport:
    """What became of the keys of a LoRA file.

    total, matched: keys in the file, and of these the ones that change the model. layers, kinds, ranks, scales: of the
    LoRA's layers. scale_source: where the scales come from, in words. unmatched: keys that belong to no layer of the
    model. skipped: reason -> keys that were left out on purpose. hint: a further sentence for the user.
    """

    total: int
    matched: int = 0
    layers: int = 0
    kinds: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    scale_source: str = ""
    unmatched: tuple[str, ...] = ()
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hint: str = ""

    def message(self) -> str:
        """A few lines for the user."""
        ranks, scales = format_range(self.ranks), format_range(self.scales)
        kinds = " and ".join(self.kinds)
        about = f"{self.layers} layers, {kinds}"
        if self.ranks:  # in one text: where the kinds end is not to be guessed by a translation
            about = f"{self.layers} layers, {kinds}, rank {ranks}, scale {scales} ({self.scale_source})"
        lines = [f"{self.matched} of {self.total} keys matched: {about}."]
        if self.unmatched:
            lines.append(f"Not in this model: {name_some(self.unmatched)}.")
        lines += [f"Skipped {len(keys)} {why}: {name_some(keys)}." for why, keys in self.skipped.items()]
        return "\n".join([*lines, *([self.hint] if self.hint else [])])

    def details(self) -> str:
        """One line for each key that has no effect, for the log: of a few hundred at most, and how many more."""
        lost = {"not in this model": self.unmatched, **self.skipped}
        lines = [f"LoRA key {quoted(key)}: {why}" for why, keys in lost.items() for key in keys[:MOST_LINES]]
        more = sum(max(0, len(keys) - MOST_LINES) for keys in lost.values())
        return "\n".join([*lines, *([f"{more} more LoRA keys have no effect."] if more else [])])


def name_some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:100] for name in names[:3]) + more


def format_range(values: Collection[float]) -> str:
    """The smallest and the largest value, or one number where all are equal."""
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def zero_match_message(source: str, keys: Sequence[str], skipped: Mapping[str, Sequence[str]]) -> str:
    """Why a LoRA with these keys has no effect on a CogVideoX model, and what to do."""
    advice = "Choose a LoRA that was trained for CogVideoX."
    if not keys:
        return f"{source} is empty: it contains no tensors. Download it again."
    if not any(split_key(key) for key in keys):
        return f"{source} looks like {describe_weights(keys)}, not a LoRA. {advice}"
    text = skipped.get("for a text encoder", ())
    if len(text) == len(keys):
        return (
            f"{source} is for a text encoder only (all {len(keys)} keys, such as {quoted(keys[0])}) and does not "
            "change the model. Apply it to the CLIP, or choose another LoRA."
        )
    if family := guess_family(keys):
        return f"{source} looks like a LoRA for {family}: none of its {len(keys)} keys fits CogVideoX. {advice}"
    return (
        f"None of the {len(keys)} keys in {source} names a layer of this CogVideoX model; the first is "
        f"{keys[0][:100]}. {advice}"
    )


def misfit_message(
    source: str,
    misfits: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    widths: tuple[int | None, int | None],
    keys: Sequence[str],
) -> str:
    """Why a LoRA whose layers have other shapes than the model's does not fit, and what to do.

    misfits: layer -> (shape in the LoRA, shape in the model). widths: of the LoRA and of the model, where known.
    """
    layer, (found, expected) = next(iter(misfits.items()))
    more = f" ({len(misfits) - 1} more do not fit)" if len(misfits) > 1 else ""
    message = (
        f"{source} is for layers of another size: {layer.removeprefix(OWN_PREFIX)} is {list(found)} in the LoRA and "
        f"{list(expected)} in the model{more}."
    )
    # The width tells models of 2b's size from models of 5b's, no more: families share widths.
    theirs, ours = (next((f.name for f in FAMILIES if f.heads * 64 == width), None) for width in widths)
    family = guess_family(keys)
    if family:
        message += f" It looks like a LoRA for {family}."
    elif theirs and ours and theirs != ours:
        message += f" It was trained for a model of the width of {theirs}; this model has the width of {ours}."
    return message + " Choose a LoRA for this model, or load the model that it was trained for."
