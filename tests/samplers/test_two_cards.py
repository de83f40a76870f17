"""ComfyUI's MultiGPU CFG Split and Select Model Device: a run over two cards is the run over one."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy_extras.nodes_easycache as easycache
import folder_paths
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.host.async_copies import LateRead
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.samplers import finite
from cogvideox.samplers.finite import FiniteWatch
from cogvideox.tests.lora_files import LINEAR, Subject, save, write_dialect
from cogvideox.tests.second_card import CPU, SECOND, batches_by_card, multigpu_nodes
from cogvideox.tests.support import check_parity, relative_error
from cogvideox.tests.tasks import HEIGHT, SEED, WIDTH, Task, pictures, task_of
from cogvideox.tests.tiers import long_after, long_but_one_in

pytestmark = pytest.mark.usefixtures("inference")
Change = Callable[[Any], Any]
LIMIT = 5e-6
DEVICE = "multigpu_thread_device"  # ComfyUI's, in transformer_options


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    return multigpu_nodes(monkeypatch)


@pytest.fixture
def task(tiny_pipelines: dict[str, Path]) -> Task:
    return task_of(tiny_pipelines["5b"])


def text(task: Task, frames: int = 9, batch_size: int = 1) -> tuple:
    size = {"width": WIDTH, "height": HEIGHT, "frames": frames, "batch_size": batch_size}
    return task.positive, task.negative, task.node("latent", "CogVideoXEmptyLatent", **size)[0]


def unchanged(model: Any) -> Any:
    return model


def through(task: Task, module: str, name: str, **inputs: Any) -> Change:
    """What a node of the pack makes of a MODEL."""
    return lambda model: task.node(module, name, model=model, **inputs)[0]


def compare(
    what: str,
    nodes: Any,
    task: Task,
    given: tuple,
    before: Change = unchanged,
    after: Change = unchanged,
    limit: float = LIMIT,
    sample: Callable[..., torch.Tensor] | None = None,
    batch: int = 1,
    **inputs: Any,
) -> dict[torch.device, int]:
    """Assert that a run over two cards, each of which gets one prompt, equals that over one.

    before, after: what is put on the MODEL before and after the node that divides it. sample: in the place of
    Task.sample. batch: of a card's forward. Returns how many forwards each card has made.
    """
    sample = sample or task.sample
    changed = before(task.model)
    one = after(changed)  # kept as long as the other: a server keeps what nodes have given out
    want = sample(*given, model=one, **inputs)
    divided = nodes.MultiGPUCFGSplitNode.execute(changed, 2).args[0]
    two = after(divided)
    with batches_by_card(two) as seen:
        got = sample(*given, model=two, **inputs)
    assert len(seen) == 2 and all(set(batches) == {batch} for batches in seen.values()), seen
    check_parity(f"two cards, {what}", got, want, limit)
    # Nothing of the run is left on either card.
    for patcher in (two, *two.get_additional_models_with_key("multigpu")):
        assert patcher.model.diffusion_model._last_size == ()
    return {device: len(batches) for device, batches in seen.items()}


@pytest.mark.parametrize(("variant", "sampler"), long_but_one_in(2, ("5b", "2b", "1.5-5B"), ("dpm", "ddim")))
def test_text_to_video(nodes: Any, tiny_pipelines: dict[str, Path], variant: str, sampler: str) -> None:
    """Two prompts at the same time, and half the time for a step."""
    task = task_of(tiny_pipelines[variant])
    batch = 2 if variant == "5b" else 1
    compare(f"{variant}, {sampler}", nodes, task, text(task, batch_size=batch), batch=batch, sampler=sampler)


@pytest.mark.parametrize("variant", ("5b-I2V", "1.5-5B-I2V"))
def test_image_to_video(nodes: Any, tiny_pipelines: dict[str, Path], variant: str) -> None:
    """The picture's channels reach both cards, and so does 5b-I2V's learned table."""
    task = task_of(tiny_pipelines[variant])
    given = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    compare(variant, nodes, task, given)


@pytest.mark.parametrize("variant", ("Fun-V1.5-5b-Control", "Fun-5b-InP"))
def test_fun(nodes: Any, tiny_pipelines: dict[str, Path], variant: str) -> None:
    """A control video in a part of the run, and a video between two pictures."""
    task = task_of(tiny_pipelines[variant])
    if variant.endswith("Control"):
        chosen = {"control_video": pictures(9), "strength": 0.8, "start_percent": 0.0, "end_percent": 0.7}
        given = task.condition("fun", "CogVideoXFunControl", 9, **chosen)
    else:
        given = task.condition("fun", "CogVideoXFunInpaint", 9, start_image=pictures(1), end_image=pictures(1, 5))
    compare(variant, nodes, task, given)


def test_dynamic_guidance(nodes: Any, task: Task) -> None:
    """Guidance combines what both cards have made."""
    compare("dynamic cfg", nodes, task, text(task), limit=1e-4, dynamic_cfg=True)


def test_a_sampler_of_comfyui(nodes: Any, task: Task) -> None:
    """KSampler, with ComfyUI's own guidance."""

    def ksample(positive: Any, negative: Any, latent: Any, model: Any) -> torch.Tensor:
        chosen = (model, SEED, 6, 6.0, "dpmpp_2m", "sgm_uniform", positive, negative, latent)
        return comfyui_nodes().common_ksampler(*chosen)[0]["samples"]

    compare("dpmpp_2m", nodes, task, text(task), sample=ksample)


