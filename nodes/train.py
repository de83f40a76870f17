"""Train a LoRA in the graph, and keep it."""

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.utils
import torch
from comfy_api.latest import io

from ..errors import UserError, quoted
from ..host import folders
from ..host.compat import throw_if_interrupted
from ..host.messages import show_on_node
from ..host.output import numbered_path, output_subfolder, write_numbered
from ..host.placeholders import stand_in
from ..host.training_mode import InterruptProcessingException, explained_out_of_memory
from ..keys import Latent
from ..model_loaders.files.safetensors_writer import write_tensors
from ..model_loaders.lora.trained import convert_trained
from ..system.complete_file import remove_unfinished_below
from ..system.file_names import find_problem
from ..training.config import MAX_GLOBAL_BATCH, TrainConfig
from ..training.fields import settings_of
from .file_inputs import checks_files
from .input_checks import checked
from .inputs import filled_name
from .search_words import SEARCH_WORDS
from .setting_inputs import widget

if TYPE_CHECKING:  # imported only when the node runs: it needs accelerate and peft, which ComfyUI does not bring
    from ..training.graph import Trained

_CHECKPOINTS = "cogvideox_training"  # in ComfyUI's output folder
_SETTINGS = settings_of(TrainConfig)
# Inputs that were published under other names than the settings have; every other input is called as its setting.
_PUBLISHED = {"steps": "max_steps", "batch_size": "micro_batch_size"}
_PICTURE_EVERY_S, _TEXT_EVERY_S = 1.0, 0.5
_SPEED_STEPS = 25  # the last ones, of which the time left follows
_LORA, _LOSSES = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")  # the sockets of ComfyUI's own trainer
_OUT_OF_MEMORY = (
    "Switch gradient_checkpointing on, lower batch_size (and raise accumulate instead), train with fewer frames or "
    "smaller clips, or load the model with weight_dtype int8."
)


def checkpoint_folder_name(name: str) -> str:
    """`name` without spaces around it. Raises UserError where it cannot be the name of one folder."""
    name = name.strip()
    if name and not (re.fullmatch(r"[\w .()+-]{1,100}", name) and find_problem(name) is None):
        raise UserError(
            f"checkpoint_name is {quoted(name)!r}: use letters, digits, spaces, - and _, or leave it empty."
        )
    return name


def check_checkpoint_name(checkpoint_name: str) -> None:
    """Raises UserError for a name that cannot be a folder's."""
    checkpoint_folder_name(checkpoint_name)


def check_clips_of_a_step(batch_size: int, accumulate: int = 1) -> None:
    """Raises UserError for two numbers of which each is within its limits, and whose product is not."""
    clips = batch_size * accumulate
    if clips > MAX_GLOBAL_BATCH:
        raise UserError(
            f"accumulate {accumulate} times batch_size {batch_size} are {clips} clips in one step: use at most "
            f"{MAX_GLOBAL_BATCH} of them."
        )


