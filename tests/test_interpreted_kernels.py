"""The Triton kernels against torch's operations, in Triton's interpreter: all in one process, whose start takes longer
than most of them. Without this, cards could compute another video, and no machine without one would notice."""

import importlib.util
from typing import Any

import pytest

from cogvideox.tests.support import measured_by_interpreter
from cogvideox.tests.transformer import test_token_passes as token_passes
from cogvideox.tests.vae import test_fused as fused

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton has no package for this system"
)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measured_by_interpreter(
        "vae.test_fused",
        "vae.test_fused_norms",
        "vae.test_frame_trials",
        "transformer.test_token_passes",
        "transformer.test_token_trials",
    )


def test_norm_of_the_vae(measured: dict[str, Any]) -> None:
    """Other pixels than the reference's."""
    errors = dict(measured["vae.test_fused"])
    assert {name: len(cases) for name, cases in errors.items()} == {name: len(fused.CASES) for name in fused.DTYPES}
    assert max(errors.pop("fp32")) <= 1e-6
    assert all(max(cases) <= 1 for cases in errors.values()), errors


def test_scale_and_shift_of_the_vae(measured: dict[str, Any]) -> None:
    """Other colours than the reference's."""
    errors = measured["vae.test_fused_norms"]
    assert len(errors) == 3 and all(len(cases) == 8 for cases in errors.values())
    assert max(max(cases) for cases in errors.values()) <= 5e-7, errors


@pytest.mark.parametrize(
    ("module", "right", "wrong"), [("vae.test_frame_trials", 9, 18), ("transformer.test_token_trials", 15, 5)]
)
def test_trials(measured: dict[str, Any], module: str, right: int, wrong: int) -> None:
    """A trial that passes everything would be none, and one that refuses a right kernel costs every card its speed."""
    said = measured[module]
    assert said["right"] == [""] * right
    assert len(said["wrong"]) == wrong and all("has an error of" in text for text in said["wrong"])


def test_passes_of_the_transformer(measured: dict[str, Any]) -> None:
    """Other latents."""
    found = measured["transformer.test_token_passes"]
    assert len(found["passes"]) == len(token_passes.TINY) * 10
    assert all(ours <= max(token_passes.MOST * theirs, 2e-7) for ours, theirs in found["passes"]), found["passes"]
    for error, launched in found["forwards"].values():
        assert error <= 1e-6 and set(launched) == token_passes.KERNELS
