"""What the sections of bench_gpu share: rows, clocks of a card, peaks of its memory.

A section is a function that gets a Bench and reports rows to it. It runs in a process of its own, so that whatever it
does to the card, to ComfyUI or to torch ends with it.
"""

import gc
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch

from cogvideox.benchmarks.common import use_comfyui

GIB = 1 << 30
PASSED, FAILED, MEASURED, MISSING = "passed", "FAILED", "", "not measured"


@dataclass(frozen=True)
class Row:
    """One line of the table. found: for people. values: the same and more as numbers, units in their names.

    verdict: PASSED or FAILED for what is compared with a reference, MEASURED for figures, MISSING for what could not
    be measured. predicted: what the cost model says, so that a miss is noticed.
    """

    section: str
    what: str
    found: str
    verdict: str = MEASURED
    predicted: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """What a section is given: the device, the sizes, the time that is left, and where rows go."""

    def __init__(self, section: str, device: str, smoke: bool, seconds: float, send: Callable[[Row], object]):
        self.section, self.smoke = section, smoke
        # With a number, as the device of a tensor has one: ComfyUI compares the two.
        self.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self._ends, self._send = time.monotonic() + seconds, send

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds until the section has to be done."""
        return self._ends - time.monotonic()

    def start_comfyui(self) -> None:
        """ComfyUI's modules on this device, and fp32 that is fp32: TF32 would hide every error below 1e-3."""
        use_comfyui(cpu=not self.on_card)
        import comfy.model_management

        assert comfy.model_management.get_torch_device().type == self.device.type, "ComfyUI has chosen another device."
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def row(self, what: str, found: str, verdict: str = MEASURED, predicted: str = "", **values: Any) -> None:
        row = Row(self.section, what, found, verdict, predicted, values)
        print(f"{self.section} | {what} | {found} | {predicted} | {verdict}", flush=True)
        self._send(row)

    def check(self, what: str, error: float, tolerance: float, note: str = "", **values: Any) -> None:
        """A row that has passed where `error` is at most `tolerance`. NaN has not."""
        verdict = PASSED if error <= tolerance else FAILED
        found = f"{error:.1e} (at most {tolerance:.1e}){f', {note}' if note else ''}"
        self.row(what, found, verdict, error=error, tolerance=tolerance, **values)

    def attempt(self, what: str, call: Callable[[], object], seconds: float = 0.0) -> None:
        """Run a part of the section; an error costs this part alone. seconds: what it takes at least; with less left
        it is not begun."""
        if self.left() < seconds:
            return self.row(
                what, f"{max(0.0, self.left()):.0f} s are left and it takes {max(1.0, seconds):.0f} s", MISSING
            )
        try:
            call()
        # Whatever goes wrong on a card that is there for minutes only has to be known, and must cost nothing else.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            self.row(what, f"{type(error).__name__}: {reason}", FAILED, traceback=traceback.format_exc()[-3000:])
        if self.on_card:
            gc.collect()
            torch.cuda.empty_cache()


def finish(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(
    bench: Bench, calls: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, in turn (A B C C B A), by the card's own clock; `warm` rounds before them do not count.

    It ends after a round that leaves too little time for another one.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        began = time.monotonic()
        names = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in names:
            seconds = _seconds_of_one(bench.device, calls[name])
            if turn >= warm:
                found[name].append(seconds)
        if turn + 1 > warm and bench.left() < 1.2 * (time.monotonic() - began):
            break
    return found


def _seconds_of_one(device: torch.device, call: Callable[[], object]) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


class Event(NamedTuple):
    """What the profiler has seen of one name."""

    name: str
    seconds: float
    count: int

    @property
    def is_kernel(self) -> bool:
        """Whether it is not a filling or a copy of memory, of which cuBLASLt and cuDNN need one for each call."""
        return not self.name.startswith(("Memset", "Memcpy"))


def kernel_seconds(
    bench: Bench, calls: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1
) -> dict[str, float]:
    """Seconds that the card works on each call, the mean of `repeats`, by torch's profiler.

    An event beside a single short call would also count the time that the host takes to launch it.
    """
    found: dict[str, float] = {}
    for name, call in calls.items():
        for _ in range(warm):
            call()
        finish(bench.device)
        found[name] = sum(event.seconds for event in device_events(bench, call, repeats)) / repeats
    return found


def device_events(bench: Bench, call: Callable[[], object], repeats: int = 1) -> list[Event]:
    """The kernels, and the fillings and copies of memory, of `repeats` calls, by name, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if bench.on_card else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        for _ in range(repeats):
            call()
        finish(bench.device)
    key = "self_device_time_total" if bench.on_card else "self_cpu_time_total"
    rows: Any = profiled.key_averages()
    found = [Event(row.key, getattr(row, key) / 1e6, row.count) for row in rows if getattr(row, key) > 0]
    return sorted(found, key=lambda event: -event.seconds)


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """The most that torch's allocator held for `call` beyond what it held before; 0 on a CPU, where nothing counts."""
    if device.type != "cuda":
        call()
        return 0
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def spread(seconds: Sequence[float]) -> str:
    """The cell `median (least - most)`."""
    if not seconds:
        return "none"
    digits = 2 if statistics.median(seconds) >= 1 else 4
    median, least, most = statistics.median(seconds), min(seconds), max(seconds)
    return f"{median:.{digits}f} s ({least:.{digits}f} - {most:.{digits}f})"


def gib(count: int | float) -> str:
    return f"{count / GIB:.2f} GiB"


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """RMS of the difference over RMS of the reference; infinite where the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((ours - theirs).norm() / theirs.norm())
