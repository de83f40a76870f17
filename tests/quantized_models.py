"""Models in every precision, for the tests of how they are stored, loaded and patched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import quants

from cogvideox.host import quantized
from cogvideox.model_loaders import load_model as model_loader
from cogvideox.model_loaders import load_text_encoder as text_loader
from cogvideox.model_loaders import precision
from cogvideox.model_loaders.files.gguf_blocks import gguf_tensor
from cogvideox.nodes.sample import CogVideoXSample

HAS_INT8 = "TensorWiseINT8Layout" in quantized.FORMATS
needs_int8 = pytest.mark.skipif(not HAS_INT8, reason="this ComfyUI has no int8")
_LACK = precision._lacks_int8(torch.device("cpu"))
needs_int8_units = pytest.mark.skipif(_LACK is not None, reason=str(_LACK))
GGUF_FILES = ("Q8_0", "Q4_0")
KINDS = ("fp8_e4m3fn", pytest.param("int8", marks=needs_int8), *GGUF_FILES)
LAYER = "transformer_blocks.1.ff.net.2"
KEY = f"diffusion_model.{LAYER}.weight"
# relative error of one forward that is allowed, of this model; a run of four steps with CFG may have three times that
BOUNDS = {
    "bf16": 5e-3,
    "fp16": 1e-3,
    "fp8_e4m3fn": 2e-2,
    "fp8_e4m3fn_fast": 3e-2,
    "int8": 6e-3,
    "int8_fast": 1e-2,
    "Q8_0": 1e-2,
    "Q4_0": 1.5e-1,
}
# and of T5's embeddings: this one is 32 wide, where nothing averages out
T5_BOUNDS = {"fp8_e4m3fn": 8e-2, "int8": 2e-2, "Q8_0": 2e-2, "Q4_0": 2.2e-1}


def to_gguf(name: str, weight: torch.Tensor, qtype: str) -> torch.Tensor:
    """As a converter writes it: every matrix whose rows fill whole blocks."""
    if weight.ndim != 2 or weight.shape[1] % 32 or "patch_embed" in name:
        return weight
    blocks = quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[qtype])
    return gguf_tensor(torch.from_numpy(blocks), qtype, tuple(weight.shape), torch.float32)


def load(path: Path, kind: str, patch: pytest.MonkeyPatch, component: str = "transformer", **options: object) -> object:
    """The model at `path` in `kind`: a weight_dtype, or the type of a GGUF file made of its weights."""
    module = model_loader if component == "transformer" else text_loader
    function = module.load_model if component == "transformer" else module.load_text_encoder
    if kind not in GGUF_FILES:
        return function(path, kind, **options)
    return load_changed(path, patch, lambda name, weight: to_gguf(name, weight, kind), component, **options)


def load_changed(
    path: Path,
    patch: pytest.MonkeyPatch,
    change: Callable[[str, torch.Tensor], torch.Tensor],
    component: str = "transformer",
    weight_dtype: str = "default",
    **options: object,
) -> object:
    """The model whose file holds what `change` makes of each weight."""
    module = model_loader if component == "transformer" else text_loader
    function = module.load_model if component == "transformer" else module.load_text_encoder
    opened = module.open_component

    def open_changed(*arguments: object) -> object:
        weights = opened(*arguments)
        return replace(weights, state_dict={name: change(name, w) for name, w in weights.state_dict.items()})

    with patch.context() as context:
        context.setattr(module, "open_component", open_changed)
        return function(path, weight_dtype, **options)


@torch.inference_mode()
def forward(model: object, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dit = model.model.diffusion_model
    latents = torch.randn(1, dit.config.in_channels, 2, 8, 12, generator=generator)
    context = torch.randn(1, 226, dit.config.text_embed_dim, generator=generator)
    dtype = model.model.get_dtype_inference()
    return dit(latents.to(dtype), torch.tensor([500.0]), context=context.to(dtype)).float()


def four_steps(model: object) -> torch.Tensor:
    context = [[torch.randn(1, 226, 32, generator=torch.Generator().manual_seed(n)), {}] for n in (3, 4)]
    latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    out = CogVideoXSample.execute(model, [context[0]], [context[1]], latent, 7, 4, 6.0, "ddim", False, 1.0)
    return out.args[0]["samples"]


def encode(clip: object) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize("A panda plays a guitar."))[0][0]
