"""Models that ComfyUI's nodes have merged."""

from pathlib import Path

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeSimple, ModelSubtract

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.save_model import save_model
from cogvideox.tests.support import relative_error, write_fp32

pytestmark = pytest.mark.usefixtures("inference")


def sample(model: ModelPatcher) -> torch.Tensor:
    text = [[torch.randn(1, 226, 32, generator=torch.Generator().manual_seed(1)), {}]]
    latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    return comfyui_nodes().common_ksampler(model, 7, 3, 4.0, "euler", "simple", text, text, latent)[0]["samples"]


def merged(kind: str, first: ModelPatcher, second: ModelPatcher) -> ModelPatcher:
    if kind == "simple":
        return ModelMergeSimple().merge(first, second, 0.25)[0]
    if kind == "subtract":
        return ModelSubtract().merge(first, second, 1.0)[0]
    return ModelAdd().merge(first, second)[0]


@pytest.mark.parametrize("kind", ("simple", "subtract", "add"))
def test_models_of_different_sizes_are_refused(tiny_pipelines: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """ComfyUI leaves every weight of another shape out: the video, and the saved file, were the first model's."""
    first = load_model(tiny_pipelines["5b"], "fp32")
    second = load_model(write_fp32(tmp_path / "2b", "2b", num_attention_heads=2), "fp32")
    file = tmp_path / "merged.safetensors"
    with pytest.raises(UserError, match="weights have other shapes.*models of one family"):
        sample(merged(kind, first, second))
    with pytest.raises(UserError, match="weights have other shapes"):
        save_model(merged(kind, first, second), file)
    assert not file.exists()


def test_a_merge_that_leaves_a_few_weights_out_says_so(tiny_pipelines: dict[str, Path]) -> None:
    """Text and image to video models differ in the layer that takes the image: people merge the others on purpose."""
    told: list[str] = []
    first = load_model(tiny_pipelines["5b"], "fp32", told.append)
    sample(merged("simple", first, load_model(tiny_pipelines["5b-I2V"], "fp32")))
    assert len(told) == 1 and "patch_embed.proj.weight" in told[0] and "left out of the merge" in told[0]


def test_models_of_one_family_are_merged(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A quarter of the first and three of the second, without a word; a LoRA's patches are no merge."""
    told: list[str] = []
    first = load_model(tiny_pipelines["5b"], "fp32", told.append)
    second = load_model(write_fp32(tmp_path / "other", "5b", seed=1), "fp32")
    both = merged("simple", first, second)
    both.add_patches({"diffusion_model.proj_out.bias": ("diff", (torch.zeros(64),))})
    by_hand = load_model(tiny_pipelines["5b"], "fp32")
    theirs = dict(second.model.diffusion_model.named_parameters())
    for name, weight in by_hand.model.diffusion_model.named_parameters():
        weight.copy_(0.25 * weight + 0.75 * theirs[name])
    out = sample(both)
    assert not told and relative_error(out, sample(by_hand)) < 5e-6 and relative_error(out, sample(first)) > 1e-3
