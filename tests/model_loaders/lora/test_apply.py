"""LoRAs of every trainer on the model: exactly the weights that they stand for."""

import inspect
from pathlib import Path

import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.devtools.embedded_checkpoint import build_transformer
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.model_loaders.lora import names
from cogvideox.model_loaders.lora.layers import SCALES
from cogvideox.tests.lora_files import (
    ALPHA,
    ALPHAS,
    ATTENTION,
    DIALECTS,
    LINEAR,
    RANK,
    Factors,
    Files,
    Subject,
    adapter_header,
    assert_weights,
    fused,
    in_diffusers,
    patched_weights,
    random_factors,
    save,
    write_dialect,
)
from cogvideox.tests.support import ALL_VARIANTS, check_parity, host_lacks, reference_transformer

AS_TRAINED, BY_RANK = SCALES
CASES = [
    (dialect, alpha)
    for dialect, (_, _, alpha_name) in DIALECTS.items()
    for alpha in ALPHAS
    if alpha != "tensor" or alpha_name
]
# older hosts read the file's header and keep it to themselves
HEADER_REACHES_STOCK = "lora_metadata" in inspect.signature(comfy.sd.load_lora_for_models).parameters
# what diffusers 0.42 loads of these; the other dialects it ignores without a word, or refuses
DIFFUSERS_LOADS = (
    ("diffusers", "none"),
    ("diffusers", "header"),
    ("old diffusers", "none"),
    ("old diffusers' processors", "none"),
)


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


def apply(model: ModelPatcher, path: Path, strength: float = 1.0, scale: str = AS_TRAINED) -> ModelPatcher:
    return lora.apply_lora(model, path, strength, scale)[0]


@pytest.mark.parametrize(("dialect", "alpha"), CASES)
def test_every_dialect_gives_the_weights_it_stands_for(
    subject: Subject, tmp_path: Path, dialect: str, alpha: str
) -> None:
    """A key that is not understood leaves a layer as it was, a wrong alpha makes the effect weak or a mess."""
    factors = subject.factors(DIALECTS[dialect][1])
    files, header, scale = write_dialect(dialect, factors, alpha)
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files, header), 0.8)
    assert_weights(patched, fused(subject.weights, factors, 0.8 * scale))
    assert (report.matched, report.total, report.scales) == (len(files), len(files), (scale,))
    assert_weights(subject.model, subject.weights)


@pytest.mark.parametrize(("dialect", "alpha"), CASES)
def test_stock_node_gives_the_same(subject: Subject, tmp_path: Path, dialect: str, alpha: str, monkeypatch) -> None:
    """Most workflows have ComfyUI's own Load LoRA; it must not do less than our node."""
    import folder_paths

    nodes = comfyui_nodes()

    if "header" in alpha and not HEADER_REACHES_STOCK:
        pytest.skip(host_lacks("LoRA node that hands the file's header on"))
    factors = subject.factors(DIALECTS[dialect][1])
    files, header, scale = write_dialect(dialect, factors, alpha)
    save(tmp_path / "l.safetensors", files, header)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    patched = nodes.LoraLoaderModelOnly().load_lora_model_only(subject.model, "l.safetensors", 0.8)[0]
    assert patched is not None
    assert_weights(patched, fused(subject.weights, factors, 0.8 * scale))


@pytest.mark.parametrize(("dialect", "alpha"), DIFFUSERS_LOADS)
def test_weights_equal_diffusers(subject: Subject, tmp_path: Path, dialect: str, alpha: str) -> None:
    """The reference loads some dialects itself; the fused weights must be its own to the last bit."""
    factors = subject.factors(DIALECTS[dialect][1])
    files, header, _ = write_dialect(dialect, factors, alpha)
    path = save(tmp_path / "l.safetensors", files, header)
    theirs = in_diffusers(subject.folder, path, 0.7)
    assert_weights(apply(subject.model, path, 0.7), theirs)
    changed = patched_weights(apply(subject.model, path, 0.7))
    for name in ("transformer_blocks.0.attn1.to_q.weight", "transformer_blocks.1.attn1.to_out.0.weight"):
        check_parity("LoRA weights (exact)", changed[name], theirs[name], 0.0)


