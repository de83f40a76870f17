"""The transformer's Triton kernels against torch's operations: on a card, and what
tests/test_interpreted_kernels.py runs in Triton's interpreter."""

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import comfy.ops
import pytest
import torch
from diffusers.models.attention import FeedForward

from cogvideox.benchmarks.gpu_models import counted_launches
from cogvideox.host.ops import adopt_ops
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.support import (
    check_at_most,
    reference_transformer,
    relative_error,
    write_fp32,
)
from cogvideox.transformer import token_passes
from cogvideox.transformer.positions import rotary_table

ROOT = Path(__file__).resolve().parent.parent.parent
Tensors = dict[str, torch.Tensor]
# batch, heads, tokens of text, grid of the video
Case = tuple[int, int, int, tuple[int, int, int]]
TINY: tuple[Case, ...] = ((2, 3, 5, (1, 3, 3)), (1, 4, 8, (2, 2, 2)))
# 17 tokens in all; and those of 2b and 5b: 226 + 17550 of 1920 and 3072 values.
ON_A_CARD: tuple[Case, ...] = (
    (1, 30, 2, (1, 3, 5)),
    (2, 48, 2, (1, 3, 5)),
    (1, 30, 226, (13, 30, 45)),
    (2, 48, 226, (13, 30, 45)),
)
KERNELS = {"adaptive norm", "residual", "residual and adaptive norm", "norm and rotation of heads"}
MOST = 1.05  # times the error of torch's operations in the same type
FORWARDS = ("2b", "5b", "1.5-5B", "5b wide")  # models that a card computes
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@contextmanager
def kernels(on: bool) -> Iterator[Counter]:
    """All passes by kernels, or none; yields how often each has been launched."""
    with (
        counted_launches() as launches,
        mock.patch.object(token_passes, "use_kernels", lambda x: on and token_passes.may_overwrite()),
        torch.inference_mode(),
    ):
        yield launches


def make_layers(case: Case, head_width: int, dtype: torch.dtype, device: str) -> SimpleNamespace:
    """Norms and tokens of one block, random, the same numbers for each type."""
    batch, heads, text_tokens, grid = case
    width, video_tokens = heads * head_width, grid[0] * grid[1] * grid[2]
    generator = torch.Generator(device).manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16().to(dtype)

    def norm(size: int, eps: float) -> torch.nn.LayerNorm:
        layer = torch.nn.LayerNorm(size, eps=eps)
        adopt_ops(layer, comfy.ops.manual_cast)
        layer.weight, layer.bias = (torch.nn.Parameter(x, False) for x in (1 + 0.3 * random(size), random(size)))
        return layer

    shape = batch, text_tokens + video_tokens, heads, head_width
    return SimpleNamespace(
        norm=norm(width, 1e-5),
        attn=SimpleNamespace(norm_q=norm(head_width, 1e-6), norm_k=norm(head_width, 1e-6)),
        tokens=(3 * random(batch, text_tokens, width), 3 * random(batch, video_tokens, width) + 1),
        modulations=(0.5 * random(batch, 6 * width), 0.5 * random(batch, 6 * width)),
        output=random(batch, text_tokens + video_tokens, width),
        heads=(2 * random(*shape) + 1, 2 * random(*shape)),
        rotary=rotary_table(head_width, grid, None, text_tokens, torch.device(device)),
    )


def run_passes(of: SimpleNamespace, in_place: bool) -> Tensors:
    """Every pass on the same layers and tokens."""
    first, second = of.modulations

    def fresh() -> Any:
        return tuple(x.clone() for x in of.tokens)

    found = {"adaptive norm": token_passes.modulated_norm(of.norm, first, fresh())}
    found["residual, text"], found["residual, video"] = token_passes.added(first, fresh(), of.output, in_place)
    (text, video), joint = token_passes.added_and_normed(first, fresh(), of.output, of.norm, second, in_place)
    found |= {"both, text": text, "both, video": video, "both, norm": joint}
    for name, rotary in (("rotated", of.rotary), ("not rotated", None)):
        query, key = (x.clone() for x in of.heads)
        heads = token_passes.normed_heads(of.attn, query, key, rotary)
        found |= {f"queries, {name}": heads[0], f"keys, {name}": heads[1]}
    return found


