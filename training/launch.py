"""The program behind `python3 dev.py train RECIPE`, to be started by path, alone or by accelerate, in the venv:

    COMFYUI_PATH=... python training/launch.py recipe.toml
    COMFYUI_PATH=... accelerate launch --multi_gpu --num_processes 2 training/launch.py recipe.toml
    COMFYUI_PATH=... accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 training/launch.py recipe.toml
    COMFYUI_PATH=... torchrun --nproc_per_node 2 training/launch.py recipe.toml    (on CPUs)

On several machines they need one file system for the recipe, the dataset and the output.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# a script's own folder stands first, and its modules must be the pack's
sys.path[:] = [str(ROOT), *(p for p in sys.path if p and Path(p).resolve() != ROOT / "training")]

from devtools.in_process import load_pack, pack, use_comfyui  # noqa: E402


def main(arguments: list[str]) -> int:
    """arguments: the recipe."""
    import torch

    comfyui = Path(os.environ.get("COMFYUI_PATH") or "")
    if len(arguments) != 1 or not (comfyui / "main.py").is_file():
        print(
            "usage: COMFYUI_PATH=/path/to/ComfyUI python training/launch.py recipe.toml\n"
            "COMFYUI_PATH names a ComfyUI checkout; `python3 dev.py train recipe.toml` brings its own.",
            file=sys.stderr,
        )
        return 2
    recipe = Path(arguments[0]).resolve()
    use_comfyui(comfyui, cpu=not torch.cuda.is_available())  # takes sys.argv for itself
    load_pack()
    errors = pack("host.errors")
    try:
        return pack("training.headless").train_recipe(recipe)
    except (errors.TrainingError, errors.CheckpointError, errors.GeometryError, errors.NumericsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