def test_rank_and_alpha_patterns(subject: Subject, tmp_path: Path) -> None:
    """diffusers' header may give each layer a rank and alpha of its own; "^" and endings of names both occur."""
    ranks = {"transformer_blocks.1.attn1.to_k": 2, "transformer_blocks.0.attn1.to_k": 2, "proj_out": 6}
    factors = subject.factors(LINEAR, ranks)
    config = {
        "r": RANK,
        "lora_alpha": 2,
        "rank_pattern": {"attn1.to_k": 2, "^proj_out": 6},
        "alpha_pattern": {"attn1.to_k": 5, "^proj_out": 3},
        "target_modules": list(LINEAR),
    }
    files, _, _ = write_dialect("diffusers", factors)
    path = save(tmp_path / "l.safetensors", files, adapter_header(config))
    scale = {layer: 2 / RANK for layer in LINEAR} | {"proj_out": 3 / 6}
    scale |= {layer: 5 / 2 for layer in LINEAR if layer.endswith("attn1.to_k")}
    patched, report = lora.apply_lora(subject.model, path, 1.0)
    assert_weights(patched, fused(subject.weights, factors, scale))
    assert_weights(patched, in_diffusers(subject.folder, path, 1.0))
    assert "rank 2 to 6, scale 0.5 to 2.5 (alpha of the header)" in report.message()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_patterns_of_a_wrapped_model(subject: Subject, tmp_path: Path, prefix: str) -> None:
    """The header's patterns name layers as the keys do; one that matched nothing gave a layer the others' alpha."""
    factors = subject.factors(ATTENTION)
    config = {"r": RANK, "lora_alpha": 2, "alpha_pattern": {f"{prefix}{ATTENTION[0]}": 6}}
    files, _, _ = write_dialect("without prefix", factors)
    wrapped = {f"transformer.{prefix}{key}": tensor for key, tensor in files.items()}
    path = save(tmp_path / "l.safetensors", wrapped, adapter_header(config))
    scale = dict.fromkeys(ATTENTION, 2 / RANK) | {ATTENTION[0]: 6 / RANK}
    assert_weights(apply(subject.model, path), fused(subject.weights, factors, scale))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_rank_stabilised_lora(subject: Subject, tmp_path: Path, prefix: str) -> None:
    """peft's rslora divides by the root of the rank; the header is the only place that says so."""
    factors = subject.factors(ATTENTION)
    header = adapter_header({"r": RANK, "lora_alpha": 3, "use_rslora": True}, prefix)
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0], header)
    assert_weights(apply(subject.model, path), fused(subject.weights, factors, 3 / RANK**0.5))


def test_tensors_go_before_the_header(subject: Subject, tmp_path: Path) -> None:
    """kohya writes alpha twice; the alpha tensor of a layer is the layer's own."""
    factors = subject.factors(ATTENTION)
    files, _, scale = write_dialect("kohya", factors, "tensor")
    del files["lora_unet_transformer_blocks_0_attn1_to_q.alpha"]
    path = save(tmp_path / "l.safetensors", files, {"ss_network_alpha": "1"})
    scales = dict.fromkeys(factors, scale) | {"transformer_blocks.0.attn1.to_q": 1 / RANK}
    assert_weights(apply(subject.model, path), fused(subject.weights, factors, scales))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_scale_of_dimensionx(subject: Subject, tmp_path: Path, alpha: str) -> None:
    """SAT's alpha of 1 is in no file: whoever chooses 1 / rank must get it, whatever the file says."""
    ranks = {ATTENTION[0]: 2}
    factors = subject.factors(ATTENTION, ranks)
    files, header, _ = write_dialect("diffusers", factors, alpha)
    path = save(tmp_path / "l.safetensors", files, header)
    scale = dict.fromkeys(ATTENTION, 1 / RANK) | {ATTENTION[0]: 1 / 2}
    assert_weights(apply(subject.model, path, scale=BY_RANK), fused(subject.weights, factors, scale))


def test_the_file_s_name_changes_nothing(subject: Subject, tmp_path: Path) -> None:
    """A pack that looks for "orbit" in the name applies a renamed file with another strength."""
    factors = subject.factors(ATTENTION)
    for name in ("orbit_left.safetensors", "dimensionx.safetensors", "2b.safetensors"):
        path = save(tmp_path / name, write_dialect("diffusers", factors)[0])
        assert_weights(apply(subject.model, path), fused(subject.weights, factors, 1.0))


def test_raw_sat_without_alpha_says_so(subject: Subject, tmp_path: Path) -> None:
    """Raw SAT files are trained with 1 / rank; the node must point at the setting."""
    factors = subject.factors(ATTENTION)
    files, _, _ = write_dialect("raw SAT", factors)
    base = {"subject.model.diffusion_model.transformer.layers.0.attention.dense.bias": torch.zeros(64)}
    _, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files | base), 1.0)
    assert "SAT trains with alpha 1" in report.message()
    assert report.skipped == {"of the checkpoint itself, which SAT saves in the same file": list(base)}