@checked(check_checkpoint_name, check_clips_of_a_step)
class CogVideoXTrainLora(io.ComfyNode):
    """LORA_MODEL, LOSS_MAP and the steps trained, as ComfyUI's Train LoRA gives them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXTrainLora",
            display_name="Train CogVideoX LoRA",
            category="CogVideoX/train",
            search_aliases=SEARCH_WORDS["CogVideoXTrainLora"],
            description=(
                "Train a LoRA with CogVideoX's own objective. Queue it again after a cancel or a crash: it continues "
                "from its last checkpoint."
            ),
            is_input_list=True,  # or ComfyUI would run the node, and train, once for each clip in `latents`
            inputs=[*_required_inputs(), *_optional_inputs()],
            outputs=[
                _LORA.Output(display_name="lora", tooltip="For Save Trained CogVideoX LoRA."),
                _LOSSES.Output(display_name="loss_map", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="The total number of trained steps."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: list[comfy.model_patcher.ModelPatcher],
        latents: list[Latent],
        positive: list[list],
        **widgets: list,
    ) -> io.NodeOutput:
        from ..training.graph import train_lora

        values = {name: listed[0] for name, listed in widgets.items()}  # is_input_list makes lists of widgets as well
        name = checkpoint_folder_name(values.pop("checkpoint_name", ""))
        config = config_of(values)
        progress = _Progress(config.max_steps, cls.hidden.unique_id)
        folder = output_subfolder(_CHECKPOINTS)
        output_subfolder(_CHECKPOINTS, name)
        with explained_out_of_memory(_OUT_OF_MEMORY):
            trained = train_lora(model[0], latents, positive, config, folder, name, progress.on_step)
        progress.end(trained)
        if trained.stopped:
            # Raises and clears the interrupt flag where the loop has seen it. Where ComfyUI's progress bar has seen it
            # first, it has cleared the flag, and the second line raises.
            throw_if_interrupted()
            raise InterruptProcessingException
        return io.NodeOutput(trained.lora, {"loss": trained.losses}, config.max_steps)


def new_lora_path(name: str) -> Path:
    """The next free `<models/loras>/<name>_00001.safetensors`.

    Raises UserError for a name that leads out of the folder or that cannot be a file's.
    """
    plain = folders.new_file(name, "loras", ".safetensors")
    return numbered_path(plain.parent, plain.stem, plain.suffix)


def _check_name(name: str) -> None:
    new_lora_path(stand_in(name))


@checks_files
@checked(_check_name)
class CogVideoXSaveTrainedLora(io.ComfyNode):
    """LORA_MODEL -> one .safetensors file under models/loras."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXSaveTrainedLora",
            display_name="Save Trained CogVideoX LoRA",
            category="CogVideoX/train",
            search_aliases=SEARCH_WORDS["CogVideoXSaveTrainedLora"],
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
            # The input of Load CogVideoX LoRA is a combo, to which ComfyUI links no STRING.
            outputs=[io.Combo.Output(display_name="lora_name", tooltip="The file's name, for Load CogVideoX LoRA.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora: Mapping[str, torch.Tensor], name: str) -> io.NodeOutput:
        tensors, header, differences = convert_trained(lora)
        remove_unfinished_below(folders.first_root("loras"))
        filled, header = filled_name(cls, name), {**header, **getattr(lora, "metadata", {})}
        path, size = write_numbered(lambda: new_lora_path(filled), lambda path: write_tensors(path, tensors, header))
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
        _widget("steps"),
        _widget("batch_size"),
        _widget("learning_rate"),
        _widget("rank"),
        _widget("alpha"),
        # Another seed is another training: if it changed after each run, no run would resume from a checkpoint.
        _widget("seed", control_after_generate=False),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        _widget("targets", optional=True),
        _widget("timesteps", optional=True, advanced=True),
        _widget("caption_dropout", optional=True, advanced=True),
        _widget("image_dropout", optional=True, advanced=True),
        _widget("warmup_steps", optional=True, advanced=True),
        _widget("gradient_checkpointing", optional=True),
        _widget("save_every", optional=True, advanced=True),
        io.String.Input(
            "checkpoint_name",
            default="",
            tooltip="Folder of the checkpoints in output/cogvideox_training. Empty: named by settings, clips and "
            "model, so that the same training goes on where it was.",
            optional=True,
            advanced=True,
        ),
        io.Int.Input(
            "accumulate",
            default=1,
            min=1,
            max=MAX_GLOBAL_BATCH,
            tooltip="Batches in one step: as a larger batch_size, without its memory.",
            optional=True,
            advanced=True,
        ),
        _widget("precision", optional=True, advanced=True),
    ]


def _widget(name: str, **options: Any) -> io.Input:
    return widget(TrainConfig, _PUBLISHED.get(name, name), name, **options)


def config_of(widgets: Mapping[str, Any]) -> TrainConfig:
    """The settings that a node's inputs stand for. The node has compared them with its limits (input_checks.checked),
    under the names that they have on it; TrainConfig's own check, which names settings, finds nothing more."""
    values: dict[str, Any] = {"micro_batch_size": TrainConfig.micro_batch_size}
    for name, value in widgets.items():
        # No setting of its own: times micro_batch_size it is global_batch_size, which no widget has.
        if name == "accumulate":
            continue
        field = _SETTINGS[_PUBLISHED.get(name, name)]
        values[field.name] = field.metadata["presets"].get(value, value)
    return TrainConfig(**values, global_batch_size=values["micro_batch_size"] * widgets.get("accumulate", 1))


class _Progress:
    """The bar, a picture of the loss and a line of text on the node, each no more often than a person can look."""

    def __init__(self, steps: int, node_id: str | None):
        self._steps, self._node_id = steps, node_id
        self._bar = comfy.utils.ProgressBar(steps)
        # When this run's last steps had ended. The first one waits for what no other does; so may the next few.
        self._ended_s: deque[float] = deque(maxlen=_SPEED_STEPS + 1)
        self._next_picture = self._next_text = 0.0

    def on_step(self, done: int, losses: Sequence[float]) -> None:
        """Raises InterruptProcessingException where the user has cancelled the run."""
        now, is_last = time.monotonic(), done == self._steps
        self._ended_s.append(now)
        preview = None
        if now >= self._next_text or is_last:
            self._next_text = now + _TEXT_EVERY_S
            show_on_node(self._text(done, losses[-1]), self._node_id)
        if now >= self._next_picture or is_last:
            from ..training.curve import WIDTH, draw_losses

            # As latent_preview.py hands its previews to the bar: format, picture, largest side.
            preview = ("PNG", draw_losses(losses, self._steps), WIDTH)
            # From the end of drawing, which takes longer the more steps there are.
            self._next_picture = time.monotonic() + _PICTURE_EVERY_S
        self._bar.update_absolute(done, self._steps, preview)

    def end(self, trained: "Trained") -> None:
        """Say how it ended."""
        done = len(trained.losses)
        if trained.stopped:
            text = (
                f"Stopped after step {done} of {self._steps}; a checkpoint is kept. Queue it again to go on from there."
                if done
                else "Stopped in the first step: there is nothing to keep yet. Queue it again to start over."
            )
        elif done == trained.done_before:
            text = f"All {self._steps} steps were trained before: the LoRA is that of the checkpoint."
        else:
            tail = trained.losses[-max(1, done // 10) :]
            text = f"Trained {self._steps} steps, mean loss of the last {len(tail)}: {sum(tail) / len(tail):.4g}."
            if trained.done_before:
                text += f" It went on from a checkpoint at step {trained.done_before}."
        show_on_node(text, self._node_id)

    def _text(self, done: int, loss: float) -> str:
        text = f"Step {done} of {self._steps}, loss {loss:.4g}"
        # The median: slow first steps and a pause leave it as it is, where a mean would foretell them for every step.
        step_s = median([after - before for before, after in pairwise(self._ended_s)] or [0.0])
        if step_s <= 0:
            return text
        speed = f"{1 / step_s:.2f} steps/s" if step_s <= 1 else f"{step_s:.1f} s a step"
        return f"{text}, {speed}, {_duration((self._steps - done) * step_s)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
