"""The LoRA nodes as ComfyUI runs them."""

from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.model_loaders.files import safetensors_writer
from cogvideox.model_loaders.files.safetensors_writer import write_tensors
from cogvideox.nodes import lora as nodes
from cogvideox.tests.lora_files import (
    ATTENTION,
    DIALECTS,
    LINEAR,
    Subject,
    assert_weights,
    fused,
    save,
    write_dialect,
)
from cogvideox.tests.support import validated


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """ComfyUI's folders in a temporary place; what the nodes show on themselves."""
    lines = []
    for folder in ("loras", "output"):
        (tmp_path / folder).mkdir()
    loras = [str(tmp_path / "loras"), str(tmp_path / "output" / "loras")]  # as ComfyUI's main.py sets them
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", (loras, {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(nodes, "show_on_node", lambda text, node_id: lines.append(text))
    return lines


def apply(model: ModelPatcher, name: str, strength: float = 1.0, **more: Any) -> ModelPatcher:
    return nodes.CogVideoXApplyLora.execute(model, name, strength, **more).args[0]


def test_apply_tells_what_matched(subject: Subject, shown: list[str], tmp_path: Path) -> None:
    """Whether a LoRA works at all is the question that users ask most."""
    factors = subject.factors(LINEAR)
    files, header, scale = write_dialect("Fun", factors, "tensor")
    save(tmp_path / "loras" / "fun.safetensors", files | {"lora_te_x.lora_up.weight": torch.ones(1, 1)}, header)
    assert validated(nodes.CogVideoXApplyLora, lora_name="fun.safetensors") is True
    assert_weights(apply(subject.model, "fun.safetensors", 0.5), fused(subject.weights, factors, 0.5 * scale))
    assert shown == [
        "45 of 46 keys matched: 15 layers, LoRA, rank 4, scale 2 (alpha of the tensors).\n"
        "Skipped 1 for a text encoder: lora_te_x.lora_up.weight."
    ]


def test_strength_zero_is_the_model_itself(subject: Subject, shown: list[str]) -> None:
    """A LoRA that is switched off costs nothing and changes nothing, whatever file is chosen."""
    assert apply(subject.model, "not there", 0.0) is subject.model
    assert "stays as it is" in shown[0]


def test_bad_choices_are_known_before_the_run(subject: Subject, tmp_path: Path) -> None:
    """What is wrong with the file must not wait for the T5 to be loaded."""
    (tmp_path / "loras" / "empty.safetensors").write_bytes(b"")
    save(tmp_path / "loras" / "model.safetensors", {"patch_embed.proj.weight": torch.ones(1)})
    check = partial(validated, nodes.CogVideoXApplyLora)
    assert "empty" in str(check(lora_name="empty.safetensors"))
    assert "not a LoRA" in str(check(lora_name="model.safetensors"))
    assert "not the name" in str(check(lora_name="../loras/model.safetensors"))
    assert "no 'nothing'" in str(check(lora_name="nothing"))
    assert check(lora_name=None) is True
    with pytest.raises(UserError, match="scale is '1/r': use as trained or 1 / rank"):
        save(tmp_path / "loras" / "good.safetensors", write_dialect("diffusers", subject.factors(ATTENTION))[0])
        apply(subject.model, "good.safetensors", scale="1/r")


def test_save_and_apply_again(subject: Subject, shown: list[str], tmp_path: Path) -> None:
    """What was saved must be in the list and give the same model, and a second file may not take the first's place."""
    factors = subject.factors(DIALECTS["raw SAT"][1])
    save(tmp_path / "loras" / "sat.safetensors", write_dialect("raw SAT", factors)[0])
    model = apply(subject.model, "sat.safetensors")
    for _ in range(2):
        nodes.CogVideoXSaveLora.execute(model, "loras/cogvideox")
    folder = tmp_path / "output" / "loras"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cogvideox_00001_.safetensors",
        "cogvideox_00002_.safetensors",
    ]
    assert shown[-1] == "Saved cogvideox_00002_.safetensors in loras: 8 layers, rank 4."
    again = apply(subject.model, "cogvideox_00002_.safetensors")
    assert_weights(again, fused(subject.weights, factors, 1.0))


def test_nothing_half_written_is_left(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up or a run that is stopped must leave neither a broken LoRA nor a stray file."""
    save(tmp_path / "loras" / "a.safetensors", write_dialect("diffusers", subject.factors(ATTENTION))[0])
    model = apply(subject.model, "a.safetensors")
    write = safetensors_writer._write_tensor

    def fail(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors_writer, "_write_tensor", fail)
    with pytest.raises(KeyboardInterrupt):
        nodes.CogVideoXSaveLora.execute(model, "loras/cogvideox")
    assert not list((tmp_path / "output" / "loras").iterdir())
    monkeypatch.setattr(safetensors_writer, "_write_tensor", write)
    monkeypatch.setattr(safetensors_writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="Free some space"):
        nodes.CogVideoXSaveLora.execute(model, "loras/cogvideox")


@pytest.mark.parametrize("prefix", ["../out", "loras/../../out", "", "  ", "/tmp/out", "loras/", "a\0b", "."])
def test_save_stays_in_the_output_folder(subject: Subject, tmp_path: Path, prefix: str) -> None:
    """A workflow from the internet may not write where it likes."""
    save(tmp_path / "loras" / "a.safetensors", write_dialect("diffusers", subject.factors(ATTENTION))[0])
    model = apply(subject.model, "a.safetensors")
    with pytest.raises(UserError, match="is not a valid file name"):
        nodes.CogVideoXSaveLora.execute(model, prefix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loras", "output"]


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    """Two runs at once may come to the same number."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(UserError, match="not overwritten"):
        write_tensors(path, {"a": torch.ones(1)}, {})
    assert path.read_bytes() == b"precious" and len(list(tmp_path.glob("*"))) == 3
