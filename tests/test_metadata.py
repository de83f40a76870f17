"""What the Comfy Registry, pip and GitHub show of the pack, and what the Registry's package contains."""

import re
import subprocess
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from comfy_cli import file_utils
from comfy_cli.registry.config_parser import extract_node_configuration
from PIL import Image

from cogvideox.devtools import build_artwork, name_owner
from cogvideox.devtools.errors import DevError
from cogvideox.devtools.paths import ROOT
from cogvideox.host import toy
from cogvideox.system.published_files import read_sums
from cogvideox.tests.pack_copies import packaged_files

MOST_BYTES = 100_000  # of a picture that is loaded with the Registry's page
PLACEHOLDER = "OWNER"  # until it is known; .github/workflows/publish.yml publishes nothing that has it
WORKFLOWS = ROOT / ".github" / "workflows"


def tracked() -> list[str]:
    out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [file for file in out.splitlines() if (ROOT / file).is_file()]


def owners() -> dict[str, set[str]]:
    """File -> the owners in the addresses of this repository that it mentions, and a placeholder in other places."""
    found = {}
    for file in tracked():
        text = (ROOT / file).read_bytes().decode("utf-8", "replace")
        names = {owner for _, owner in name_owner.ADDRESS.findall(text)}
        if file not in (".github/workflows/publish.yml", "devtools/name_owner.py"):
            names |= set(re.findall(rf'[/@"]({PLACEHOLDER})\b', text))
        if names and not file.startswith("tests/"):
            found[file] = names
    return found


def test_every_address_names_one_owner() -> None:
    """A clone command, a link and the Registry's entry that lead to different places; and a file that the command
    which fills in the owner does not know."""
    found = owners()
    assert {"pyproject.toml", "README.md", "SECURITY.md"} <= found.keys() <= set(name_owner.FILES)
    assert len(set().union(*found.values())) == 1


def test_the_owner_is_filled_in_at_once(tmp_path: Path) -> None:
    """By hand, one of a dozen places is forgotten."""
    for name in name_owner.FILES:
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    assert "pyproject.toml" in name_owner.name_owner(tmp_path, "ada-l", "ada")
    text = (tmp_path / "pyproject.toml").read_text("utf-8")
    assert 'PublisherId = "ada"' in text and 'Repository = "https://github.com/ada-l/ComfyUI-CogVideoX"' in text
    everything = "".join((tmp_path / name).read_text("utf-8") for name in name_owner.FILES)
    assert f"/{PLACEHOLDER}/" not in everything and f'"{PLACEHOLDER}"' not in everything
    assert "git clone https://github.com/ada-l/ComfyUI-CogVideoX" in everything
    assert name_owner.name_owner(tmp_path, "ada-l", "ada") == []
    assert name_owner.name_owner(tmp_path, "bob", "bob")  # and again, for another owner
    for wrong in ("", "a b", "https://github.com/x", "a/b"):
        with pytest.raises(DevError, match="is not a name on GitHub"):
            name_owner.name_owner(tmp_path, wrong, "ada")


def test_the_registry_reads_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """comfy-cli drops what it does not understand without a word: of the cards all, where one was not of its list."""
    monkeypatch.chdir(ROOT)
    config = extract_node_configuration()
    assert config is not None
    project, comfy = config.project, config.tool_comfy
    assert project.name == "cogvideox" and project.version.count(".") == 2 and len(project.description) > 100
    assert project.urls.repository and project.urls.documentation and project.urls.issues and project.urls.homepage
    assert project.supported_os == ["OS Independent"] and project.supported_accelerators == ["GPU :: NVIDIA CUDA"]
    assert project.supported_comfyui_version and project.license.file == "LICENSE"
    assert comfy.publisher_id and comfy.display_name == "CogVideoX"
    for address, file in ((comfy.icon, build_artwork.ICON), (comfy.banner_url, build_artwork.BANNER)):
        repository = project.urls.repository.replace("github.com", "raw.githubusercontent.com")
        assert address == f"{repository}/main/{file.relative_to(ROOT).as_posix()}" and file.exists()


