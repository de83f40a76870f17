"""LoRAs whose numbers would take the machine, or turn every video black."""

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.model_management as mm
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.model_loaders.lora.export import merge_loras
from cogvideox.model_loaders.lora.layers import MAX_SCALE, describe_layer, header_alphas
from cogvideox.model_loaders.lora.report import MOST_LINES, LoraReport
from cogvideox.tests.guard import bounded
from cogvideox.tests.lora_files import ATTENTION, Files, adapter_header, random_factors, save, write_dialect

FIRST = f"transformer.{ATTENTION[0]}"


@pytest.fixture(scope="module")
def model(tiny_pipelines: Mapping[str, Path]) -> ModelPatcher:
    return load_model(tiny_pipelines["5b"], "fp32")


@pytest.fixture(scope="module")
def good(model: ModelPatcher) -> Files:
    shapes = {
        name.removeprefix("diffusion_model.").removesuffix(".weight"): shape
        for name, shape in lora.weight_shapes(model).items()
    }
    return write_dialect("diffusers", random_factors(shapes, ATTENTION))[0]


def assert_refused(model: ModelPatcher, files: Files, words: str, header: dict | None = None) -> None:
    with bounded(), pytest.raises(UserError, match=words) as caught:
        lora.read_lora(files, header, model)
    assert len(str(caught.value)) < 700


def test_ranks_beyond_both_sides(model: ModelPatcher, good: Files) -> None:
    """One number of a pickle, spread by its strides, becomes a LoRA of rank ten million and 5.7 GB."""
    rank = 10_000_000
    a, b = torch.zeros(1, 1).expand(rank, 64), torch.zeros(1, 1).expand(64, rank)
    files = good | {f"{FIRST}.lora_A.weight": a, f"{FIRST}.lora_B.weight": b}
    assert_refused(
        model, files, r"has rank 10000000 for a weight delta of shape \[64, 64\], where at most 64 is allowed"
    )


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_ranks_of_other_kinds(kind: str) -> None:
    wide, tall = torch.zeros(1, 1).expand(9, 8), torch.zeros(1, 1).expand(8, 9)
    parts = {"hada_w1_a": tall, "hada_w1_b": wide, "hada_w2_a": tall, "hada_w2_b": wide}
    if kind == "LoKr":
        parts = {"lokr_w1": torch.zeros(1, 1), "lokr_w2_a": tall, "lokr_w2_b": wide}
    with pytest.raises(ValueError, match=r"has rank 9 for a weight delta of shape \[8, 8\]"):
        describe_layer(parts)


def test_ranks_above_the_smaller_side(model: ModelPatcher, good: Files) -> None:
    """A trainer gives each layer the same rank: 128 for proj_out, which has 64 rows."""
    layer = "transformer.time_embedding.linear_1"  # 32 rows of 64
    files = {f"{layer}.lora_A.weight": torch.ones(64, 64), f"{layer}.lora_B.weight": torch.ones(32, 64)}
    assert lora.read_lora(good | files, None, model).report.ranks == (4, 64)


@pytest.mark.parametrize("alpha", [1e99, -1e99, MAX_SCALE * 4 + 1], ids=str)
def test_alphas_that_no_trainer_writes(model: ModelPatcher, good: Files, alpha: float) -> None:
    """Multiplied by 1e99 every weight becomes Inf, and the video black."""
    words = r"has alpha .* for rank 4, more than 1000 times the rank"
    assert_refused(model, good | {f"{FIRST}.alpha": torch.tensor(alpha, dtype=torch.float64)}, words)
    assert_refused(model, good, words, adapter_header({"r": 4, "lora_alpha": alpha}))
    assert_refused(
        model, good, words, adapter_header({"r": 4, "lora_alpha": 4, "alpha_pattern": {ATTENTION[0]: alpha}})
    )
    assert_refused(model, good, words, {"ss_network_alpha": str(alpha)})


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), True, "many", [1], {}], ids=str)
def test_alphas_that_are_not_finite_numbers(model: ModelPatcher, good: Files, alpha: object) -> None:
    words = "as alpha, which is not a finite number"
    assert_refused(model, good, words, adapter_header({"r": 4, "lora_alpha": alpha}))
    assert_refused(model, good, words, adapter_header({"r": 4, "alpha_pattern": {ATTENTION[0]: alpha}}))


