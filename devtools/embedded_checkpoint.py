"""Write tiny CogVideoX pipelines in diffusers' layout: the real architecture with random weights.

They replace the 20 GB checkpoints in tests wherever only numbers are compared. Where the picture matters,
CogVideoX-nano does, which is in every list of the loaders (host/toy.py).

    python -m cogvideox.devtools.embedded_checkpoint FOLDER
"""

import json
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from cogvideox.nano import toy_tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from tokenizers import Tokenizer
    from transformers import T5EncoderModel

Module = TypeVar("Module", bound=torch.nn.Module)
LATENT_WIDTH, LATENT_HEIGHT = 12, 8  # 96 x 64 pixels
_2B = ("2b", "Fun-2b-InP", "Fun-2b-Control")
VAE_SCALING_FACTOR: dict[str, float] = dict.fromkeys(_2B, 1.15258426)
SNR_SHIFT_SCALE: dict[str, float] = dict.fromkeys(_2B, 3.0)
# A part of a variant's name -> the pipeline class in its model_index.json; the others are text to video.
PIPELINES = {
    "I2V": "CogVideoXImageToVideoPipeline",
    "Control": "CogVideoXFunControlPipeline",
    "InP": "CogVideoXFunInpaintPipeline",
}
# The precision each official transformer was trained in.
TRAINED_DTYPE = {"2b": torch.float16}

VARIANTS: dict[str, dict] = {
    "2b": {"use_rotary_positional_embeddings": False},
    "5b": {"use_rotary_positional_embeddings": True},
    "5b-I2V": {
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        "in_channels": 32,
    },
    "1.5-5B": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False},
    "1.5-5B-I2V": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 32,
        "ofs_embed_dim": 32,
    },
    "Fun-2b-InP": {"use_rotary_positional_embeddings": False, "in_channels": 33},
    "Fun-5b-InP": {"use_rotary_positional_embeddings": True, "in_channels": 33},
    "Fun-V1.5-5b-InP": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 33,
    },
    "Fun-2b-Control": {"use_rotary_positional_embeddings": False, "in_channels": 32},
    "Fun-5b-Control": {"use_rotary_positional_embeddings": True, "in_channels": 32},
    "Fun-V1.5-5b-Control": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "in_channels": 32,
    },
    "VOID": {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False, "in_channels": 48},
}


def folder_name(variant: str) -> str:
    """What a variant's folder is called below `models/diffusers`, and so in the lists."""
    return f"CogVideoX-tiny-{variant}"


def transformer_config(variant: str, **overrides: object) -> dict:
    """Arguments of diffusers' CogVideoXTransformer3DModel for a tiny `variant`."""
    config = {
        "num_attention_heads": 4,
        "attention_head_dim": 16,  # the smallest that RoPE can split into 1/4 for time, 3/8 for height, 3/8 for width
        "in_channels": 16,
        "out_channels": 16,
        "time_embed_dim": 32,
        "text_embed_dim": 32,
        "num_layers": 2,
        "sample_width": LATENT_WIDTH,
        "sample_height": LATENT_HEIGHT,
        "sample_frames": 9,  # latent frames: (9 - 1) / 4 + 1 = 3
        "patch_size": 2,
        "max_text_seq_length": 226,
    }
    if "patch_size_t" in VARIANTS[variant]:
        config |= {"sample_width": 40, "sample_height": 40, "sample_frames": 17}
    return config | VARIANTS[variant] | overrides


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, which modules draw their initial biases from, and restore it afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def randomize(module: Module, generator: torch.Generator, gain: float = 1.0) -> Module:
    """Give `module` seeded weights through which every input reaches the output; returns it, in eval mode.

    Matrices have a standard deviation of gain / sqrt(fan in), vectors stay near their default.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.05 * noise)
            else:
                parameter.copy_(noise * gain * parameter[0].numel() ** -0.5)
    return module.eval()


def build_transformer(variant: str, generator: torch.Generator, **overrides: object) -> "CogVideoXTransformer3DModel":
    """diffusers' transformer with seeded weights. overrides: fields of its config."""
    from diffusers import CogVideoXTransformer3DModel

    config = transformer_config(variant, **overrides)
    model = randomize(CogVideoXTransformer3DModel(**config), generator)
    if config.get("use_learned_positional_embeddings"):
        # A trained table differs from the sinusoidal one that it was initialised with.
        table: Any = model.patch_embed.pos_embedding
        table.add_(0.1 * torch.randn(table.shape, generator=generator))
    return model


