"""The real checkpoints, told from the names and shapes in their headers alone; nothing of their size is allocated."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import torch

from cogvideox.model_loaders import component_files, variants
from cogvideox.model_loaders.checkpoints import check_component
from cogvideox.model_loaders.files.headers import Entry
from cogvideox.model_loaders.load_model import check_model, load_model
from cogvideox.model_loaders.load_text_encoder import check_text_encoder, t5_shapes
from cogvideox.tests import hollow_files as hollow
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.tiers import long_after, long_rows_after


def assert_found(path: Path, component: str, weights: dict[str, torch.Tensor]) -> Mapping[str, Entry]:
    """Every tensor of its full shape, none besides; returns what was found."""
    found = component_files.find_weights(path, component).entries
    assert {n: tuple(w.shape) for n, w in weights.items()} == {n: e.shape for n, e in found.items()}
    return found


def assert_is(name: str, path: Path, found: Mapping[str, Entry]) -> None:
    """A single file has no config.json: its shapes must suffice, and nothing of it is refused when it is queued."""
    check_model(path)
    assert variants.detect_family(variants.resolve_config(found, None, "test")).name == name


def shifted_pairs() -> Iterator[tuple[str, str]]:
    """Every checkpoint in every layout: one layout after the other for each, so that any first pairs have all."""
    layouts_of_files = list(hollow.FULL_SIZE_LAYOUTS)
    for shift in range(len(layouts_of_files)):
        for number, name in enumerate(hollow.OFFICIAL):
            yield name, layouts_of_files[(number + shift) % len(layouts_of_files)]


@pytest.mark.parametrize("name, layout", long_rows_after(2 * len(hollow.OFFICIAL), shifted_pairs()))
def test_transformer(tmp_path: Path, name: str, layout: str) -> None:
    """Whoever downloads one file of 11 GB must not be asked which model it is."""
    weights = hollow.official_weights(name)
    path = hollow.write_hollow(tmp_path / "any name.safetensors", hollow.FULL_SIZE_LAYOUTS[layout](weights))
    assert_is(name, path, assert_found(path, "transformer", weights))


# Those first that are least alike: another width, an embedding more, the most channels.
UNLIKE = ("CogVideoX-2b", "CogVideoX1.5-5B-I2V", "VOID")
UNLIKE += tuple(name for name in hollow.OFFICIAL if name not in UNLIKE)

# 2b's width of 1920 is not a multiple of 256, the block size of the K types
GGUF_KINDS = ("Q4_0", "Q8_0", "Q6_K")
PACKED = [(name, kind) for name in hollow.OFFICIAL for kind in GGUF_KINDS if kind != "Q6_K" or "2b" not in name]


@pytest.mark.parametrize("name, kind", long_rows_after(12, [*PACKED[::3], *PACKED[1::3], *PACKED[2::3]]))
def test_transformer_in_gguf(tmp_path: Path, name: str, kind: str) -> None:
    """GGUF counts its shapes the other way round and in blocks."""
    weights = hollow.official_weights(name)
    path = hollow.write_hollow_gguf(tmp_path / "any name.gguf", weights, kind)
    assert_is(name, path, assert_found(path, "transformer", weights))


@pytest.mark.parametrize("name", long_after(3, UNLIKE))
def test_transformer_in_a_torch_file(tmp_path: Path, name: str) -> None:
    """SAT's .pt, with holes instead of its numbers."""
    weights = hollow.official_weights(name)
    named = layouts.prefixed("model.diffusion_model.", layouts.sat_names(weights))
    path = hollow.write_hollow_sat(tmp_path / "mp_rank_00_model_states.pt", named)
    assert_is(name, path, assert_found(path, "transformer", weights))


@pytest.mark.parametrize("name", long_after(3, UNLIKE))
def test_one_file_with_everything(tmp_path: Path, name: str) -> None:
    """Transformer, VAE and T5 as ComfyUI's Save Checkpoint names them."""
    parts = {
        "transformer": ("model.diffusion_model.", hollow.official_weights(name)),
        "vae": ("first_stage_model.", hollow.official_vae()),
        "text_encoder": ("cond_stage_model.t5xxl.transformer.", hollow.official_t5()),
    }
    everything = {}
    for prefix, weights in parts.values():
        everything |= layouts.prefixed(prefix, weights)
    path = hollow.write_hollow(tmp_path / "any name.safetensors", everything)
    for component, (_, weights) in parts.items():
        found = assert_found(path, component, weights)
        if component == "transformer":
            assert_is(name, path, found)


VAE = {"diffusers": lambda w: w, "SAT": layouts.sat_vae_names, "prefixed": lambda w: layouts.prefixed("vae.", w)}


@pytest.mark.parametrize("layout", VAE)
def test_vae(tmp_path: Path, layout: str) -> None:
    weights = hollow.official_vae()
    path = hollow.write_hollow(tmp_path / "a.safetensors", VAE[layout](weights))
    assert_found(path, "vae", weights)
    check_component(path, "vae")


T5 = ("HF", "prefixed", "scaled fp8", "Q8_0", "Q5_K")


@pytest.mark.parametrize("kind", T5)
def test_text_encoder(tmp_path: Path, kind: str) -> None:
    weights = hollow.official_t5()
    names = {
        "HF": lambda w: w,
        "prefixed": lambda w: layouts.prefixed("text_encoders.t5xxl.transformer.", w),
        "scaled fp8": lambda w: hollow.quantized_names(w, torch.float8_e4m3fn, "scale_weight"),
    }
    if kind in names:
        path = hollow.write_hollow(tmp_path / "a.safetensors", names[kind](weights))
    else:
        path = hollow.write_hollow_gguf(tmp_path / "a.gguf", layouts.gguf_t5_names(weights), kind)
    found = assert_found(path, "text_encoder", weights)
    config = {"d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "vocab_size": 32128}
    check_text_encoder(path)
    assert t5_shapes(config) == {name: entry.shape for name, entry in found.items()}


# 3.4 GB and 11 GB, whose values are looked at once.
@pytest.mark.parametrize("name", long_after(1, ("CogVideoX-2b", "CogVideoX1.5-5B-I2V")))
def test_a_whole_model_is_mapped_not_read(tmp_path: Path, name: str) -> None:
    """In the type that they are loaded in, not one byte of the weights may be copied on the way to the MODEL."""
    weights = hollow.official_weights(name)
    path = hollow.write_hollow(tmp_path / "a.safetensors", weights)
    before = psutil.Process().memory_info().rss
    model = load_model(path, "bf16")
    assert psutil.Process().memory_info().rss - before < 300e6
    assert model.model_size() == pytest.approx(sum(weight.numel() * 2 for weight in weights.values()), rel=1e-5)
    assert model.model.model_config.family.name == name
