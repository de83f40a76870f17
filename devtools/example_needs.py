"""Write the embedded checkpoints of the example workflows for which CogVideoX-nano has no model:
python -m cogvideox.devtools.example_needs BASE.

BASE: a ComfyUI's --base-directory. The other official checkpoints are written as well. Files that exist already stay.
Runs inside the venv.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from .embedded_checkpoint import write_all
from .example_workflows import EXAMPLES, Example

_OTHERS = ("2b", "5b-I2V", "1.5-5B", "1.5-5B-I2V")  # mentioned in the examples' notes


def write_needs(base: Path, examples: Iterable[Example] = EXAMPLES, more_variants: Iterable[str] = ()) -> None:
    """Write the checkpoints and control nets that `examples` name, but for those of the pack itself, below `base`."""
    examples = tuple(examples)
    variants = dict.fromkeys([*(example.variant for example in examples), *more_variants])
    needs_control_net = any(example.needs_control_net for example in examples)
    models = base / "models"
    write_all(models / "diffusers", models / "controlnet" if needs_control_net else None, variants)


if __name__ == "__main__":
    write_needs(Path(sys.argv[1]), EXAMPLES, _OTHERS)