def build_vae(variant: str, generator: torch.Generator) -> "AutoencoderKLCogVideoX":
    """diffusers' VAE with seeded weights, whose frames lie around grey."""
    from diffusers import AutoencoderKLCogVideoX

    make: Any = AutoencoderKLCogVideoX  # diffusers annotates the four channel counts as one
    vae = make(
        block_out_channels=(8, 8, 8, 8),  # four blocks: 2^3 = 8 times in space, 4 times in time
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        sample_height=64,
        sample_width=96,
        scaling_factor=VAE_SCALING_FACTOR.get(variant, 0.7),
        invert_scale_latents=variant.startswith("1.5"),
    )
    randomize(vae, generator, gain=1.5)
    _center_frames(vae, generator)
    return vae


@torch.inference_mode()
def _center_frames(vae: Any, generator: torch.Generator, spread: float = 0.2) -> None:
    """Scale the last convolution so that frames lie around grey with a standard deviation of `spread` in -1 .. 1.

    Clipped pixels would hide differences from a test that compares pictures. A quarter of the size says as much.
    """
    size = 3, LATENT_HEIGHT // 2, LATENT_WIDTH // 2
    latents = torch.randn(1, 16, *size, generator=generator) / vae.config.scaling_factor
    frames = vae.decode(latents).sample
    scale = spread / frames.std(dim=(0, 2, 3, 4))
    conv = vae.decoder.conv_out.conv
    conv.weight.mul_(scale[:, None, None, None, None])
    conv.bias.sub_(frames.mean(dim=(0, 2, 3, 4))).mul_(scale)


def build_text_encoder(generator: torch.Generator, vocab_size: int, width: int = 32, **shape: int) -> "T5EncoderModel":
    """transformers' T5 encoder with seeded weights. width: of its embeddings, the transformer's text_embed_dim. shape:
    further fields of its config."""
    from transformers import T5Config, T5EncoderModel

    config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **shape,
    }
    encoder: Any = randomize(T5EncoderModel(T5Config(**config)), generator)
    with torch.no_grad():
        for block in encoder.encoder.block:
            # T5's attention does not divide by sqrt(d); its queries are initialised that much smaller instead.
            block.layer[0].SelfAttention.q.weight.mul_(config["d_kv"] ** -0.5)
    return encoder


def build_tokenizer() -> "Tokenizer":
    """A T5 tokenizer with one token for each character, </s> = 1 and <pad> = 0 as in the real one."""
    characters = string.ascii_letters + string.digits + ".,!?-'():;\"/"
    space = toy_tokenizer.SPACE
    tokens = [(space, -2.0), *((c, -3.0) for c in characters), *((space + c, -2.5) for c in string.ascii_lowercase)]
    return toy_tokenizer.build_tokenizer(tokens)


def scheduler_config(variant: str) -> dict[str, Any]:
    """config of diffusers' CogVideoXDDIMScheduler, as in the official checkpoints."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "set_alpha_to_one": True,
        "snr_shift_scale": SNR_SHIFT_SCALE.get(variant, 1.0),
        "timestep_spacing": "trailing",
    }


def write_pipeline(
    folder: Path, variant: str, seed: int = 0, dtype: torch.dtype | None = None, **overrides: object
) -> Path:
    """Write a whole pipeline of `variant` to `folder`, sharded as the official ones are.

    overrides: fields of the transformer's config, e.g. sample_width=16.
    dtype: of all weights; None takes the official precision (fp16 for 2b, bf16 for the others).
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = dtype or TRAINED_DTYPE.get(variant, torch.bfloat16)
    tokenizer = build_tokenizer()
    with _seeded(seed):
        transformer = build_transformer(variant, generator, **overrides)
        text_width = transformer_config(variant, **overrides)["text_embed_dim"]
        text_encoder = build_text_encoder(generator, tokenizer.get_vocab_size(), text_width)
        vae = build_vae(variant, generator)
    for module in (vae, text_encoder):
        torch.nn.Module.to(module, dtype)  # ModelMixin.to warns at every cast
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder", max_shard_size="30KB")
    toy_tokenizer.save_tokenizer(tokenizer, folder / "tokenizer")
    return _write_denoiser(folder, variant, transformer, dtype)


def write_transformer(
    folder: Path, variant: str, seed: int = 0, dtype: torch.dtype | None = None, **overrides: object
) -> Path:
    """Write what write_pipeline does, but for its VAE, text encoder and tokenizer, which take most of its time; its
    model_index.json names them all the same."""
    with _seeded(seed):
        transformer = build_transformer(variant, torch.Generator().manual_seed(seed), **overrides)
    return _write_denoiser(folder, variant, transformer, dtype or TRAINED_DTYPE.get(variant, torch.bfloat16))