def exact_passes(case: Case, head_width: int, device: str) -> Tensors:
    """By torch's operations in fp64."""
    of = make_layers(case, head_width, torch.float64, device)
    of.rotary = of.rotary.double()

    def rotate(x: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        return (matrices @ x.unflatten(-1, (-1, 2, 1))).flatten(-3)

    with kernels(False), mock.patch.object(token_passes, "rotate_pairs", rotate):
        return run_passes(of, False)


def compare(case: Case, dtype: torch.dtype, device: str, head_width: int = 64) -> dict[str, tuple[float, float]]:
    """Pass -> (error of the kernels, error of torch's operations in the same type)."""
    exact = exact_passes(case, head_width, device)
    of = make_layers(case, head_width, dtype, device)
    with kernels(False):
        by_torch = run_passes(of, False)
    found = {}
    for in_place in (False, True):
        with kernels(True) as launches:
            ours = run_passes(of, in_place)
        assert set(launches) == KERNELS and all(launches.values()), launches
        for name, result in ours.items():
            error = relative_error(result, exact[name])
            before = found.get(name, (0.0, 0.0))[0]
            # NaN must win.
            found[name] = (error if not error <= before else before, relative_error(by_torch[name], exact[name]))
    return found


def forwards(variant: str, folder: Path, device: str = "cpu") -> Callable[[bool], tuple[torch.Tensor, Counter]]:
    """A forward of a tiny model, by kernels or without them."""
    model: Any = load_model(folder, "fp32").model.diffusion_model
    frames = model.config.patch_size_t or 1  # few tokens: the interpreter is slow
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, model.config.in_channels, frames, 4, 6, generator=generator)
    text = torch.randn(2, 4, model.config.text_embed_dim, generator=generator)

    def call(on: bool) -> tuple[torch.Tensor, Counter]:
        with kernels(on) as launches:
            return model(latents, torch.tensor([999, 500]), context=text), launches

    return call


