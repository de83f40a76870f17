"""Which checkpoint some weights are: from shapes and config, never from a name."""

import logging
from pathlib import Path

import comfy.ops
import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import scheduler_config, transformer_config
from cogvideox.errors import UserError
from cogvideox.model_loaders import variants
from cogvideox.model_loaders.checkpoints import open_component
from cogvideox.sockets.families import FAMILIES, Family
from cogvideox.sockets.model import build_dit
from cogvideox.tests.support import ALL_VARIANTS
from cogvideox.tests.tiers import long_after

FAMILY_OF = dict(zip(ALL_VARIANTS, [f.name for f in FAMILIES]))
PARAMETERS = {
    "CogVideoX-2b": 1_693_783_872,
    "CogVideoX-5b": 5_570_283_072,
    "CogVideoX-5b-I2V": 5_570_479_680,
    "CogVideoX1.5-5B": 5_570_676_352,
    "CogVideoX1.5-5B-I2V": 5_571_594_880,
}


def official_weights(family: Family) -> dict[str, torch.Tensor]:
    """Key names and full-size shapes of an official transformer, without memory behind them."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(
            num_attention_heads=family.heads,
            num_layers=family.layers,
            in_channels=family.in_channels,
            patch_size_t=family.patch_size_t,
            ofs_embed_dim=family.ofs_embed_dim,
            use_rotary_positional_embeddings=family.rotary,
            use_learned_positional_embeddings=family.learned_positions,
            patch_bias=family.patch_size_t is None,
        )
    return model.state_dict()


# those of Fun and VOID at full size are in files/test_official_sizes.py
@pytest.mark.parametrize("family", long_after(len(PARAMETERS), FAMILIES), ids=lambda f: f.name)
def test_official_sizes_are_known_without_a_config(family: Family) -> None:
    """A single file of an official transformer must load under any name."""
    weights = official_weights(family)
    config = variants.resolve_config(weights, None, "some file")
    assert variants.detect_family(config) == family
    model = build_dit(config, torch.bfloat16, None, comfy.ops.manual_cast)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    if family.name in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family.name]


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_smaller_models_belong_to_their_family(variant: str) -> None:
    """A fine-tune or a small model of the same architecture takes the family's precision and noise levels."""
    assert variants.detect_family(transformer_config(variant)).name == FAMILY_OF[variant]


def test_config_of_another_checkpoint_is_refused(tiny_pipelines: dict[str, Path]) -> None:
    """A config.json copied from elsewhere would build another model than the weights are of."""
    weights = open_component(tiny_pipelines["5b"], "transformer")
    with pytest.raises(UserError, match="do not belong together: num_layers 42 against 2"):
        variants.resolve_config(weights.state_dict, (weights.config or {}) | {"num_layers": 42}, "here")


def test_unknown_size_without_config_is_refused(tiny_pipelines: dict[str, Path]) -> None:
    """Guessing a head size would give noise."""
    weights = open_component(tiny_pipelines["5b"], "transformer")
    with pytest.raises(
        UserError, match="not the size of an official checkpoint: it has 2 layers of width 64.*config.json"
    ):
        variants.resolve_config(weights.state_dict, None, "here")


def test_unknown_architecture_is_refused() -> None:
    """A model with other input channels needs conditions that this version does not make."""
    with pytest.raises(UserError, match="34 input channels"):
        variants.detect_family(transformer_config("5b", in_channels=34))


def test_notes_of_a_fine_tune_do_not_matter(tiny_pipelines: dict[str, Path]) -> None:
    """CogVideoX-Fun's configs hold entries that diffusers does not know."""
    weights = open_component(tiny_pipelines["Fun-5b-InP"], "transformer")
    config = variants.resolve_config(
        weights.state_dict, (weights.config or {}) | {"add_noise_in_inpaint_model": True}, "here"
    )
    model = build_dit(config, torch.bfloat16, None, comfy.ops.manual_cast)
    assert model.get_parameter("patch_embed.proj.weight").shape[1] == 33


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("blocks.0.self_attn.q.weight", "Wan"),
        ("input_blocks.0.0.weight", "Stable Diffusion UNet"),
        ("transformer.blocks.0.lora_A.weight", "a LoRA"),
        ("module._orig_mod.blocks.0.self_attn.q.weight", "Wan"),
        ("something.else", "unknown model (its first key is 'something.else')"),
    ],
)
def test_other_models_are_named(key: str, words: str) -> None:
    """'Looks like a Wan model' helps; 'missing keys' does not."""
    assert words in variants.describe_weights([key])


@pytest.mark.parametrize(
    ("component", "lost"),
    [
        ("vae", "decoder.conv_in.conv.weight"),
        ("text_encoder", "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
        ("text_encoder", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("controlnet", "patch_embed.text_proj.weight"),
        ("controlnet", "time_embedding.linear_1.weight"),
    ],
)
def test_a_component_that_lacks_a_tensor(component: str, lost: str) -> None:
    """What looks like a CogVideoX VAE and is refused as not a CogVideoX VAE helps nobody."""
    signature = variants.SIGNATURES[component]
    keys = [key for key in signature.required_keys if key != lost]
    with pytest.raises(UserError, match=f"is {signature.description} without {lost}: the file is damaged or incompl"):
        variants.require_component(keys, component, "a.safetensors")


def test_scheduler_beside_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    """The SNR shift comes with the checkpoint; a schedule that is not CogVideoX's must not pass unseen."""
    family, official = FAMILIES[1], scheduler_config("5b")
    assert variants.resolve_snr_shift(None, family, "here") == 1.0
    assert variants.resolve_snr_shift(official | {"snr_shift_scale": 3.0}, family, "here") == 3.0
    with caplog.at_level(logging.WARNING):
        variants.resolve_snr_shift(official | {"timestep_spacing": "leading"}, family, "here")
    assert "timestep_spacing leading (official: trailing)" in caplog.text
    with pytest.raises(UserError, match="prediction_type epsilon"):
        variants.resolve_snr_shift(official | {"prediction_type": "epsilon"}, family, "here")
