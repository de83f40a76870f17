"""Every value that a config may have is followed: ours against diffusers' classes on the same config and weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.devtools import embedded_checkpoint as embedded
from cogvideox.errors import UserError
from cogvideox.model_loaders.checkpoints import open_component
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.variants import transformer_shape
from cogvideox.sockets.control import check_model
from cogvideox.tests.controlnet_reference import ReferenceControl, reference_rotary
from cogvideox.tests.support import (
    VAE_TOLERANCE,
    check_parity,
    reference_transformer,
    write_fp32,
    write_fp32_transformer,
)
from cogvideox.tests.tasks import Task
from cogvideox.tests.tiers import long_after, long_rows_after

FEED_FORWARDS = ("gelu-approximate", "gelu", "geglu", "geglu-approximate", "swiglu", "linear-silu")
# variant -> (entry, another value than that of the official configs)
TRANSFORMERS: dict[str, list[tuple[str, Any]]] = {
    "5b": [
        ("num_attention_heads", 2),
        ("attention_head_dim", 32),
        ("num_layers", 3),
        ("time_embed_dim", 24),
        ("text_embed_dim", 24),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("attention_bias", False),
        ("patch_size", 1),
        ("patch_size", 4),
        ("patch_bias", False),
        ("sample_width", 20),
        ("sample_height", 20),
        ("max_text_seq_length", 100),
        *(("activation_fn", name) for name in FEED_FORWARDS),
        *(("timestep_activation_fn", name) for name in ("silu", "swish", "mish", "gelu", "relu")),
        ("norm_elementwise_affine", False),
        ("norm_eps", 1e-2),
        ("dropout", 0.5),
    ],
    "2b": [
        ("patch_size", 1),
        ("patch_size", 4),
        ("spatial_interpolation_scale", 1.0),
        ("temporal_interpolation_scale", 2.0),
        ("sample_frames", 17),
    ],
    "5b-I2V": [("patch_size", 1), ("patch_size", 4), ("max_text_seq_length", 100)],
    "1.5-5B": [("patch_size", 1), ("patch_size", 4)],
    "1.5-5B-I2V": [("patch_size", 1)],
}
VAES: list[tuple[str, Any]] = [
    ("block_out_channels", (8, 16, 16, 24)),
    ("layers_per_block", 2),
    ("act_fn", "swish"),
    ("norm_eps", 1e-2),
    ("norm_num_groups", 4),
    ("sample_height", 480),
    ("sample_width", 48),
    ("scaling_factor", 2.0),
    ("shift_factor", 0.5),
    ("latents_mean", [0.5] * 16),
    ("latents_std", [2.0] * 16),
    ("force_upcast", False),
    ("invert_scale_latents", True),
]
CONTROL_NETS: list[tuple[str, Any]] = [
    ("num_attention_heads", 2),
    ("num_layers", 2),
    ("time_embed_dim", 24),
    ("attention_bias", False),
    ("patch_size", 1),
    ("patch_size", 4),
    ("max_text_seq_length", 100),
    ("sample_frames", 17),
    ("flip_sin_to_cos", False),
    ("freq_shift", 1),
    ("activation_fn", "geglu"),
    ("timestep_activation_fn", "mish"),
    ("norm_elementwise_affine", False),
    ("norm_eps", 1e-2),
]
# What is not followed is refused: component -> (entry, value, what is expected).
REFUSED: dict[str, list[tuple[str, Any, str]]] = {
    "vae": [
        ("act_fn", "gelu", "silu or swish"),
        ("temporal_compression_ratio", 8, "4"),
        ("latent_channels", 4, "16"),
        ("block_out_channels", [8, 8, 8], "a list of 4, each a whole number from 1 to 8192"),
        ("down_block_types", ["CogVideoXDownBlock3D"] * 3, "a list of 4, each CogVideoXDownBlock3D"),
        ("use_quant_conv", True, "false"),
        ("use_post_quant_conv", True, "false"),
    ],
    "transformer": [
        ("temporal_compression_ratio", 8, "4"),
        ("patch_size", 9, "a whole number from 1 to 8"),
        ("patch_size_t", 4, "2, or null"),
        ("activation_fn", "relu", "gelu-approximate or gelu"),
    ],
    "text_encoder": [
        ("feed_forward_proj", "gated-silu", "gated-gelu or"),
        ("dense_act_fn", "relu", "gelu_new or gelu_pytorch_tanh"),
        ("is_gated_act", False, "true"),
        ("layer_norm_epsilon", 1e-5, "1e-06"),
        ("relative_attention_num_buckets", 64, "32"),
        ("relative_attention_max_distance", 256, "128"),
    ],
}


@pytest.mark.parametrize(
    ("variant", "entry", "value"), [(variant, *case) for variant, cases in TRANSFORMERS.items() for case in cases]
)
@torch.inference_mode()
def test_transformer(variant: str, entry: str, value: Any, tmp_path: Path) -> None:
    """An entry that is read and not followed makes another model of the weights without a word."""
    folder = write_fp32_transformer(tmp_path / "pipeline", variant, seed=3, **{entry: value})
    theirs = reference_transformer(folder)
    ours = load_model(folder, "fp32").model.diffusion_model
    size = 4, 8, 12
    if variant == "5b-I2V":
        size = 3, 8, 12
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, theirs.config.in_channels, *size, generator=generator)
    context = torch.randn(2, theirs.config.max_text_seq_length, theirs.config.text_embed_dim, generator=generator)
    timestep, ofs = torch.tensor([999, 500]), torch.full((1,), 2.0) if theirs.config.ofs_embed_dim else None
    given = {"ofs": ofs, "image_rotary_emb": reference_rotary(theirs, size), "return_dict": False}
    want = theirs(latents.transpose(1, 2), context, timestep, **given)[0].transpose(1, 2)
    got = ours(latents, timestep, context=context, ofs=ofs)
    check_parity("transformer, other values in its config", got, want, 2e-6)


@pytest.mark.parametrize(
    ("variant", "patch_size"),
    long_rows_after(2, [("5b", 4), ("1.5-5B", 1), ("5b", 1), ("1.5-5B", 4), ("2b", 1), ("2b", 4)]),
)
@torch.inference_mode()
def test_a_run_with_other_patches(variant: str, patch_size: int, tmp_path: Path) -> None:
    """Not only the forward: the run's checks and sizes know patches as well."""
    task = Task(write_fp32(tmp_path, variant, seed=2, patch_size=patch_size))
    latent = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=9, batch_size=1)[0]
    got = task.sample(task.positive, task.negative, latent)
    want = task.reference("CogVideoXPipeline", "ddim", num_frames=9, num_inference_steps=6)
    check_parity("complete run, patches of 1 x 1 and 4 x 4", got, want[:, :, want.shape[2] - 3 :], 5e-6)


