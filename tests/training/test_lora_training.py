"""A LoRA while it is trained, and the file that it becomes, against diffusers and our own loader."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cogvideox import errors
from cogvideox.model_loaders import load_model as model_loader
from cogvideox.model_loaders import precision as precision_module
from cogvideox.model_loaders.lora import apply
from cogvideox.tests.quantized_models import KINDS, load
from cogvideox.tests.support import check_parity, relative_error
from cogvideox.training import adapters, block_calls
from cogvideox.training.config import TARGETS, TrainConfig

RANK, ALPHA = 4, 6.0  # scale 1.5
BOTH = TARGETS["attention and feed-forward"]
CONFIG = TrainConfig(rank=RANK, alpha=ALPHA, targets=BOTH, seed=2)


def inputs(frames: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 16, frames, 8, 12, generator=generator)
    return x, torch.tensor([400]), torch.randn(1, 226, 32, generator=generator)


def trained(dit: torch.nn.Module) -> torch.nn.Module:
    """As after a training: B is no longer zero."""
    adapters.attach_lora(dit, CONFIG)
    generator = torch.Generator().manual_seed(4)
    for layer in adapters.lora_layers(dit).values():
        b = layer.lora_B["default"].weight
        b.data = 0.05 * torch.randn(b.shape, generator=generator)
    return dit


def gradients(dit: torch.nn.Module) -> torch.Tensor:
    """Of all that is trained, in one row."""
    return torch.cat([p.grad.flatten() for p in dit.parameters() if p.requires_grad and p.grad is not None])


def load_dit(folder: Path, weight_dtype: str = "fp32") -> torch.nn.Module:
    return model_loader.load_model(folder, weight_dtype, disable_dynamic=True).model.diffusion_model


def test_fresh_lora_changes_nothing_and_is_the_same_each_time(tiny_pipelines: dict[str, Path]) -> None:
    """Training must begin at the model as it is, and a seed must give one LoRA on every machine."""
    plain, first, second = (load_dit(tiny_pipelines["5b"]) for _ in range(3))
    adapters.attach_lora(first, CONFIG)
    adapters.attach_lora(second, CONFIG)
    assert torch.equal(plain(*inputs()), first(*inputs()))
    trained_names = {name for name, p in first.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained_names) and len(trained_names) == 2 * 2 * len(BOTH)
    both = zip(first.named_parameters(), second.named_parameters())
    assert all(torch.equal(a, b) for (_, a), (_, b) in both)
    a = adapters.lora_layers(first)["transformer_blocks.0.attn1.to_q"].lora_A["default"].weight
    assert a.std() > 0.1 / a.shape[1] ** 0.5


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5B"])
def test_saved_lora_is_the_trained_one(tiny_pipelines: dict[str, Path], tmp_path: Path, variant: str) -> None:
    """The file must do what the training saw, in diffusers and here, its scale of 1.5 included."""
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline

    folder, frames = tiny_pipelines[variant], 4
    dit = trained(load_dit(folder))
    ours = dit(*inputs(frames))
    path = adapters.save_lora(tmp_path / "lora.safetensors", adapters.export_lora(dit), {"note": "mine"})
    pipeline = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.load_lora_weights(str(path))
    x, timestep, text = inputs(frames)
    rotary = None
    if pipeline.transformer.config.use_rotary_positional_embeddings:
        size = pipeline.vae_scale_factor_spatial
        rotary = pipeline._prepare_rotary_positional_embeddings(8 * size, 12 * size, frames, torch.device("cpu"))
    theirs = pipeline.transformer(x.transpose(1, 2), text, timestep, image_rotary_emb=rotary).sample.transpose(1, 2)
    check_parity("trained LoRA in diffusers", ours.detach(), theirs.detach(), 1e-6)
    patched, report = apply.apply_lora(model_loader.load_model(folder, "fp32", disable_dynamic=True), path, 1.0)
    patched.patch_model(device_to=torch.device("cpu"))
    applied = patched.model.diffusion_model(*inputs(frames))
    assert relative_error(applied.detach(), ours.detach()) <= 1e-6 and report.layers == 2 * len(BOTH)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["note"] == "mine" and json.loads(header["lora_adapter_metadata"])["transformer.r"] == RANK


def test_weights_of_a_checkpoint_are_exported(tiny_pipelines: dict[str, Path]) -> None:
    """What is saved must be the checkpoint's numbers (an average, say), not those that the model happens to hold."""
    dit = trained(load_dit(tiny_pipelines["5b"]))
    given = {name: p.detach() * 2 for name, p in dit.named_parameters() if p.requires_grad}
    own, exported = adapters.export_lora(dit), adapters.export_lora(dit, given)
    assert own.keys() == exported.keys() and all(torch.equal(2 * own[key], exported[key]) for key in own)


