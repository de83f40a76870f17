"""Control nets on disk: which are recognised, refused and listed."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import controlnet_config, empty_controlnet, write_controlnet
from cogvideox.errors import UserError
from cogvideox.host.folders import list_control_nets
from cogvideox.model_loaders import load_controlnet as controlnet
from cogvideox.model_loaders.checkpoints import check_component
from cogvideox.nodes.controlnet import CogVideoXLoadControlNet
from cogvideox.tests.support import validated


def rewrite_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 8}, "do not belong together: num_layers 8 against 1"),
        ({"num_attention_heads": 30}, "width 480 against 64"),
        ({"downscale_coef": 4}, "pixels per latent 48 against 192"),
        ({"in_channels": 12, "downscale_coef": 4}, "downscales the control video by 4 instead of 8.* takes 12 colour"),
        ({"use_learned_positional_embeddings": True}, "has a learned position table"),
    ],
)
def test_control_nets_that_cannot_run_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    """A config of another checkpoint, or a control net of another kind, would steer wrongly without a word."""
    folder = write_controlnet(tmp_path / "net", "5b")
    rewrite_config(folder, **changes)
    with pytest.raises(UserError, match=message):
        controlnet.load_controlnet(folder)


def test_wrong_files_are_named(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A control net in the model loader, and a model in the control net loader, must be called by their names."""
    check = check_component
    net = write_controlnet(tmp_path / "net", "5b")
    with pytest.raises(UserError, match="looks like a CogVideoX control net, not a CogVideoX transformer"):
        check(net, "transformer")
    with pytest.raises(UserError, match="looks like a CogVideoX-like.*, not a CogVideoX control net"):
        check(tiny_pipelines["5b"] / "transformer", "controlnet")
    lone = net / "diffusion_pytorch_model.safetensors"
    (net / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json, and no CogVideoX model has its width"):
        controlnet.load_controlnet(lone)


@pytest.mark.parametrize(
    ("heads", "overrides", "rotary"),
    [(30, {"num_layers": 8}, False), (48, {"num_layers": 6}, True), (8, {"out_proj_dim": 3072}, True)],
)
def test_published_sizes_are_known_without_a_config(heads: int, overrides: dict, rotary: bool) -> None:
    """A single file of a published control net must load under any name: 2b's, 5b's, and one narrower than 5b."""
    config = controlnet_config("5b", num_attention_heads=heads, attention_head_dim=64, time_embed_dim=512, **overrides)
    config |= {"use_rotary_positional_embeddings": rotary}
    with torch.device("meta"):
        weights = empty_controlnet(config, text_embed_dim=4096).state_dict()
    found = controlnet.resolve_control_config(weights, None, "some file")
    net = controlnet.build_control_net(found, torch.bfloat16, None, torch.device("cuda"))
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    assert found.use_rotary_positional_embeddings == rotary
    assert (found.sample_height, found.sample_width, found.attention_head_dim) == (60, 90, 64)


def test_loader_lists_and_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both usual places: ComfyUI's models/controlnet, and models/diffusers where downloads of folders go."""
    roots = {name: tmp_path / name for name in ("controlnet", "diffusers")}
    write_controlnet(roots["controlnet"] / "canny", "5b")
    write_controlnet(roots["diffusers"] / "depth", "5b")
    (roots["diffusers"] / "something else").mkdir()
    (roots["diffusers"] / "something else" / "config.json").write_text("[]")
    for name, root in roots.items():
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(root)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    names = list_control_nets()
    assert names == ["canny", "canny/diffusion_pytorch_model.safetensors", "depth"]
    node = CogVideoXLoadControlNet
    for name in ("canny", "depth"):
        assert validated(node, control_net_name=name) is True
        assert isinstance(node.execute(name, "default").args[0], controlnet.CogVideoXControl)
    assert "There is no 'pose'" in str(validated(node, control_net_name="pose"))