def test_the_pictures_are_those_that_the_script_draws() -> None:
    """Frames of an older toy, or a picture that the Registry refuses."""
    rows = build_artwork.read_frames()
    assert [len(row) for row in rows] == [6, 6, 6]
    drawn = {build_artwork.ICON: build_artwork.draw_icon(rows), build_artwork.BANNER: build_artwork.draw_banner(rows)}
    for file, picture in drawn.items():
        assert file.stat().st_size <= MOST_BYTES
        with Image.open(file) as opened:
            kept = opened.convert("RGB").resize((42, 18), Image.Resampling.BOX)
            assert opened.size == picture.size
        expected = picture.resize((42, 18), Image.Resampling.BOX)
        pairs = zip(kept.tobytes(), expected.tobytes())
        assert max(abs(a - b) for a, b in pairs) <= 24  # a palette of few colours
    assert drawn[build_artwork.ICON].size == (400, 400)
    width, height = drawn[build_artwork.BANNER].size
    assert width * 9 == height * 21


def test_the_package_has_what_the_nodes_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/server/test_beside_others.py runs it. A line too many in .comfyignore shows here at once, and one too few
    makes everybody download the tests."""
    monkeypatch.chdir(ROOT)
    file_utils.zip_files(str(tmp_path / "node.zip"))
    with zipfile.ZipFile(tmp_path / "node.zip") as package:
        packed = set(package.namelist())
        size = sum(entry.compress_size for entry in package.infolist())
    assert packed == set(packaged_files())
    folders = {PurePosixPath(file).parts[0] for file in packed if "/" in file}
    needed = {"docs", "example_workflows", "host", "locales", "media", "model_loaders", "nano", "nodes", "samplers"}
    needed |= {
        "parallel",
        "sockets",
        "system",
        "training",
        "transformer",
        "vae",
        "web",
        "devtools",
        "benchmarks",
        "migration",
        "subgraphs",
    }
    assert folders == needed
    weights = {f"nano/weights/{name}" for name in read_sums(toy.WEIGHTS)}
    examples = {file for file in tracked() if file.startswith(("nano/examples/", "example_workflows/", "web/"))}
    assert weights | examples | {"LICENSE", "NOTICE", "requirements.txt", "pyproject.toml", "dev.py"} <= packed
    assert {file for file in packed if file.startswith("benchmarks/")} == {"benchmarks/__init__.py"}
    assert not [file for file in packed if file.startswith(("tests/", ".github/", ".ci/", "nano/training/"))]
    assert size < 28e6  # 24 of it are the weights of the toys


def test_only_a_person_publishes() -> None:
    """A push or a timetable must not send a version out, and no step but the last may see the token."""
    text = (WORKFLOWS / "publish.yml").read_text("utf-8")
    triggers = re.findall(r"^  (\w+):", text[text.index("\non:") : text.index("\npermissions:")], re.M)
    assert triggers == ["workflow_dispatch"]
    assert "contents: read" in text and "write" not in text
    before, last = text.rsplit("\n      - ", 1)
    assert "secrets." not in before and "node publish" not in before
    assert last.count("secrets.REGISTRY_ACCESS_TOKEN") == 1
    for other in WORKFLOWS.glob("*.yml"):
        assert other.name == "publish.yml" or "secrets." not in other.read_text("utf-8")


def test_publishing_is_refused_without_an_owner(tmp_path: Path) -> None:
    """The check of the workflow, run as it stands there."""
    text = (WORKFLOWS / "publish.yml").read_text("utf-8")
    lines = text[text.index("grep -Fqx") : text.index("      - run: pip install")]
    script = "set -e\n" + "\n".join(line.removeprefix("          ") for line in lines.splitlines())
    for name in (*name_owner.FILES, "CHANGELOG.md", ".github/workflows/publish.yml", "devtools/name_owner.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)

    def check(asked: str) -> int:
        environ = {"VERSION": asked, "PATH": "/usr/bin:/bin"}
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True).returncode

    name_owner.name_owner(tmp_path, "ada", "ada")
    assert check(version) != 0, "what cannot be searched is not published"
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert check(version) == 0
    assert check("9.9.9") != 0
    for name in ("CONTRIBUTING.md", "docs/page.md", ".github/CODEOWNERS", "web/js/x.js", "example_workflows/x.json"):
        file = tmp_path / name
        before = file.read_bytes() if file.is_file() else None
        for text in (
            f"https://github.com/{PLACEHOLDER}/{name_owner.REPOSITORY}",
            f'"{PLACEHOLDER}"',
            f"@{PLACEHOLDER}",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"x\n{text}\n")
            subprocess.run(["git", "add", name], cwd=tmp_path, check=True)
            assert check(version) != 0, (name, text)
        subprocess.run(["git", "rm", "-qf", name], cwd=tmp_path, check=True)
        if before is not None:
            file.write_bytes(before)
    assert check(version) == 0
    name_owner.name_owner(tmp_path, PLACEHOLDER, PLACEHOLDER)
    assert check(version) != 0