def test_no_file_is_overwritten_unasked(tiny_pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A LoRA of yesterday must not vanish under one of the same name; a training may renew its own."""
    tensors, path = adapters.export_lora(trained(load_dit(tiny_pipelines["5b"]))), tmp_path / "lora.safetensors"
    adapters.save_lora(path, tensors)
    with pytest.raises(errors.UserError, match="not overwritten"):
        adapters.save_lora(path, tensors)
    adapters.save_lora(path, tensors, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize("kind", ["bf16", *KINDS])
def test_base_of_every_precision_trains(wide: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """QLoRA: a base in eight or four bits must give nearly the gradients of the whole one, into a LoRA in fp32."""
    flat = []
    for precision in ("fp32", kind):
        patcher: Any = load(wide, precision, monkeypatch, disable_dynamic=True)
        dit: Any = trained(patcher.model.diffusion_model)
        for leaf in dit.modules():
            leaf.comfy_cast_weights = True
        assert all(p.dtype == torch.float32 for p in dit.parameters() if p.requires_grad)
        x, timestep, text = inputs()
        dit(x, timestep, text).square().mean().backward()
        flat.append(gradients(dit))
        assert all(p.grad is None for p in dit.parameters() if not p.requires_grad)
    error = relative_error(flat[1], flat[0])
    assert 0 < error < {"Q4_0": 0.3}.get(kind, 0.05), error


@pytest.mark.parametrize("kind", ["fp8_e4m3fn_fast", "int8_fast"])
def test_model_without_gradients_is_refused(wide: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Products in fp8 and int8 have no gradient: training would fail at the first step, or learn nothing."""
    monkeypatch.setattr(precision_module, "fp8_matmul_obstacle", lambda device: None)
    monkeypatch.setattr(precision_module, "int8_matmul_obstacle", lambda device: None)
    with pytest.raises(errors.UserError, match="weight_dtype without _fast"):
        adapters.attach_lora(load_dit(wide, kind))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 0}, "rank is 0: use a whole number from 1"),
        ({"alpha": 0.0}, "alpha is 0.0: use a number from 0.01"),
        ({"targets": ("to_x",)}, "targets is ..to_x..: use .*a list of .to_q."),
        ({"targets": ()}, "targets is .*: use"),
    ],
)
def test_nonsense_is_refused(options: dict, message: str) -> None:
    """A rank of 0 would train nothing for hours."""
    with pytest.raises(errors.UserError, match=message):
        adapters.attach_lora(torch.nn.Module(), TrainConfig(**options))


def test_detached_model_is_as_before(tiny_pipelines: dict[str, Path]) -> None:
    """A MODEL that was trained on must give the same video afterwards, and can be trained on again."""
    dit = load_dit(tiny_pipelines["5b"])
    before, names = dit(*inputs()), list(dit.state_dict())
    trained(dit)
    with pytest.raises(errors.UserError, match="carries a LoRA"):
        adapters.attach_lora(dit)
    adapters.detach_lora(dit)
    assert torch.equal(before, dit(*inputs())) and names == list(dit.state_dict())
    adapters.attach_lora(dit)


@pytest.mark.parametrize("variant", ["5b", "1.5-5B"])
def test_recomputed_blocks_give_the_same_gradients(tiny_pipelines: dict[str, Path], variant: str) -> None:
    """Gradient checkpointing may cost time and nothing else, and must save what it is for: kept activations."""
    results = []
    for recompute in (None, False, True):
        dit = trained(load_dit(tiny_pipelines[variant]))
        handle = None if recompute is None else block_calls.call_blocks(dit, recompute)
        kept = []

        def keep(tensor: torch.Tensor, kept: list = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = dit(*inputs(4)).square().mean()
        forward = sum(kept)
        loss.backward()
        results.append((forward, gradients(dit)))
        if handle is not None:
            handle.remove()
    (plain, expected), (called, as_modules), (recomputed, again) = results
    assert torch.equal(expected, as_modules) and torch.equal(expected, again)
    assert called == plain and recomputed < plain / 4


def test_mixed_precision_of_fsdp_leaves_positions_alone() -> None:
    """In bf16 the rotary positions of 49 frames would be others: FSDP casts each tensor that it finds in a block's
    arguments."""
    from torch.distributed.utils import _apply_to_tensors

    rotary = torch.rand(2, 8, 4)
    cast: Any = _apply_to_tensors(lambda tensor: tensor.bfloat16(), (torch.rand(2), block_calls.NoCast(rotary)))
    assert cast[0].dtype == torch.bfloat16 and cast[1].rotary is rotary
