"""A real ComfyUI for every test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.standalone import use_comfyui

try:
    use_comfyui()
except UserError as error:
    raise pytest.UsageError(f"{error} Run the tests with: python3 dev.py test") from error


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A test that leaves gradients off changes what the next ones test."""
    yield
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.fixture
def inference() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny fp32 pipelines by variant, written once a run."""
    from cogvideox.tests.support import ALL_VARIANTS, write_fp32

    root = tmp_path_factory.mktemp("pipelines")
    return {variant: write_fp32(root / variant, variant) for variant in ALL_VARIANTS}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5b's architecture, 8 heads x 64 wide: errors of quantisation average out over a row as they do at full size."""
    from cogvideox.tests.support import write_fp32

    shape = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 2}
    return write_fp32(tmp_path_factory.mktemp("wide"), "5b", **shape)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what this run has measured: the matrices, and the worst case of everything compared with diffusers."""
    from cogvideox.tests.support import ERRORS, FUZZ, LAYOUT_MATRIX, PARITY

    if LAYOUT_MATRIX:
        terminalreporter.section("layouts of a transformer on disk, and the variants loaded from each")
        for layout, variants in LAYOUT_MATRIX.items():
            terminalreporter.write_line(f"{layout:24s} {len(variants):3d}: {' '.join(sorted(variants))}")
    if FUZZ:
        terminalreporter.section("damaged files: loaded as they were, with other numbers in what was hit, refused")
        for what, (counts, slowest_s) in FUZZ.items():
            ends = ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))
            terminalreporter.write_line(f"{what:24s} {ends}; the slowest took {slowest_s:.2f} s")
    if PARITY:
        terminalreporter.section("parity with diffusers (relative error, worst case)")
        for what, cases in PARITY.items():
            worst, tolerance = max(cases)
            terminalreporter.write_line(f"{what:58s} {len(cases):4d} cases  {worst:.1e}  (tolerance {tolerance:.0e})")
    if ERRORS:
        terminalreporter.section("error per precision (relative to fp32)")
        for precision, measured in ERRORS.items():
            terminalreporter.write_line(f"{precision:24s} " + "   ".join(f"{note} {e:.1e}" for e, note in measured))
