"""Every entry of every config is checked before anything is built from it: a file of a few bytes must not take the
machine, and a value of another kind ends in one sentence."""

import inspect
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.model_loaders.checkpoints import require_pipeline
from cogvideox.model_loaders.config_limits import LIMITS, checked_config
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.tests.guard import bounded
from cogvideox.tests.hollow_files import OFFICIAL
from cogvideox.tests.support import ALL_VARIANTS
from cogvideox.transformer.control_net import ControlConfig

LOADERS: dict[str, Callable] = {
    "transformer": load_model,
    "vae": load_vae,
    "text_encoder": load_text_encoder,
    "controlnet": load_controlnet,
    "scheduler": load_model,
}
NO_NUMBERS = (float("nan"), float("inf"), -1, 1e99, "1", [], [1], {}, 2e9, 0.5)


@pytest.fixture(scope="module")
def pipeline(tiny_pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a control net in it. Everything that loading imports is imported."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path_factory.mktemp("configs") / "5b"))
    write_controlnet(folder / "controlnet", "5b")
    for component in LIMITS:
        LOADERS[component](folder)
    return folder


@pytest.fixture
def change(pipeline: Path) -> Any:
    """change(component, **entries) changes its config; it is put back afterwards."""
    kept: dict[Path, str] = {}

    def change(component: str, **entries: object) -> None:
        path = pipeline / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
        kept.setdefault(path, path.read_text())
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    yield change
    for path, text in kept.items():
        path.write_text(text)


@pytest.mark.parametrize(
    ("component", "entries"),
    [
        ("vae", {"layers_per_block": 10**9}),
        ("vae", {"down_block_types": ["CogVideoXDownBlock3D"] * 200_000}),
        ("vae", {"up_block_types": ["CogVideoXUpBlock3D"] * 200_000, "block_out_channels": [8] * 200_000}),
        ("vae", {"block_out_channels": [10**9] * 4}),
        ("vae", {"norm_num_groups": 3}),
        ("vae", {"down_block_types": ["DownEncoderBlock2D"] * 4}),
        ("vae", {"act_fn": "x" * 10**6}),
        ("transformer", {"num_attention_heads": [0]}),
        ("transformer", {"num_attention_heads": [0] * 10**5, "attention_head_dim": 10**5}),
        ("transformer", {"num_attention_heads": 2 * 10**9}),
        ("transformer", {"attention_head_dim": 2 * 10**9}),
        ("transformer", {"num_attention_heads": 64, "attention_head_dim": 1}),
        ("transformer", {"sample_width": 10**9}),
        ("transformer", {"temporal_compression_ratio": 0}),
        ("transformer", {"freq_shift": 32}),
        ("controlnet", {"num_attention_heads": [0]}),
        ("controlnet", {"downscale_coef": 10**9}),
        ("controlnet", {"sample_frames": "many"}),
        ("scheduler", {"snr_shift_scale": 0}),
    ],
    ids=str,
)
def test_what_would_take_the_machine(pipeline: Path, change: Callable, component: str, entries: dict) -> None:
    change(component, **entries)
    with bounded(), pytest.raises(UserError) as caught:
        LOADERS[component](pipeline)
    message = str(caught.value)
    assert "ownload" in message and len(message) < 700
    assert any(name in message for name in entries) or entries == {"norm_num_groups": 3}


@pytest.mark.parametrize(
    ("component", "name"), [(component, name) for component, limits in LIMITS.items() for name in limits]
)
def test_values_of_another_kind(component: str, name: str) -> None:
    """One sentence that names the file, the entry, the value and what is expected, for each entry that is read."""
    limit = LIMITS[component][name]
    values = [value for value in (*NO_NUMBERS, True, None, 0, "x" * 10**6) if not limit.holds(value)]
    assert len(values) >= 10, "a number has to be neither NaN nor text, a word no number"
    for value in values:
        with pytest.raises(UserError, match=f"a/config.json has .* as {name}; .* is expected") as caught:
            checked_config(component, {name: value}, "a/config.json")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("component", LIMITS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, True, "1", [1.0]], ids=str)
def test_each_loader_asks_the_table(pipeline: Path, change: Callable, component: str, value: object) -> None:
    """The factors of a run, which come from the configs of other components than the one that is loaded."""
    name = {
        "vae": "scaling_factor",
        "scheduler": "snr_shift_scale",
        "transformer": "temporal_compression_ratio",
        "text_encoder": "max_text_seq_length",
        "controlnet": "patch_size",
    }[component]
    change("transformer" if component == "text_encoder" else component, **{name: value})
    if component == "text_encoder" and value is True:
        value = 1.5
    loaders = {load_model, LOADERS[component]} if component != "controlnet" else {load_controlnet}
    for load in loaders:
        with bounded(), pytest.raises(UserError, match=f"config.json has .* as {name}; .* is expected"):
            load(pipeline)


def test_a_flag_is_no_text(pipeline: Path, change: Callable) -> None:
    """ "false" in quotes counts as true in Python: the start image would be scaled the other way round."""
    change("vae", invert_scale_latents="false")
    with pytest.raises(UserError, match="has false as invert_scale_latents; true or false is expected"):
        load_model(pipeline)


