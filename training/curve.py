"""The loss of a training as a picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _LEFT, _EDGE = 720, 360, 64, 24  # pixels
_RAW, _SMOOTH, _INK = (196, 210, 232), (40, 70, 220), (90, 90, 90)
_WINDOW_SHARE = 0.05  # of all steps, that the smooth line is the mean of


def draw_curve(losses: Sequence[float]) -> Image.Image:
    """Each step's loss in grey and a running mean in blue, from the first step to the last; at least one."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    smooth = _running_mean(losses, max(1, round(len(losses) * _WINDOW_SHARE)))
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0

    def place(step: int, loss: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _EDGE) * step / max(1, len(losses) - 1)
        return x, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (loss - low) / span

    for share in (0.0, 0.5, 1.0):
        _, y = place(0, low + share * span)
        draw.line([(_LEFT, y), (_WIDTH - _EDGE, y)], fill=(230, 230, 230))
        draw.text((6, y - 6), f"{low + share * span:.4g}", fill=_INK)
    for values, colour, width in ((losses, _RAW, 1), (smooth, _SMOOTH, 2)):
        points = [place(step, loss) for step, loss in enumerate(values)]
        draw.line(points * 2 if len(points) == 1 else points, fill=colour, width=width)
    draw.text((_LEFT, _HEIGHT - 18), "step 1", fill=_INK)
    draw.text((_WIDTH - _EDGE - 8 * len(str(len(losses))), _HEIGHT - 18), str(len(losses)), fill=_INK)
    return image


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place, of fewer at the beginning."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + (value if math.isfinite(value) else 0.0))
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(values))]
