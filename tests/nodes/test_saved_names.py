"""Every node of ours that saves fills in the placeholders of its file's name."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import io

from cogvideox.host.output import numbered_path
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.model_loaders.lora.layers import SCALES
from cogvideox.nodes import NODES, save, train
from cogvideox.nodes.decode_to_file import CogVideoXDecodeToFile
from cogvideox.nodes.lora import CogVideoXSaveLora
from cogvideox.system.complete_file import complete_file
from cogvideox.system.file_names import MAX_PART_BYTES
from cogvideox.tests import lora_files
from cogvideox.tests.support import validated

NAME = "my/%year%_%CogVideoXSample.seed%_%sampler.seed%"


def save_video(pipeline: Path) -> object:
    vae = load_vae(pipeline, "fp32")
    latent: Any = {"samples": torch.zeros(1, 16, 1, 4, 4)}
    return CogVideoXDecodeToFile.execute(vae, latent, 8.0, NAME, "mp4 (h264)", 18, "auto")


def save_lora(pipeline: Path) -> object:
    subject = lora_files.Subject(pipeline)
    with tempfile.TemporaryDirectory() as folder:
        files, header, _ = lora_files.write_dialect("Fun", subject.factors(lora_files.LINEAR), "tensor")
        path = Path(folder) / "a.safetensors"
        lora_files.save(path, files, header)
        model, _ = apply_lora(subject.model, path, 1.0, SCALES[0])
        return CogVideoXSaveLora.execute(model, NAME)


def save_trained(pipeline: Path) -> object:
    factors = {"lora_A": torch.ones(1, 8), "lora_B": torch.ones(8, 1)}
    lora = {f"diffusion_model.proj_out.{name}.weight": factor for name, factor in factors.items()}
    return train.CogVideoXSaveTrainedLora.execute(lora, NAME)


SAVES: dict[str, Callable[[Path], object]] = {
    "CogVideoXDecodeToFile": save_video,
    "CogVideoXSaveLora": save_lora,
    "CogVideoXSaveModel": lambda pipeline: save.CogVideoXSaveModel.execute(load_model(pipeline), NAME, "as loaded"),
    "CogVideoXSaveTrainedLora": save_trained,
}


def names_of(node: type[io.ComfyNode]) -> set[str]:
    return {entry.id for entry in node.define_schema().inputs} & {"name", "filename_prefix"}


def test_all_nodes_that_save_are_here() -> None:
    """A new one must not write the placeholders as they are; each asks ComfyUI for the workflow."""
    saving = {node.__name__: node.define_schema() for node in NODES if names_of(node)}
    assert saving.keys() == SAVES.keys()
    for schema in saving.values():
        assert {io.Hidden.prompt, io.Hidden.extra_pnginfo} <= set(schema.hidden or ())


@pytest.mark.parametrize("node", SAVES)
def test_names_are_filled_in(
    node: str, tmp_path: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """%KSampler.seed% stood in the file's name: the frontend fills it in for ComfyUI's own save nodes alone."""
    run_in(tmp_path, monkeypatch, 7)
    cls: Any = next(known for known in NODES if known.__name__ == node)
    assert validated(cls, **dict.fromkeys(names_of(cls), NAME)) is True
    SAVES[node](tiny_pipelines["5b"])
    made = made_in(tmp_path)
    assert len(made) == 1 and made[0].startswith("my/20") and "_7_7" in made[0] and "%" not in made[0]


@pytest.mark.parametrize("node", SAVES)
def test_a_value_keeps_what_looks_like_a_placeholder(
    node: str, tmp_path: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names were filled in again on their way to the file, by ComfyUI as well: a text with %year% became another."""
    run_in(tmp_path, monkeypatch, "%year%_%width%_%month%_%CogVideoXSample.seed%")
    SAVES[node](tiny_pipelines["5b"])
    (made,) = made_in(tmp_path)
    assert made.startswith("my/20") and made.count("%year%_%width%_%month%_%CogVideoXSample.seed%") == 2


@pytest.mark.parametrize("node", SAVES)
@pytest.mark.parametrize("digits", [21, 190, 197])
@pytest.mark.parametrize("place", ["in another file's number", "in the prefix"])
def test_numbers_of_many_digits(
    node: str, digits: int, place: str, tmp_path: Path, tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than a number of 190 digits made a name that no disk takes, after an hour of sampling."""
    run_in(tmp_path, monkeypatch, 7)
    prefix = "x" if place == "in another file's number" else f"x_{'9' * digits}"
    monkeypatch.setattr(__name__ + ".NAME", prefix)
    ends = {"_.mp4", "_.safetensors", "_00001_.mp4"} | ({".safetensors"} if node != "CogVideoXSaveModel" else set())
    there = {f"x_{'9' * digits}{end}" for end in ends}
    for name in there:
        (tmp_path / name).touch()
    SAVES[node](tiny_pipelines["5b"])
    (made,) = set(made_in(tmp_path)) - there
    number = re.fullmatch(rf"{prefix}(?:_([0-9]+)_?)?\.(mp4|safetensors)", made)
    assert number is not None and int(number[1] or 1) <= 2, made


@pytest.mark.parametrize("letters", [1, 180, MAX_PART_BYTES])
def test_the_longest_name_of_an_unfinished_file_fits(tmp_path: Path, letters: int) -> None:
    """A prefix, a number after the highest that counts, and what a file has while it is written."""
    stem, suffix, most = "x" * letters, "_.safetensors", 200 + 13 - letters
    for digits in range(1, min(255 - len(f"{stem}_{suffix}"), 40) + 1):
        (tmp_path / f"{stem}_{'9' * digits}{suffix}").touch()
        path = numbered_path(tmp_path, stem, suffix)
        with complete_file(path) as unfinished:
            unfinished.part.write_bytes(b"a")
        if digits <= min(20, most):
            assert path.name == f"{stem}_{10**digits:05}{suffix}"
        assert path.read_bytes() == b"a"
        path.unlink()


def run_in(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: object) -> None:
    """Nodes write into `folder`, in a workflow whose sampler has this seed."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    for category in ("diffusion_models", "loras"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(folder)], {".safetensors"}))
    prompt = {"1": {"class_type": "CogVideoXSample", "inputs": {"seed": seed}, "_meta": {"title": "sampler"}}}
    monkeypatch.setattr(io.ComfyNode, "hidden", io.HiddenHolder.from_dict({io.Hidden.prompt: prompt}))


def made_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
