"""How often a step makes the host wait for the card, counted without one.

A card is imagined on the CPU: `CARD` is another device to ComfyUI, and each tensor's memory is known to lie on it or on
the host. Values are computed as ever, so that runs take the way that they take on a card; reading one on the host, or
copying to or from memory that is not pinned, is noted with the line that does it.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cogvideox.devtools.paths import ROOT

# A CPU with a number: torch takes it for the CPU, and comparisons tell the two apart.
CARD = torch.device("cpu", 0)
READ, UPLOAD = "read", "upload"  # from the card, and from memory that is not pinned to it: the host waits for both
# Operations whose result the host has to know, and those whose result's size depends on values.
_READS = frozenset(
    "item is_nonzero _local_scalar_dense equal allclose masked_select nonzero nonzero_numpy _unique2 unique_dim "
    "unique_consecutive repeat_interleave".split()
)
_READING_METHODS = frozenset("tolist numpy __array__".split())
_TORCH = Path(torch.__file__).parent
_WATCHERS = frozenset("syncs.py gpu_syncs.py contextlib.py functools.py mock.py warnings.py".split())


class Place(NamedTuple):
    """A line that makes the host wait. is_ours: it is the pack's, or ComfyUI's."""

    kind: str
    where: str
    is_ours: bool


@dataclass
class Counted:
    """What a run waits for. steps: of each step, from one callback of the sampler to the next, the first left out: it
    has what is computed once a run."""

    steps: list[Counter[Place]] = field(default_factory=list)
    total: Counter[Place] = field(default_factory=Counter)

    def most(self, kind: str, is_ours: bool) -> int:
        """The most of a kind in one step."""
        counts = (
            sum(count for place, count in step.items() if (place.kind, place.is_ours) == (kind, is_ours))
            for step in self.steps
        )
        return max(counts, default=0)

    def places(self) -> Counter[Place]:
        """Each line, with the most waits of a step there."""
        most = Counter[Place]()
        for step in self.steps:
            most |= step
        return most


class WaitCounter:
    """Puts waits down to the steps of a run that they are in."""

    def __init__(self) -> None:
        self.counted = Counted()
        self._step: Counter[Place] | None = None

    def note(self, kind: str) -> None:
        """A wait, at the line that is running now."""
        place = _place(kind)
        if place is not None:
            self.counted.total[place] += 1
            if self._step is not None:
                self._step[place] += 1

    def end_step(self, *_: object) -> None:
        """The sampler's callback."""
        if self._step is not None:
            self.counted.steps.append(self._step)
        self._step = Counter()

    @contextmanager
    def ended_steps(self) -> Iterator[None]:
        """A step ends with the callback that every sampler node makes for progress and previews."""
        import latent_preview

        prepare = latent_preview.prepare_callback

        def prepare_and_count(*args: Any, **kwargs: Any) -> Callable[..., None]:
            callback = prepare(*args, **kwargs)

            def call(*given: Any) -> None:
                callback(*given)
                self.end_step()

            return call

        with mock.patch.object(latent_preview, "prepare_callback", prepare_and_count):
            yield


class ImaginedCard(WaitCounter):
    """Which memory is the card's, and what has waited for it. Inside of `working` torch is watched."""

    def __init__(self) -> None:
        super().__init__()
        self._on_card: dict[int, bool] = {}  # by the address of a storage; overwritten with its next use
        self.waits, self.is_busy = 0, False

    def is_on_card(self, tensor: torch.Tensor) -> bool:
        return self._on_card.get(_address(tensor), False)

    def put(self, tensor: torch.Tensor, on_card: bool) -> torch.Tensor:
        if tensor.numel():
            self._on_card[_address(tensor)] = on_card
        return tensor

    def note(self, kind: str) -> None:
        if kind == READ:
            self.waits, self.is_busy = self.waits + 1, False
        super().note(kind)

    @contextmanager
    def working(self) -> Iterator[None]:
        import comfy.model_management as mm

        with (
            mock.patch.object(mm, "get_torch_device", lambda: CARD),
            _late_reads(self),
            self.ended_steps(),
            _Operations(self),
            _Functions(self),
        ):
            yield


