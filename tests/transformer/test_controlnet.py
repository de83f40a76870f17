"""The control net's outputs, and what they do in the transformer, against an independent reference."""

from pathlib import Path

import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.controlnet_reference import ReferenceControl, reference_rotary
from cogvideox.tests.support import check_parity, reference_transformer

# what differs from the plain control net: more layers, and one narrower than its model
NETS = {"one layer": {}, "three layers": {"num_layers": 3}, "narrow": {"num_attention_heads": 2, "out_proj_dim": 64}}


def inputs(latent_frames: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """(latents, guide video, text, timesteps) for a batch of 2."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, latent_frames, height, width, generator=generator)
    frames = torch.rand(2, 4 * latent_frames - 3, 3, height * 8, width * 8, generator=generator) * 2 - 1
    return latents, frames, torch.randn(2, 226, 32, generator=generator), torch.tensor([999, 500])


@pytest.fixture(params=NETS)
def overrides(request: pytest.FixtureRequest) -> dict:
    return NETS[request.param]


@pytest.mark.parametrize("size", ((3, 8, 12), (4, 12, 6), (1, 8, 12)), ids=("native", "other", "one frame"))
@pytest.mark.parametrize("variant", ("2b", "5b"))
@torch.inference_mode()
def test_outputs_equal_the_reference(
    variant: str, size: tuple, overrides: dict, tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """Wrong positions, or frames averaged in other pairs, would let the guide pull the video elsewhere."""
    folder = write_controlnet(tmp_path / "net", variant, dtype=torch.float32, **overrides)
    net = load_controlnet(folder, "fp32").patcher.model
    reference = ReferenceControl(folder)
    latents, frames, context, timestep = inputs(*size)
    guide = net.encode_control(frames)
    check_parity("control net, encoded guide", guide, reference.encode(frames).transpose(1, 2), 2e-6)
    rotary = reference_rotary(reference_transformer(tiny_pipelines[variant]), size)
    want = reference.outputs(latents.transpose(1, 2), context, frames, timestep, rotary)
    got = net(latents, guide, timestep, context)
    assert len(got) == len(want) == reference.config["num_layers"]
    for ours, theirs in zip(got, want):
        check_parity("control net, outputs", ours, theirs, 2e-6)


def test_one_guide_serves_a_batch(tmp_path: Path) -> None:
    """Prompt and negative prompt run as one batch and share the control video."""
    folder = write_controlnet(tmp_path / "net", "5b", dtype=torch.float32)
    net = load_controlnet(folder, "fp32").patcher.model
    latents, frames, context, timestep = inputs(3, 8, 12)
    guide = net.encode_control(frames[:1])
    (shared,) = net(latents, guide, timestep, context)
    (repeated,) = net(latents, guide.repeat(2, 1, 1, 1, 1), timestep, context)
    assert torch.equal(shared, repeated)


def test_a_longer_guide_begins_alike(tmp_path: Path) -> None:
    """Context windows take parts of the guide of the whole video: it must not depend on how much was encoded."""
    folder = write_controlnet(tmp_path / "net", "5b", dtype=torch.float32)
    net = load_controlnet(folder, "fp32").patcher.model
    frames = inputs(5, 8, 12)[1]
    short, whole = net.encode_control(frames[:, :9]), net.encode_control(frames)
    assert whole.shape[2] == 5
    torch.testing.assert_close(whole[:, :, :3], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("replaced", (False, True))
@torch.inference_mode()
def test_transformer_adds_them_after_its_blocks(replaced: bool, tiny_pipelines: dict[str, Path]) -> None:
    """Added before a block, or lost where a patch replaces one, the guide would steer nothing or the wrong thing."""
    folder = tiny_pipelines["5b"]
    theirs = reference_transformer(folder)
    ours = load_model(folder, "fp32").model.diffusion_model
    latents, _, context, timestep = inputs(3, 8, 12)
    generator = torch.Generator().manual_seed(5)
    additions = [torch.randn(2, 3 * 4 * 6, 64, generator=generator) for _ in range(2)]
    hooks = [
        block.register_forward_hook(lambda module, args, out, more=more: (out[0] + more, out[1]))
        for block, more in zip(theirs.transformer_blocks, additions)
    ]
    rotary = reference_rotary(theirs, (3, 8, 12))
    want = theirs(latents.transpose(1, 2), context, timestep, image_rotary_emb=rotary, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    same = {("double_block", i): lambda args, extra: extra["original_block"](args) for i in range(2)}
    options = {"patches_replace": {"dit": same}} if replaced else {}
    got = ours(latents, timestep, context, control={"input": additions}, transformer_options=options)
    check_parity("transformer forward with control", got, want.transpose(1, 2), 2e-6)
    only_second = ours(latents, timestep, context, control={"input": [None, additions[1]]})
    assert not torch.equal(only_second, got)
    assert not torch.equal(only_second, ours(latents, timestep, context))
