"""Put the real ComfyUI first on sys.path and load the pack as ComfyUI loads a custom node."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "cogvideox_pack"


def _start_comfyui() -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "main.py").is_file():
        raise pytest.UsageError("COMFYUI_PATH names no ComfyUI checkout; run the tests with: python3 dev.py test")
    # ComfyUI's `nodes` must be found before our folder of that name; `devtools` only in ours
    ours = [str(ROOT), str(ROOT / "tests")]
    sys.path[:] = [comfyui] + [p for p in sys.path if p not in ours] + ours
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  reads sys.argv now


def _load_pack() -> None:
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)


_start_comfyui()
_load_pack()


@pytest.fixture(scope="session")
def tiny_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny fp32 pipelines by variant, written once a run."""
    from support import ALL_VARIANTS, write_fp32

    root = tmp_path_factory.mktemp("pipelines")
    return {variant: write_fp32(root / variant, variant) for variant in ALL_VARIANTS}


def pytest_terminal_summary(terminalreporter: object) -> None:
    """Print how far the pack is from diffusers: the worst case of everything compared in this run."""
    from support import PARITY

    if PARITY:
        terminalreporter.section("parity with diffusers (relative error, worst case)")
        for what, cases in PARITY.items():
            worst, tolerance = max(cases)
            terminalreporter.write_line(f"{what:58s} {len(cases):4d} cases  {worst:.1e}  (tolerance {tolerance:.0e})")
