"""The lean mode of a step: the same result as the default mode's, in less memory, chosen by what is free."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.model_management as mm
import comfy.ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch.utils.hooks import RemovableHandle

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.host import memory_rules
from cogvideox.host import ops as host_ops
from cogvideox.host.compat import NoMemoryLeftError
from cogvideox.host.quantized_ops import QuantizedLinear
from cogvideox.keys import ATTENTION_OVERRIDE
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.tests.quantized_models import KINDS, load
from cogvideox.tests.support import ALL_VARIANTS, relative_error
from cogvideox.transformer import attention, control_net, dit, token_passes
from cogvideox.transformer import block as block_module
from cogvideox.transformer.memory_modes import DEFAULT, LADDER, LEAN, Mode, modes_to_try, step_bytes

pytestmark = pytest.mark.usefixtures("inference")
# Of tiny models: 4 heads are groups of 2, and the tokens of a video several spans, of which the last is shorter.
SMALL = Mode("lean", head_groups=3, span_values=50 * 64, in_place=True)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dit, control_net):
        monkeypatch.setattr(module, "LADDER", (DEFAULT, SMALL))
    monkeypatch.setattr(dit.CogVideoXDiT, "_modes", (DEFAULT, SMALL))


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The heads that each call of the attention gets."""
    called: list[int] = []
    attend = attention.attention_for

    def attention_for(device: torch.device) -> Callable[..., torch.Tensor]:
        def counted(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            called.append(query.shape[1])
            return attend(device)(query, *args, **options)

        return counted

    monkeypatch.setattr(attention, "attention_for", attention_for)
    return called


class Step:
    """One call of a model's transformer, with the same random input each time."""

    def __init__(self, model: ModelPatcher, monkeypatch: pytest.MonkeyPatch):
        self.dit, self._patch = model.model.diffusion_model, monkeypatch
        config, frames = self.dit.config, 4
        generator = torch.Generator().manual_seed(1)
        size = (config.sample_height, config.sample_width) if config.use_learned_positional_embeddings else (8, 12)
        frames = self.dit.native_size()[0] if config.use_learned_positional_embeddings else frames
        dtype = model.model.get_dtype_inference()
        self.latents = torch.randn(2, config.in_channels, frames, *size, generator=generator).to(dtype)
        self.text = torch.randn(2, 30, config.text_embed_dim, generator=generator).to(dtype)
        self.ofs = torch.full((1,), 2.0) if config.ofs_embed_dim else None

    def __call__(self, free: float = 0.0, control: Any = None, **options: Any) -> torch.Tensor:
        self._patch.setattr(dit, "free_in_step", lambda device: free)
        arguments = {"context": self.text, "ofs": self.ofs, "control": control, "transformer_options": options}
        return self.dit(self.latents, torch.tensor([999, 500]), **arguments)

    def default(self, **more: Any) -> torch.Tensor:
        return self(free=1e12, **more)


@pytest.fixture
def step(tiny_pipelines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Step:
    return Step(load_model(tiny_pipelines["5b"], "fp32"), monkeypatch)


class TestExact:
    """A mode that the free memory chooses must not choose the video."""

    @pytest.mark.parametrize("variant", ALL_VARIANTS)
    def test_every_family(
        self, variant: str, tiny_pipelines: dict[str, Path], groups: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = Step(load_model(tiny_pipelines[variant], "fp32"), monkeypatch)
        latents, text = step.latents.clone(), step.text.clone()
        want = step.default()
        blocks = len(step.dit.transformer_blocks)
        assert groups == [4] * blocks
        got = step()
        assert groups[blocks:] == [2, 2] * blocks
        assert relative_error(got, want) <= 2e-6
        # It works in place, on tokens of its own alone.
        assert torch.equal(step.latents, latents) and torch.equal(step.text, text)

    def test_what_a_control_net_adds(self, step: Step) -> None:
        generator = torch.Generator().manual_seed(2)
        control = {"input": [torch.randn(2, 4 * 4 * 6, 64, generator=generator)]}
        kept = control["input"][0].clone()
        got, want = step(control=control), step.default(control=control)
        assert relative_error(got, want) <= 2e-6 and relative_error(step(), want) > 1e-3
        assert torch.equal(control["input"][0], kept)

    def test_a_control_net(self, tmp_path: Path, groups: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        """Its blocks are the model's, and in the default mode they would take more than a step in the lean one."""
        folder = write_controlnet(tmp_path / "net", "5b", dtype=torch.float32, num_layers=3)
        net: Any = load_controlnet(folder, "fp32").patcher.model
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(2, 16, 4, 8, 12, generator=generator)
        guide = net.encode_control(torch.rand(1, 13, 3, 64, 96, generator=generator))
        text = torch.randn(2, 30, 32, generator=generator)

        def outputs(free: float, **options: Any) -> list[torch.Tensor]:
            monkeypatch.setattr(control_net, "free_in_step", lambda device: free)
            return net(latents, guide, torch.tensor([999, 500]), text, options)

        want, heads = outputs(1e12), net.config.num_attention_heads
        assert groups == [heads] * 3
        for got, expected in zip(outputs(0), want, strict=True):
            assert relative_error(got, expected) <= 2e-6
        assert len(groups) > 6 and max(groups[3:]) < heads
        overridden = outputs(0, **{ATTENTION_OVERRIDE: lambda attend, *args, **options: attend(*args, **options)})
        assert torch.equal(overridden[-1], want[-1])

    @pytest.mark.parametrize("kind", ("fp32", *KINDS))
    def test_streamed_patched_and_quantised_weights(
        self, kind: str, wide: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """LoRAs are applied to weights on their way to the card: of a layer that is taken in parts, once."""
        model = load(wide, kind, monkeypatch, disable_dynamic=True)
        step = Step(model, monkeypatch)
        plain = step.default()
        names = ("attn1.to_q", "attn1.to_v", "ff.net.0.proj", "ff.net.2")
        keys = [f"diffusion_model.transformer_blocks.0.{name}.weight" for name in names]
        generator = torch.Generator().manual_seed(3)
        shapes = [step.dit.get_parameter(key.removeprefix("diffusion_model.")).shape for key in keys]
        deltas = [torch.randn(shape, generator=generator) * 0.05 for shape in shapes]
        model.add_patches({key: ("diff", (delta,)) for key, delta in zip(keys, deltas)}, 0.7)
        for share in (0.5, 1e-4):
            model.partially_load(torch.device("cpu"), extra_memory=int(model.model_size() * share))
            want = step.default()
            assert relative_error(step(), want) <= 2e-6 and relative_error(plain, want) > 1e-3
            model.detach()


class TestWhere:
    """What another node has put into the blocks sees all heads and all tokens, as everywhere in ComfyUI."""

    @pytest.mark.parametrize("kind", ("attn1_patch", "attn1_output_patch", "double_block", "post_input"))
    def test_patches(self, step: Step, kind: str, groups: list[int]) -> None:
        def patch(*args: Any, **named: Any) -> Any:
            if kind == "attn1_patch":
                return {"q": args[0]}
            return args[0]

        want = step.default(patches={kind: [patch]})
        assert torch.equal(step(patches={kind: [patch]}), want) and set(groups) == {4}

    def test_replacements(self, step: Step, groups: list[int]) -> None:
        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, extra: dict) -> torch.Tensor:
            return value

        def block(args: dict, extra: dict) -> dict:
            return extra["original_block"](args)

        for kind, function in (("attn1", attend), ("dit", block)):
            options: dict[str, Any] = {"patches_replace": {kind: {("double_block", 0): function}}}
            assert torch.equal(step(**options), step.default(**options))
        assert set(groups) == {4}

    def test_attention_overrides(self, step: Step, groups: list[int]) -> None:
        def override(attend: Callable, *args: Any, **options: Any) -> torch.Tensor:
            return attend(*args, **options)

        options: dict[str, Any] = {ATTENTION_OVERRIDE: override}
        assert torch.equal(step(**options), step.default()) and set(groups) == {4}

    def test_a_layer_that_is_more_than_its_weights(self, step: Step, groups: list[int]) -> None:
        """A LoRA in bypass mode, or a hook, would be left out without a word."""
        block = step.dit.transformer_blocks[1]
        for layer in (block.attn1.to_k, block.ff.net[2]):
            handle: RemovableHandle = layer.register_forward_hook(lambda module, args, out: 2 * out)
            try:
                assert torch.equal(step(), step.default())
            finally:
                handle.remove()
        assert set(groups) == {4}

    def test_products_in_eight_bits(self, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their inputs are quantised too, in fp8 by one scale for all tokens."""
        step = Step(load_model(wide, "fp8_e4m3fn"), monkeypatch)
        assert dit.has_lean_mode(step.dit.transformer_blocks)
        monkeypatch.setattr(QuantizedLinear, "multiplies_quantized", True)
        assert not dit.has_lean_mode(step.dit.transformer_blocks)

    def test_a_training(self, step: Step, groups: list[int]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            step.latents, step.text = step.latents.clone(), step.text.clone()
            step()
        assert set(groups) == {4}


class TestChoice:
    """One function decides, by what each mode needs and what is free."""

    def test_the_first_that_fits_and_those_after_it(self) -> None:
        needed = {DEFAULT: 300, LEAN: 100}
        found = {free: modes_to_try(LADDER, lambda mode: needed[mode], free) for free in (300, 299, 100, 99, 0)}
        assert found == {300: (DEFAULT, LEAN), 299: (LEAN,), 100: (LEAN,), 99: (LEAN,), 0: (LEAN,)}
        assert modes_to_try(LADDER[:1], lambda mode: needed[mode], 0) == (DEFAULT,)

    def test_a_step_asks_what_is_free_now(self, step: Step, groups: list[int]) -> None:
        needed = step.dit.step_bytes(DEFAULT, step.latents.shape, 30, torch.float32, torch.device("cpu"))
        blocks, table = len(step.dit.transformer_blocks), step.dit._table_bytes(step.latents.shape, 30)
        step(free=needed)
        step(free=needed - table)  # which is there now, and no longer free
        assert groups == [4] * 2 * blocks
        step(free=needed - table - 1)
        assert groups[2 * blocks :] == [2, 2] * blocks
        step.dit.forget_run()
        step(free=needed - 1)
        assert groups[4 * blocks :] == [2, 2] * blocks

    def test_weights_under_dynamic_vram_are_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There they give way to the step; counted as taken, they would put every step of a full card into the lean
        mode."""
        analyze = pytest.importorskip("comfy_aimdo.model_vbar")
        monkeypatch.setattr(mm, "get_free_memory", lambda device=None, **_: 100)
        monkeypatch.setattr(analyze, "vbars_analyze", lambda *_: 50)
        card = torch.device("cuda", 0)
        assert memory_rules.free_in_step(card) == 100
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
        assert memory_rules.free_in_step(card) == 150

    def test_the_lean_mode_needs_less_at_every_size(self) -> None:
        for values in (1 << 20, 1 << 25, 1 << 28):
            assert step_bytes(LEAN, values, 2, True) < step_bytes(DEFAULT, values, 2, True)


class TestCancel:
    """A block of a large video takes minutes on a slow device, and the whole queue waits for it."""

    @pytest.mark.parametrize(
        ("mode", "module", "last"),
        [
            (DEFAULT, block_module, "joint_attention"),  # and no feed-forward after it
            (SMALL, attention, "norm_heads_in_place"),  # of the first of two groups of heads
            (SMALL, token_passes, "_gelu_of_product"),  # of the first of several spans of tokens
        ],
    )
    def test_it_is_heard_within_a_block(
        self, step: Step, mode: Mode, module: Any, last: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free, called, compute = 0 if mode is SMALL else 1e12, list[int](), getattr(module, last)
        want = step(free)

        def cancel(*args: Any) -> Any:
            out = compute(*args)
            called.append(1)
            mm.interrupt_current_processing(True)
            return out

        with monkeypatch.context() as patch:
            patch.setattr(module, last, cancel)
            patch.setattr(block_module, "added", lambda *_: pytest.fail("the block has come to its end"))
            with pytest.raises(mm.InterruptProcessingException):
                step(free)
        assert called == [1] and not mm.processing_interrupted()
        assert torch.equal(step(free), want)


class Failing:
    """A block's computation that runs out of memory in some modes, from the second block on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, *modes: str):
        self.ran: list[str] = []
        forward = dit.block_forward

        def block_forward(*args: Any) -> Any:
            mode: Mode = args[-1]
            if args[5]["block_index"] == 0:
                self.ran.append(mode.name)
            elif mode.name in modes:
                raise error
            return forward(*args)

        monkeypatch.setattr(dit, "block_forward", block_forward)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")


class TestOutOfMemory:
    """A count may be too low, and another program may take what was free: the run goes on."""

    def test_it_goes_on_leaner(
        self, step: Step, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        want = step()
        failing = Failing(monkeypatch, OUT_OF_MEMORY, "default")
        with caplog.at_level(logging.WARNING):
            assert torch.equal(step.default(), want)
        (line,) = (line for line in caplog.messages if "memory mode" in line)
        assert "mode default" in line and "mode lean" in line
        assert failing.ran == ["default", "lean"]
        # The same step of the same run would run out of memory once more.
        step.default()
        assert failing.ran == ["default", "lean", "lean"]
        step.dit.forget_run()
        step.default()
        assert failing.ran[3:] == ["default", "lean"]

    def test_weights_on_their_way_are_let_go(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those of the block that failed would hold their memory through the run."""
        prefetch = pytest.importorskip("comfy.model_prefetch")
        ended: list[int] = []
        monkeypatch.setattr(prefetch, "cleanup_prefetch_queues", lambda: ended.append(1))
        Failing(monkeypatch, OUT_OF_MEMORY, "default")
        step.default()
        assert ended

    @pytest.mark.parametrize("patched", (False, True))
    def test_nothing_leaner_is_left(self, step: Step, patched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch's message tells of its allocator; this one of what to change."""
        Failing(monkeypatch, OUT_OF_MEMORY, "default", "lean")
        options = {"patches": {"post_input": [lambda args: args]}} if patched else {}
        with pytest.raises(NoMemoryLeftError) as raised:
            step.default(**options)
        text = raised.value.message
        assert f"memory mode {'default' if patched else 'lean'}" in text and " GiB " in text
        assert "fewer frames" in text and "width and height" in text and raised.value.advice == "forecast the memory"
        assert ("other nodes" in text) == patched
        # ComfyUI unloads everything at such an error, for the next run.
        assert mm.OOM_EXCEPTION is Exception or isinstance(raised.value, mm.OOM_EXCEPTION)
        assert raised.value.__cause__ is OUT_OF_MEMORY

    def test_other_errors_stay_what_they_are(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        failing = Failing(monkeypatch, RuntimeError("shapes differ"), "default")
        with pytest.raises(RuntimeError, match="shapes differ"):
            step.default()
        assert failing.ran == ["default"]


class TestHeldWeights:
    """A layer that is taken in parts needs its weights in several calls, and ComfyUI streams them through a buffer."""

    def test_each_is_streamed_once(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        """Copied for each part, 10 GB a step would become 40."""
        cast: list[torch.nn.Module] = []
        original = comfy.ops.cast_bias_weight

        def cast_bias_weight(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
            cast.append(module)
            return original(module, *args, **options)

        monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_bias_weight)
        step()
        for block in step.dit.transformer_blocks:
            attn, (first, _, last, *_) = block.attn1, block.ff.net
            assert [cast.count(layer) for layer in (attn.to_q, attn.to_k, attn.to_v, first.proj, last)] == [1] * 5

    def stream(self, monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
        """All weights come through one buffer from now on; returns the layers whose weights were let go."""
        buffer = torch.empty(1 << 20)
        released: list[torch.nn.Module] = []

        class Stream:
            pass

        def cast_bias_weight(module: Any, **_: Any) -> Any:
            weight = buffer[: module.weight.numel()].view(module.weight.shape).copy_(module.weight)
            bias = buffer[module.weight.numel() :][: module.bias.numel()].copy_(module.bias)
            return weight, bias, (Stream(), weight, bias)

        monkeypatch.setattr(host_ops.comfy.ops, "cast_bias_weight", cast_bias_weight)
        monkeypatch.setattr(host_ops.comfy.ops, "uncast_bias_weight", lambda module, *_: released.append(module))
        return released

    def test_the_next_layer_overwrites_the_buffer(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        """As on a card with streamed weights, where what is computed with another layer's weights is noise."""
        released = self.stream(monkeypatch)
        block = step.dit.transformer_blocks[0]
        layers = block.attn1.to_q, block.ff.net[2]
        with host_ops.weights_held(layers, torch.device("cpu"), torch.float32) as held:
            for layer, (weight, bias) in zip(layers, held):
                assert bias is not None and torch.equal(weight, layer.weight) and torch.equal(bias, layer.bias)
            assert released == list(layers)  # the stream may go on

    def test_a_kernel_reads_the_weights_of_two_norms(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        """Queries would be normed with the weights of the keys' norm."""
        pytest.importorskip("triton")
        attn, read = step.dit.transformer_blocks[0].attn1, []
        norms = [attn.norm_q, attn.norm_k]
        with torch.no_grad():
            attn.norm_k.weight.add_(1)
        self.stream(monkeypatch)

        def launch(*affines: Any) -> None:
            read.extend((affine.weight.clone(), affine.bias.clone()) for affine in affines)

        token_passes._with_affine(torch.zeros(1), norms, launch)
        assert all(
            torch.equal(weight, norm.weight) and torch.equal(bias, norm.bias)
            for (weight, bias), norm in zip(read, norms, strict=True)
        )
