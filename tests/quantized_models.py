"""Models in every precision, for the tests of how they are stored, loaded and patched."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gguf
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from gguf import quants

from cogvideox.host import quantized
from cogvideox.host.cpu_products import bf16_is_faster
from cogvideox.keys import Latent
from cogvideox.model_loaders import load_model as model_loader
from cogvideox.model_loaders import load_text_encoder as text_loader
from cogvideox.model_loaders import precision
from cogvideox.model_loaders.checkpoints import Weights
from cogvideox.model_loaders.files.gguf_blocks import gguf_tensor
from cogvideox.tests.support import host_lacks
from cogvideox.transformer.parameter_types import is_block_matrix

HAS_INT8 = "TensorWiseINT8Layout" in quantized.FORMATS
needs_int8 = pytest.mark.skipif(not HAS_INT8, reason=host_lacks("int8 weights"))
_OBSTACLE = precision.int8_matmul_obstacle(torch.device("cpu"))
needs_int8_matmul = pytest.mark.skipif(_OBSTACLE is not None, reason=f"needs int8 matmul support, {_OBSTACLE}")
GGUF_FILES = ("Q8_0", "Q4_0")
KINDS = ("fp8_e4m3fn", pytest.param("int8", marks=needs_int8), *GGUF_FILES)
LAYER = "transformer_blocks.1.ff.net.2"
KEY = f"diffusion_model.{LAYER}.weight"
# relative error of one forward that is allowed, of this model; a run of four steps with CFG may have three times that
BOUNDS = {
    "bf16": 8e-3 if bf16_is_faster() else 5e-3,
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


Change = Callable[[str, torch.Tensor], torch.Tensor]


@contextmanager
def changed_weights(patch: pytest.MonkeyPatch, loader: ModuleType, change: Change) -> Iterator[None]:
    """Let `loader` find in a file what `change` makes of each weight."""
    opened = loader.open_component

    def open_changed(path: Path, component: str) -> Weights:
        weights = opened(path, component)
        return replace(weights, state_dict={name: change(name, w) for name, w in weights.state_dict.items()})

    with patch.context() as context:
        context.setattr(loader, "open_component", open_changed)
        yield


def load(
    path: Path, kind: str, patch: pytest.MonkeyPatch, disable_dynamic: bool = False, same_matrices: bool = False
) -> ModelPatcher:
    """The MODEL at `path` in `kind`: a weight_dtype, or the type of a GGUF file made of its weights. same_matrices: the
    file has those alone quantised that a weight_dtype would, so that their errors compare."""
    if kind not in GGUF_FILES:
        return model_loader.load_model(path, kind, disable_dynamic=disable_dynamic)

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight if same_matrices and not is_block_matrix(name) else to_gguf(name, weight, kind)

    with changed_weights(patch, model_loader, change):
        return model_loader.load_model(path, disable_dynamic=disable_dynamic)


def load_changed(path: Path, patch: pytest.MonkeyPatch, change: Change, weight_dtype: str = "default") -> ModelPatcher:
    """The MODEL whose file contains what `change` makes of each weight."""
    with changed_weights(patch, model_loader, change):
        return model_loader.load_model(path, weight_dtype)


def load_clip(path: Path, kind: str, patch: pytest.MonkeyPatch) -> CLIP:
    """The CLIP at `path` in `kind`, as of `load`."""
    if kind not in GGUF_FILES:
        return text_loader.load_text_encoder(path, kind)
    with changed_weights(patch, text_loader, lambda name, weight: to_gguf(name, weight, kind)):
        return text_loader.load_text_encoder(path)


@torch.inference_mode()
def forward(model: ModelPatcher, tokens: int = 226) -> torch.Tensor:
    """One call of the network. tokens: of the text, which where no error is measured may be few."""
    generator = torch.Generator().manual_seed(2)
    dit = model.model.diffusion_model
    latents = torch.randn(1, dit.config.in_channels, 2, 8, 12, generator=generator)
    context = torch.randn(1, tokens, dit.config.text_embed_dim, generator=generator)
    dtype = model.model.get_dtype_inference()
    return dit(latents.to(dtype), torch.tensor([500.0]), context=context.to(dtype)).float()


def four_steps(model: ModelPatcher, tokens: int = 226) -> torch.Tensor:
    """A run with CFG; tokens as of `forward`."""
    from cogvideox.nodes import sample as nodes

    context = [[torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(n)), {}] for n in (3, 4)]
    latent: Latent = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    out = nodes.CogVideoXSample.execute(model, [context[0]], [context[1]], latent, 7, 4, 6.0, "ddim", False, 1.0)
    return out.args[0]["samples"]


def encode(clip: CLIP) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize("A panda plays a guitar."))[0][0]
