"""Files and folders as users have them: whole, incomplete, damaged, of something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cogvideox.errors import UserError
from cogvideox.model_loaders import checkpoints
from cogvideox.model_loaders import load_text_encoder as text_encoder
from cogvideox.model_loaders import load_vae as autoencoder


@pytest.fixture
def pipeline(tiny_pipelines: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "pipeline"))


def shards(pipeline: Path, component: str = "transformer") -> list[Path]:
    found = sorted((pipeline / component).glob("*.safetensors"))
    assert len(found) > 1
    return found


def test_all_shards_become_one_state_dict(pipeline: Path) -> None:
    """One shard alone is a model with holes."""
    index = json.loads(next((pipeline / "transformer").glob("*.index.json")).read_text())
    weights = checkpoints.open_component(pipeline, "transformer")
    assert weights.state_dict.keys() == index["weight_map"].keys()
    assert weights.siblings["vae"]["scaling_factor"] == 0.7


def test_a_component_s_own_folder_and_a_single_file(pipeline: Path, tmp_path: Path) -> None:
    """The VAE copied out of its pipeline, as a folder or a file, is still the VAE."""
    whole = checkpoints.open_component(pipeline, "vae").state_dict.keys()
    assert checkpoints.open_component(pipeline / "vae", "vae").state_dict.keys() == whole
    file = shutil.copy(pipeline / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "any name.safetensors")
    lone = checkpoints.open_component(Path(file), "vae")
    assert lone.state_dict.keys() == whole and lone.config is None


def test_missing_shard_is_named(pipeline: Path) -> None:
    """An unfinished download must say which file to fetch."""
    gone = shards(pipeline)[1]
    gone.unlink()
    with pytest.raises(UserError, match=f"lacks {gone.name}"):
        checkpoints.check_component(pipeline, "transformer")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "cut short or the file is damaged"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: data[:6], "or only the beginning of one"),
        (lambda data: b"", "is empty"),
        (lambda data: b"<html><body>404 Not Found</body></html>" * 9, "is a web page, not weights"),
        (lambda data: data[:8] + b"}" + data[9:], "is not a weight file that this version reads"),
        (lambda data: data[:8] + b"{" * 9 + data[17:], "has no valid safetensors header"),
    ],
)
def test_damaged_shard_is_named(pipeline: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """A file that is not what it claims must be named before anything maps it."""
    bad = shards(pipeline)[0]
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        checkpoints.check_component(pipeline, "transformer")
    assert bad.name in str(error.value)


def test_folders_that_are_not_pipelines_are_refused(pipeline: Path) -> None:
    """The folder's own problem, not a stack trace from deep inside."""
    shutil.rmtree(pipeline / "vae")
    with pytest.raises(UserError, match="lacks vae: the download is not complete"):
        checkpoints.require_pipeline(pipeline)
    index = pipeline / "model_index.json"
    index.write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(UserError, match="is a WanPipeline, not a CogVideoX pipeline"):
        checkpoints.require_pipeline(pipeline)
    index.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        checkpoints.require_pipeline(pipeline)
    index.unlink()
    with pytest.raises(UserError, match="has no model_index.json"):
        checkpoints.require_pipeline(pipeline)


def test_swapped_components_are_named(pipeline: Path) -> None:
    """A transformer in the VAE loader is an easy slip; the message must say what it is."""
    from cogvideox.model_loaders.load_model import load_model
    from cogvideox.model_loaders.load_text_encoder import load_text_encoder
    from cogvideox.model_loaders.load_vae import load_vae

    with pytest.raises(UserError, match="looks like a CogVideoX-like transformer, not a CogVideoX VAE"):
        load_vae(pipeline / "transformer")
    with pytest.raises(UserError, match="looks like a CogVideoX VAE, not a CogVideoX transformer"):
        load_model(pipeline / "vae")
    with pytest.raises(UserError, match="looks like a T5 text encoder, not a CogVideoX transformer"):
        load_model(pipeline / "text_encoder")
    with pytest.raises(UserError, match="looks like a CogVideoX VAE, not a T5 text encoder"):
        load_text_encoder(pipeline / "vae")


def test_text_encoder_of_another_width(pipeline: Path) -> None:
    """A smaller T5 would fail deep inside the transformer."""
    config = pipeline / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"text_embed_dim": 4096}))
    with pytest.raises(UserError, match="has width 32; the transformer reads width 4096"):
        text_encoder.load_text_encoder(pipeline)


def test_tokenizer_of_another_text_encoder(pipeline: Path) -> None:
    """Ids beyond the embedding would end in an index error in the middle of a graph."""
    shutil.rmtree(pipeline / "tokenizer")  # T5's own is taken instead, with 32100 tokens
    with pytest.raises(UserError, match="knows 104 tokens, its tokenizer has 32100"):
        text_encoder.load_text_encoder(pipeline)


def test_missing_and_unknown_weights_are_named(pipeline: Path) -> None:
    """Half a model must not load as noise."""
    from safetensors.torch import load_file, save_file

    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["stray.weight"] = weights.pop("decoder.conv_out.conv.weight")
    save_file(weights, file)
    with pytest.raises(UserError, match="missing decoder.conv_out.conv.weight; unknown stray.weight"):
        autoencoder.load_vae(pipeline)
