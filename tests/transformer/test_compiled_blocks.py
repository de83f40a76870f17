"""torch.compile: no graph break in any model, and one graph for all blocks, sizes and LoRAs of CogVideoX Compile.

Graphs are counted with the backend "eager", which traces as inductor does and compiles nothing.
"""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from cogvideox.host import cpu_attention
from cogvideox.host.compat import attention_for
from cogvideox.keys import read_compiled_blocks
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes import compile as compile_node
from cogvideox.tests.support import ALL_VARIANTS, relative_error
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, task_of

pytestmark = pytest.mark.usefixtures("inference")
WHOLE = ("2b", "5b-I2V", "1.5-5B-I2V")  # one for each kind of positions, traced whole in every run
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "cl")), reason="torch.compile needs a C++ compiler"
)


def compiled_blocks() -> Any:
    return importlib.import_module("cogvideox.transformer.compiled_blocks")  # imports diffusers


def graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def inputs(dit: Any, size: tuple[int, int, int], batch: int = 2, text: int = 226) -> dict[str, Any]:
    """Arguments of a forward on latents of `size` (T, H, W)."""
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, dit.config.in_channels, *size, generator=generator),
        "timestep": torch.full((batch,), 500),
        "context": torch.randn(batch, text, dit.config.text_embed_dim, generator=generator),
        "ofs": torch.full((1,), 2.0) if dit.config.ofs_embed_dim else None,
    }


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=() if v in WHOLE else pytest.mark.long) for v in ALL_VARIANTS]
)
def test_no_graph_break(variant: str, tiny_pipelines: dict[str, Path]) -> None:
    """Each break costs a launch of its own, and whoever compiles with fullgraph=True or for CUDA graphs gets an error
    instead of a video."""
    dit: Any = load_model(tiny_pipelines[variant], "fp32").model.diffusion_model
    torch.compiler.reset()  # torch compiles a function 8 times and no more, whichever model it is called for
    given = inputs(dit, (2, 8, 12) if dit.config.patch_size_t else (3, 8, 12))
    want = dit(**given)
    whole: Any = torch.compile(dit, backend="eager", fullgraph=True)
    assert relative_error(whole(**given), want) <= 1e-6


@pytest.fixture(scope="module")
def task(tiny_pipelines: dict[str, Path]) -> Task:
    """The tiny 5b, whose graphs all tests below share."""
    return task_of(tiny_pipelines["5b"])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown on the sampler's node."""
    lines: list[str] = []
    monkeypatch.setattr(compiled_blocks(), "BACKEND", "eager")
    monkeypatch.setattr(compile_node, "show_on_running_node", lines.append)
    return lines


def compiled(model: Any) -> Any:
    return compile_node.CogVideoXCompile.execute(model).args[0]


def forward(
    model: Any, size: tuple[int, int, int] = (3, 8, 12), batch: int = 2, text: int = 226, **more: Any
) -> torch.Tensor:
    """The transformer's result with what nodes have put into the model's options."""
    dit = model.model.diffusion_model
    options = model.model_options.get("transformer_options", {})
    return dit(**inputs(dit, size, batch, text), transformer_options=options, **more)


