"""A ComfyUI that has no type for int8 weights, as before 0.30: what is refused when a prompt is queued, what loads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cogvideox.errors import UserError
from cogvideox.host import quantized
from cogvideox.model_loaders.checkpoints import open_component
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.precision import check_precision
from cogvideox.model_loaders.save_model import check_save_dtype
from cogvideox.nodes.load import CogVideoXLoadModel, CogVideoXLoadPipeline, CogVideoXLoadTextEncoder
from cogvideox.nodes.save import CogVideoXSaveModel
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.support import validated

REFUSED = "Weights in int8 cannot be used: this version of ComfyUI, "
SINCE = (
    ", has no such type; 0.30.0 has it. Update ComfyUI and its requirements, or use fp8_e4m3fn, fp16 or bf16 instead."
)


@pytest.fixture(autouse=True)
def without_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = {layout: name for layout, name in quantized.FORMATS.items() if layout != quantized.INT8_LAYOUT}
    monkeypatch.setattr(quantized, "FORMATS", formats)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (CogVideoXLoadPipeline, {"folder": None}),
        (CogVideoXLoadModel, {"model_name": None}),
        (CogVideoXLoadTextEncoder, {"text_encoder_name": None}),
        (CogVideoXSaveModel, {"name": None}),
    ],
)
def test_int8_is_refused_when_the_prompt_is_queued(node: Any, inputs: dict[str, Any]) -> None:
    """It was refused while the node ran: Save Model comes after everything else of a run."""
    message = str(validated(node, weight_dtype="int8", **inputs)).removeprefix("weight_dtype: ")
    assert message.startswith(REFUSED) and message.endswith(SINCE)
    assert validated(node, weight_dtype="fp8_e4m3fn", **inputs) is True


def test_the_fast_type_is_refused_for_the_same_reason() -> None:
    """A missing instruction of the CPU is no reason where a better CPU would not help."""
    with pytest.raises(UserError, match=REFUSED):
        check_precision("int8_fast", torch.device("cpu"))


@pytest.mark.parametrize("mode", quantized.QUANTIZED_MODES)
def test_without_comfy_kitchen_no_quantised_type_is_offered_in_vain(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI starts without the package, and has none of the types then."""
    monkeypatch.setattr(quantized, "_AVAILABLE", False)
    for check in (check_save_dtype, lambda chosen: check_precision(chosen, torch.device("cpu"))):
        with pytest.raises(UserError, match="its package comfy-kitchen is not installed. Update ComfyUI"):
            check(mode)
        check("bf16")


@pytest.mark.parametrize("layout", [name for name in layouts.TRANSFORMER_LAYOUTS if name.startswith("int8")])
def test_files_in_int8_load_unpacked(layout: str, tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Who has the file and no newer ComfyUI is not helped by a refusal: the numbers are there."""
    source = tiny_pipelines["5b"] / "transformer"
    shutil.copy(source / "config.json", tmp_path)
    weights: dict[str, torch.Tensor] = {}
    for shard in source.glob("*.safetensors"):
        weights |= load_file(shard)
    layouts.TRANSFORMER_LAYOUTS[layout](tmp_path, weights)
    found = open_component(tmp_path, "transformer").state_dict
    matrices = [name for name in weights if layouts.is_matrix(name)]
    assert matrices and not any(quantized.is_quantized(value) for value in found.values())
    for name in matrices:
        torch.testing.assert_close(found[name].float(), layouts.held_matrix(layout, weights[name]), rtol=2**-8, atol=0)
    model = load_model(tmp_path, "default").model
    assert model.diffusion_model.transformer_blocks[0].ff.net[2].weight.dtype in (torch.bfloat16, torch.float32)