@pytest.mark.parametrize("config", [[], None, "x", {"scaling_factor": float("nan")}], ids=str)
def test_configs_in_a_header(pipeline: Path, tmp_path: Path, config: object) -> None:
    """A saved file carries the configs in its header, where they are as untrusted as in a file of their own."""
    weights = LOADERS["vae"](pipeline).first_stage_model.state_dict()
    path = tmp_path / "vae.safetensors"
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, path, {"config": json.dumps({"vae": config})}
    )
    with bounded(), pytest.raises(UserError, match="the config of vae in its header"):
        load_vae(path)


@pytest.mark.parametrize("component", ["transformer", "controlnet", "text_encoder"])
def test_false_blocks(pipeline: Path, tmp_path: Path, component: str) -> None:
    """5,000 names of blocks in a file of a few hundred kB took 36 seconds to build."""
    stem = "encoder.block" if component == "text_encoder" else "transformer_blocks"
    folder = Path(shutil.copytree(pipeline / component, tmp_path / component))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 128}))
    save_file({f"{stem}.{i}.x": torch.zeros(1) for i in range(1000, 6000)}, folder / "blocks.safetensors")
    found = sorted(folder.glob("*.safetensors"))
    for old in folder.glob("*index.json"):
        old.unlink()
    for number, path in enumerate(found, 1):
        path.rename(folder / f"m-{number:05d}-of-{len(found):05d}.safetensors")
    with (
        bounded(),
        pytest.raises(UserError, match=r"has 500\d as num_layers; a whole number from 1 to 128 is expected"),
    ):
        LOADERS[component](folder)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("transformer", "patch_embed.text_proj.weight"),
        ("transformer", "patch_embed.proj.weight"),
        ("transformer", "proj_out.weight"),
        ("transformer", "time_embedding.linear_1.weight"),
        ("controlnet", "patch_embed.text_proj.weight"),
        ("controlnet", "controlnet_encode_first.0.weight"),
        ("text_encoder", "shared.weight"),
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("text_encoder", "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2), (0, 2_000_000_000), (2_000_000_000, 0)], ids=str)
def test_shapes_that_describe_nothing(
    pipeline: Path, tmp_path: Path, component: str, name: str, shape: tuple[int, ...]
) -> None:
    """The tensors from which a model is recognised may have any shape, and one without values any size."""
    folder = Path(shutil.copytree(pipeline / component, tmp_path / component))
    weights = {}
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        weights |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    name = "encoder.embed_tokens.weight" if name == "shared.weight" and name not in weights else name
    assert name in weights
    save_file(weights | {name: torch.zeros(shape)}, folder / "a.safetensors")
    with bounded(), pytest.raises(UserError):
        LOADERS[component](folder)


def test_the_log_repeats_no_file(pipeline: Path, change: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """A scheduler's beta_start of a megabyte stood in the log, and in each message about it."""
    long = "x" * 10**6
    change("scheduler", beta_start=long, beta_end=[0.5] * 10**5)
    change("vae", note_of_a_fine_tune=long)
    change("transformer", note_of_a_fine_tune=long)
    with caplog.at_level(logging.INFO):
        load_model(pipeline), load_vae(pipeline)
    assert "beta_start xxx" in caplog.text and max(map(len, caplog.messages)) < 700
    change("scheduler", prediction_type=long)
    with pytest.raises(UserError, match="prediction_type xxx") as caught:
        load_model(pipeline)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", [["x"] * 10**5, "CogVideo" * 10**5], ids=["list", "text"])
def test_classes_of_any_length(tmp_path: Path, name: object) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match="not a CogVideoX pipeline") as caught:
        require_pipeline(tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_good_configs_are_within_the_limits(tiny_pipelines: Mapping[str, Path], variant: str) -> None:
    """The table must refuse no family; the official sizes are in test_official_configs."""
    for component in ("transformer", "vae", "scheduler"):
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        config = json.loads((tiny_pipelines[variant] / component / name).read_text())
        assert checked_config(component, config, "here") == config


def test_official_configs() -> None:
    """diffusers' defaults are 2b's config; the others differ from it as the model pages say."""
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

    def defaults(of: type) -> dict[str, Any]:
        parameters = inspect.signature(of.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    sizes = {"num_layers": 42, "num_attention_heads": 48, "sample_width": 300, "sample_height": 300}
    for entries in OFFICIAL.values():
        checked_config("transformer", defaults(CogVideoXTransformer3DModel) | sizes | entries, "here")
    assert LIMITS["transformer"].keys() == defaults(CogVideoXTransformer3DModel).keys()
    checked_config("vae", defaults(AutoencoderKLCogVideoX), "here")
    assert LIMITS["vae"].keys() == defaults(AutoencoderKLCogVideoX).keys()
    checked_config("scheduler", defaults(CogVideoXDDIMScheduler) | {"snr_shift_scale": 3.0}, "here")
    own = {field.name: field.default for field in fields(ControlConfig)}
    assert checked_config("controlnet", own, "here").keys() == LIMITS["controlnet"].keys()
