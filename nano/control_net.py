"""CogVideoX-nano's control net: edges for the 5b toy, trained beside the frozen transformer."""

from typing import Any

import torch

from . import text
from .transformer import CONFIGS

NAME = "controlnet-edges"  # its stage, and its folder among the published weights
LAYERS = 2
BASE = "5b"
_OF_THE_MODEL = (
    "num_attention_heads",
    "attention_head_dim",
    "time_embed_dim",
    "max_text_seq_length",
    "patch_size",
    "sample_width",
    "sample_height",
    "sample_frames",
    "use_rotary_positional_embeddings",
)


def config() -> dict[str, Any]:
    """The config.json, with the fields of TheDenk's checkpoints (transformer.control_net.ControlConfig)."""
    base = CONFIGS[BASE]
    width = base["num_attention_heads"] * base["attention_head_dim"]
    return {name: base[name] for name in _OF_THE_MODEL} | {
        "_class_name": "CogVideoXControlnet",
        "vae_channels": base["in_channels"],
        "in_channels": 3,
        "downscale_coef": 8,
        "num_layers": LAYERS,
        "out_proj_dim": width,
    }


class ControlledTransformer(torch.nn.Module):
    """The frozen transformer with a control net beside it, called as a transformer is (training.objective).

    guide: the control videos of the next call, [B, F, 3, H, W] in -1 .. 1. Only the net's parameters are trained.
    """

    guide: torch.Tensor

    def __init__(self, base: Any):
        """base: a transformer.dit.CogVideoXDiT."""
        super().__init__()
        from cogvideox.transformer.control_net import CogVideoXControlNet, ControlConfig

        self.base = base.requires_grad_(False)
        known = {name: value for name, value in config().items() if not name.startswith("_")}
        self.net: Any = CogVideoXControlNet(ControlConfig(**known, text_embed_dim=text.WIDTH))
        self._begin_as_the_base()

    @torch.no_grad()
    def _begin_as_the_base(self) -> None:
        """The first blocks and the embeddings are the base's, and what the net adds is zero (Zhang and others 2023,
        "Adding conditional control", section 3.1)."""
        learned = self.base.state_dict()
        for name, parameter in self.net.named_parameters():
            source = learned.get(name)
            if source is not None and source.shape == parameter.shape:
                parameter.copy_(source)
        proj = self.net.patch_embed.proj
        proj.weight.zero_()[:, : self.base.config.in_channels].copy_(self.base.patch_embed.proj.weight)
        for projector in self.net.out_projectors:
            projector.weight.zero_()
            projector.bias.zero_()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, ofs: None = None) -> torch.Tensor:
        """x: [B, 16, T, h, w]; timestep: [B]; context: [B, tokens, width]. Returns v, [B, 16, T, h, w]."""
        added = self.net(x, self.net.encode_control(self.guide), timestep.float(), context)
        return self.base(x, timestep, context, ofs=ofs, control={"input": added})
