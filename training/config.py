"""The settings of a training: their names, defaults, limits and help, the same in the graph and in a recipe.

The node's widgets, a recipe's [training] section and the settings.json of a checkpoint are all made of TrainConfig.
Nothing heavy is imported here: ComfyUI imports this file when it starts.
"""

import dataclasses
from dataclasses import dataclass

from ..errors import UserError
from .fields import check_settings, setting

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what the official trainers put a LoRA on
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
TARGETS = {"attention": ATTENTION, "attention and feed-forward": (*ATTENTION, *FEED_FORWARD)}
TIMESTEP_SAMPLINGS = ("uniform", "stratified", "logit-normal")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("default", "bf16", "fp16", "fp32")
MODES = ("lora", "full")  # what is trained: a LoRA, or every weight of the transformer
MAX_STEPS, MAX_RANK, MAX_SEED = 1_000_000, 1024, 2**64 - 1
# Limits that leave room for what people do: a few clips at once on a large card, 128 of what is tiny (nano/text.py),
# and a step of 8 clips on each of 128 cards, which on a single one takes an hour or more.
MAX_MICRO_BATCH, MAX_GLOBAL_BATCH = 128, 1024

# The result does not depend on these: when a checkpoint is written, and whether blocks are computed twice to save
# memory. All other settings have to be the same on resume, max_steps too: the cosine schedule depends on it.
MAY_DIFFER_ON_RESUME = ("save_every", "gradient_checkpointing")
_OF_A_LORA = ("rank", "alpha", "targets")


@dataclass(frozen=True)
class TrainConfig:
    """How a training goes. A value outside its limits raises UserError when the config is made.

    Sources of defaults: AdamW's and max_grad_norm are the official trainer's (THUDM/CogVideo finetune/schemas/args.py).
    rank and alpha follow the advice of its finetune/README.md: a rank of 64 or more, and an alpha equal to it.
    image_dropout is noised_image_dropout of diffusers' train_cogvideox_image_to_video_lora.py.
    """

    max_steps: int = setting(
        500,
        "Optimizer steps in all. Some hundreds show a style or a subject; the official advice is 2000 to 4000 for 25 "
        "to 100 clips.",
        least=1,
        most=MAX_STEPS,
    )
    global_batch_size: int = setting(
        1,
        "Clips in one step, in all processes together.",
        least=1,
        most=MAX_GLOBAL_BATCH,
    )
    micro_batch_size: int = setting(
        1,
        "Clips that a process computes at once, all of one size. A larger one is faster and needs more memory.",
        least=1,
        most=MAX_MICRO_BATCH,
    )
    learning_rate: float = setting(
        1e-4,
        "Up to 1e-3 (diffusers' example at rank 64) for a quick style, down to 2e-5 (the official code at rank 128). "
        "The cosine schedule lets it fall to 0.",
        least=1e-8,
        most=1.0,
        step=1e-8,  # the frontend rounds what is typed to the step: 2.5e-6 would become 3e-6
    )
    warmup_steps: int = setting(0, "Steps over which the learning rate rises from 0.", least=0, most=MAX_STEPS)
    schedule: str = setting(
        "cosine",
        "After the warm-up the learning rate falls to final_learning_rate along half a cosine, or stays constant.",
        choices=SCHEDULES,
    )
    final_learning_rate: float = setting(0.0, "Where the cosine ends.", least=0.0, most=1.0)
    weight_decay: float = setting(1e-4, "AdamW's decay of the trained weights.", least=0.0, most=1.0)
    adam_beta1: float = setting(0.9, "AdamW's decay of the mean of the gradients.", least=0.0, most=0.9999)
    adam_beta2: float = setting(0.95, "AdamW's decay of the mean of their squares.", least=0.0, most=0.9999)
    max_grad_norm: float = setting(
        1.0, "Gradients of a step whose norm is larger are scaled down to it.", least=1e-6, most=1e6
    )
    ema_decay: float = setting(
        0.0,
        "Save an exponential moving average of the trained weights with this decay. 0 saves the weights themselves.",
        least=0.0,
        most=0.99999,
    )
    seed: int = setting(
        0,
        "All randomness comes from it: first weights, order of the clips, noise. The same seed trains the same LoRA.",
        least=0,
        most=MAX_SEED,
    )
    rank: int = setting(64, "How much a LoRA can hold, and its size.", least=1, most=MAX_RANK)
    alpha: float = setting(
        64.0, "What is learnt is scaled by alpha / rank. Equal to rank: 1.", least=0.01, most=4096.0, step=0.01
    )
    targets: tuple[str, ...] = setting(
        ATTENTION,
        "Which layers get a LoRA; attention is what the official trainers take.",
        choices=TARGETS["attention and feed-forward"],
        presets=TARGETS,
    )
    timesteps: str = setting(
        "uniform",
        "uniform: each clip's noise level on its own. stratified: spread evenly over the clips of a step. "
        "logit-normal: the same, most of them in the middle, where shapes are decided.",
        choices=TIMESTEP_SAMPLINGS,
    )
    caption_dropout: float = setting(0.0, "Share of clips that see the empty caption.", least=0.0, most=1.0, step=0.01)
    image_dropout: float = setting(
        0.05, "Image to video: share of clips that see no first frame.", least=0.0, most=1.0, step=0.01
    )
    precision: str = setting(
        "default",
        "What is computed in. default: what the model computes in when it samples. What is trained is always kept in "
        "fp32.",
        choices=PRECISIONS,
    )
    gradient_checkpointing: bool = setting(False, "Far less memory for about half more time, and the same result.")
    save_every: int = setting(250, "Steps between checkpoints.", least=1, most=MAX_STEPS)

    def __post_init__(self) -> None:
        check_settings(self)

    def gradient_accumulation_steps(self, processes: int) -> int:
        """How many micro batches each of `processes` takes in a step.

        Raises UserError where they do not add up to the global batch: some clips would be in no process's share.
        """
        at_once = processes * self.micro_batch_size
        if self.global_batch_size % at_once:
            raise UserError(
                f"global_batch_size is {self.global_batch_size}, but {processes} process{'es' * (processes > 1)} with "
                f"micro_batch_size {self.micro_batch_size} take {at_once} clips at a time: use a multiple of {at_once}."
            )
        return self.global_batch_size // at_once

    def recorded(self, mode: str = "lora") -> dict[str, object]:
        """These settings as a checkpoint and a LoRA's header hold them: in mode full without those of a LoRA.

        mode: one of MODES.
        """
        values = dataclasses.asdict(self)
        return values if mode == "lora" else {name: v for name, v in values.items() if name not in _OF_A_LORA}
