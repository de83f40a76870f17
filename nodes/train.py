"""Train a LoRA in the graph, and keep it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..errors import CheckpointError, TrainingError
from ..host import folders
from ..host.compat import throw_if_interrupted
from ..host.messages import show_on_node
from ..host.training_mode import InterruptProcessingException
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.lora.trained import convert_trained
from .checks import checked
from .inputs import MAX_SEED

_CHECKPOINTS = "cogvideox_training"  # in ComfyUI's output folder
# the trainer's own names; training is imported only when the node runs
_TARGETS = ("attention", "attention and feed-forward")
_TIMESTEPS = ("uniform", "stratified", "logit-normal")
_PRECISIONS = ("default", "bf16", "fp16", "fp32")
_MAX_STEPS, _MAX_RANK, _MAX_BATCH = 1_000_000, 1024, 1024
_PICTURE_EVERY_S, _TEXT_EVERY_S = 1.0, 0.5
_LORA, _LOSSES = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # the sockets of ComfyUI's own trainer


class CogVideoXTrainLora(io.ComfyNode):
    """LORA_MODEL, LOSS_MAP and the steps trained, as ComfyUI's Train LoRA gives them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXTrainLora",
            display_name="Train CogVideoX LoRA",
            category="CogVideoX/train",
            search_aliases=["finetune", "fine-tune", "train lora", "dreambooth", "training"],
            description=(
                "Train a LoRA with CogVideoX's own objective. Cancelled or killed, it goes on from its last checkpoint "
                "when it is queued again."
            ),
            is_input_list=True,
            inputs=[*_required_inputs(), *_optional_inputs()],
            outputs=[
                _LORA.Output(display_name="lora"),
                _LOSSES.Output(display_name="loss_map"),
                io.Int.Output(display_name="steps"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model: list, latents: list[dict], positive: list[list], **widgets: list) -> io.NodeOutput:
        from ..training.graph import LoraSettings, train_lora

        values = {name: listed[0] for name, listed in widgets.items()}
        name = checkpoint_folder_name(values.pop("checkpoint_name", ""))
        settings = LoraSettings(**values)
        shown = _Progress(settings.steps, cls.hidden.unique_id)
        folder = Path(folder_paths.get_output_directory()) / _CHECKPOINTS
        trained = train_lora(model[0], latents, positive, settings, folder, name, shown.step)
        shown.end(trained)
        if trained.stopped:
            throw_if_interrupted()
            raise InterruptProcessingException  # the progress bar has taken the wish already
        return io.NodeOutput(trained.lora, {"loss": trained.losses}, settings.steps)


def new_lora_path(name: str) -> Path:
    """The next free `<models/loras>/<name>_00001.safetensors`.

    Raises CheckpointError for a name that leads out of the folder or that is none.
    """
    plain = folders.new_file(name, "loras", ".safetensors")
    if plain.stem.startswith("."):
        raise CheckpointError(f"{name!r} is no name for a file. Use letters, digits, - and _, and / for folders.")
    pattern = re.compile(re.escape(plain.stem) + r"_(\d+)\.safetensors")
    there = plain.parent.iterdir() if plain.parent.is_dir() else ()
    numbers = [int(match[1]) for path in there if (match := pattern.fullmatch(path.name))]
    return plain.with_name(f"{plain.stem}_{max(numbers, default=0) + 1:05}.safetensors")


@checked(new_lora_path)
class CogVideoXSaveTrainedLora(io.ComfyNode):
    """LORA_MODEL -> one .safetensors file under models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSaveTrainedLora",
            display_name="Save Trained CogVideoX LoRA",
            category="CogVideoX/train",
            search_aliases=["save lora", "export lora", "save lora weights", "diffusers lora"],
            description=(
                "Write a LoRA that was trained in the graph, by this pack's trainer or ComfyUI's, into models/loras, "
                "in the layout that diffusers and ComfyUI load. Nothing is overwritten."
            ),
            inputs=[
                _LORA.Input("lora", tooltip="From Train CogVideoX LoRA or ComfyUI's Train LoRA."),
                io.String.Input(
                    "name",
                    default="CogVideoX/trained",
                    tooltip="Of the new file under models/loras; may contain folders. A number is added.",
                ),
            ],
            # COMBO, for a STRING cannot be linked to the list of Apply CogVideoX LoRA
            outputs=[io.Combo.Output(display_name="lora_name")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora: dict, name: str) -> io.NodeOutput:
        tensors, header, differences = convert_trained(lora)
        path = new_lora_path(name)
        size = write_tensors(path, tensors, {**header, **getattr(lora, "metadata", {})})
        text = f"Saved {path.name}, {size / 1e6:.1f} MB."
        if differences:
            text += (
                f" {differences} of its tensors are differences of norms and biases, which ComfyUI and this pack read; "
                "diffusers refuses a file that has them."
            )
        show_on_node(text, cls.hidden.unique_id)
        return io.NodeOutput(path.relative_to(folders.first_root("loras")).as_posix())


def _required_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="From Load CogVideoX Model or Load CogVideoX Pipeline. It stays as it is."),
        io.Latent.Input("latents", tooltip="A list of clips, from CogVideoX Training Clips."),
        io.Conditioning.Input("positive", tooltip="A list of captions, one a clip, or one for all of them."),
        io.Int.Input("steps", default=500, min=1, max=_MAX_STEPS, tooltip="Some hundreds for a style or a subject."),
        io.Int.Input("batch_size", default=1, min=1, max=_MAX_BATCH, tooltip="Clips at once, all of one size."),
        io.Float.Input(
            "learning_rate",
            default=1e-4,
            min=1e-8,
            max=1.0,
            step=1e-6,
            round=False,
            tooltip="Up to 1e-3 (diffusers' example at rank 64) for a quick style, down to 2e-5 (the official code at "
            "rank 128). It falls to 0 along half a cosine.",
        ),
        io.Int.Input("rank", default=64, min=1, max=_MAX_RANK, tooltip="How much a LoRA can hold, and its size."),
        io.Float.Input(
            "alpha",
            default=64.0,
            min=0.01,
            max=4096.0,
            step=0.01,
            tooltip="What is learnt is scaled by alpha / rank. Equal to rank: 1.",
        ),
        io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=False),
    ]


def _optional_inputs() -> list[io.Input]:
    share = {"min": 0.0, "max": 1.0, "step": 0.01, "optional": True, "advanced": True}
    count = {"optional": True, "advanced": True}
    return [
        io.Combo.Input(
            "targets",
            options=list(_TARGETS),
            default=_TARGETS[0],
            optional=True,
            tooltip="Which layers get a LoRA; attention is what the official trainers take.",
        ),
        io.Combo.Input(
            "timesteps",
            options=list(_TIMESTEPS),
            default=_TIMESTEPS[0],
            tooltip="uniform: each clip's noise level on its own. stratified: spread evenly over the clips of a step. "
            "logit-normal: the same, most of them in the middle, where shapes are decided.",
            **count,
        ),
        io.Float.Input("caption_dropout", default=0.0, tooltip="Share of clips that see the empty caption.", **share),
        io.Float.Input("image_dropout", default=0.05, tooltip="Share of clips that see no first frame.", **share),
        io.Int.Input("warmup_steps", default=0, min=0, max=_MAX_STEPS, tooltip="Of rising learning rate.", **count),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            optional=True,
            tooltip="Far less memory for about a third more time.",
        ),
        io.Int.Input("save_every", default=250, min=1, max=_MAX_STEPS, tooltip="Steps between checkpoints.", **count),
        io.String.Input(
            "checkpoint_name",
            default="",
            tooltip="Folder of the checkpoints in output/cogvideox_training. Empty: named by settings, clips and "
            "model, so that the same training goes on where it was.",
            **count,
        ),
        io.Int.Input(
            "accumulate",
            default=1,
            min=1,
            max=_MAX_BATCH,
            tooltip="Batches in one step: as a larger batch_size, without its memory.",
            **count,
        ),
        io.Combo.Input(
            "precision",
            options=list(_PRECISIONS),
            default=_PRECISIONS[0],
            tooltip="default: what the model computes in. The LoRA itself is always kept in fp32.",
            **count,
        ),
    ]


def checkpoint_folder_name(name: str) -> str:
    """Raises TrainingError for what is no name of one folder."""
    name = name.strip()
    if name and (not re.fullmatch(r"[\w .()+-]{1,100}", name) or name.startswith(".")):
        raise TrainingError(
            f"checkpoint_name is {name[:200]!r}: use letters, digits, spaces, - and _, or leave it empty."
        )
    return name


class _Progress:
    """The bar, a picture of the loss and a line of text on the node, each no more often than one can look."""

    def __init__(self, steps: int, node_id: str | None):
        self._steps, self._node_id = steps, node_id
        self._bar = comfy.utils.ProgressBar(steps)
        self._first: tuple[int, float] | None = None  # steps done and the time when the first step had ended
        self._next_picture = self._next_text = 0.0

    def step(self, done: int, losses: Sequence[float]) -> None:
        """Raises InterruptProcessingException where the user has cancelled the run."""
        now, is_last = time.monotonic(), done == self._steps
        self._first = self._first or (done, now)
        preview = None
        if now >= self._next_text or is_last:
            self._next_text = now + _TEXT_EVERY_S
            show_on_node(self._text(done, losses[-1], now), self._node_id)
        if now >= self._next_picture or is_last:
            from ..training.curve import WIDTH, draw_losses

            preview = ("PNG", draw_losses(losses, self._steps), WIDTH)
            self._next_picture = time.monotonic() + _PICTURE_EVERY_S
        self._bar.update_absolute(done, self._steps, preview)

    def end(self, trained: object) -> None:
        """Say how it ended."""
        done = len(trained.losses)
        if trained.stopped:
            text = (
                f"Stopped after step {done} of {self._steps}; a checkpoint is kept. Queue it again to go on from there."
            )
        elif done == trained.done_before:
            text = f"All {self._steps} steps were trained before: the LoRA is that of the checkpoint."
        else:
            tail = trained.losses[-max(1, done // 10) :]
            text = f"Trained {self._steps} steps, mean loss of the last {len(tail)}: {sum(tail) / len(tail):.4g}."
            if trained.done_before:
                text += f" It went on from a checkpoint at step {trained.done_before}."
        show_on_node(text, self._node_id)

    def _text(self, done: int, loss: float, now: float) -> str:
        text = f"Step {done} of {self._steps}, loss {loss:.4g}"
        first, began = self._first
        if done == first or now <= began:
            return text
        rate = (done - first) / (now - began)
        left_s = (self._steps - done) / rate
        speed = f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s a step"
        return f"{text}, {speed}, {_duration(left_s)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
