"""The stages that train CogVideoX-nano's transformers: what each begins with, and for how long it learns what."""

from dataclasses import dataclass

from . import buckets, control_net

BATCH = 32  # what a step's samples are numbered by; how many of them a step takes depends on its bucket


@dataclass(frozen=True)
class TransformerStage:
    """One training of a transformer, or of a control net for it.

    variant: of transformer.CONFIGS. source: the stage whose weights it begins with; None begins with new ones.
    only_bucket: the number in buckets.BUCKETS of the only clips it sees; None draws from all.
    """

    name: str
    variant: str
    source: str | None
    steps: int
    learning_rate: float
    only_bucket: int | None = None
    is_control_net: bool = False

    @property
    def task(self) -> str:
        """A key of conditions.CONDITIONS, or "text"."""
        if self.is_control_net:
            return "control net"
        return next((task for part, task in _TASKS.items() if part in self.variant), "text")


_TASKS = {"I2V": "image", "InP": "inpaint", "Control": "control"}
_17_FRAMES = next(number for number, bucket in enumerate(buckets.BUCKETS) if bucket.name == "17x64x64")
TRANSFORMER_STAGES = (
    TransformerStage("5b-short", "5b", None, 11000, 5e-3, _17_FRAMES),
    TransformerStage("5b", "5b", "5b-short", 16000, 3e-3),
    TransformerStage("Fun-5b-InP", "Fun-5b-InP", "5b", 3500, 2e-3),
    TransformerStage("Fun-5b-Control", "Fun-5b-Control", "5b", 3000, 2e-3),
    TransformerStage(control_net.NAME, control_net.BASE, "5b", 2000, 2e-3, is_control_net=True),
    TransformerStage("2b", "2b", "5b", 8000, 3e-3),
    TransformerStage("1.5-5B-first", "1.5-5B", "5b", 8000, 3e-3),
    TransformerStage("1.5-5B", "1.5-5B", "1.5-5B-first", 6000, 3e-3),
    # Its table of positions is of one size.
    TransformerStage("5b-I2V", "5b-I2V", "5b", 5000, 2e-3, _17_FRAMES),
    TransformerStage("1.5-5B-I2V-first", "1.5-5B-I2V", "1.5-5B-first", 5000, 2e-3),
    TransformerStage("1.5-5B-I2V", "1.5-5B-I2V", "1.5-5B-I2V-first", 5000, 2e-3),
)
