"""A real ComfyUI for every test; the tiers, the workers, and what a run has measured.

torch is imported late: the process that only shares the tests out to workers needs none of it, and they wait for it."""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cogvideox.devtools.signals import forget_callers_signals
from cogvideox.errors import UserError
from cogvideox.host.standalone import use_comfyui
from cogvideox.tests.children import CAN_SHARE, WORKER, share_server
from cogvideox.tests.measured import (
    ERRORS,
    FUZZ,
    LAYOUT_MATRIX,
    PARITY,
    dump_measured,
    merge_measured,
    save_measured,
)
from cogvideox.tests.tiers import TIERS, heaviest_first, left_out, room_of, summary_lines

try:
    use_comfyui()
except UserError as error:
    raise pytest.UsageError(f"{error} Run the tests with: python3 dev.py test") from error

LEFT_OUT: Counter = Counter()  # reason -> tests that this run's tier leaves out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tier", choices=TIERS, default="standard", help="how much to run; see tests/README.md")
    parser.addoption("--save", action="store_true", help="write what was measured to benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    forget_callers_signals()
    gc.disable()  # until all tests are imported
    if config.getoption("save") and config.getoption("tier") != "long":
        raise pytest.UsageError("--save takes the long tier, --long: what the other tiers leave out would be missing.")
    if config.getoption("save") and (config.option.keyword or any("::" in name for name in config.args)):
        raise pytest.UsageError(
            "--save takes all tests or whole files: some cases of a comparison are not its worst one."
        )
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)  # as many workers as cores, or more: their threads would wait for each other
    elif config.getoption("tier") == "fast":
        # what has become slow is named, for tiers.SLOW
        config.option.durations, config.option.durations_min = 10, 3.0


@pytest.hookimpl(trylast=True)  # after the folders' conftests have marked their tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = left_out(items, str(config.getoption("tier")))
    LEFT_OUT.update(reasons.values())
    config.hook.pytest_deselected(items=list(reasons))
    items[:] = [item for item in items if item not in reasons]
    if hasattr(config, "workerinput"):
        items[:] = heaviest_first(items)


def pytest_collection_finish() -> None:
    """The million objects of imported libraries stay to the end: no search for garbage has to walk through them, which
    takes half a second, by chance in any test."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list) -> None:
    """Fork the workers from one process that has imported ComfyUI, where that can be."""
    if CAN_SHARE and all(spec.popen and not spec.python for spec in specs):
        share_server()
        for spec in specs:
            spec.python = WORKER


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out by room, in the order of `heaviest_first`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return room_of(nodeid)

    config.option.loadscopereorder = False
    return ByRoom(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands over what it has measured, for the tables at the end."""
    config: Any = session.config  # xdist adds an attribute to it
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"measured": dump_measured(), "left_out": dict(LEFT_OUT)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Take what a worker has measured; every worker leaves out the same tests. A crashed one hands over nothing."""
    output = getattr(node, "workeroutput", {})
    merge_measured(output.get("measured", "{}"))
    LEFT_OUT.update({reason: count for reason, count in output.get("left_out", {}).items() if reason not in LEFT_OUT})


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A test that leaves gradients off changes what the next ones test."""
    import torch

    yield
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.fixture(autouse=True, scope="session")
def nodes_outside_graphs() -> Iterator[None]:
    """Nodes may be executed as no part of a graph: each is told what ComfyUI tells one that has asked for nothing."""
    from comfy_api.latest import io

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io.ComfyNode, "hidden", io.HiddenHolder.from_dict(None))
        yield


@pytest.fixture(scope="module")
def few_objects() -> None:
    """For tests of trainings, each of which ends with a search for garbage: what the worker has by now, a million
    objects of libraries that were imported late, is not walked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def inference() -> Iterator[None]:
    """As ComfyUI runs nodes."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Folders of the tiny fp32 pipelines by variant, each written when it is first asked for, once a run."""
    from cogvideox.tests.support import TinyPipelines

    return TinyPipelines(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5b's architecture, 8 heads x 64 wide: errors of quantisation average out over a row as they do at full size."""
    from cogvideox.tests.support import write_fp32

    shape = {"num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 2}
    return write_fp32(tmp_path_factory.mktemp("wide"), "5b", **shape)


def _save(config: pytest.Config) -> str:
    """Write what was measured to the file of results; returns a sentence that says so."""
    chosen = [name for name in config.args if name not in config.getini("testpaths")]
    saved = save_measured(str(config.getoption("tier")), chosen)
    return f"Written to {saved}." if saved else "Nothing is saved, because these tests measure nothing."


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """Print what this run has measured: the matrices, and the worst case of everything compared with diffusers; and
    what its tier has left out. With --save, write it to the file of results if all tests have passed."""
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
            terminalreporter.write_line(f"{what:58s} {len(cases):4d} cases  {worst:.2g}  (tolerance {tolerance:.3g})")
    if ERRORS:
        terminalreporter.section("error per precision (relative to fp32)")
        for precision, measured in ERRORS.items():
            terminalreporter.write_line(f"{precision:24s} " + "   ".join(f"{note} {e:.1e}" for e, note in measured))
    if config.getoption("save"):
        terminalreporter.section("results")
        terminalreporter.write_line(
            _save(config) if exitstatus == 0 else "Nothing is saved, because a test has failed."
        )
    if LEFT_OUT:
        tier = str(config.getoption("tier"))
        terminalreporter.section(f"left out of the {tier} tier")
        for line in summary_lines(tier, LEFT_OUT):
            terminalreporter.write_line(line)