def test_one_graph_for_all(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph for each block, or for each size, would make every other run wait for the compiler."""
    monkeypatch.setattr(compiled_blocks(), "_GRAPHS", {})
    model, before = compiled(task.model), graphs()
    for size, batch, text in (((3, 8, 12), 2, 226), ((5, 12, 6), 2, 40), ((1, 8, 8), 4, 77)):
        want = forward(task.model, size, batch, text)
        assert relative_error(forward(model, size, batch, text), want) <= 1e-6
        assert graphs() == before + 1 and len(said) == 1
    # Another run of the node, as after a change of what is before it.
    forward(compiled(task.model))
    assert graphs() == before + 1 and len(said) == 1
    assert "Compiled the transformer's block for cpu and torch.float32 in" in said[0]
    # A batch of 1, without guidance, is a constant to torch.
    for size in ((3, 8, 12), (5, 12, 6)):
        assert relative_error(forward(model, size, 1), forward(task.model, size, 1)) <= 1e-6
    assert graphs() == before + 2 and len(said) == 2


def lora(task: Task, model: Any, strength: float) -> Any:
    """A model with a LoRA that exists in memory only."""
    generator = torch.Generator().manual_seed(0)
    keys = [f"diffusion_model.transformer_blocks.{n}.attn1.to_q.weight" for n in (0, 1)]
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.randn(64, 64, generator=generator),)) for key in keys}, strength)
    return patched


def sampled(task: Task, model: Any, steps: int) -> torch.Tensor:
    latent = task.node("latent", "CogVideoXEmptyLatent", width=WIDTH, height=HEIGHT, frames=17, batch_size=1)[0]
    return task.sample(task.positive, task.negative, latent, model, steps=steps)


def windows(task: Task, model: Any) -> Any:
    settings = {"context_frames": 9, "overlap_frames": 4, "schedule": "standard_static", "fuse_method": "pyramid"}
    return task.node("long", "CogVideoXContextWindows", model=model, freenoise=True, **settings)[0]


def replaced(_: Task, model: Any) -> Any:
    """A block that another node runs twice, as the nodes do that skip or repeat blocks."""
    patched = model.clone()

    def twice(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"]({**args, **extra["original_block"](args)})

    patched.set_model_patch_replace(twice, "dit", "double_block", 1)
    return patched


def overridden(_: Task, model: Any) -> Any:
    """Attention by another node, such as SageAttention's."""
    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = (
        lambda attend, query, *args, **options: attend(query * 1.5, *args, **options)
    )
    return patched


COMBINED: dict[str, Callable[[Task, Any], Any]] = {
    "step cache": lambda task, model: task.node("cached_steps", "CogVideoXStepCache", model=model, deviation=0.05)[0],
    "context windows": windows,
    "LoRA": lambda task, model: lora(task, model, 0.5),
    "another LoRA": lambda task, model: lora(task, model, -0.5),
    "replaced block": replaced,
    "attention override": overridden,
}


@pytest.mark.parametrize("name", COMBINED)
def test_combined(name: str, task: Task, said: list[str]) -> None:
    """With every other node, before it and after it, the same video; a LoRA that is changed does not compile again."""
    forward(compiled(task.model))  # the graph that all of these share
    before = graphs()
    steps = 8 if name == "step cache" else 2
    want = sampled(task, COMBINED[name](task, task.model), steps)
    for model in (compiled(COMBINED[name](task, task.model)), COMBINED[name](task, compiled(task.model))):
        assert relative_error(sampled(task, model, steps), want) <= 1e-5
    assert graphs() == before and not [line for line in said if "not compiled" in line]


def test_comfyui_makes_room_for_them(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked before the run, without its nodes, the model named what its own kernels take: compiled blocks, which do
    without these, found half of the room."""
    asked: list[bool] = []
    dit: Any = type(task.model.model.diffusion_model)
    count = dit.step_bytes

    def step_bytes(self: Any, mode: Any, *rest: Any) -> float:
        asked.append(read_compiled_blocks(rest[-1]) is not None)
        return count(self, mode, *rest)

    monkeypatch.setattr(dit, "step_bytes", step_bytes)
    sampled(task, compiled(task.model), 1)
    assert asked and all(asked)
    asked.clear()
    sampled(task, task.model, 1)
    assert asked and not any(asked)


def test_control_net(task: Task, said: list[str]) -> None:
    """What a control net adds to the tokens reaches the compiled block after it."""
    control = {"input": [torch.randn(2, 3 * 4 * 6, 64, generator=torch.Generator().manual_seed(2)), None]}
    want = forward(task.model, control=control)
    assert relative_error(want, forward(task.model)) > 1e-4
    assert relative_error(forward(compiled(task.model), control=control), want) <= 1e-6


def test_patches_on_the_fly(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short ComfyUI leaves weights unpatched, and applies a LoRA whenever a layer is used."""
    model = compiled(task.model)
    forward(model)
    before, block = graphs(), task.model.model.diffusion_model.transformer_blocks[1]
    plain = forward(task.model)
    monkeypatch.setattr(block.ff.net[2], "weight_function", [lambda weight: weight * 1.1], raising=False)
    want = forward(task.model)
    assert relative_error(want, plain) > 1e-4
    assert relative_error(forward(model), want) <= 1e-6
    assert graphs() == before


def hooked(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = task.model.model.diffusion_model.transformer_blocks[0].attn1.to_v
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: plain(x) * 1.5, raising=False)


def short_of_memory(_: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cogvideox.transformer.dit.free_in_step", lambda _: 0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(hooked, "another node has patched"), (short_of_memory, "not compiled at this size")],
    ids=["hooked layer", "lean mode"],
)
def test_left_as_they_are(
    change: Callable, sentence: str, task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph of a block's weights cannot know, such as a LoRA in bypass mode, is not lost: the block is computed
    without, and the user hears why nothing got faster."""
    change(task, monkeypatch)
    model = compiled(task.model)
    want = forward(task.model)
    assert torch.equal(forward(model), want) or relative_error(forward(model), want) < 1e-6
    assert [line for line in said if sentence in line] and len(said) <= 2


def test_attention_patches(task: Task, said: list[str]) -> None:
    """Nodes that patch attention see queries and keys outside of any graph."""
    seen: list[torch.Size] = []

    def look(out: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        seen.append(out.shape)
        return out * 0.9

    patched = task.model.clone()
    patched.set_model_attn1_output_patch(look)
    want = forward(patched)
    assert torch.equal(forward(compiled(patched)), want) and len(seen) == 4
    assert "another node has patched" in said[0] and len(said) == 1


def test_where_it_fails_the_run_goes_on(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows without Visual Studio, or a card without Triton, must not cost the video, nor each block a try."""
    tried = []

    def compile(function: Callable, **_: Any) -> Callable:
        def fail(*_: Any) -> None:
            tried.append(1)
            raise RuntimeError("backend='inductor' raised:\nCompiler: cl is not found.")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(compiled_blocks(), "_GRAPHS", {})
    model = compiled(task.model)
    want = forward(task.model)
    assert torch.equal(forward(model), want) and torch.equal(forward(model), want)
    assert len(tried) == len(said) == 1
    assert (
        "torch.compile does not work here (RuntimeError: backend='inductor' raised: Compiler: cl is not found.)"
        in (said[0])
    )
    forward(compiled(task.model))
    assert len(tried) == 1 and len(said) == 2, "a later run is told as well"


def test_cancel_is_no_failure(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The run would go on, and every later one without a graph."""
    monkeypatch.setattr(compiled_blocks(), "_GRAPHS", {})
    model, attend = compiled(task.model), attention_for(torch.device("cpu"))
    want, cancelled = forward(model), list[int]()
    monkeypatch.setattr(cpu_attention, "_MOST_PRODUCTS", 1)  # a look before each head

    def cancel(*args: Any, **options: Any) -> torch.Tensor:
        cancelled.append(1)
        mm.interrupt_current_processing(True)
        return attend(*args, **options)

    # In an older ComfyUI it is an ordinary exception.
    for kind in (mm.InterruptProcessingException, type("InterruptProcessingException", (Exception,), {})):
        with monkeypatch.context() as patch:
            patch.setattr(mm, "InterruptProcessingException", kind)
            patch.setattr(compiled_blocks(), "attention_for", lambda _: cancel)
            with pytest.raises(kind):
                forward(model)
        assert torch.equal(forward(model), want)
    assert len(cancelled) == 2 and not [line for line in said if "does not work" in line]


@pytest.mark.long
@needs_compiler
def test_inductor(task: Task, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What users get: kernels of the compiler, equal within rounding, kept where the message says."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_blocks(), "BACKEND", "inductor")
    model = compiled(task.model)
    for size in ((3, 8, 12), (5, 12, 6)):
        assert relative_error(forward(model, size), forward(task.model, size)) <= 2e-6
    assert len(said) == 1 and str(tmp_path) in said[0] and any(tmp_path.iterdir())