def measure() -> dict[str, Any]:
    """What tests/test_interpreted_kernels.py runs in a process of its own."""
    errors = [pair for case in TINY for pair in compare(case, torch.float32, "cpu", 16).values()]
    found: dict[str, Any] = {"passes": errors, "forwards": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for variant in ("5b",):
            forward = forwards(variant, write_fp32(Path(scratch) / variant, variant, seed=3))
            (ours, launches), (plain, _) = forward(True), forward(False)
            found["forwards"][variant] = relative_error(ours, plain), sorted(launches)
    return found


class TestFallback:
    """Whatever keeps a kernel from working costs speed and a line of log, never the video."""

    def test_kernel_that_fails(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        of = make_layers(TINY[0], 16, torch.float32, "cpu")
        monkeypatch.setattr(token_passes, "_WITHOUT", set())
        with kernels(False):
            plain = run_passes(of, True)
        # A CPU has no Triton: each kernel fails at its launch.
        with caplog.at_level(logging.WARNING), kernels(True) as launches:
            for _ in range(2):
                ours = run_passes(of, True)
        assert not +launches and all(torch.equal(ours[name], plain[name]) for name in plain)
        lines = [line for line in caplog.messages if "does not work" in line]
        known = KERNELS if importlib.util.find_spec("triton") is not None else set()
        assert sorted(line.split("kernel for ")[1].split(" does not")[0] for line in lines) == sorted(known)

    def test_out_of_memory_is_not_a_broken_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next, leaner try must find the kernels working."""
        monkeypatch.setattr(token_passes, "_WITHOUT", set())
        monkeypatch.setattr(token_passes, "_is_exact", lambda *_: True)

        def fail() -> None:
            raise torch.OutOfMemoryError("none is left")

        with pytest.raises(torch.OutOfMemoryError):
            token_passes._launched("residual", torch.zeros(1), [], fail)
        assert not token_passes._WITHOUT


class TestWhere:
    """Kernels only where their result is the same."""

    def test_not_for_a_training(self) -> None:
        """A kernel has no gradient, and a residual that is overwritten has lost what its gradient needs."""
        assert not token_passes.may_overwrite()
        with torch.no_grad():
            assert token_passes.may_overwrite()

    def test_not_for_few_tokens(self) -> None:
        """A tiny model's step would take longer: the launches are what it waits for."""

        def on_a_card(values: int) -> Any:
            return SimpleNamespace(is_cuda=True, numel=lambda: values)

        with torch.inference_mode():
            # 994 tokens of 5b, of 9 frames of 256 x 256; and 3000 of CogVideoX-nano, more than it ever has.
            assert token_passes.use_kernels(on_a_card(2 * 994 * 3072))
            assert not token_passes.use_kernels(on_a_card(2 * 3000 * 160))

    @pytest.mark.parametrize("change", ("forward", "hook", "no weight", "type", "width"))
    def test_layers_that_are_not_plain(self, change: str) -> None:
        """A LoRA in bypass mode or another node's hook would be left out without a word."""
        of = make_layers(TINY[0], 16, torch.float32, "cpu")
        first, (text, video) = of.modulations[0], of.tokens
        with kernels(True):
            assert token_passes._fits("residual", of.norm, first, text, video, of.output)
            if change == "forward":
                of.norm.forward = lambda x: x
            elif change == "hook":
                of.norm.register_forward_hook(lambda *_: None)
            elif change == "no weight":
                of.norm.weight = of.norm.bias = None
            elif change == "type":
                first = first.bfloat16()
            else:
                first = first[:, :-6].contiguous()
            assert not token_passes._fits("residual", of.norm, first, text, video, of.output)

    def test_a_block_leaves_the_tokens_of_others_alone(self, tmp_path: Path) -> None:
        """A node that caches a block's tokens, or replaces a block, would find them overwritten."""
        model: Any = load_model(write_fp32(tmp_path, "5b"), "fp32").model.diffusion_model
        given: list[tuple[torch.Tensor, torch.Tensor]] = []

        def replaced(args: dict, extra: dict) -> dict:
            given.append((args["img"], args["img"].clone()))
            return extra["original_block"](args)

        def output(args: dict) -> dict:
            given.append((args["img"], args["img"].clone()))
            return args

        latents, text = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 6, model.config.text_embed_dim)

        def call(**options: Any) -> torch.Tensor:
            return model(latents, torch.tensor([500]), context=text, transformer_options=options)

        with torch.inference_mode():
            plain = call()
            for options in (
                {"patches_replace": {"dit": {("double_block", 0): replaced}}},
                {"patches": {"double_block": [output]}},
            ):
                assert torch.equal(call(**options), plain)
        assert len(given) > 2 and all(torch.equal(kept, copy) for kept, copy in given)


@pytest.mark.cuda
@needs_card
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("fp32", "bf16"))
@pytest.mark.parametrize("case", ON_A_CARD, ids=lambda case: f"{case[0]}x{case[2]}+{case[3]}x{case[1]}")
def test_kernels_are_exact_on_a_card(case: Case, dtype: torch.dtype) -> None:
    """The compiled kernel rounds and divides in its own way, and a large video has indices that a small one lacks."""
    worst = {name: ours / theirs for name, (ours, theirs) in compare(case, dtype, "cuda").items()}
    print(dtype, case, {name: f"{ratio:.3f}" for name, ratio in worst.items()})
    for name, ratio in worst.items():
        check_at_most(f"kernel on a card, {dtype}, {name}: error over that of torch", ratio, MOST)


