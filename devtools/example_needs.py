"""Write the files that the example workflows load: python -m cogvideox.devtools.example_needs BASE [NAME ...].

BASE: a ComfyUI's --base-directory. NAME: examples; by default all of them, and the other official checkpoints as well.
Files that exist already stay. Runs inside the venv.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .embedded_checkpoint import write_all
from .example_media import write_media
from .example_workflows import EXAMPLES, Example

_OTHERS = ("2b", "5b-I2V", "1.5-5B", "1.5-5B-I2V", "nano-1.5-5B")  # mentioned in the examples' notes


def write_needs(base: Path, examples: Iterable[Example] = EXAMPLES, more_variants: Iterable[str] = ()) -> None:
    """Write the checkpoints, control nets, pictures and videos that `examples` name into their folders of `base`."""
    examples = tuple(examples)
    variants = dict.fromkeys([*(example.variant for example in examples), *more_variants])
    needs_control_net = any(example.needs_control_net for example in examples)
    models = base / "models"
    write_all(models / "diffusers", models / "controlnet" if needs_control_net else None, variants)
    write_media(base / "input")


def main(base: str, names: Sequence[str]) -> None:
    if names:
        write_needs(Path(base), [example for example in EXAMPLES if example.name in names])
    else:
        write_needs(Path(base), EXAMPLES, _OTHERS)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