def _write_denoiser(folder: Path, variant: str, transformer: "CogVideoXTransformer3DModel", dtype: torch.dtype) -> Path:
    """The transformer, which is cast to `dtype`, with its scheduler and the pipeline's index; returns the folder."""
    from diffusers import CogVideoXDDIMScheduler

    torch.nn.Module.to(transformer, dtype)
    transformer.save_pretrained(folder / "transformer", max_shard_size="150KB")
    CogVideoXDDIMScheduler(**scheduler_config(variant)).save_pretrained(folder / "scheduler")
    write_index(folder, variant)
    return folder


def write_index(folder: Path, variant: str) -> None:
    """model_index.json of a pipeline of `variant`."""
    index = {
        "_class_name": next((name for part, name in PIPELINES.items() if part in variant), "CogVideoXPipeline"),
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", toy_tokenizer.TOKENIZER_CLASS],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def controlnet_config(variant: str, **overrides: object) -> dict:
    """config.json of a control net for the tiny "2b" or "5b", as TheDenk's checkpoints write it."""
    base = transformer_config(variant)
    same = "num_attention_heads attention_head_dim time_embed_dim sample_width sample_height sample_frames patch_size"
    return {
        "_class_name": "CogVideoXControlnet",
        "vae_channels": 16,
        "in_channels": 3,
        "downscale_coef": 8,
        "attention_bias": True,
        "num_layers": 1,
        "max_text_seq_length": 226,
        "use_rotary_positional_embeddings": base["use_rotary_positional_embeddings"],
        **{name: base[name] for name in same.split()},
        **overrides,
    }


def build_controlnet(config: dict, generator: torch.Generator, text_embed_dim: int = 32) -> torch.nn.Module:
    """The modules of a control net under their names, with seeded weights and without a forward."""
    return randomize(empty_controlnet(config, text_embed_dim), generator)


def empty_controlnet(config: dict, text_embed_dim: int = 32) -> torch.nn.Module:
    """The modules of a control net under their names, as torch makes them.

    Source: TheDenk/cogvideox-controlnet, cogvideo_controlnet.py.
    """
    from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

    def stage(channels: int) -> torch.nn.Module:
        halved = channels // 2
        return torch.nn.Sequential(torch.nn.Conv2d(channels, halved, 1), torch.nn.GroupNorm(2, halved), torch.nn.ReLU())

    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    dim, pixels = heads * head_dim, config["in_channels"] * config["downscale_coef"] ** 2
    layers = range(config["num_layers"])
    net = torch.nn.Module()
    net.controlnet_encode_first, net.controlnet_encode_second = stage(pixels), stage(pixels // 2)
    net.patch_embed = CogVideoXPatchEmbed(
        patch_size=config["patch_size"],
        max_text_seq_length=config["max_text_seq_length"],
        in_channels=config["vae_channels"] + pixels // 4,
        embed_dim=dim,
        text_embed_dim=text_embed_dim,
        sample_width=config["sample_width"],
        sample_height=config["sample_height"],
        sample_frames=config["sample_frames"],
        use_positional_embeddings=not config["use_rotary_positional_embeddings"],
        use_learned_positional_embeddings=False,
    )
    net.time_embedding = TimestepEmbedding(dim, config["time_embed_dim"], config.get("timestep_activation_fn", "silu"))
    net.transformer_blocks = torch.nn.ModuleList(
        CogVideoXBlock(
            dim,
            heads,
            head_dim,
            config["time_embed_dim"],
            attention_bias=config["attention_bias"],
            **{
                name: config[name]
                for name in ("activation_fn", "norm_elementwise_affine", "norm_eps")
                if name in config
            },
        )
        for _ in layers
    )
    if config.get("out_proj_dim"):
        net.out_projectors = torch.nn.ModuleList(torch.nn.Linear(dim, config["out_proj_dim"]) for _ in layers)
    return net.eval()


def write_controlnet(
    folder: Path, variant: str, seed: int = 0, dtype: torch.dtype | None = None, **overrides: object
) -> Path:
    """Write a control net for the tiny "2b" or "5b" to `folder`, in the files of TheDenk's checkpoints.

    overrides: fields of its config. dtype: None takes the official precision of the model it is for.
    """
    from safetensors.torch import save_file

    config = controlnet_config(variant, **overrides)
    with _seeded(seed):
        net = build_controlnet(config, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True)
    dtype = dtype or TRAINED_DTYPE.get(variant, torch.bfloat16)
    weights = {name: weight.to(dtype) for name, weight in net.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


if __name__ == "__main__":
    for name in VARIANTS:
        write_pipeline(Path(sys.argv[1]) / folder_name(name), name)
    write_controlnet(Path(sys.argv[1]) / folder_name("5b-controlnet"), "5b")