def test_sat_training_state(subject: Subject, tmp_path: Path) -> None:
    """SAT's trainer leaves mp_rank_00_model_states.pt, with the LoRA under "module"."""
    factors = subject.factors(ATTENTION)
    path = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": write_dialect("raw SAT", factors)[0], "iteration": 1000}, path)
    assert_weights(apply(subject.model, path), fused(subject.weights, factors, 1.0))


@pytest.mark.parametrize("strength", [-1.0, 0.3, 2.5])
def test_strength(subject: Subject, tmp_path: Path, strength: float) -> None:
    """A negative strength is how users turn an effect round."""
    factors = subject.factors(LINEAR)
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0])
    assert_weights(apply(subject.model, path, strength), fused(subject.weights, factors, strength))


def test_stacked_loras_add_up(subject: Subject, tmp_path: Path) -> None:
    """Style and camera motion together: one must not take the other's place."""
    first, second = (subject.factors(LINEAR, seed=seed) for seed in (1, 2))
    files, header, scale = write_dialect("diffusers", first, "header")
    patched = apply(subject.model, save(tmp_path / "a.safetensors", files, header), 0.6)
    files, header, _ = write_dialect("Fun", second, "none")
    patched = apply(patched, save(tmp_path / "b.safetensors", files, header), -0.4)
    assert_weights(patched, fused(fused(subject.weights, first, 0.6 * scale), second, -0.4))


def test_convolution(subject: Subject, tmp_path: Path) -> None:
    """Some trainers change the patch embedding too, a convolution in CogVideoX 1.0."""
    factors = subject.factors((*ATTENTION, "patch_embed.proj"))
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0])
    assert_weights(apply(subject.model, path), fused(subject.weights, factors, 1.0))


