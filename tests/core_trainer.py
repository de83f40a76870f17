"""ComfyUI's own Train LoRA, with which the tests compare the pack's."""

import inspect

import pytest
import torch

# hosts differ in what they ask for
SETTINGS = {
    "batch_size": 2,
    "grad_accumulation_steps": 1,
    "steps": 4,
    "learning_rate": 0.01,
    "rank": 4,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


def train(model: object, latents: list, positive: list, **settings: object) -> tuple[dict, list[float]]:
    """The LoRA and the loss of every step, run as ComfyUI runs a node with lists."""
    node = pytest.importorskip("comfy_extras.nodes_train").TrainLoraNode
    known = inspect.signature(node.execute).parameters
    given = {name: [value] for name, value in {**SETTINGS, **settings}.items() if name in known}
    with torch.inference_mode():
        lora, losses, _ = node.execute([model], latents, positive, **given).args
    return lora, losses["loss"]
