"""CogVideoX-nano's pink LoRA: the pack's headless trainer on the example clips, a colour that no stage has shown."""

import json
from pathlib import Path

from cogvideox.host.toy import CLIPS_FOLDER, WEIGHTS

from .stage import SEED

NAME = "pink"
# What training.recipe reads; its paths start from WORK.
RECIPE: dict[str, dict] = {
    "model": {"path": str(WEIGHTS / "5b")},
    "dataset": {
        "folder": str(CLIPS_FOLDER),
        "cache": f"{NAME}-cache",
        "frames": 17,
        "width": 64,
        "height": 64,
    },
    "training": {
        "max_steps": 300,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-4,
        "rank": 16,
        "alpha": 16.0,
        "timesteps": "stratified",
        "seed": SEED,
        "save_every": 100,
    },
    "output": {"folder": ".", "name": NAME},
}


def train_lora(work: Path) -> None:
    """Train the LoRA and leave it at WORK/pink/pink.safetensors, beside its log and checkpoints. It learns on the
    published 5b: publish that first."""
    from cogvideox.training.headless import train_recipe

    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{NAME}.json"
    path.write_text(json.dumps(RECIPE, indent=2), "utf-8")
    train_recipe(path, lambda line: print(line, flush=True))
