"""The program behind `python3 dev.py train RECIPE`, to be started alone or by accelerate:

    COMFYUI_PATH=... python -m cogvideox.training.launch recipe.toml
    COMFYUI_PATH=... accelerate launch --multi_gpu --num_processes 2 -m cogvideox.training.launch recipe.toml
    COMFYUI_PATH=... accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 -m cogvideox.training.launch ...
    COMFYUI_PATH=... torchrun --nproc_per_node 2 -m cogvideox.training.launch recipe.toml    (on CPUs)

The package has to be installed once for that, `pip install -e` and this folder's path, in ComfyUI's own Python. On
several machines they need one file system for the recipe, the dataset and the output.
"""

import sys
from functools import partial
from pathlib import Path

from ..errors import UserError
from ..host.standalone import use_comfyui


def main(arguments: list[str]) -> int:
    """arguments: the recipe."""
    import torch

    if len(arguments) != 1:
        print("usage: COMFYUI_PATH=/path/to/ComfyUI python -m cogvideox.training.launch recipe.toml", file=sys.stderr)
        return 2
    recipe = Path(arguments[0]).resolve()
    try:
        # ComfyUI chooses its device when it is first imported: its options have to be set before anything imports it.
        use_comfyui(cpu=not torch.cuda.is_available())
        from ..host.optional_packages import import_package

        import_package("accelerate", "Training")
        from .headless import train_recipe

        # Each line at once: the output of a program that is not in a terminal is buffered.
        return train_recipe(recipe, partial(print, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
