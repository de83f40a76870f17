"""The loss of a training as a picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

WIDTH, _HEIGHT, _LEFT, _EDGE = 640, 320, 60, 22  # pixels
_RAW, _SMOOTH, _INK, _GRID = (190, 205, 232), (40, 70, 220), (90, 90, 90), (228, 228, 228)
_WINDOW_SHARE = 0.05  # each point of the dark line is the mean over this share of the steps done


def draw_losses(losses: Sequence[float], steps: int) -> Image.Image:
    """Each step's loss in a light colour and a running mean in a dark one; the picture ends at the last of `steps`."""
    image = Image.new("RGB", (WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    known = [loss for loss in losses if math.isfinite(loss)] or [0.0]
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    last = max(1, steps - 1, len(losses) - 1)

    def place(step: int, loss: float) -> tuple[float, float]:
        share = (loss - low) / span if math.isfinite(loss) else 1.0
        x = _LEFT + (WIDTH - _LEFT - _EDGE) * step / last
        return x, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * share

    for value in (low, low + span / 2, low + span):
        _, y = place(0, value)
        draw.line([(_LEFT, y), (WIDTH - _EDGE, y)], fill=_GRID)
        draw.text((6, y - 6), f"{value:.4g}", fill=_INK)
    draw.text((_LEFT, _HEIGHT - 16), "step 1", fill=_INK)
    draw.text((WIDTH - _EDGE - 7 * len(str(last + 1)), _HEIGHT - 16), str(last + 1), fill=_INK)
    smooth = _running_mean(losses, max(1, round(len(losses) * _WINDOW_SHARE)))
    for values, colour, width in ((losses, _RAW, 1), (smooth, _SMOOTH, 2)):
        points = [place(step, loss) for step, loss in enumerate(values)]
        if points:
            # Pillow draws no line through a single point.
            draw.line(points * 2 if len(points) == 1 else points, fill=colour, width=width)
    return image


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place, of fewer at the beginning."""
    # Differences of running sums: one pass, however long the window.
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + (value if math.isfinite(value) else 0.0))
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(values))]