def test_alphas_of_honest_files(model: ModelPatcher, good: Files) -> None:
    for alpha in (0.0, 1.0, -2.0, 4 * MAX_SCALE):
        assert lora.read_lora(good, {"ss_network_alpha": str(alpha)}, model).report.scales == (alpha / 4,)


def test_patterns_by_the_thousand(model: ModelPatcher, good: Files) -> None:
    """Each was compiled for each layer again."""
    patterns = {f"layer_{i}": 1 for i in range(30_000)}
    assert_refused(
        model, good, "alpha_pattern of 30000 expressions", adapter_header({"r": 4, "alpha_pattern": patterns})
    )
    wild = {f"{i}.*x.*y": 1 for i in range(17)}
    assert_refused(model, good, "alpha_pattern of 17 expressions", adapter_header({"r": 4, "alpha_pattern": wild}))


def test_the_most_patterns_that_are_read() -> None:
    """As many as are allowed, of the slowest kind, on every linear layer of a 5b model."""
    patterns = {f".*{'a|' * 90}.*{i}x": 1 for i in range(16)} | {f"a{'b.' * 90}{i}": 1 for i in range(1000)}
    ranks = {f"diffusion_model.transformer_blocks.{i}.attn1.to_out.0.{j}": 4 for i in range(42) for j in range(14)}
    with bounded(2.0):
        assert header_alphas(adapter_header({"alpha_pattern": patterns}), ranks) == {}


def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    compiled = re.compile
    monkeypatch.setattr(re, "compile", lambda pattern, *flags: calls.append(pattern) or compiled(pattern, *flags))
    ranks = {f"diffusion_model.layer.{i}": 4 for i in range(50)}
    found = header_alphas(adapter_header({"lora_alpha": 4, "alpha_pattern": {"layer.3": 2, "4": 3}}), ranks)
    assert len(calls) == 2
    assert {found["diffusion_model.layer.3"], found["diffusion_model.layer.4"], found["diffusion_model.layer.5"]} == {
        2,
        3,
        4,
    }


def test_names_under_the_stock_nodes(model: ModelPatcher) -> None:
    """ComfyUI's own node reads the file itself, and hands over names of any length."""
    name = "transformer.lora_A" + ".lora_A" * 1_500_000
    assert_refused(model, {name: torch.zeros(1)}, "a tensor's name of .* characters, where 1000 are allowed")
    assert_refused(model, {str(i): torch.zeros(1) for i in range(40_000)}, "40000 tensors, where 32768 are allowed")


def test_the_log_has_an_end() -> None:
    """Thirty thousand keys of a thousand letters each are no report."""
    report = LoraReport(5000, unmatched=tuple(str(i) * 500 for i in range(5000)))
    lines = report.details().splitlines()
    assert len(lines) == MOST_LINES + 1 and max(map(len, lines)) < 200
    assert lines[-1] == f"{5000 - MOST_LINES} more LoRA keys have no effect."


def test_a_way_out(model: ModelPatcher, good: Files, tmp_path: Path) -> None:
    """A LoRA of gigabytes on a slow disk is left as soon as the user cancels."""
    patched, _ = lora.apply_lora(model, save(tmp_path / "l.safetensors", good), 1.0)
    for work in (
        lambda: lora.read_lora(good, None, model),
        lambda: header_alphas({"ss_network_alpha": "4"}, {"diffusion_model.a": 4}),
        lambda: merge_loras(patched),
    ):
        mm.interrupt_current_processing()
        with pytest.raises(mm.InterruptProcessingException):
            work()
        assert not mm.processing_interrupted()