@pytest.mark.parametrize("variant", long_after(1, ("5b", "2b")))
def test_control_nets(nodes: Any, tiny_pipelines: dict[str, Path], tmp_path: Path, variant: str) -> None:
    """Each card has control nets of its own, chained in the same order."""
    task = task_of(tiny_pipelines[variant])
    net = load_controlnet(write_controlnet(tmp_path / "net", variant, dtype=torch.float32), "fp32")
    positive, negative, latent = text(task)
    for strength, end in ((1.0, 1.0), (0.5, 0.6)):
        chosen = {"control_net": net, "strength": strength, "start_percent": 0.0, "end_percent": end}
        prompts = {"positive": positive, "negative": negative}
        video = pictures(9, seed=int(10 * strength))
        prompts |= {"control_video": video, **chosen}
        positive, negative = task.node("controlnet", "CogVideoXApplyControlNet", **prompts)
    compare(f"control nets of {variant}", nodes, task, (positive, negative, latent))
    control = positive[0][1]["control"]
    clone = control.get_instance_for_device(SECOND)
    assert clone.patcher.model is not control.patcher.model and clone.patcher.load_device == SECOND
    # The next run finds it, and loads nothing.
    compare(f"control nets of {variant}", nodes, task, (positive, negative, latent))
    assert control.get_instance_for_device(SECOND) is clone


@pytest.mark.parametrize("weight_dtype", long_after(1, ("fp32", "int8")))
@pytest.mark.parametrize("place", ("before", "after"))
def test_loras(
    nodes: Any, task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, weight_dtype: str
) -> None:
    """A LoRA counts on both cards, whichever of the two nodes comes first."""
    subject = Subject(task.folder, weight_dtype)
    monkeypatch.setattr(task, "model", subject.model)
    files, header, _ = write_dialect("Fun", subject.factors(LINEAR), "tensor")
    save(tmp_path / "a.safetensors", files, header)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    apply = through(task, "lora", "CogVideoXApplyLora", lora_name="a.safetensors", strength=0.5)
    plain = task.sample(*text(task), steps=3)
    changes: dict[str, Any] = {place: apply}
    compare(f"LoRA {place}, {weight_dtype}", nodes, task, text(task), steps=3, **changes)
    assert relative_error(task.sample(*text(task), model=apply(task.model), steps=3), plain) > 1e-3


def windowed(task: Task) -> Change:
    options = {"schedule": "standard_static", "fuse_method": "pyramid", "freenoise": True}
    return through(task, "long", "CogVideoXContextWindows", context_frames=9, overlap_frames=4, **options)


def easily_cached(model: Any) -> Any:
    return easycache.EasyCacheNode.execute(model, 0.5, 0.0, 1.0, False).args[0]


@pytest.mark.parametrize("variant", long_after(1, ("1.5-5B", "5b")))
def test_context_windows(nodes: Any, tiny_pipelines: dict[str, Path], variant: str) -> None:
    """Window after window, each of them on both cards."""
    task = task_of(tiny_pipelines[variant])
    compare(f"windows, {variant}", nodes, task, text(task, 25), after=windowed(task))


@pytest.mark.parametrize("place", long_after(1, ("after", "before")))
def test_step_cache(nodes: Any, task: Task, place: str) -> None:
    """The pack's own cache decides for both cards, behind guidance."""
    cache = through(task, "cached_steps", "CogVideoXStepCache", deviation=0.02)
    changes: dict[str, Any] = {place: cache}
    forwards = compare("step cache", nodes, task, text(task), steps=12, **changes)
    assert len(set(forwards.values())) == 1 and forwards[CPU] < 12


@pytest.mark.parametrize("frames", (9, pytest.param(25, id="windows")))
def test_easycache(nodes: Any, task: Task, frames: int) -> None:
    """ComfyUI's cache has one state for all cards, and reset it whenever a tensor came from the other one."""

    def cache(model: Any) -> Any:
        return easily_cached(windowed(task)(model) if frames > 9 else model)

    forwards = compare("EasyCache", nodes, task, text(task, frames), after=cache, steps=10)
    windows = 4 if frames > 9 else 1
    assert len(set(forwards.values())) == 1 and windows <= forwards[CPU] < 10 * windows


def test_lazycache(nodes: Any, task: Task) -> None:
    """It keeps the prediction behind guidance, as the pack's own does."""

    def cache(model: Any) -> Any:
        return easycache.LazyCacheNode.execute(model, 0.5, 0.0, 1.0, False).args[0]

    forwards = compare("LazyCache", nodes, task, text(task), after=cache, steps=10)
    assert len(set(forwards.values())) == 1 and forwards[CPU] < 10