@pytest.mark.parametrize(("entry", "value"), VAES, ids=[name for name, _ in VAES])
@torch.inference_mode()
def test_vae(entry: str, value: Any, tmp_path: Path) -> None:
    """The same for decoding and encoding."""
    from diffusers import AutoencoderKLCogVideoX

    own = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 16}
    make: Any = AutoencoderKLCogVideoX  # diffusers annotates the four channel counts as one
    theirs: Any = embedded.randomize(make(**own | {entry: value}), torch.Generator().manual_seed(0), gain=1.5)
    theirs.save_pretrained(tmp_path)
    ours = load_vae(tmp_path, "fp32").first_stage_model
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 4, 6, generator=generator)
    check_parity("VAE, other values in its config", ours.decode(latents), theirs.decode(latents).sample, VAE_TOLERANCE)
    frames = torch.rand(1, 3, 9, 32, 48, generator=generator) * 2 - 1
    mode = theirs.encode(frames).latent_dist.mode()
    check_parity("VAE, other values in its config", ours.encode(frames), mode, VAE_TOLERANCE)


@pytest.mark.parametrize("variant", long_after(1, ("5b", "2b")))
@pytest.mark.parametrize(("entry", "value"), CONTROL_NETS, ids=str)
@torch.inference_mode()
def test_control_net(variant: str, entry: str, value: Any, tmp_path: Path) -> None:
    """The same for control nets."""
    folder = embedded.write_controlnet(tmp_path / "net", variant, dtype=torch.float32, **{entry: value})
    model = embedded.build_transformer(variant, torch.Generator(), **{entry: value})
    net = load_controlnet(folder, "fp32").patcher.model
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 8, 12, generator=generator)
    frames = torch.rand(1, 9, 3, 64, 96, generator=generator) * 2 - 1
    context, timestep = torch.randn(1, 226, 32, generator=generator), torch.tensor([500])
    if entry == "max_text_seq_length":
        context = context[:, :value]
    reference = ReferenceControl(folder)
    rotary = reference_rotary(model, (3, 8, 12))
    want = reference.outputs(latents.transpose(1, 2), context, frames, timestep, rotary)
    got = net(latents, net.encode_control(frames), timestep, context)
    for ours, theirs in zip(got, want, strict=True):
        check_parity("control net, other values in its config", ours, theirs, 2e-6)


