"""What the graph's process asks a rank, and what it answers: both know these classes, and each has its own copy."""

from typing import Any, NamedTuple

from .transport import Packed

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


class Question(NamedTuple):
    """What a step asks a model for; the tensors are those of CogVideoXDiT.forward.

    text_key: of `context`, which is left out where the ranks have it from an earlier step.
    """

    model: str
    x: Packed
    timestep: Packed
    context: Packed | None
    text_key: str
    ofs: Packed | None
    positions: dict[str, Any]
    is_exact_attention: bool


class Prediction(NamedTuple):
    """v of this rank's prompts, from the first rank of those that share them; None from the others."""

    v: Packed | None
    sent_bytes: int
