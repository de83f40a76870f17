"""Damaged files of every layout: each loads as it was, or raises one clear error within a second of work.

No format here carries checksums of its numbers: damage to these can only be bounded. A changed byte may change the
tensors that it lies in, never another, nor a name or a shape.
"""

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.measured import FUZZ
from cogvideox.tests.support import write_fp32

MUTATIONS = (20, pytest.param(500, marks=pytest.mark.long))  # of each layout; the same ones, and more of them
SLOWEST_S = 1.0  # of work: a machine that does other things as well takes longer


def flip(data: bytearray, rng: random.Random, at: int) -> None:
    data[at] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random, at: int) -> None:
    length = rng.choice((1, 4, 8, 32))
    data[at : at + length] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * min(length, len(data) - at)


def cut(data: bytearray, rng: random.Random, at: int) -> None:
    del data[at:]


def remove(data: bytearray, rng: random.Random, at: int) -> None:
    del data[at : at + rng.choice((1, 8, 100))]


def insert(data: bytearray, rng: random.Random, at: int) -> None:
    data[at:at] = rng.randbytes(rng.choice((1, 8, 100)))


def repeat(data: bytearray, rng: random.Random, at: int) -> None:
    data[at:at] = data[at : at + rng.choice((8, 64))]


KINDS = (flip, flip, flip, overwrite, cut, remove, insert, repeat)


def important(data: bytes) -> list[range]:
    """Where the structure of a file lies: most damage is done there."""
    if data[8:9] == b"{":  # safetensors
        return [range(0, 8 + int.from_bytes(data[:8], "little"))]
    if data[:4] == b"GGUF":
        return [range(0, min(len(data), 6000))]
    if data[:2] == b"PK":
        return [range(0, 2000), range(max(0, len(data) - 6000), len(data))]  # zip: the first pickle, the directory
    return [range(len(data))]


def mutate(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    mutated, kind = bytearray(data), rng.choice(KINDS)
    where = rng.choice(important(data)) if rng.random() < 0.75 else range(len(data))
    kind(mutated, rng, rng.randrange(where.start, where.stop))
    return bytes(mutated), kind.__name__


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with one layer of width 32."""
    sizes = {"num_attention_heads": 2, "num_layers": 1}
    return write_fp32(tmp_path_factory.mktemp("smallest") / "5b", "5b", **sizes)


def differing(found: dict, whole: dict) -> list[str]:
    same = {name: torch.equal(_bits(found[name]), _bits(whole[name])) for name in whole}
    return [name for name, is_same in same.items() if not is_same]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Comparable even where a number became NaN."""
    return quantized.dequantized(tensor, torch.float32).contiguous().view(torch.int32)


LOADERS = {"transformer": load_model, "vae": load_vae, "text_encoder": load_text_encoder}


def outcome(folder: Path, component: str, whole: dict[str, torch.Tensor]) -> tuple[str, int]:
    """("equal" | "numbers" | "refused" | a problem, how many tensors differ) of loading `component` from `folder`."""
    try:
        found = checkpoints.open_component(folder, component)
        shapes = {name: tuple(tensor.shape) for name, tensor in found.state_dict.items()}
        if shapes != {name: tuple(tensor.shape) for name, tensor in whole.items()}:
            LOADERS[component](folder, "fp32")
            return f"loaded with other names or shapes: {shapes}", 0
    except UserError as error:
        message = str(error)
        is_sentence = "\n" not in message and 40 < len(message) < 2000
        return "refused" if is_sentence else f"refused with another message than a sentence: {message}", 0
    changed = differing(found.state_dict, whole)
    return ("numbers" if changed else "equal"), len(changed)


CASES = [
    *(("transformer", layout, write) for layout, write in layouts.TRANSFORMER_LAYOUTS.items()),
    *(("vae", layout, write) for layout, write in layouts.VAE_LAYOUTS.items()),
    *(("text_encoder", layout, write) for layout, write in layouts.T5_LAYOUTS.items()),
]


@pytest.mark.parametrize("mutations", MUTATIONS)
@pytest.mark.parametrize("component, layout, write", CASES, ids=[f"{part}-{layout}" for part, layout, _ in CASES])
def test_damaged_files(
    smallest: Path, tmp_path: Path, component: str, layout: str, write: layouts.Writer, mutations: int
) -> None:
    """A half download or a bad disk must end in a sentence that names the file, never in a crash or a hang."""
    weights = checkpoints.open_component(smallest, component).state_dict
    shutil.copytree(smallest / "tokenizer", tmp_path / "tokenizer")
    folder = tmp_path / component
    folder.mkdir()
    shutil.copy(smallest / component / "config.json", folder)
    file = write(folder, weights)
    data, whole = file.read_bytes(), checkpoints.open_component(folder, component).state_dict
    file.unlink()
    rng, counts, slowest = random.Random(component + layout), Counter(), 0.0
    for number in range(mutations):
        mutated, kind = mutate(data, rng)
        bad = folder / f"{number}{file.suffix}"  # a new name each time: the last one may still be mapped
        bad.write_bytes(mutated)
        start = time.process_time()
        result, changed = outcome(folder, component, whole)
        slowest = max(slowest, time.process_time() - start)
        assert result in ("equal", "numbers", "refused"), f"{kind} {number}: {result}"
        counts[result] += 1
        bad.unlink()
        # SAT holds three matrices in one; a run of bytes may end one tensor and begin the next
        assert changed <= (6 if kind == "overwrite" or "SAT" in layout else 1), f"{kind} {number} changed {changed}"
    assert slowest < SLOWEST_S, f"the slowest took {slowest:.1f} s"
    assert counts["refused"] > mutations / 4
    FUZZ[f"{component}, {layout}"] = (counts, slowest)


@pytest.mark.parametrize("mutations", MUTATIONS)
@pytest.mark.parametrize("name", ("config.json", "diffusion_pytorch_model.safetensors.index.json"))
def test_damaged_json(tiny_pipelines: dict[str, Path], tmp_path: Path, name: str, mutations: int) -> None:
    """What stands beside the weights is damaged as easily."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"] / "transformer", tmp_path / "transformer"))
    data, rng, slowest = (folder / name).read_bytes(), random.Random(name), 0.0
    counts: Counter = Counter()
    for _ in range(mutations):
        (folder / name).write_bytes(mutate(data, rng)[0])
        start = time.process_time()
        try:
            load_model(folder, "fp32")
            counts["loaded"] += 1
        except UserError as error:
            counts["refused"] += 1
            assert "\n" not in str(error)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < SLOWEST_S and json.loads(data)
    if name == "config.json":
        assert counts["refused"] > mutations / 8
    else:  # the shards are complete, whatever the index says of them
        assert counts["loaded"] == mutations
    FUZZ[name] = (counts, slowest)