@pytest.mark.cuda
@needs_card
def test_product_with_gelu_is_exact_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLASLt's gelu has to be the tanh form, and rounded once."""
    monkeypatch.setattr(token_passes, "_WITHOUT", set())
    monkeypatch.setattr(token_passes, "_EXACT", set())
    torch.manual_seed(0)
    ff = FeedForward(3072, activation_fn="gelu-approximate").to("cuda", torch.bfloat16)
    adopt_ops(ff, comfy.ops.manual_cast)
    tokens = torch.randn(2, 1000, 3072, device="cuda").bfloat16()
    with torch.inference_mode():
        two_steps = ff.net[0](tokens)
        first: Any = ff.net[0]
        exact = torch.nn.functional.gelu(first.proj.double()(tokens.double()), approximate="tanh")
        first.proj.bfloat16()
        ours = token_passes._projected_with_gelu(first.proj, tokens)
    assert ours is not None and not token_passes._WITHOUT
    assert relative_error(ours, exact) <= MOST * relative_error(two_steps, exact)


@pytest.fixture(scope="module")
def forwards_on_a_card() -> dict[str, Any]:
    """What measure_on_a_card finds in a process whose ComfyUI is on the card: that of the tests is on the CPU."""
    code = (
        "import json; from cogvideox.host.standalone import use_comfyui; use_comfyui(cpu=False)\n"
        "from cogvideox.tests.transformer import test_token_passes\n"
        "print(json.dumps(test_token_passes.measure_on_a_card()))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-4000:]
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def measure_on_a_card() -> dict[str, Any]:
    """Model -> (error of a forward by kernels, the most that is right, kernels launched, kernels given up)."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as scratch:
        return {name: forward_on_a_card(name, Path(scratch) / name) for name in FORWARDS}


def forward_on_a_card(name: str, folder: Path, device: str = "cuda") -> tuple[float, float, list[str], list[str]]:
    """One entry of measure_on_a_card."""
    import comfy.model_management as mm

    from cogvideox.tests.transformer.test_dit import reference_rotary

    wide = name == "5b wide"
    sizes = {"num_attention_heads": 48, "attention_head_dim": 64, "num_layers": 2} if wide else {}
    write_fp32(folder, name.split()[0], seed=3, **sizes)
    theirs: Any = reference_transformer(folder)
    frames = 4 if theirs.config.patch_size_t else 3
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, theirs.config.in_channels, frames, 8, 12, generator=generator).to(device)
    text = torch.randn(2, 226, theirs.config.text_embed_dim, generator=generator).to(device)
    timestep = torch.tensor([999, 500], device=device)
    rotary: Any = reference_rotary(theirs, (frames, 8, 12))
    rotary = rotary and tuple(table.to(device) for table in rotary)

    def reference(dtype: torch.dtype) -> torch.Tensor:
        model = torch.nn.Module.to(theirs, device, dtype)
        inputs = latents.transpose(1, 2).to(dtype), text.to(dtype), timestep
        return model(*inputs, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2).float()

    with torch.inference_mode():
        exact = reference(torch.float32)
        kind = torch.bfloat16 if wide else torch.float32
        patcher = load_model(folder, "bf16" if wide else "fp32", disable_dynamic=True)
        mm.load_models_gpu([patcher])
        assert mm.get_torch_device().type == torch.device(device).type
        token_passes._WITHOUT.clear()
        with kernels(True) as launches:
            ours = patcher.model.diffusion_model(latents.to(kind), timestep.float(), context=text.to(kind)).float()
        most = MOST * relative_error(reference(torch.bfloat16), exact) if wide else 5e-6
    given_up = sorted(one for one, *_ in token_passes._WITHOUT)
    return relative_error(ours, exact), most, sorted(+launches), given_up


@pytest.mark.cuda
@needs_card
@pytest.mark.parametrize("name", FORWARDS)
def test_forward_by_kernels_equals_diffusers(name: str, forwards_on_a_card: dict[str, Any]) -> None:
    """Of tiny models in fp32, and of two layers of 5b's width in bf16 with its error beside diffusers'."""
    error, most, launched, given_up = forwards_on_a_card[name]
    assert set(launched) == KERNELS and not given_up
    check_at_most(f"forward by kernels on a card, {name}", error, most)
