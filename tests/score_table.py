"""The scores of nano's clips as a table, for the tests to print."""

from collections.abc import Mapping

from cogvideox.nano.score import ATTRIBUTES


def score_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Shares of correct clips, by attribute, of each row: lines of per cent."""
    width = max(len("clips"), *map(len, rows))
    lines = [f"{'clips':{width}s} " + " ".join(f"{name:>10s}" for name in ATTRIBUTES)]
    for title, shares in rows.items():
        lines.append(f"{title:{width}s} " + " ".join(f"{100 * shares[name]:8.1f} %" for name in ATTRIBUTES))
    return "\n".join(lines)
