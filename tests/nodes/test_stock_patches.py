"""ComfyUI's own nodes between the loader and the sampler: the table of docs/stock_nodes.md against what they do."""

import asyncio
import importlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.cpu_products import onednn_is_faster
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.support import relative_error, write_fp32_transformer
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures
from cogvideox.tests.tiers import long_after

pytestmark = pytest.mark.usefixtures("inference")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "stock_nodes.md"
ROW = re.compile(r"^\| ([\w ]+?) \| (acts|as before|no effect|refused) \| (.*?) ?\|$", re.M)
TABLE = {name: (result, note) for name, result, note in ROW.findall(PAGE.read_text("utf-8"))}
# Loaders of weights, which take no MODEL, and what only stores one.
FRAMES, STEPS = 9, 3
# Inputs where the default would leave this short run or tiny model (2 blocks) as it is.
INPUTS: dict[str, dict[str, Any]] = {
    "CFGNorm": {"strength": 0.5},
    "CFGOverride": {"cfg": 2.0},
    "ChromaRadianceOptions": {"nerf_tile_size": 16, "start_sigma": 1e9, "end_sigma": 0.0},
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 1, "dim": 2},
    "FreSca": {"freq_cutoff": 1},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 8},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0},
    "ModelMergeSubtract": {"multiplier": 0.5},
    "ModelNoiseScale": {"noise_scale": 2.0},
    "MultiGPU_WorkUnits": {"max_gpus": 1},
    "ScaleROPE": {"scale_x": 2.0},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "1"},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "TemporalScoreRescaling": {"tsr_k": 0.5},
    # It is traced and not compiled; test_compiled_patches has what inductor does besides, at twice the time.
    "TorchCompileModel": {"backend": "eager"},
    "UNetCrossAttentionMultiply": {"q": 2.0},
    "UNetSelfAttentionMultiply": {"v": 2.0},
    "UNetTemporalAttentionMultiply": {"self_structural": 2.0},
    "WanContextWindowsManual": {"context_length": 5, "context_overlap": 4},
    "Epsilon Scaling": {"scaling_factor": 1.1},
    "ModelComputeDtype": {"dtype": "bf16"},
}
# Nodes that need a file of another model: the patches that they store, (kind, module, class).
FOREIGN = {
    "AnimaLLLiteApply": [("post_input", "comfy.ldm.anima.lllite", "AnimaLLLitePatch")],
    "QwenImageDiffsynthControlnet": [("double_block", "comfy_extras.nodes_model_patch", "DiffSynthCnetPatch")],
    "SUPIRApply": [("output_block_patch", "comfy.ldm.supir.supir_patch", "SUPIRPatch")],
    "USOStyleReference": [("post_input", "comfy_extras.nodes_model_patch", "UsoStyleProjectorPatch")],
    "WanInfiniteTalkToVideo": [("attn2_patch", "comfy.ldm.wan.model_multitalk", "MultiTalkCrossAttnPatch")],
    "WanUni3CControlnetApply": [("double_block", "comfy_extras.nodes_model_patch", "WanUni3CCnetPatch")],
    "ZImageFunControlnet": [
        ("noise_refiner", "comfy_extras.nodes_model_patch", "ZImageControlPatch"),
        ("double_block", "comfy_extras.nodes_model_patch", "ZImageControlPatch"),
    ],
}


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    """Every node of ComfyUI by its id, those in comfy_extras included."""
    found = comfyui_nodes()
    asyncio.run(found.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return dict(found.NODE_CLASS_MAPPINGS)


@pytest.fixture(scope="module")
def run(tiny_pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> "Run":
    with torch.inference_mode():
        return Run(tiny_pipelines["5b"], tmp_path_factory.mktemp("second"))


class Run:
    """One tiny model, and what a short run of the stock KSampler makes of it."""

    def __init__(self, folder: Path, second: Path):
        self.task = Task(folder)
        self.second = load_model(write_fp32_transformer(second, "5b", seed=1), "fp32")
        size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "batch_size": 1}
        self.latent = self.task.node("latent", "CogVideoXEmptyLatent", **size)[0]
        self.plain, self.plain_calls = self(self.task.model)

    def __call__(
        self, model: Any, masked: bool = False, counted: bool = True, cfg: float = 6.0
    ) -> tuple[torch.Tensor, int]:
        """(latents, how many times the transformer was called). counted: else 0, for torch.compile would compile again
        for each number of calls."""
        calls, latent = [], self.latent
        if masked:
            mask = torch.linspace(0, 1, WIDTH // 8).expand(1, 1, FRAMES // 4 + 1, HEIGHT // 8, -1)
            latent = {**latent, "noise_mask": mask}
        network = model.model.diffusion_model
        handle = network.proj_out.register_forward_hook(lambda *_: calls.append(1)) if counted else None
        try:
            out = (
                comfyui_nodes()
                .KSampler()
                .sample(model, 3, STEPS, cfg, "euler", "simple", self.task.positive, self.task.negative, latent)
            )
        finally:
            if handle is not None:
                handle.remove()
        return out[0]["samples"], len(calls)


def call(node: Any, inputs: dict[str, Any]) -> Any:
    """What a node returns first."""
    if hasattr(node, "GET_SCHEMA"):
        out = node.execute(**inputs)
        return getattr(out, "args", out)[0]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def inputs_of(name: str, node: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Defaults, what INPUTS has for this node, and sockets."""
    size = {"width": WIDTH, "height": HEIGHT}
    sockets: dict[str, Any] = {
        "MODEL": run.task.model,
        "LATENT": run.latent,
        "CONDITIONING": run.task.positive,
        "CLIP": None,
        "VAE": run.task.vae,
        "IMAGE": pictures(1),
        "LATENT_OPERATION": lambda latent, **_: latent * 0.9,
        "LORA_MODEL": lora_weights(),
        "AUDIO": {"sample_rate": 44100, "waveform": torch.zeros(1, 2, 64)},
    }
    given = {}
    types = node.INPUT_TYPES()
    for key, entry in {**types.get("required", {}), **types.get("optional", {})}.items():
        options = entry[1] if len(entry) > 1 else {}
        if isinstance(entry[0], str) and entry[0] in sockets:
            given[key] = sockets[entry[0]]
        elif "default" in options:
            given[key] = options["default"]
        elif isinstance(entry[0], list) or "options" in options:
            choices = entry[0] if isinstance(entry[0], list) else options["options"]
            given[key] = choices[0] if choices else "file"
    if name.startswith("ModelMerge"):
        given |= {key: 0.5 for key, value in given.items() if isinstance(value, float)}
        given |= {"model2": run.second}
    if name == "LTXVReferenceAudio":
        given["audio_vae"] = SimpleNamespace(audio_sample_rate=44100, encode=lambda wave: torch.zeros(1, 8, 4, 16))
    if name == "ARVideoI2V":
        given |= size
    files = {"lora_name": lora_weights(), "hypernetwork_name": hypernetwork()}
    path = tmp_path / "file.pt"
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *_: str(path))
    for key in files.keys() & given.keys():
        torch.save(files[key], path)
        given[key] = "file.pt"
    return given | {key: value for key, value in INPUTS.get(name, {}).items() if key in given}


def lora_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    key = "diffusion_model.transformer_blocks.0.attn1.to_q"
    return {
        f"{key}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"{key}.lora_B.weight": torch.randn(64, 4, generator=generator),
    }


def hypernetwork() -> dict[int, list]:
    """For layers of 64 channels, the tiny model's width: on a U-Net of this width it would have an effect."""
    layer = {"linear.0.weight": torch.randn(64, 64), "linear.0.bias": torch.zeros(64)}
    return {64: [layer, layer]}


def patched(name: str, run: Run, stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model behind the node `name`."""
    if name not in FOREIGN:
        return call(stock[name], inputs_of(name, stock[name], run, tmp_path, monkeypatch))
    model = run.task.model.clone()
    for kind, module, class_name in FOREIGN[name]:
        patch = object.__new__(getattr(importlib.import_module(module), class_name))
        model.set_model_patch(getattr(patch, "output_block", patch), kind)
    return model


def test_every_node_is_in_the_table(stock: dict[str, Any]) -> None:
    """Whoever looks a node up in the table finds it. (Older versions of ComfyUI have fewer nodes.)"""
    found = set()
    for name, node in stock.items():
        types = node.INPUT_TYPES()
        entries = {**types.get("required", {}), **types.get("optional", {})}.values()
        if "MODEL" in node.RETURN_TYPES and any(entry[0] == "MODEL" for entry in entries):
            found.add(name)
    module = importlib.import_module("comfyui_version")
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    assert found <= TABLE.keys() if version <= (0, 30) else found
    assert version != (0, 30) or found == TABLE.keys()


@pytest.mark.parametrize("name", sorted(TABLE))
def test_table_is_true(
    name: str,
    run: Run,
    stock: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A node that the table says to act acts; one without effect costs nothing and is named; one that is refused is
    refused in a sentence before the transformer is called."""
    if name not in stock:
        pytest.skip("this version of ComfyUI has no such node")
    result, _ = TABLE[name]
    masked = name == "DifferentialDiffusion"
    if result == "refused":
        calls: list[int] = []
        handle = run.task.model.model.diffusion_model.proj_out.register_forward_hook(lambda *_: calls.append(1))
        # It asks the model for what only its own has, and ComfyUI's own error says so.
        expected = AttributeError if name == "TripoSplatSamplingPreview" else UserError
        with pytest.raises(expected) as error:
            run(patched(name, run, stock, tmp_path, monkeypatch))
        handle.remove()
        assert not calls and re.search(r"CogVideoX.*\. Remove|q_token_length", str(error.value))
        return
    with caplog.at_level(logging.WARNING):
        got, count = run(patched(name, run, stock, tmp_path, monkeypatch), masked, counted=name != "TorchCompileModel")
    said = [record.message for record in caplog.records if "no effect on CogVideoX" in record.message]
    want, want_count = run(run.task.model, masked) if masked else (run.plain, run.plain_calls)
    assert got.isfinite().all()
    if result == "acts":
        assert relative_error(got, want) > 1e-5 and not said
    else:
        assert relative_error(got, want) <= (2e-5 if name == "TorchCompileModel" else 0)
        assert count == want_count or name == "TorchCompileModel"
        assert len(said) == (result == "no effect")
        assert all(name.replace("HypernetworkLoader", "nodes_hypernetwork") in text for text in said)


def test_the_model_is_as_before(run: Run) -> None:
    """After all of these nodes the loader's MODEL still gives the same video."""
    got, count = run(run.task.model)
    assert torch.equal(got, run.plain) and count == run.plain_calls


def with_patch(run: Run, kind: str, patch: Callable) -> Any:
    model = run.task.model.clone()
    model.set_model_patch(patch, kind)
    return model


def test_several_nodes_in_one_sentence(
    run: Run, stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One text on the node for all that has no effect; a node that acts is not among them."""
    model = run.task.model
    for name in ("TomePatchModel", "NAGuidance", "PatchModelAddDownscale"):
        inputs = inputs_of(name, stock[name], run, tmp_path, monkeypatch) | {"model": model}
        model = call(stock[name], inputs)
    with caplog.at_level(logging.WARNING):
        run(model)
    (said,) = [record.message for record in caplog.records if "no effect on CogVideoX" in record.message]
    assert said.startswith("TomePatchModel (attn1_patch") and "NAGuidance" not in said
    assert "PatchModelAddDownscale (input_block_patch_after_skip, output_block_patch) have no effect" in said


SCHEDULES: dict[str, dict[str, Any]] = {
    "ModelSamplingDiscrete": {"zsnr": True},
    "ModelSamplingContinuousEDM": {"sigma_max": 120.0, "sigma_min": 0.002},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_of_another_model_is_told(
    name: str, run: Run, stock: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With v_prediction these nodes run, and the user hears what it costs; with every other choice the prediction would
    be taken for something else, and the run is refused."""
    for choice in stock[name].INPUT_TYPES()["required"]["sampling"][0]:
        caplog.clear()
        model = call(stock[name], {"model": run.task.model, "sampling": choice, **SCHEDULES[name]})
        if choice != "v_prediction":
            with pytest.raises(UserError, match="replaced how the model is sampled.*predicts v.*Remove"):
                run(model)
            continue
        with caplog.at_level(logging.WARNING):
            got, _ = run(model)
        assert got.isfinite().all() and "replaced the model's noise schedule" in caplog.text


def test_video_guidance_of_batches_is_told(run: Run, stock: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Guidance that counts the members of a batch as frames: the user hears that all frames get min_cfg."""
    for name in ("VideoLinearCFGGuidance", "VideoTriangleCFGGuidance"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            got, _ = run(call(stock[name], {"model": run.task.model, "min_cfg": 2.0}))
        want = (
            comfyui_nodes()
            .KSampler()
            .sample(run.task.model, 3, STEPS, 2.0, "euler", "simple", run.task.positive, run.task.negative, run.latent)[
                0
            ]["samples"]
        )
        # ComfyUI hands such a function x - x0 in place of x0: at a sigma of 4500 fp32 loses four digits.
        assert (
            relative_error(got, want) < 1e-3 < relative_error(got, run.plain)
            and f"{name} spreads the guidance" in caplog.text
        )


@pytest.mark.parametrize("name", long_after(1, ["PerturbedAttentionGuidance", "SkipLayerGuidanceDiT"]))
def test_compiled_patches(
    name: str, run: Run, stock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TorchCompileModel, a patch that is there in some calls only, as that of perturbed attention, still acts:
    whatever is in `transformer_options` ComfyUI's node takes for the same in every call."""
    torch.compiler.reset()  # after 8 graphs of a function torch would leave it as it is
    # Without a negative prompt the calls differ in nothing else: torch takes a batch of another size for another call.
    plain, _ = run(run.task.model, cfg=1.0)
    want, _ = run(patched(name, run, stock, tmp_path, monkeypatch), cfg=1.0)
    compiled = call(stock["TorchCompileModel"], {"model": run.task.model, "backend": "eager"})
    inputs = inputs_of(name, stock[name], run, tmp_path, monkeypatch) | {"model": compiled}
    got, _ = run(call(stock[name], inputs), counted=False, cfg=1.0)
    # Where a CPU's products are oneDNN's, those of a compiled model are torch's all the same.
    most = 1e-5 if onednn_is_faster() else 1e-6
    assert relative_error(got, want) < most < relative_error(got, plain)