def test_bias_of_a_lora(subject: Subject, tmp_path: Path) -> None:
    """peft's lora_bias adds a bias to B, scaled like the rest."""
    factors = subject.factors(ATTENTION)
    files, header, scale = write_dialect("diffusers", factors, "header")
    bias = torch.linspace(-1, 1, 64)
    files["transformer.transformer_blocks.0.attn1.to_q.lora_B.bias"] = bias
    expected = fused(subject.weights, factors, scale)
    expected["transformer_blocks.0.attn1.to_q.bias"] += scale * bias
    assert_weights(apply(subject.model, save(tmp_path / "l.safetensors", files, header)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_half_precision_files(subject: Subject, tmp_path: Path, dtype: torch.dtype) -> None:
    """Most LoRAs are stored in 16 bits; the product is formed in fp32."""
    stored = {layer: (a.to(dtype), b.to(dtype)) for layer, (a, b) in subject.factors(LINEAR).items()}
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", stored)[0])
    exact = {layer: (a.float(), b.float()) for layer, (a, b) in stored.items()}
    assert_weights(apply(subject.model, path), fused(subject.weights, exact, 1.0))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_loha_and_lokr(subject: Subject, tmp_path: Path, alpha: float | None) -> None:
    """LyCORIS' other kinds go through ComfyUI's own adapters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    hada = {"w1_a": draw(64, 3), "w1_b": draw(3, 64), "w2_a": draw(64, 3), "w2_b": draw(3, 64)}
    whole, a, b = draw(8, 4), draw(32, 2), draw(2, 16)
    query, feed = "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.0.proj"
    files = {f"lycoris_{query.replace('.', '_')}.hada_{name}": tensor for name, tensor in hada.items()}
    stem = f"lycoris_{feed.replace('.', '_')}.lokr_"
    files |= {stem + "w1": whole, stem + "w2_a": a, stem + "w2_b": b}
    if alpha is not None:
        files |= {key.split(".")[0] + ".alpha": torch.tensor(alpha) for key in list(files)}
    expected = {name: weight.clone() for name, weight in subject.weights.items()}
    scales = (1.0, 1.0) if alpha is None else (alpha / 3, alpha / 2)
    expected[query + ".weight"] += 0.8 * scales[0] * ((hada["w1_a"] @ hada["w1_b"]) * (hada["w2_a"] @ hada["w2_b"]))
    expected[feed + ".weight"] += 0.8 * scales[1] * torch.kron(whole, a @ b)
    patched, report = lora.apply_lora(subject.model, save(tmp_path / "l.safetensors", files), 0.8)
    assert_weights(patched, expected)
    assert set(report.kinds) == {"LoHa", "LoKr"}


def dora_files(factors: Factors, shapes: dict) -> tuple[Files, Files]:
    generator = torch.Generator().manual_seed(5)
    lengths = {layer: 1 + torch.rand(shapes[layer][0], generator=generator) for layer in factors}
    files, _, _ = write_dialect("diffusers", factors)
    return files | {f"transformer.{layer}.lora_magnitude_vector": m for layer, m in lengths.items()}, lengths


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dora_of_peft(subject: Subject, tmp_path: Path, strength: float, stock: bool) -> None:
    """ComfyUI's own DoRA divides by another length than peft; the LoRA would be off in every layer."""
    if stock and not HEADER_REACHES_STOCK:
        pytest.skip(host_lacks("LoRA node that hands the file's header on"))
    factors = subject.factors(ATTENTION)
    files, lengths = dora_files(factors, subject.shapes)
    expected = fused(subject.weights, factors, 2.0)
    for layer, length in lengths.items():
        name = layer + ".weight"
        expected[name] *= (length / torch.linalg.norm(expected[name], dim=1))[:, None]
        if strength != 1.0:
            expected[name] = torch.lerp(subject.weights[name], expected[name], strength)
    header = adapter_header({"r": RANK, "lora_alpha": ALPHA})
    if stock:
        patched = comfy.sd.load_lora_for_models(subject.model, None, files, strength, 0, lora_metadata=header)[0]
        assert patched is not None
    else:
        patched = apply(subject.model, save(tmp_path / "l.safetensors", files, header), strength)
    assert_weights(patched, expected)


def test_dora_equals_diffusers(subject: Subject, tmp_path: Path) -> None:
    """The same against the reference itself."""
    files, _ = dora_files(subject.factors(ATTENTION), subject.shapes)
    path = save(tmp_path / "l.safetensors", files)
    assert_weights(apply(subject.model, path), in_diffusers(subject.folder, path, 1.0))


def test_hooks_and_bypass_understand_sat(subject: Subject) -> None:
    """Create Hook LoRA and the bypass loader go by ComfyUI's functions, not by its loader node."""
    import comfy.lora
    import comfy.lora_convert

    factors = subject.factors(ATTENTION)
    key_map = comfy.lora.model_lora_keys_unet(subject.model.model, {})
    files = comfy.lora_convert.convert_lora(write_dialect("raw SAT", factors)[0])
    patched = subject.model.clone()
    patched.add_patches(comfy.lora.load_lora(files, key_map), 0.5)
    assert_weights(patched, fused(subject.weights, factors, 0.5))


def test_every_name_stands_for_one_layer() -> None:
    """Two layers with one spelling would give one of them the other's LoRA."""
    for variant in ALL_VARIANTS:
        weights = build_transformer(variant, torch.Generator()).state_dict()
        layers = [name.removesuffix(".weight") for name in weights if name.endswith("weight")]
        spelled = [(name, layer) for layer in layers for name in set(names.layer_aliases(layer))]
        assert len({name for name, _ in spelled}) == len(spelled)
        assert names.SIGNATURE_KEY in {name for name, _ in spelled}


@pytest.mark.parametrize("variant", ["2b", "1.5-5B", "1.5-5B-I2V", "Fun-V1.5-5b-InP"])
def test_every_layer_of_every_variant(tiny_pipelines: dict[str, Path], tmp_path: Path, variant: str) -> None:
    """A LoRA on all linear layers must reach all of them, 1.5's linear patch embedding and ofs embedding too."""
    loaded = load_model(tiny_pipelines[variant], "fp32")
    weights = reference_transformer(tiny_pipelines[variant]).state_dict()
    shapes = {n.removesuffix(".weight"): tuple(w.shape) for n, w in weights.items() if n.endswith("weight")}
    layers = [layer for layer, shape in shapes.items() if len(shape) > 1]
    factors = random_factors(shapes, layers)
    for dialect in ("diffusers", "Fun", "ComfyUI, its own layers"):
        files, _, _ = write_dialect(dialect, factors)
        patched, report = lora.apply_lora(loaded, save(tmp_path / "l.safetensors", files), 0.5)
        assert report.layers == len(layers) and report.matched == report.total
        assert_weights(patched, fused(weights, factors, 0.5))