def test_following_a_video(nodes: Any, task: Task) -> None:
    """The inverted video joins the batch of each card."""
    positive, negative, latent = text(task)
    latent = {"samples": torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2))}
    prompts = {"positive": positive, "negative": negative}
    given = {**prompts, "latent_image": latent, "steps": 5, "cfg": 1.0}
    inverted = task.node("invert", "CogVideoXInvert", model=task.model, **given)[0]

    def follow(model: Any) -> Any:
        chosen = {"inverted": inverted, "start_percent": 0.0, "end_percent": 1.0}
        return task.node("invert", "CogVideoXFollowVideo", model=model, **chosen)[0]

    start = positive, negative, {"samples": inverted["samples"]}
    compare("following", nodes, task, start, after=follow, batch=2, steps=5)


def test_compiled_blocks(nodes: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both cards call the same graph at the same time, each with its weights."""
    from cogvideox.transformer import compiled_blocks

    monkeypatch.setattr(compiled_blocks, "BACKEND", "eager")
    compile_it = through(task, "compile", "CogVideoXCompile")
    compare("compiled", nodes, task, text(task), before=compile_it, steps=3)


def test_a_chosen_card(nodes: Any, task: Task) -> None:
    """Select Model Device loads the model again; MultiGPU CFG Split after it takes the other card in addition."""
    want = task.sample(*text(task), steps=3)
    chosen = nodes.SelectModelDeviceNode.execute(task.model, "gpu:1").args[0]
    assert chosen.load_device == SECOND and chosen.model is not task.model.model
    with batches_by_card(chosen) as seen:
        got = task.sample(*text(task), model=chosen, steps=3)
    assert set(seen) == {SECOND} and set(seen[SECOND]) == {2}
    check_parity("another card", got, want, LIMIT)
    divided = nodes.MultiGPUCFGSplitNode.execute(chosen, 2).args[0]
    with batches_by_card(divided) as seen:
        got = task.sample(*text(task), model=divided, steps=3)
    assert set(seen) == {CPU, SECOND} and all(set(batches) == {1} for batches in seen.values())
    check_parity("another card", got, want, LIMIT)


def test_memory_is_asked_of_the_chosen_card(nodes: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory mode that ComfyUI is told follows from what is free there, not on ComfyUI's own card."""
    from cogvideox.sockets import model as model_module

    asked = []
    monkeypatch.setattr(model_module, "free_for_run", lambda device: asked.append(device) or float(1 << 40))
    chosen = nodes.SelectModelDeviceNode.execute(task.model, "gpu:1").args[0]
    task.sample(*text(task), model=chosen, steps=1)
    assert set(asked) == {SECOND}


@pytest.mark.parametrize("card", (CPU, SECOND))
def test_an_overflow_on_one_card_is_mended(nodes: Any, task: Task, card: torch.device) -> None:
    """ComfyUI leaves the answer of the other card in its queue: each later step would have taken the one before it."""
    want = task.sample(*text(task), steps=5)
    calls: dict[Any, int] = {}

    def sage_override(_: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs["transformer_options"][DEVICE]
        calls[device] = calls.get(device, 0) + 1
        is_bad = device == card and calls[device] == 5  # in the third step of a model of two blocks
        return attention_pytorch(*args, **kwargs) * (torch.nan if is_bad else 1.0)

    model = nodes.MultiGPUCFGSplitNode.execute(task.model, 2).args[0]
    model.model_options["transformer_options"]["optimized_attention_override"] = sage_override
    got = task.sample(*text(task), model=model, steps=5)
    assert set(calls.values()) == {6}  # and torch's attention from then on
    check_parity("two cards, an overflow", got, want, LIMIT)


def test_damaged_weights_on_the_second_card(nodes: Any, task: Task) -> None:
    """The error of a thread ends the run, and names what is damaged; the next run is right."""
    want = task.sample(*text(task), steps=2)
    model = nodes.MultiGPUCFGSplitNode.execute(task.model, 2).args[0]
    (clone,) = model.get_additional_models_with_key("multigpu")
    bias = clone.model.diffusion_model.proj_out.bias.data
    kept = bias.clone()
    bias.fill_(torch.nan)
    with pytest.raises(UserError, match="So do weights of the model: proj_out.bias"):
        task.sample(*text(task), model=model, steps=2)
    clone.model.diffusion_model.proj_out.bias.data.copy_(kept)
    check_parity("two cards, after an error", task.sample(*text(task), model=model, steps=2), want, LIMIT)


def test_two_threads_note_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each card's thread reads what is there: one could take what the other had just looked at."""

    class SlowRead(LateRead):
        def is_ready(self) -> bool:
            threading.Event().wait(0.002)
            return True

    monkeypatch.setattr(finite, "LateRead", SlowRead)
    watch, failed = FiniteWatch(), []

    def note() -> None:
        try:
            for _ in range(20):
                watch.note(torch.tensor(True), lambda: UserError("not finite"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.end_run()
    assert not failed
