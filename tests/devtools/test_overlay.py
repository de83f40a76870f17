"""An older ComfyUI's environment: what differs is its own, and the rest is that of `.venv`, which stays as it is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cogvideox.devtools import environment, overlay, paths
from cogvideox.devtools.errors import DevError

NAMES_AND_VERSIONS = """
import importlib.metadata, sys
sys.path[:] = [path for path in sys.path if path != ""]
import common, pinned
print(common.__file__, pinned.VERSION, importlib.metadata.version("pinned"), sys.prefix, sep="\\n")
"""


def put(packages: Path, name: str, version: str) -> None:
    """Install a package, as pip would."""
    (packages / f"{name}.py").write_text(f"VERSION = {version!r}", "utf-8")
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    (info / "RECORD").write_text(f"{name}.py,,\n{name}-{version}.dist-info/METADATA,,\n", "utf-8")
    (info / "INSTALLER").write_text("pip\n", "utf-8")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the packages `common` and `pinned`, and a .pth file."""
    venv = tmp_path_factory.mktemp("shared") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = environment.venv_python(venv)
    packages = overlay._packages_folder(python)
    put(packages, "pinned", "2")
    (venv / "aside").mkdir()
    (venv / "aside" / "common.py").touch()
    (packages / "editable.pth").write_text(str(venv / "aside"), "utf-8")  # as `pip install --editable` writes one
    return python


def test_its_own_packages_come_first_and_all_others_are_shared(tmp_path: Path, shared: Path) -> None:
    """With the shared version first, the older ComfyUI would be tested with the newer one's packages."""
    python = overlay.create(tmp_path / "venv-1", shared, tmp_path)
    put(overlay._packages_folder(python), "pinned", "1")
    out = subprocess.run([python, "-c", NAMES_AND_VERSIONS], capture_output=True, text=True, check=True, cwd=tmp_path)
    common, module, metadata, prefix = out.stdout.splitlines()
    assert Path(common).parent == shared.parent.parent / "aside"
    assert (module, metadata, Path(prefix).name) == ("1", "1", "venv-1")
    shared_out = subprocess.run([shared, "-c", NAMES_AND_VERSIONS], capture_output=True, text=True, check=True)
    assert shared_out.stdout.splitlines()[1:3] == ["2", "2"]


def test_pip_leaves_the_shared_packages_alone(tmp_path: Path, shared: Path) -> None:
    """pip takes the old version away before it installs another: out of `.venv`, the newest ComfyUI would be broken."""
    import pip

    python, wheel = overlay.create(tmp_path / "venv-1", shared, tmp_path), tmp_path / "pinned-1-py3-none-any.whl"
    (overlay._packages_folder(shared) / "pip.pth").write_text(str(Path(pip.__file__).parents[1]), "utf-8")
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("pinned.py", "VERSION = '1'")
        file.writestr("pinned-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: pinned\nVersion: 1\n")
        file.writestr("pinned-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("pinned-1.dist-info/RECORD", "")
    environment.run_pip(python, ["install", "--no-index", "--no-deps", str(wheel)], "pinned", tmp_path / "pip.log")
    versions = [
        subprocess.run([venv, "-c", "import pinned; print(pinned.VERSION)"], capture_output=True, text=True).stdout
        for venv in (python, shared)
    ]
    assert versions == ["1\n", "2\n"], (tmp_path / "pip.log").read_text("utf-8")


def test_it_is_made_once_and_again_for_another_shared_one(tmp_path: Path, shared: Path) -> None:
    """One that points at an environment which has moved finds no torch; a sound one takes no second of every run."""
    venv = tmp_path / "venv-1"
    python = overlay.create(venv, shared, tmp_path)
    (venv / "kept").touch()
    assert overlay.create(venv, shared, tmp_path) == python and (venv / "kept").exists()
    (overlay._packages_folder(python) / "shared.pth").write_text("import site; site.addsitedir('/moved')\n", "utf-8")
    assert overlay.create(venv, shared, tmp_path) == python and not (venv / "kept").exists()
    python.unlink()
    python.symlink_to(tmp_path / "no interpreter")
    assert overlay.create(venv, shared, tmp_path) == python and overlay._links(python)


def test_it_cannot_be_made(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "venv-1").write_text("a file where the folder belongs", "utf-8")
    with pytest.raises(DevError, match="Could not install the virtual environment venv-1"):
        overlay.create(tmp_path / "venv-1", shared, tmp_path)


def test_packages_of_which_any_version_does_are_left_out(tmp_path: Path, shared: Path, monkeypatch) -> None:
    """Half a gigabyte of pictures for each host; the frontend and everything else must be the host's own."""
    host, asked = tmp_path / "ComfyUI", []
    host.mkdir()
    lines = ["comfyui-frontend-package==1.41.21", "comfyui-workflow-templates==0.9.38", "comfyui-embedded-docs==0.4.3"]
    (host / "requirements.txt").write_text("\n".join([*lines, "torch", "", "#extras:", "glfw"]), "utf-8")
    monkeypatch.setattr(paths, "DEV", tmp_path)
    monkeypatch.setattr(paths, "LOGS", tmp_path)

    def install(python: Path, name: str, requirements: list[Path], *rest: object, after: str) -> str:
        asked.append((python, requirements[0].read_text("utf-8").split(), after))
        return ""

    monkeypatch.setattr(environment, "install", install)
    python = overlay.prepare(shared, host, "0.18.2", "digest")
    assert asked == [(python, ["comfyui-frontend-package==1.41.21", "torch", "#extras:", "glfw"], "digest")]
    assert python.parent.parent == tmp_path / "venv-0.18.2"
