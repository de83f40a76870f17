"""The way back: what a model carries, as a file that diffusers and ComfyUI load to the same weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoHaAdapter
from safetensors.torch import load_file

from cogvideox.errors import UserError
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.model_loaders.lora import export as lora_save
from cogvideox.tests.lora_files import (
    ALPHA,
    ATTENTION,
    DIALECTS,
    LINEAR,
    RANK,
    Files,
    Subject,
    adapter_header,
    assert_weights,
    fused,
    in_diffusers,
    patched_weights,
    save,
    write_dialect,
)
from cogvideox.tests.support import check_parity


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


@pytest.fixture
def put(subject: Subject, tmp_path: Path) -> Callable:
    """Put a LoRA of a dialect on a model."""

    def put(model: ModelPatcher, seed: int = 0, strength: float = 1.0, dialect: str = "diffusers", alpha: str = "none"):
        factors = subject.factors(DIALECTS[dialect][1], seed=seed)
        files, header, scale = write_dialect(dialect, factors, alpha)
        path = save(tmp_path / f"{seed}.safetensors", files, header)
        return lora.apply_lora(model, path, strength)[0], factors, strength * scale

    return put


def saved(model: ModelPatcher, path: Path, **options: Any) -> Path:
    return save(path, *lora_save.diffusers_lora(lora_save.merge_loras(model, **options)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_becomes_diffusers(subject: Subject, put: Callable, tmp_path: Path, dialect: str) -> None:
    """The node converts; a LoRA without anything to compute must come out as it went in, in both programs."""
    model, factors, _ = put(subject.model, dialect=dialect)
    path = saved(model, tmp_path / "saved.safetensors")
    files = load_file(path)
    expected, _, _ = write_dialect("diffusers", factors)
    assert files.keys() == expected.keys() and all(torch.equal(files[key], expected[key]) for key in files)
    assert_weights(lora.apply_lora(subject.model, path, 1.0)[0], fused(subject.weights, factors, 1.0))
    assert_weights(model, in_diffusers(subject.folder, path, 1.0))


def test_scale_is_in_the_tensors(subject: Subject, put: Callable, tmp_path: Path) -> None:
    """A reader that does not know of headers must come to the same weights as one that does."""
    model, factors, scale = put(subject.model, strength=-0.5, alpha="header")  # a power of two: nothing is rounded
    path = saved(model, tmp_path / "saved.safetensors")
    expected = fused(subject.weights, factors, scale)
    assert scale == -0.5 * ALPHA / RANK
    assert_weights(lora.apply_lora(subject.model, path, 1.0)[0], expected)
    without = save(tmp_path / "without.safetensors", load_file(path))
    assert_weights(lora.apply_lora(subject.model, without, 1.0)[0], expected)
    assert_weights(model, in_diffusers(subject.folder, path, 1.0))


def test_stacked_loras_become_one(subject: Subject, put: Callable, tmp_path: Path) -> None:
    """Ranks add up; layers that only one LoRA has keep that one's rank, which diffusers must be told."""
    model, first, first_scale = put(subject.model, 1, 0.6, "Fun", "tensor")
    model, second, second_scale = put(model, 2, -0.3, "raw SAT")
    path = saved(model, tmp_path / "saved.safetensors")
    exact = {name: weight.double() for name, weight in subject.weights.items()}
    for factors, scale in ((first, first_scale), (second, second_scale)):
        exact = fused(exact, {k: (a.double(), b.double()) for k, (a, b) in factors.items()}, scale)
    ours = patched_weights(lora.apply_lora(subject.model, path, 1.0)[0])
    theirs = in_diffusers(subject.folder, path, 1.0)
    stacked = patched_weights(model)
    for layer in LINEAR:
        name = f"{layer}.weight"
        assert torch.equal(ours[name], theirs[name])
        # one product of rank 8 instead of two of rank 4 is rounded elsewhere
        for result in (ours, stacked):
            check_parity("several LoRAs saved as one", result[name].double(), exact[name], 3e-7)
    files, header = lora_save.diffusers_lora(lora_save.merge_loras(model))
    config = json.loads(header["lora_adapter_metadata"])
    assert config["transformer.r"] == config["transformer.lora_alpha"] == 2 * RANK
    assert config["transformer.rank_pattern"] == {f"^{layer}": RANK for layer in LINEAR if layer not in ATTENTION}
    assert files[f"transformer.{ATTENTION[0]}.lora_A.weight"].shape == (2 * RANK, 64)


