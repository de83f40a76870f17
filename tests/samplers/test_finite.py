"""NaN and Inf in a run: found when the card has come so far, and mended where a quantised attention kernel is the
cause."""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import comfy.ldm.modules.attention as comfy_attention
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import NonFiniteError, UserError
from cogvideox.host import async_copies, compat
from cogvideox.host.attention_kernels import attention_by_choice
from cogvideox.host.exact_attention import quantised_attention
from cogvideox.model_loaders.load_model import load_model
from cogvideox.samplers import finite
from cogvideox.samplers.finite import FiniteWatch
from cogvideox.samplers.step_cache import step_cached
from cogvideox.tests.tasks import Task, task_of
from cogvideox.transformer import attention

pytestmark = pytest.mark.usefixtures("inference")
STEPS = 4


class Sage:
    """A stand-in for SageAttention that gives NaN from its `good`-th call on, and counts its calls."""

    def __init__(self, good: int):
        self.good, self.calls = good, 0
        spoiled = comfy_attention.attention_pytorch.__wrapped__

        def attention_sage(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.calls += 1
            return spoiled(*args, **kwargs) * (1.0 if self.calls <= self.good else torch.nan)

        self.kernel: Callable[..., torch.Tensor] = attention_sage
        self.registered = comfy_attention.wrap_attn(attention_sage)  # as ComfyUI has its own

    def override(self) -> Callable[..., torch.Tensor]:
        """As other packs' nodes make it."""
        sage_func = self.kernel

        def attention_override(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return sage_func(*args, **kwargs)

        return attention_override


def with_override(model: ModelPatcher, override: Callable[..., torch.Tensor]) -> ModelPatcher:
    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return patched


def launched_with(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., torch.Tensor]) -> None:
    """A ComfyUI that was started with --use-sage-attention; on a CPU the pack takes torch's attention."""
    monkeypatch.setattr(comfy_attention, "optimized_attention", kernel)
    for module in (attention, finite):
        monkeypatch.setattr(module, "attention_for", lambda device: compat.attention_for(torch.device("cuda")))


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def task(tiny_pipelines: dict[str, Path], told: list[str]) -> Task:
    task = task_of(tiny_pipelines["5b"])
    task.model = load_model(tiny_pipelines["5b"], "fp16", notify=told.append)
    return task


def run(task: Task, model: ModelPatcher | None = None) -> torch.Tensor:
    latent = task.node("latent", "CogVideoXEmptyLatent", width=96, height=64, frames=5, batch_size=1)[0]
    return task.sample(task.positive, task.negative, latent, model=model, steps=STEPS)


@pytest.mark.parametrize("how", ("launch option", "override", "override, step cache"))
def test_a_step_is_computed_again(task: Task, told: list[str], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A kernel in eight bits that overflows once would cost the whole run. The steps before it stay as they are."""
    exact, calls = run(task), len(task.model.model.diffusion_model.transformer_blocks)
    told.clear()
    sage = Sage(good=2 * calls)  # two steps, prompt and negative prompt in one batch
    model = task.model
    if how == "launch option":
        launched_with(monkeypatch, sage.registered)
    else:
        model = with_override(model, sage.override())
    if how.endswith("cache"):
        model = step_cached(model, 0.0, told.append)
    assert torch.equal(run(task, model), exact)
    # In the third step the first block has failed, and all others have computed with what it gave.
    assert sage.calls == 3 * calls
    (sentence,) = [text for text in told if "quantised kernel" in text]
    assert "was computed again with torch's own attention" in sentence


def test_nan_again_is_the_known_error(task: Task, told: list[str]) -> None:
    """Damage elsewhere must not be taken for the kernel's, nor be computed again at each step."""
    sage, model = Sage(good=1000), load_model(task.folder, "fp32", notify=told.append)
    model.model.diffusion_model.proj_out.weight.data.fill_(3e38)
    told.clear()
    with pytest.raises(NonFiniteError, match="timestep 999 contains NaN or Inf. The likely cause is the precision"):
        run(task, with_override(model, sage.override()))
    assert sage.calls == len(model.model.diffusion_model.transformer_blocks)
    assert not [text for text in told if "quantised kernel" in text]


def test_which_attention_is_quantised() -> None:
    """A node that only looks at the attention must not be left out of a run that goes wrong for another reason."""

    def watcher(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        message = function(*args, **kwargs)
        return message.message if hasattr(message, "message") else message

    plain, options = comfy_attention.attention_pytorch, {"optimized_attention_override": watcher}
    assert not quantised_attention(plain, {}) and not quantised_attention(comfy_attention.attention_sage, options)
    assert quantised_attention(comfy_attention.attention_sage, {}) == "attention_sage"
    assert quantised_attention(plain, {"optimized_attention_override": Sage(0).override()}) == "attention_override"
    for kernel in (comfy_attention.attention_flash, comfy_attention.attention_xformers, attention_by_choice):
        assert not quantised_attention(kernel, {})


class Node:
    """An override as a method, and as an object."""

    def __init__(self, kernel: Callable[..., Any]):
        self.kernel = kernel

    def attend(self, _: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.kernel(*args, **kwargs)

    __call__ = attend


class Attention(torch.nn.Module):
    """A kernel as a layer, which torch calls."""

    def __init__(self, kernel: Callable[..., Any]):
        super().__init__()
        self.kernel = kernel

    def forward(self, *args: Any) -> torch.Tensor:
        return self.kernel(*args)


def in_module(name: str, function: Callable[..., Any], **scope: Any) -> Callable[..., Any]:
    """The same function in a module of another name, which has `scope`."""
    return FunctionType(function.__code__, {"__name__": name, "torch": torch, **scope}, "attend")


kernel: Any = None  # each module has its own


def call_kernel(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return kernel(*args, **kwargs)


def call_module(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return kernel.attend(*args, **kwargs)


def choose(_: Any, *args: Any, kind: str) -> torch.Tensor:
    return kernel[kind](*args)


KERNEL = in_module("sageattention.core", lambda query, *_: query)
EIGHT_BITS = in_module("/nodes/pack", lambda query, key, *_: torch._scaled_mm(query, key, query, key))
PICTURE = in_module("/nodes/ComfyUI_SageUtils", lambda query, *_: query.to(torch.uint8))


@pytest.mark.parametrize(
    ("override", "is_quantised"),
    (
        (Node(KERNEL).attend, True),
        (Node(KERNEL), True),
        (Node(Attention(KERNEL)), True),
        (Node(Attention(PICTURE)), False),
        (in_module("/nodes/pack", call_kernel, kernel=KERNEL), True),
        (in_module("/nodes/pack", call_kernel, kernel=partial(KERNEL, None)), True),
        (in_module("/nodes/pack", call_kernel, kernel=Node(EIGHT_BITS)), True),
        (in_module("/nodes/pack", call_module, kernel=ModuleType("sageattention.core")), True),
        (partial(in_module("/nodes/pack", choose), kind="sageattn_qk_int8"), True),
        (wraps(comfy_attention.attention_pytorch)(in_module("/nodes/pack", call_kernel, kernel=KERNEL)), True),
        (in_module("/nodes/pack", call_kernel, kernel=PICTURE), False),
        (Node(torch.nn.functional.multi_head_attention_forward), False),
        (partial(Node(PICTURE).attend, folder="/home/sage/clips"), False),
    ),
)
def test_an_override_whose_name_says_nothing(override: Any, is_quantised: bool) -> None:
    """A run with SageAttention that gave NaN was lost where a node's function had another name; one without it must
    not wait for the card at each prediction."""
    options = {"optimized_attention_override": override}
    assert bool(quantised_attention(comfy_attention.attention_pytorch, options)) == is_quantised


class Gone:
    """As a proxy for something that is gone, which answers each question with an error."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


GONE: Any = Gone()


@pytest.mark.parametrize(
    "override",
    (
        Node(torch.jit.script(torch.nn.Linear(2, 2))),
        Node(GONE),
        in_module("/nodes/pack", call_kernel, kernel=GONE),
        lambda *_: GONE,
    ),
    ids=("compiled", "held", "named", "closed over"),
)
def test_an_override_that_cannot_be_asked(override: Any) -> None:
    """A run of another pack's attention ended before its first step, with an error about our question."""
    options = {"optimized_attention_override": override}
    assert not quantised_attention(comfy_attention.attention_pytorch, options)


def test_an_override_with_a_variable_without_a_value() -> None:
    """A node that fills its closure later, or empties it, ended each run with "Cell is empty"."""

    def override(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return attend(*args, **kwargs)

    options = {"optimized_attention_override": override}
    assert not quantised_attention(comfy_attention.attention_pytorch, options)
    attend = Sage(0).kernel
    assert quantised_attention(comfy_attention.attention_pytorch, options) == "override"


class Card:
    """Events of a card that comes to them when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.waits, self.is_done = 0, False
        monkeypatch.setattr(async_copies, "is_card", lambda device: True)
        monkeypatch.setattr(async_copies, "copy_later", lambda value: (value, self))

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.waits += not self.is_done


def test_a_card_is_waited_for_once_a_step(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any wait leaves the card without work. The host stays one step ahead, or cancel and progress would mean
    nothing."""
    card, exact = Card(monkeypatch), run(task)
    assert torch.equal(run(task), exact) and card.waits == 2 * STEPS
    card.is_done = True  # after a preview
    run(task)
    assert card.waits == 2 * STEPS


def test_what_a_card_finds_late_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a black video would come out of a run whose last step, or only step, gave NaN."""

    def error() -> UserError:
        return UserError("NaN")

    Card(monkeypatch)
    watch = FiniteWatch()
    watch.note(torch.tensor(False), error)
    watch.end_step()
    with pytest.raises(UserError, match="NaN"):
        watch.end_step()
    watch.note(torch.tensor(False), error)
    with pytest.raises(UserError, match="NaN"):
        watch.end_run()
