"""An image of one's own where one is chosen: nothing is needed in ComfyUI's input folder before."""

import asyncio
from pathlib import Path
from typing import Any

import execution
import folder_paths
import pytest
import torch
from PIL import Image

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.nodes import NODES
from cogvideox.nodes.own_image import CogVideoXOwnImage

EXAMPLE = torch.rand(1, 8, 8, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's input folder, empty, and a file above it."""
    folder = tmp_path / "input"
    folder.mkdir()
    Image.new("RGB", (4, 2), (255, 0, 0)).save(tmp_path / "secret.png")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(folder))
    for node in NODES:
        monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, node.__name__, node)
    return folder


def queued(image: object) -> Any:
    """What ComfyUI says of a graph with the node when it is queued: whether it is valid, and what is wrong."""
    prompt = {
        "1": {"class_type": "CogVideoXExample", "inputs": {"example": "picture"}},
        "2": {"class_type": "CogVideoXOwnImage", "inputs": {"otherwise": ["1", 0], "image": image}},
    }
    valid, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "2", {}))
    return valid, errors


def test_it_runs_before_anything_is_uploaded() -> None:
    """A Load Image behind a switch that was off made ComfyUI refuse the app without an example.png."""
    assert queued("") == (True, [])
    assert CogVideoXOwnImage.execute(EXAMPLE, "")[0] is EXAMPLE
    entry = next(entry for entry in CogVideoXOwnImage.define_schema().inputs if entry.id == "image")
    assert entry.options == [""] and entry.as_dict()["image_upload"] is True  # type: ignore[attr-defined]


def test_an_uploaded_image_takes_the_place(inputs: Path) -> None:
    Image.new("RGB", (4, 2), (255, 0, 0)).save(inputs / "mine.png")
    assert queued("mine.png") == (True, [])
    (image,) = CogVideoXOwnImage.execute(EXAMPLE, "mine.png").args
    assert image.shape == (1, 2, 4, 3) and torch.equal(image[0, 0, 0].float(), torch.tensor([1.0, 0.0, 0.0]))
    before = CogVideoXOwnImage.fingerprint_inputs(image="mine.png")
    Image.new("RGB", (40, 20), (0, 0, 255)).save(inputs / "mine.png")
    assert CogVideoXOwnImage.fingerprint_inputs(image="mine.png") != before


@pytest.mark.parametrize("image", ["gone.png", "../secret.png", ".", "gone.png [output]", "a\0b", 5, {}])
def test_a_file_that_is_not_there_is_refused(image: Any) -> None:
    """When it is queued, and not after the checkpoint has loaded; and no workflow reads beside ComfyUI's folders."""
    valid, errors = queued(image)
    assert not valid and errors
    with pytest.raises(UserError, match="There is no image"):
        CogVideoXOwnImage.execute(EXAMPLE, image)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and no more"])
def test_a_damaged_image_is_named(inputs: Path, content: bytes) -> None:
    """ "Invalid data found when processing input" says neither which file nor what to do."""
    (inputs / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match="^The image 'bad.png' cannot be read .* Upload it again.$"):
        CogVideoXOwnImage.execute(EXAMPLE, "bad.png")
