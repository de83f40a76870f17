"""What bench_speed counts at official sizes, and the goals with what was found."""

from typing import Any, NamedTuple
from unittest import mock

import torch

from cogvideox.benchmarks import bench_traffic as traffic
from cogvideox.benchmarks.common import Table
from cogvideox.benchmarks.traffic import Traffic

GIB = 1 << 30
# Checkpoint -> GiB of a card on which all of a run is to fit, with streamed weights
SMALLEST_CARDS = {"CogVideoX-5b": 1.7, "CogVideoX1.5-5B": 2.0}
MOST_ESTIMATE = 1.10  # of the counted peak
_TITLES = traffic.THEIRS, "ComfyUI's class", "ours, torch's operations", traffic.OURS


class Goal(NamedTuple):
    """found: at most `most`, and at least `least`."""

    what: str
    found: float
    most: float
    least: float = 0.0

    @property
    def is_met(self) -> bool:
        return self.least <= self.found <= self.most


def goals_table(goals: list[Goal]) -> Table:
    """A row for each goal; of several with the same name, the worst."""
    rows = []
    for what in dict.fromkeys(goal.what for goal in goals):
        found = max((goal for goal in goals if goal.what == what), key=lambda goal: (not goal.is_met, goal.found))
        wanted = f"{found.least:g} to {found.most:g}" if found.least else f"at most {found.most:g}"
        rows.append([what, f"{found.found:.3g}", wanted, "met" if found.is_met else "NOT met"])
    notes = ["The worst of all checkpoints counts. Of a clock's goals only this machine's are here, no card's."]
    return Table("Goals", notes, ["", "found", "goal", ""], rows)


def count_goals(goals: list[Goal]) -> list[Table]:
    """Counts of one forward of prompt and negative prompt, and of one prompt in both memory modes, on shapes."""
    moved, peaks = [], []
    for name, size in traffic.SIZES.items():
        counted = traffic.count_all(size, batch=2, titles=_TITLES)
        moved += [[name, title, *_cells(found, counted[traffic.THEIRS])] for title, found in counted.items()]
        goals += _traffic_goals(name, size, counted)
        peaks.append([name, *_peak_cells(name, size, counted[traffic.OURS], goals)])
        print("counted", name, flush=True)
    goals += _smallest_cards()
    notes = [
        "Counted on the meta device in bf16, weights left out: nothing was computed, and no card was there. "
        "`bench traffic` has more of it.",
    ]
    columns = ["", "", "TFLOP", "GB moved", "of diffusers'", "kernels", "peak of activations, GiB"]
    estimates = ["estimate / counted: default, batch 2", "lean peak, GiB: batch 1", "estimate / counted: lean, batch 1"]
    return [
        Table("Counts, batch 2", notes, columns, moved),
        Table("Estimates given to ComfyUI", [f"Goal: 1 to {MOST_ESTIMATE}."], ["", *estimates], peaks),
    ]


def _cells(found: Traffic, base: Traffic) -> list[str]:
    return [
        f"{found.flops / 1e12:.0f}",
        f"{found.moved_bytes / 1e9:.0f}",
        f"{found.moved_bytes / base.moved_bytes:.2f}",
        str(found.kernels),
        f"{found.peak_bytes / GIB:.2f}",
    ]


def _traffic_goals(name: str, size: traffic.Size, counted: dict[str, Traffic]) -> list[Goal]:
    found = traffic.found_goals(size, counted)
    share = counted[traffic.OURS].flops / counted[traffic.THEIRS].flops
    flops = Goal(f"{name}, FLOPs of diffusers'", share, 1.002, 0.998)
    return [Goal(f"{name}, {what} with Triton", value, most) for what, value, most in found] + [flops]


def _peak_cells(name: str, size: traffic.Size, whole: Traffic, goals: list[Goal]) -> list[str]:
    """The estimate over the counted peak in the default mode; the lean mode's peak, and the same for it."""
    from cogvideox.transformer import token_passes
    from cogvideox.transformer.memory_modes import DEFAULT, LEAN

    lean = traffic.count_all(size, batch=1, titles=[traffic.LEAN])[traffic.LEAN]
    model: Any = traffic.our_forward(size.config, *traffic.latent_inputs(size.latent, 1))[0]
    shares = []
    with mock.patch.object(token_passes, "_has_triton", lambda: True):
        for mode, batch, found in ((DEFAULT, 2, whole), (LEAN, 1, lean)):
            shape, card = (batch, 16, *size.latent), torch.device("cuda:0")
            told = model.step_bytes(mode, shape, traffic.TEXT_TOKENS, traffic.DTYPE, card, {})
            shares.append(told / found.peak_bytes)
    for mode, share in zip((DEFAULT, LEAN), shares):
        goals.append(Goal(f"{name}, estimate in mode {mode.name} over the counted peak", share, MOST_ESTIMATE, 1.0))
    return [f"{shares[0]:.2f}", f"{lean.peak_bytes / GIB:.2f}", f"{shares[1]:.2f}"]


def _smallest_cards() -> list[Goal]:
    """The largest part of a run on the smallest cards, as the forecast has it."""
    from cogvideox.host.memory_rules import card_of
    from cogvideox.model_loaders.forecast import VideoSize, forecast_run, official_text_encoder, official_vae
    from cogvideox.sockets.recommended import RECOMMENDED
    from cogvideox.tests.hollow_files import hollow_model

    encoder, found = official_text_encoder(), []
    for name, gib in SMALLEST_CARDS.items():
        settings, card = RECOMMENDED[name], card_of(1)._replace(free_bytes=gib * GIB)
        video = VideoSize(settings.width, settings.height, settings.frames)
        run = forecast_run(hollow_model(name), video, card, encoder, official_vae(card))
        most = max(part.peak_bytes for part in run.parts.values()) / GIB
        found.append(Goal(f"{name}, {video.frames} frames, GiB of all of a run with {gib} GiB free", most, gib))
    return found