class _Operations(TorchDispatchMode):
    """Where the results of torch's operations lie, and which of these the host has to know."""

    def __init__(self, card: ImaginedCard):
        super().__init__()
        self._card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        on_card = any(map(self._card.is_on_card, given)) or kwargs.get("device") == CARD
        known = {_address(x) for x in given}
        out = func(*args, **kwargs)
        self._card.is_busy |= on_card
        if on_card and (name in _READS or _has_mask(name, args)):
            self._card.note(READ)
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor) and _address(made) not in known:
                self._card.put(made, on_card)
        return out


class _Functions(TorchFunctionMode):
    """What a tensor says of its device, and copies from one to the other, which on a CPU are none."""

    def __init__(self, card: ImaginedCard):
        super().__init__()
        self._card = card

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == torch.Tensor.device.__get__:
            return CARD if self._card.is_on_card(args[0]) else func(*args)  # which may be the meta device
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return self._copied(func, args, kwargs)
        if func is torch.Tensor.copy_ and self._card.is_on_card(args[0]) != self._card.is_on_card(args[1]):
            if not (kwargs.get("non_blocking") or any(args[2:])):
                self._card.note(UPLOAD if self._card.is_on_card(args[0]) else READ)
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            on_card = kwargs.get("device") == CARD
            if on_card:
                self._card.note(UPLOAD)
            return self._card.put(func(*args, **kwargs), on_card)  # torch does not show it to a dispatch mode
        if func is torch.Tensor.__getitem__ and self._card.is_on_card(args[0]) and _has_list(args[1]):
            self._card.note(UPLOAD)
        if name in _READING_METHODS and self._card.is_on_card(args[0]):
            self._card.note(READ)
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        tensor, on_card = args[0], self._card.is_on_card(args[0])
        given = [*args[1:], *kwargs.values()]
        target = on_card if func is torch.Tensor.to else False
        for value in given:
            if isinstance(value, torch.Tensor):
                target = self._card.is_on_card(value)
            elif isinstance(value, torch.device | str):
                target = torch.device(value) == CARD
        # `non_blocking` follows the dtype by position.
        no_wait = kwargs.get("non_blocking", any(value is True for value in args[1:]))
        if target != on_card:
            copy = self._card.put(func(tensor, *args[1:], **kwargs).clone(), target)
            if not no_wait:
                self._card.note(UPLOAD if target else READ)
            return copy
        return func(*args, **kwargs)


class _Event:
    """A CUDA event of the imagined card, which comes to it when the host waits for anything."""

    def __init__(self, card: ImaginedCard):
        self._card, self._waits, self._is_behind = card, card.waits, card.is_busy

    def query(self) -> bool:
        return self._card.waits > self._waits or not self._is_behind

    def synchronize(self) -> None:
        if not self.query():
            self._card.note(READ)

    def elapsed_time(self, _: object) -> float:
        return 0.0


@contextmanager
def _late_reads(card: ImaginedCard) -> Iterator[None]:
    """The pack's events are the imagined card's."""
    from cogvideox.host import async_copies

    with (
        mock.patch.object(async_copies, "is_card", lambda device: device == CARD),
        mock.patch.object(async_copies, "record_event", lambda *_, **__: _Event(card)),
    ):
        yield


def _address(tensor: torch.Tensor) -> int:
    with suppress(NotImplementedError, RuntimeError):  # a tensor without memory
        return tensor.untyped_storage().data_ptr()
    return 0


def _has_mask(name: str, args: tuple) -> bool:
    """Whether an operation picks values by a mask: how many, the host has to know."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])


def _has_list(key: Any) -> bool:
    """Whether an index has a list in it, which torch copies to the card."""
    return isinstance(key, list) or (isinstance(key, tuple) and any(isinstance(part, list) for part in key))


def _place(kind: str) -> Place | None:
    """The innermost line that is neither torch's nor a watching module's; None within an attention of ComfyUI's for
    CPUs."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.name in _WATCHERS or _TORCH in path.parents or not path.suffix:
            continue
        is_ours = ROOT in path.parents and ".dev" not in path.parts and ".venv" not in path.parts
        name = path.relative_to(ROOT).as_posix() if is_ours else "/".join(path.parts[-2:])
        return Place(kind, f"{name}, {frame.name}", is_ours)
    return None
