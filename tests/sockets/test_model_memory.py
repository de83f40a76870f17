"""The memory that the pack asks ComfyUI to free, against what a forward really takes: at full width, without memory."""

from types import SimpleNamespace
from typing import Any

import comfy.ops
import pytest
import torch

from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.transformer import attention

FULL_WIDTH = {"num_attention_heads": 48, "num_layers": 2, "use_rotary_positional_embeddings": True}
# latent (T, H, W) of 49 frames of 720 x 480 and of 81 (and one pair's second) of 1360 x 768
SIZES = {
    "5b": ({"sample_width": 90, "sample_height": 60}, (13, 60, 90)),
    "1.5-5B": ({"sample_width": 300, "sample_height": 300, "patch_size_t": 2, "patch_bias": False}, (22, 96, 170)),
}


def fused_attention(q: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    """What a card's attention kernel allocates: its result."""
    return torch.empty_like(q).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch", (1, 2))
@pytest.mark.parametrize("variant", SIZES)
def test_estimate_covers_the_peak(variant: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too low an estimate overflows the card in the middle of a run; too high a one evicts models in vain."""
    from cogvideox.sockets import model as model_module

    overrides, size = SIZES[variant]
    dit = model_module.build_dit(FULL_WIDTH | overrides, torch.bfloat16, None, comfy.ops.disable_weight_init)
    monkeypatch.setattr(attention, "attention_for", lambda device: fused_attention)
    latents = torch.empty(batch, 16, *size, device="meta", dtype=torch.bfloat16)
    context = torch.empty(batch, 226, 4096, device="meta", dtype=torch.bfloat16)
    with torch.inference_mode(), PeakBytes() as used:
        dit(latents, torch.empty(batch, device="meta"), context=context)

    model: Any = SimpleNamespace(diffusion_model=dit, get_dtype_inference=lambda: torch.bfloat16)
    estimate = model_module.CogVideoXModel.memory_required(model, list(latents.shape))
    assert used.peak <= estimate <= 1.25 * used.peak
