"""Every loop over a user's tensors stops when the run is cancelled, and the next run works as before."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.host import compat
from cogvideox.model_loaders import checkpoints, component_files
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.lora.apply import apply_lora, read_lora, weight_shapes
from cogvideox.model_loaders.lora.export import merge_loras
from cogvideox.model_loaders.lora.names import weights_by_alias
from cogvideox.model_loaders.lora.weight_patches import load_patches
from cogvideox.model_loaders.save_model import save_model
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.lora_files import ATTENTION, random_factors, save, write_dialect


class Cancelled:
    """Stands in for ComfyUI's question whether the run was cancelled: it is at the question `at`."""

    def __init__(self) -> None:
        self.asked, self.at = 0, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self.at:
            raise mm.InterruptProcessingException


@pytest.fixture(scope="module")
def folder(tiny_pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in several layouts, and a LoRA."""
    folder = tmp_path_factory.mktemp("layouts")
    weights = checkpoints.open_component(tiny_pipelines["5b"], "transformer").state_dict
    layouts.write_sat(folder / "sat.pt", weights)
    layouts.write_gguf(folder / "q8.gguf", weights, "Q8_0")
    shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights.items() if name.endswith(".weight")}
    save(folder / "lora.safetensors", write_dialect("diffusers", random_factors(shapes, ATTENTION))[0])
    return folder


def _patched(pipeline: Path, folder: Path) -> Any:
    return apply_lora(load_model(pipeline, "fp32"), folder / "lora.safetensors", 1.0)[0]


def _lora(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    state_dict = component_files.find_format(folder / "lora.safetensors").open(folder / "lora.safetensors")
    return read_lora(state_dict, None, model).tensors


# (pipeline, folder) -> the work, once what it needs is there; and how many tensors or layers it is about, at least.
WORK: dict[str, tuple[Callable[[Path, Path], Callable[[], object]], int]] = {
    "load a model": (lambda pipeline, _: lambda: load_model(pipeline, "fp32"), 100),
    "quantise a model": (lambda pipeline, _: lambda: load_model(pipeline, "int8"), 100),
    "load a VAE": (lambda pipeline, _: lambda: load_vae(pipeline, "fp32"), 100),
    "load a text encoder": (lambda pipeline, _: lambda: load_text_encoder(pipeline, "fp32"), 30),
    "convert SAT's names": (lambda _, folder: lambda: checkpoints.open_component(folder / "sat.pt", "transformer"), 50),
    "unpack GGUF": (lambda _, folder: lambda: checkpoints.open_component(folder / "q8.gguf", "transformer"), 100),
    "apply a LoRA": (lambda pipeline, folder: lambda: _patched(pipeline, folder), 24),
    "save a model": (lambda pipeline, folder: partial_save(_patched(pipeline, folder), folder), 50),
}


def partial_save(model: Any, folder: Path) -> Callable[[], object]:
    path = folder / "saved.safetensors"

    def work() -> None:
        path.unlink(missing_ok=True)
        save_model(model, path, "fp32", lambda done, total: compat.throw_if_interrupted())

    return work


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cancelled]:
    cancelled = Cancelled()
    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancelled)
    yield cancelled


@pytest.mark.parametrize("what", WORK)
def test_loops(tiny_pipelines: Mapping[str, Path], folder: Path, cancelled: Cancelled, what: str) -> None:
    """A model of 20 GB on a slow disk is left between two tensors, and not at its end."""
    prepare, tensors = WORK[what]
    work = prepare(tiny_pipelines["5b"], folder)
    cancelled.asked = 0
    work()
    questions = cancelled.asked
    assert questions >= tensors
    for at in (1, questions // 2, questions):
        cancelled.asked, cancelled.at = 0, at
        with pytest.raises(mm.InterruptProcessingException):
            work()
        assert cancelled.asked == at, "it went on after the run was cancelled"
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*"))
    cancelled.asked = cancelled.at = 0
    work()
    assert cancelled.asked == questions


def test_patches_of_a_lora(tiny_pipelines: Mapping[str, Path], folder: Path, cancelled: Cancelled) -> None:
    """Each step by itself, for ComfyUI's own nodes call only some of them."""
    model = load_model(tiny_pipelines["5b"], "fp32")
    lora = _lora(model, folder)
    patched = _patched(tiny_pipelines["5b"], folder)
    for work in (
        lambda: load_patches(lora, weights_by_alias(weight_shapes(model))),
        lambda: merge_loras(patched),
        lambda: _lora(model, folder),
    ):
        cancelled.asked, cancelled.at = 0, len(ATTENTION)
        with pytest.raises(mm.InterruptProcessingException):
            work()
