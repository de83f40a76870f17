"""Lists of captions, recipes, checkpoints of trainings, pictures and clips of a valid structure with wrong contents."""

import copy
import csv
import io
import json
import math
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cogvideox.devtools.paths import ROOT
from cogvideox.tests.clip_files import write_video
from cogvideox.tests.mutations import LEAST_REFUSED, MUTATIONS, SLOWEST_S, as_json, fuzz, mutate_tree, wrong
from cogvideox.training import checkpoint, clips, loop, segments
from cogvideox.training.recipe import load_recipe

mutations = pytest.mark.parametrize("mutations", MUTATIONS)
ROWS = [{"file_name": f"{name}.mp4", "text": f'a "{name}", asleep\nin the sun'} for name in "abcd"]
SPEC = clips.DatasetSpec(width=32, height=32, frames=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in ROWS:
        (tmp_path / row["file_name"]).write_bytes(b"")
    return tmp_path


@mutations
def test_jsonl(folder: Path, mutations: int) -> None:
    def make(rng: random.Random) -> str:
        rows = [mutate_tree(row, rng) if rng.random() < 0.4 else row for row in ROWS]
        text = rng.choice(("\n", "\r\n", "\n\n", "\u2028")).join(as_json(row, rng) for row in rows)
        (folder / "metadata.jsonl").write_text(text, "utf-8", "replace")
        return text[:80]

    outcome = fuzz("metadata.jsonl", mutations, make, lambda: clips.find_clips(folder))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


@mutations
def test_csv(folder: Path, mutations: int) -> None:
    cells = ("", '"', '""', "\0", "\u2028", " ", "x" * 140_000, "a,b", "\n", "\r", "=1+1", "\ufeff", "../a.mp4", "nan")

    def make(rng: random.Random) -> str:
        rows: list[list[str]] = [["file_name", "text"], *(list(row.values()) for row in ROWS)]
        for _ in range(rng.choice((1, 2))):
            row = rng.choice(rows)
            what = rng.randrange(5)
            if what < 2:
                row.insert(rng.choice((0, len(row))), rng.choice(cells))
            elif what == 2:
                row[:] = [rng.choice(cells) for _ in row]
            else:
                row[:] = row[1:] if what == 3 else row[::-1]
        out = io.StringIO()
        csv.writer(out, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
        text = out.getvalue()
        if rng.random() < 0.4:  # a sign of the structure too many or too few
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(('"', ",", "\n", "\r", '",', ";", "\t")) + text[at + rng.randrange(2) :]
        (folder / "metadata.csv").write_text(text, "utf-8", newline="")
        return text[:80]

    outcome = fuzz("metadata.csv", mutations, make, lambda: clips.find_clips(folder))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


def as_toml(value: Any) -> str:
    """A value in TOML; what TOML lacks as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return str(value) if isinstance(value, (int, float)) else json.dumps(value or "", ensure_ascii=True)


@mutations
def test_recipes(tmp_path: Path, mutations: int) -> None:
    """TOML and JSON of wrong types, in every section."""
    import tomllib

    for name in ("CogVideoX-5b", "clips"):
        (tmp_path / name).mkdir()
    tree = tomllib.loads((ROOT / "training" / "example.toml").read_text("utf-8"))
    dates = ("1979-05-27T07:32:00Z", "1979-05-27", "07:32:00", "0x1F", "1_000", "'''a\nb'''", "[[1], {a = 1}]")
    path = tmp_path / "recipe.toml"

    def make(rng: random.Random) -> str:
        changed = mutate_tree(tree, rng, rng.choice((1, 2)))
        path.unlink(missing_ok=True)
        if rng.random() < 0.3 or not isinstance(changed, dict):
            text = as_json(changed, rng)
            path.with_suffix(".json").write_text(text, "utf-8", "replace")
            return text[:80]
        lines = [f"{json.dumps(key)} = {as_toml(value)}" for key, value in changed.items()]
        if rng.random() < 0.2:
            lines[rng.randrange(len(lines))] = f"mode = {rng.choice(dates)}"
        if rng.random() < 0.1:
            lines.append("x = " + rng.choice(("[" * 5000 + "]" * 5000, "9" * 5000, "{a = " * 3000, '"\\ud800"')))
        path.write_text("\n".join(lines), "utf-8", "replace")
        return "\n".join(lines)[:80]

    outcome = fuzz("recipe", mutations, make, lambda: load_recipe(path if path.exists() else path.with_suffix(".json")))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((4, 6), (4,)))


@mutations
def test_checkpoints_of_trainings(tmp_path: Path, mutations: int) -> None:
    """training.pt and settings.json, whoever has written them: what does not fit must not be trained on."""
    from accelerate import Accelerator

    accelerator, settings = Accelerator(cpu=True), {"rank": 4, "seed": 5, "targets": ["to_q", "to_k"]}
    model, given = Line(), tmp_path / "step-000004"
    given.mkdir()
    trained = dict(model.named_parameters())
    moments = {"step": torch.tensor(4.0), "exp_avg": 0, "exp_avg_sq": 0}
    whole = {
        "parameters": {name: value.detach() for name, value in trained.items()},
        "optimizer": {
            name: {key: m if key == "step" else torch.zeros_like(value) for key, m in moments.items()}
            for name, value in trained.items()
        },
        "average": {name: value.detach() for name, value in trained.items()},
        "averaged": 3,
        "scaler": {},
    }
    odd = (torch.zeros(3), torch.zeros(4, 6, 1), torch.full((4, 6), float("nan")), torch.zeros(4, 6, dtype=torch.int8))

    def make(rng: random.Random) -> str:
        (given / "settings.json").write_text(json.dumps(settings))
        state: Any = mutate_tree(whole, rng) if rng.random() < 0.7 else whole
        if rng.random() < 0.3:
            name = rng.choice(list(trained))
            state = {**whole, "parameters": {**whole["parameters"], name: rng.choice(odd)}}
        torch.save(state, given / "training.pt")
        if rng.random() < 0.4:
            (given / "settings.json").write_text(as_json(mutate_tree(settings, rng), rng), "utf-8", "replace")
        return str(state)[:80].replace("\n", " ")

    def load() -> None:
        optimizer = torch.optim.AdamW(trained.values())
        average = torch.optim.swa_utils.AveragedModel(torch.nn.ParameterList(trained.values()))
        checkpoint.resume(accelerator, tmp_path, settings, trained, optimizer, average)
        assert all(torch.isfinite(value).all() for value in trained.values())

    outcome = fuzz("training checkpoint", mutations, make, load)
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


@mutations
def test_logs_of_trainings(tmp_path: Path, mutations: int) -> None:
    """log.csv, which people open in a spreadsheet and save again."""
    rows = [["step", "loss", "learning_rate", "seconds"], *([str(n), "0.5", "1e-4", "0.1"] for n in range(1, 6))]
    path = tmp_path / "log.csv"

    def make(rng: random.Random) -> str:
        changed = mutate_tree(rows, rng)
        changed = changed if isinstance(changed, list) else rows
        text = "\n".join(",".join(map(str, row)) for row in changed if isinstance(row, list))
        data = text.encode("utf-8", "replace")
        path.write_bytes(
            rng.choice((data, data, data.replace(b",", b";"), data + b"\xff", text.encode("utf-16", "replace")))
        )
        return text[:60]

    def load() -> None:
        losses = loop.read_losses(tmp_path)
        assert len(losses) <= 10 and all(math.isfinite(loss) for loss in losses)

    outcome = fuzz("training log", mutations, make, load)
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= 0.1, str(outcome)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


@mutations
def test_pngs(tmp_path: Path, mutations: int) -> None:
    """Chunks with right checksums and wrong contents; sizes, depths and palettes that do not fit."""
    modes = [Image.new(mode, (24, 16), 3) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")]
    for number, picture in enumerate(modes):
        picture.save(tmp_path / f"{number}.png")
    good = [chunks_of((tmp_path / f"{number}.png").read_bytes()) for number in range(len(modes))]
    for number in range(len(modes)):
        (tmp_path / f"{number}.png").unlink()
    extra = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"gAMA", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"pHYs")
    bomb = b"a\0\0" + zlib.compress(bytes(30_000_000))

    def make(rng: random.Random) -> str:
        parts = list(rng.choice(good))
        what = rng.randrange(6)
        if what == 0:
            size = rng.choice((24, 16, 0, 1, 8192, 2**31 - 1, 2**32 - 1)), rng.choice((16, 24, 0, 8192, 2**32 - 1))
            kind = rng.choice((1, 2, 4, 8, 16, 3, 0)), rng.choice((0, 2, 3, 4, 6, 1, 7)), 0, 0, rng.choice((0, 1, 2))
            parts[0] = (b"IHDR", struct.pack(">IIBBBBB", *size, *kind))
        elif what == 1:
            data = rng.choice((b"", b"x", bytes(1000), zlib.compress(b""), zlib.compress(bytes(50_000_000))))
            parts = [(kind, data if kind == b"IDAT" else held) for kind, held in parts]
        elif what == 2:
            del parts[rng.randrange(len(parts))]
        elif what == 3:
            data = rng.choice((b"", b"\0" * 26, rng.randbytes(26), bomb, b"x" * 100_000))
            parts.insert(rng.randrange(len(parts) + 1), (rng.choice(extra), data))
        elif what == 4:
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts))
        else:
            at = rng.randrange(len(parts))
            data = bytearray(parts[at][1] or b"\0")
            data[rng.randrange(len(data))] = rng.randrange(256)
            parts[at] = (parts[at][0], bytes(data))
        (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
        return f"{what} {[kind for kind, _ in parts]}"

    outcome = fuzz("png", mutations, make, lambda: read(tmp_path))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= LEAST_REFUSED, str(outcome)


def read(path: Path) -> None:
    """As a dataset does it: looked at, cut, read, all in one."""
    source = segments.probe_clip(path)
    for segment in segments.cut_segments(SPEC, source, (0.5, 0.5)):
        taken = segments.read_segment(path, segment)
        if taken.shape != (len(segment.indices), segment.height, segment.width, 3):
            raise RuntimeError(f"a segment of shape {list(taken.shape)}")
    segments.read_segment(path, segments.Segment((0,), 32, 32, (0.5, 0.5)))


HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta")


def boxes_of(data: bytes) -> list[Any]:
    """[kind, contents], where the contents of some are such lists."""
    found, at = [], 0
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        inner = data[at + 8 : at + length]
        found.append([kind, boxes_of(inner) if kind in HOLDERS else inner])
        at += length
    return found


def packed(boxes: list[Any]) -> bytes:
    out = b""
    for kind, inner in boxes:
        data = packed(inner) if isinstance(inner, list) else inner
        out += struct.pack(">I4s", 8 + len(data), kind) + data
    return out


def all_boxes(boxes: list[Any]) -> list[tuple[list[Any], int]]:
    found = []
    for index, (_, inner) in enumerate(boxes):
        found.append((boxes, index))
        found += all_boxes(inner) if isinstance(inner, list) else []
    return found


NUMBERS = (0, 1, 2, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 150_000_000)
CLIPS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "mp4": lambda folder, shown: write_video(folder / "whole.mp4", shown, "mpeg4"),
    "mov": lambda folder, shown: write_video(folder / "whole.mov", shown, "png", "rgb24"),
}


@pytest.mark.parametrize("kind", CLIPS)
@mutations
def test_boxes_of_clips(tmp_path: Path, kind: str, mutations: int) -> None:
    """Boxes whose sizes are right and whose numbers, kinds and order are not."""
    shown = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    file = CLIPS[kind](tmp_path, shown)
    good = file.read_bytes()
    assert packed(boxes_of(good)) == good
    path = tmp_path / f"a.{kind}"

    def make(rng: random.Random) -> str:
        boxes = boxes_of(good)
        names = []
        for _ in range(rng.choice((1, 1, 2))):
            within, at = rng.choice(all_boxes(boxes))
            names.append(within[at][0])
            change_box(within, at, boxes, rng)
        path.write_bytes(packed(boxes))
        return str(names)

    outcome = fuzz(f"{kind} boxes", mutations, make, lambda: read(path))
    assert not outcome.problems and outcome.slowest_s < SLOWEST_S, str(outcome)
    assert outcome.refused_share >= 0.15, str(outcome)
    shutil.copy(file, path)
    read(path)


def change_box(within: list[Any], at: int, boxes: list[Any], rng: random.Random) -> None:
    kind, inner = within[at]
    what = rng.randrange(6)
    if what == 0:
        del within[at]
    elif what == 1:
        within.insert(rng.randrange(len(within) + 1), within[at])
    elif what == 2:
        within[at] = [rng.choice((b"free", b"cmov", b"xxxx", b"stsz", b"trun", b"elst", b"ctts", b"hvc1")), inner]
    elif what == 3:
        other, place = rng.choice(all_boxes(boxes))
        within[at] = copy.deepcopy(other[place])
    elif isinstance(inner, bytes) and len(inner) >= 4:
        data = bytearray(inner)
        place = rng.randrange(len(data) - 3) // 4 * 4
        data[place : place + 4] = struct.pack(">I", rng.choice(NUMBERS))
        within[at] = [kind, bytes(data) if rng.random() < 0.9 else bytes(data[:place])]
    else:
        within[at] = [kind, wrong_bytes(rng)]


def wrong_bytes(rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", rng.randbytes(40), bytes(1000), str(wrong(rng)).encode("utf-8", "replace")[:500]))