def test_convolution(subject: Subject, tmp_path: Path) -> None:
    """The patch embedding's window must survive."""
    factors = subject.factors((*ATTENTION, "patch_embed.proj"))
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0])
    model = lora.apply_lora(subject.model, path, 1.0)[0]
    again = saved(model, tmp_path / "saved.safetensors")
    assert load_file(again)["transformer.patch_embed.proj.lora_A.weight"].shape == (4, 16, 2, 2)
    assert_weights(lora.apply_lora(subject.model, again, 1.0)[0], fused(subject.weights, factors, 1.0))
    assert_weights(model, in_diffusers(subject.folder, again, 1.0))


def test_smaller_rank(subject: Subject, put: Callable) -> None:
    """Two equal LoRAs have rank 4 together: reducing 8 to 4 loses nothing, reducing to 1 keeps the largest part."""
    model, factors, _ = put(subject.model, 1, 0.6)
    model, _, _ = put(model, 1, 0.4)
    for layer, (a, b) in lora_save.merge_loras(model, rank=RANK).items():
        assert a.shape[0] == RANK
        check_parity("LoRA reduced to its rank", b @ a, factors[layer][1] @ factors[layer][0], 2e-6)
    for layer, (a, b) in lora_save.merge_loras(model, rank=1).items():
        whole = factors[layer][1] @ factors[layer][0]
        best = torch.linalg.svdvals(whole)[1:].norm()
        torch.testing.assert_close((b @ a - whole).norm(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_dtype(subject: Subject, put: Callable, tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    """Half the file, if the user asks for it; a LoRA of 16 bits stays as it is unasked."""
    model, factors, _ = put(subject.model)
    path = saved(model, tmp_path / "saved.safetensors", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {expected}
    half = lora.apply_lora(subject.model, path, 1.0)[0]
    assert {t.dtype for pair in lora_save.merge_loras(half).values() for t in pair} == {expected}
    scaled = lora.apply_lora(subject.model, path, 0.9)[0]
    assert {t.dtype for pair in lora_save.merge_loras(scaled).values() for t in pair} == {torch.float32}


def test_patches_that_are_not_loras_are_refused(subject: Subject, put: Callable, tmp_path: Path) -> None:
    """A file that leaves out a patch without a word would not give the video that the user saw."""
    key = f"diffusion_model.{ATTENTION[0]}.weight"
    hada = LoHaAdapter(
        set(), (torch.ones(64, 2), torch.ones(2, 64), None, torch.ones(64, 2), torch.ones(2, 64), *3 * (None,))
    )
    for patch, name in ((("diff", (torch.ones(64, 64),)), "'diff'"), ((torch.ones(64, 64),), "'diff'"), (hada, "LoHa")):
        model = put(subject.model)[0]
        model.add_patches({key: patch}, 1.0)
        with pytest.raises(UserError, match=f"patch of {ATTENTION[0]}.weight is .*{name}"):
            lora_save.merge_loras(model)
    model = put(subject.model)[0]
    model.add_patches({key: model.patches[key][0][1]}, 1.0, 0.5)
    with pytest.raises(UserError, match="model merge"):
        lora_save.merge_loras(model)
    files: Files = write_dialect("diffusers", subject.factors(ATTENTION))[0]
    files[f"transformer.{ATTENTION[0]}.lora_magnitude_vector"] = torch.ones(64)
    path = save(tmp_path / "dora.safetensors", files, adapter_header({"r": RANK, "lora_alpha": RANK}))
    with pytest.raises(UserError, match="DoRA"):
        lora_save.merge_loras(lora.apply_lora(subject.model, path, 1.0)[0])
    with pytest.raises(UserError, match="has no LoRA with a strength"):
        lora_save.merge_loras(subject.model)
    with pytest.raises(UserError, match="too large for fp16"):
        lora_save.merge_loras(_huge(subject, tmp_path), dtype="fp16")
    another_model: Any = object()
    with pytest.raises(UserError, match="not a CogVideoX model"):
        lora_save.merge_loras(another_model)


def _huge(subject: Subject, tmp_path: Path) -> ModelPatcher:
    factors = {layer: (a, b * 1e6) for layer, (a, b) in subject.factors(ATTENTION).items()}
    path = save(tmp_path / "huge.safetensors", write_dialect("diffusers", factors)[0])
    return lora.apply_lora(subject.model, path, 1.0)[0]