@pytest.mark.parametrize(
    ("component", "entry", "value", "expected"), [(part, *case) for part, cases in REFUSED.items() for case in cases]
)
def test_what_is_not_followed_is_refused(
    component: str, entry: str, value: Any, expected: str, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """One sentence with the entry, the value and what is expected, instead of other pictures or a RuntimeError."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "5b"))
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    load = {"vae": load_vae, "transformer": load_model, "text_encoder": load_text_encoder}[component]
    with pytest.raises(UserError, match=rf"config.json has .* as {entry}; {expected}.* is expected"):
        load(folder)


@pytest.mark.parametrize("entry", ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size"))
def test_sizes_of_another_text_encoder(entry: str, tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A config that was copied from another T5 shows that something is mixed up."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "5b"))
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: 3}))
    with pytest.raises(UserError, match=f"do not belong together: {entry} 3 against"):
        load_text_encoder(folder)


@pytest.mark.parametrize("width", (16, 64))
def test_ofs_of_another_width_than_the_time(width: int, tmp_path: Path) -> None:
    """diffusers fails at the first step: the two embeddings are added."""
    folder = write_fp32_transformer(tmp_path, "1.5-5B-I2V", ofs_embed_dim=width)
    with pytest.raises(UserError, match=f"embed ofs with {width} numbers and the time with 32"):
        load_model(folder)


@pytest.mark.parametrize("patch_size", (1, 4))
def test_patch_size_is_read_from_the_weights(patch_size: int, tmp_path: Path) -> None:
    """A convolution shows it; a config that says something else is another model's."""
    folder = write_fp32_transformer(tmp_path, "5b", patch_size=patch_size)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"patch_size": 2}))
    with pytest.raises(UserError, match=f"do not belong together: patch_size 2 against {patch_size}"):
        load_model(folder)
    del config["patch_size"]
    path.write_text(json.dumps(config))
    assert load_model(folder).model.diffusion_model.config.patch_size == patch_size


def test_a_size_that_larger_patches_do_not_divide(tmp_path: Path) -> None:
    """The node's sizes are multiples of 16; patches of 4 x 4 latents need 32, which is said before the run."""
    model = load_model(write_fp32_transformer(tmp_path, "5b", patch_size=4), "fp32").model.diffusion_model
    with pytest.raises(UserError, match="width of 80 pixels does not divide by 32: use 64 or 96"):
        model.token_grid((3, 8, 10))


@pytest.mark.parametrize("shape", ((64, 16, 2, 4), (64, 16, 0, 0), (64, 16, 9, 9)), ids=str)
def test_patches_that_no_transformer_has(shape: tuple[int, ...], tiny_pipelines: dict[str, Path]) -> None:
    weights = open_component(tiny_pipelines["5b"], "transformer").state_dict
    with pytest.raises(UserError, match="embed patches of . x . latents"):
        transformer_shape(weights | {"patch_embed.proj.weight": torch.zeros(shape)}, "here")


def test_control_net_with_other_patches_than_its_model(tmp_path: Path) -> None:
    """Its outputs are added to the model's tokens, of which there are more."""
    net = load_controlnet(embedded.write_controlnet(tmp_path / "net", "5b", patch_size=1))
    model = load_model(write_fp32_transformer(tmp_path / "5b", "5b")).model
    with pytest.raises(UserError, match="makes tokens of 1 x 1 latents, the model of 2 x 2"):
        check_model(net.patcher.model.config, model)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("beta_start", 0.001),
        ("beta_end", 0.02),
        ("beta_schedule", "linear"),
        ("trained_betas", [0.1] * 1000),
        ("timestep_spacing", "leading"),
        ("rescale_betas_zero_snr", False),
        ("set_alpha_to_one", False),
        ("num_train_timesteps", 500),
        ("_class_name", "DDIMScheduler"),
    ],
)
def test_another_schedule_is_said_on_the_node(
    entry: str, value: Any, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """CogVideoX's schedule is used whatever the config says: whoever looks at the node has to know."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path / "5b"))
    said: list[str] = []
    load_model(folder, "fp32", said.append)
    assert not said
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    load_model(folder, "fp32", said.append)
    assert len(said) == 1 and f"{entry} " in said[0] and "(official: " in said[0] and len(said[0]) < 800
