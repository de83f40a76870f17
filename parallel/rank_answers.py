"""What the graph's process asks a rank, and what it answers: both know these classes, and each has its own copy."""

from typing import Any, NamedTuple

from .transport import Kept, Packed

MEMORY, USER, OTHER = "memory", "user", "other"


class Failure(NamedTuple):
    """kind: MEMORY, USER (the sentence is for the user) or OTHER. text: the message. trace: for the log."""

    kind: str
    text: str
    trace: str


class Answer(NamedTuple):
    """What a method has returned, or how it has failed; and sentences for the user."""

    value: Any
    failure: Failure | None
    said: tuple[str, ...]


class ControlQuestion(NamedTuple):
    """What a step asks a control net for: sockets.control.ControlInputs, and how much of the answer is added.

    x: None where it is the model's.
    """

    name: str
    x: Packed | None
    guide: Kept
    timestep: Packed
    context: Kept
    strength: float
    strength_type: Any


class Question(NamedTuple):
    """What a step asks a model for; the tensors are those of CogVideoXDiT.forward.

    is_new_run: nothing is kept of what was sent before. controls: in the order in which they are added.
    """

    model: str
    is_new_run: bool
    x: Packed
    timestep: Packed
    context: Kept
    ofs: Packed | None
    positions: dict[str, Any]
    is_exact_attention: bool
    controls: tuple[ControlQuestion, ...]


class VaePass(NamedTuple):
    """How a video goes through a VAE.

    length: T of the whole video. memory, band_pixels, compile: as in sockets.vae.CogVideoXVAE.decode_stream. least: of
    vae.plan.LADDER, the first mode that may be taken.
    """

    length: int
    memory: str
    band_pixels: int | None
    compile: bool
    least: int = 0


class VaeQuestion(NamedTuple):
    """A chunk of a video for a VAE.

    video: a name of its pass. x: latents or pixels [1, C, T, H, W], all rows.
    """

    vae: str
    video: str
    x: Packed
    is_first: bool
    is_last: bool
    settings: VaePass


class VaeRows(NamedTuple):
    """A rank's rows of what a chunk has become; None from a rank that has none."""

    rows: Packed | None
    sent_bytes: int


class Prediction(NamedTuple):
    """v of this rank's prompts, from the first rank of those that share them; None from the others."""

    v: Packed | None
    sent_bytes: int
