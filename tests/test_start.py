"""What ComfyUI's start does with the pack: what the import builds and loads while ComfyUI waits for it, which is
counted, since a time would depend on the machine; and the name that the package gets."""

from pathlib import Path

import pytest

from cogvideox.devtools.paths import ROOT
from cogvideox.tests.children import running

# A little above what there is. A frozen dataclass takes half a millisecond to build, a NamedTuple a tenth of that; a
# pattern up to half a millisecond to compile, and none where re gets it as text and compiles it at its first use.
MOST = {"dataclasses": 23, "patterns": 4}


@pytest.fixture(scope="module")
def built() -> dict[str, list[str]]:
    with running("pack_starts.import_and_count") as comfyui:
        return comfyui.result()


@pytest.mark.parametrize("kind", MOST)
def test_the_import_builds_little(built: dict[str, list[str]], kind: str) -> None:
    """With 66 dataclasses and 112 patterns the import took longer than the tenth of a second that it may take."""
    assert built[kind], "nothing was counted"
    assert len(built[kind]) <= MOST[kind], "\n".join(built[kind])


def test_importing_the_pack_loads_no_diffusers(built: dict[str, list[str]]) -> None:
    """ComfyUI's start must not wait for diffusers, which takes seconds to import."""
    assert "cogvideox.nodes.sample" in built["modules"]
    assert not [name for name in built["modules"] if name.split(".")[0] in ("diffusers", "accelerate", "peft")]


def test_importing_the_pack_loads_no_ray(built: dict[str, list[str]]) -> None:
    """It is optional, takes as long, and reads its environment when it is imported, which is prepared later."""
    assert "cogvideox.nodes.parallel" in built["modules"]
    assert not [name for name in built["modules"] if name.split(".")[0] == "ray"]


def test_any_folder_name_is_the_package_in_comfyui(tmp_path: Path) -> None:
    """ComfyUI imports the folder under its path; an error would show that path, and a script's classes would be others
    than the nodes'."""
    folder = tmp_path / "ComfyUI-CogVideoX.main"
    folder.symlink_to(ROOT, target_is_directory=True)
    with running("pack_starts.load_under", folder) as comfyui:
        assert len(comfyui.result()) == 1  # the module that ComfyUI itself has made, and none below it
