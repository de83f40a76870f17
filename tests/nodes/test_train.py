"""CogVideoXTrainLora and CogVideoXSaveTrainedLora as ComfyUI runs them, and ComfyUI's own on the pack's MODEL."""

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import comfy.model_management as mm
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from safetensors.torch import load_file

from cogvideox import errors, video_limits
from cogvideox.host.training_mode import fresh_copy
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora.apply import apply_lora
from cogvideox.nodes import train as nodes
from cogvideox.nodes.sample import CogVideoXSample
from cogvideox.tests import core_trainer
from cogvideox.tests.quantized_models import needs_int8
from cogvideox.tests.support import check_parity, relative_error, validated, write_fp32_transformer
from cogvideox.training import block_calls, checkpoint, graph, trainer

pytestmark = pytest.mark.usefixtures("few_objects")
Train, Save = nodes.CogVideoXTrainLora, nodes.CogVideoXSaveTrainedLora
VARIANTS = ("5b", "2b", "5b-I2V", "1.5-5B", "1.5-5B-I2V")
WIDTHS = 32  # of the tiny models' text
BLOCKS = 2  # of the tiny models
FAST = {"steps": 6, "batch_size": 2, "learning_rate": 3e-2, "rank": 4, "alpha": 4.0, "seed": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelPatcher]:
    root, loaded = tmp_path_factory.mktemp("models"), dict[str, ModelPatcher]()

    def load(variant: str) -> ModelPatcher:
        if variant not in loaded:
            loaded[variant] = load_model(write_fp32_transformer(root / variant, variant), "fp32")
        return loaded[variant]

    return load


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the nodes show on themselves; their files go to folders of the test."""
    lines: list[str] = []
    monkeypatch.setattr(nodes, "show_on_node", lambda text, node_id: lines.append(text))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    return lines


def clips(variant: str, count: int = 2, frames: int = 3, seed: int = 0) -> tuple[list[dict], list[list]]:
    """latents and positive as two lists."""
    generator = torch.Generator().manual_seed(seed)
    latents, positive = [], []
    for _ in range(count):
        latents.append({"samples": torch.randn(1, 16, frames, 8, 12, generator=generator)})
        values = {"pooled_output": None}
        if "I2V" in variant:
            values |= {"concat_latent_image": torch.randn(1, 16, 1, 8, 12, generator=generator)}
            values |= {"cogvideox_task": "image", "cogvideox_scale": "checkpoint", "cogvideox_end": False}
        positive.append([[torch.randn(1, 226, WIDTHS, generator=generator), values]])
    return latents, positive


def train(model: ModelPatcher, latents: list, positive: list, **settings: object) -> tuple:
    """lora, losses and steps, run as ComfyUI runs a node with lists."""
    with torch.inference_mode():
        result = Train.execute([model], latents, positive, **{k: [v] for k, v in {**FAST, **settings}.items()})
    lora, losses, steps = result.args
    return lora, losses["loss"], steps


def core_train(model: ModelPatcher, latents: list, positive: list, learning_rate: float, **settings: object) -> tuple:
    """lora and losses of ComfyUI's own node."""
    torch.manual_seed(0)  # it draws noise levels and first weights from torch's own generator
    return core_trainer.train(model, latents, positive, **{"steps": 6, "learning_rate": learning_rate, **settings})


def sample(model: ModelPatcher, latents: list, positive: list) -> torch.Tensor:
    """One step from noise, [1, 16, T, h, w]."""
    latent: Any = {"samples": torch.zeros_like(latents[0]["samples"])}
    arguments = (model, positive[0], positive[0], latent, 7, 1, 1.0, "ddim", False, 1.0)
    with torch.inference_mode():
        return CogVideoXSample.execute(*arguments).args[0]["samples"]


def stock_apply(model: ModelPatcher, lora: dict) -> Any:
    """As ComfyUI's Load LoRA Model does it."""
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)[0]


def save(lora: dict, name: str = "made") -> Path:
    with torch.inference_mode():
        (written,) = Save.execute(lora, name).args
    return Path(folder_paths.get_folder_paths("loras")[0]) / written


def apply(model: ModelPatcher, path: Path) -> ModelPatcher:
    with torch.inference_mode():
        return apply_lora(model, path, 1.0)[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_learnt_lowers_the_loss_and_changes_the_video(models, variant) -> None:
    """The same draws with and without learning: a trainer that trains the wrong thing, or another one than the
    sampler runs, shows here; saved and applied again it must be the LoRA that was trained."""
    model, (latents, positive) = models(variant), clips(variant)
    lora, losses, steps = train(model, latents, positive)
    _, idle, _ = train(model, latents, positive, learning_rate=1e-8)
    assert steps == len(losses) == len(idle) == FAST["steps"]
    assert losses[0] == pytest.approx(idle[0], rel=1e-5)
    assert all(learnt < as_before for learnt, as_before in zip(losses[3:], idle[3:]))
    assert sum(losses[3:]) < 0.99 * sum(idle[3:])
    plain = sample(model, latents, positive)
    applied = sample(stock_apply(model, lora), latents, positive)
    assert relative_error(applied, plain) > 1e-3
    saved = sample(apply(model, save(lora)), latents, positive)
    check_parity("trained LoRA, saved and applied", saved, applied, 1e-6)
    assert torch.equal(sample(model, latents, positive), plain), "the user's model has changed"


def test_gradient_checkpointing_and_precision(models) -> None:
    """Less memory may not be another training; bf16 must come near."""
    model, (latents, positive) = models("1.5-5B-I2V"), clips("1.5-5B-I2V")
    lora, _, _ = train(model, latents, positive, steps=2)
    # in a folder of its own, or it would go on with the first one
    recomputed = {"gradient_checkpointing": True, "checkpoint_name": "recomputed"}
    again, _, _ = train(model, latents, positive, steps=2, **recomputed)
    half, _, _ = train(model, latents, positive, steps=2, precision="bf16")
    assert lora.keys() == again.keys() == half.keys()
    for name, tensor in lora.items():
        check_parity("LoRA trained with gradient checkpointing", again[name], tensor, 1e-5)
        assert relative_error(half[name], tensor) < 0.5 and half[name].dtype == torch.float32


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn", pytest.param("int8", marks=needs_int8)])
def test_small_weights_are_trained_upon(tiny_pipelines, models, weight_dtype) -> None:
    """A 5b model fits a common card only so: the LoRA learns in fp32 on what is stored smaller."""
    model = load_model(tiny_pipelines["5b"], weight_dtype)
    lora, losses, _ = train(model, *clips("5b"), steps=3)
    _, exact, _ = train(models("5b"), *clips("5b"), steps=3)
    assert losses[0] == pytest.approx(exact[0], rel=0.05)
    ups = [tensor for name, tensor in lora.items() if "lora_B" in name]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() and tensor.any() for tensor in ups)


def cancel_at(monkeypatch: pytest.MonkeyPatch, step: int, by: str) -> None:
    """The user cancels while `step` is shown; the progress bar sees it, or it comes a moment later."""

    def update(self: object, value: int, total: int | None = None, preview: object = None) -> None:
        if value == step and by == "bar":
            raise mm.InterruptProcessingException
        if value == step:
            mm.interrupt_current_processing(True)

    monkeypatch.setattr(nodes.comfy.utils.ProgressBar, "update_absolute", update)


@pytest.mark.parametrize("by", ["bar", "flag"])
def test_cancelled_training_goes_on(models, monkeypatch, shown, tmp_path, by) -> None:
    """Hours of training must survive Cancel, and end at the weights that they would have ended at."""
    model, (latents, positive) = models("5b"), clips("5b", 3)
    whole, losses, _ = train(model, latents, positive, checkpoint_name="whole")
    with monkeypatch.context() as patched:
        cancel_at(patched, 2, by)
        with pytest.raises(mm.InterruptProcessingException):
            train(model, latents, positive, checkpoint_name="cut")
    assert not mm.processing_interrupted(), "the next run would be cancelled as well"
    assert shown[-1].startswith("Stopped after step 2 of 6") and "Queue it again to go on" in shown[-1]
    resumed, resumed_losses, _ = train(model, latents, positive, checkpoint_name="cut")
    assert "It went on from a checkpoint at step 2." in shown[-1]
    assert resumed_losses == pytest.approx(losses, rel=1e-5)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert {path.name for path in (tmp_path / "output" / "cogvideox_training").iterdir()} == {"whole", "cut"}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_cancel_is_heard_inside_a_micro_batch(models, monkeypatch, shown, place, recompute) -> None:
    """The first batch of many clips takes minutes: Cancel must not wait for it."""
    called, lost = [], trainer.denoising_loss
    block = block_calls.block_forward

    def forward(*args: Any) -> Any:
        called.append("backward" if "loss" in called else "forward")
        if place == "forward" and not called[1:]:
            mm.interrupt_current_processing(True)
        return block(*args)

    def loss_of(*args: Any) -> torch.Tensor:
        loss = lost(*args)
        called.append("loss")
        mm.interrupt_current_processing(place == "backward")
        return loss

    monkeypatch.setattr(block_calls, "block_forward", forward)
    monkeypatch.setattr(trainer, "denoising_loss", loss_of)
    finished = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: finished.append(1))
    with pytest.raises(mm.InterruptProcessingException):
        train(models("5b"), *clips("5b"), gradient_checkpointing=recompute)
    assert called == (["forward"] if place == "forward" else ["forward"] * BLOCKS + ["loss"]) and not finished
    assert shown[-1].startswith("Stopped in the first step") and not mm.processing_interrupted()


def test_clips_of_a_step_are_bounded(models, monkeypatch) -> None:
    """Each number was within its limits, and the two together held ComfyUI's queue for hours."""

    def queued(batch_size: int | None, accumulate: int) -> str:
        return str(validated(Train, batch_size=[batch_size], accumulate=[accumulate], checkpoint_name=[""]))

    assert queued(64, 16) == "True"
    assert queued(64, 17) == "accumulate 17 times batch_size 64 are 1088 clips in one step: use at most 1024 of them."
    assert "batch_size is 129: use 1 to 128" in queued(129, 1)
    assert queued(None, 1024) == "True", "linked"
    with pytest.raises(errors.UserError, match="1088 clips in one step"):
        train(models("5b"), *clips("5b"), batch_size=64, accumulate=17)
    monkeypatch.setattr(graph, "fresh_copy", None)
    monkeypatch.setattr(video_limits, "MAX_VIDEO_PIXELS", 4 * 9 * 64 * 96)
    with pytest.raises(errors.UserError, match="batch_size is 5, too many clips of this size at once. 96 x 64 pixels"):
        train(models("5b"), *clips("5b"), batch_size=5)


def test_one_training_a_checkpoint_name(models, tmp_path) -> None:
    """Another ComfyUI trains under the same name: the two would delete each other's checkpoints."""
    latents, positive = clips("5b")
    with checkpoint.only_training(tmp_path / "output" / "cogvideox_training" / "mine"):
        with pytest.raises(errors.UserError, match="Another training writes to .*another name or output folder"):
            train(models("5b"), latents, positive, checkpoint_name="mine")
    train(models("5b"), latents, positive, checkpoint_name="mine", steps=1)


def test_finished_training_is_taken_from_its_checkpoint(models, monkeypatch, shown) -> None:
    """ComfyUI forgets a node's result when it restarts: what took hours must not be trained again."""
    model, (latents, positive) = models("5b"), clips("5b")
    lora, losses, _ = train(model, latents, positive)
    monkeypatch.setattr(trainer, "denoising_loss", None)
    again, again_losses, _ = train(model, latents, positive, save_every=7)  # which decides nothing
    assert "trained before" in shown[-1]
    assert again_losses == pytest.approx(losses, abs=1e-5)
    assert all(torch.equal(again[name], tensor) for name, tensor in lora.items())


def test_other_settings_start_from_the_beginning_or_are_refused(models, shown) -> None:
    """Going on with another rank, other clips or another model would be neither training."""
    model, (latents, positive) = models("5b"), clips("5b")
    train(model, latents, positive, steps=2)
    train(model, *clips("5b", seed=1), steps=2)
    assert "went on" not in shown[-1] and "before" not in shown[-1]
    train(model, latents, positive, steps=2, checkpoint_name="mine")
    with pytest.raises(errors.UserError, match="seed: 3 there, 4 now"):
        train(model, latents, positive, steps=2, checkpoint_name="mine", seed=4)
    with pytest.raises(errors.UserError, match="dataset"):
        train(model, *clips("5b", seed=1), steps=2, checkpoint_name="mine")


def test_nothing_of_a_training_is_left(models, monkeypatch) -> None:
    """A second model in memory, or ComfyUI left in its training mode, slows every later run."""
    from accelerate.state import AcceleratorState

    model, (latents, positive) = models("5b"), clips("5b")
    copies, state = [], dict(AcceleratorState._shared_state)

    def noted(model: ModelPatcher) -> object:
        copy = fresh_copy(model)
        copies.append(weakref.ref(copy.model.diffusion_model))
        return copy

    monkeypatch.setattr(graph, "fresh_copy", noted)
    train(model, latents, positive, steps=1)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="broken"):
        patched.setattr(trainer, "denoising_loss", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
        train(model, latents, positive, steps=1, seed=9)
    gc.collect()
    assert len(copies) == 2 and all(copy() is None for copy in copies)
    assert not getattr(mm, "in_training", False)
    assert not any(loaded.is_dead() for loaded in mm.current_loaded_models)
    assert AcceleratorState._shared_state == state
    assert not any("lora" in name for name, _ in model.model.named_parameters())


def test_loras_on_the_model_are_trained_upon(models) -> None:
    """Who trains on top of a style LoRA means the model with it."""
    model, (latents, positive) = models("5b"), clips("5b")
    lora, plain, _ = train(model, latents, positive)
    styled = stock_apply(model, lora)
    _, losses, _ = train(styled, latents, positive, steps=1)
    _, again, _ = train(model, latents, positive, steps=1)
    assert again[0] == pytest.approx(plain[0], rel=1e-6) and losses[0] < 0.99 * plain[0]


def test_mixed_sizes_and_batches_of_clips(models) -> None:
    """A step takes clips of one size, whatever the list holds, and a LATENT may hold several."""
    (long, long_text), (short, short_text) = clips("5b", 2, frames=3), clips("5b", 1, frames=2)
    both = {"samples": torch.cat([latent["samples"] for latent in long])}
    _, losses, _ = train(models("5b"), [both, *short], long_text + short_text, accumulate=2, timesteps="stratified")
    assert len(losses) == FAST["steps"]


def test_batches_show_every_sample() -> None:
    """A clip that no batch takes is not learnt; clips of two shapes in one batch are an error in the middle."""
    from cogvideox.training.batches import batch_samples

    shapes = ("a", "b", "a", "a", "b", "a", "a", "c")
    batches = [batch_samples(shapes, number, 2, 0) for number in range(5)]
    assert all(len(batch) == 2 and len({shapes[i] for i in batch}) == 1 for batch in batches)
    assert {index for batch in batches for index in batch} == set(range(8))
    assert batches == [batch_samples(shapes, number, 2, 0) for number in range(5)]
    assert batches != [batch_samples(shapes, number, 2, 0) for number in range(5, 10)]


def changed(latents: list, positive: list, **entry: object) -> tuple[list, list]:
    """The first clip with something else in it. text, or names of a LATENT's or a CONDITIONING's entries."""
    text, values = positive[0][0]
    first = {**latents[0], **{k: v for k, v in entry.items() if k in ("samples", "cogvideox_std")}}
    caption = [entry.get("text", text), {**values, **{k: v for k, v in entry.items() if k.startswith("concat")}}]
    return [first, *latents[1:]], [[caption], *positive[1:]]


NAN = float("nan")
REFUSED = {
    "fewer captions": ("5b", lambda a, b: (a * 2, b), {}, "4 clips in latents and 2 captions"),
    "nothing": ("5b", lambda a, b: ([], []), {}, "0 clips"),
    "text width": ("5b", lambda a, b: changed(a, b, text=torch.zeros(1, 226, 48)), {}, "needs \\[batch, tokens, 32\\]"),
    "picture latent": ("5b", lambda a, b: changed(a, b, samples=torch.zeros(1, 4, 8, 8)), {}, "shape \\[1, 4, 8, 8\\]"),
    "no first frame": ("5b-I2V", lambda a, b: clips("5b"), {}, "takes a start image in addition to the prompt"),
    "first frame for text to video": ("5b", lambda a, b: clips("5b-I2V"), {}, "takes nothing"),
    "size of no learned table": ("5b-I2V", lambda a, b: clips("5b-I2V", frames=2), {}, "learned position table fits"),
    "NaN": (
        "5b",
        lambda a, b: changed(a, b, samples=torch.full((1, 16, 3, 8, 12), NAN)),
        {},
        "The latents of clip 1 contain NaN or Inf",
    ),
    "no empty caption": ("5b", lambda a, b: (a, b), {"caption_dropout": 0.1}, "no empty caption"),
    "no learning": ("5b", lambda a, b: (a, b), {"learning_rate": 0.0}, "learning_rate is 0.0"),
    "NaN alpha": ("5b", lambda a, b: (a, b), {"alpha": NAN}, "alpha is nan"),
    "no steps": ("5b", lambda a, b: (a, b), {"steps": 0}, "steps is 0"),
    "fp16 on the CPU": ("5b", lambda a, b: (a, b), {"precision": "fp16"}, "cannot train in fp16"),
    "folder": ("5b", lambda a, b: (a, b), {"checkpoint_name": "../x"}, "checkpoint_name is"),
    "inpainting model": ("Fun-5b-InP", lambda a, b: (a, b), {}, "Choose a text to video or an image to video"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(models, monkeypatch, case) -> None:
    """What cannot be trained is told at once, not after the model was loaded or an hour later."""
    variant, change, settings, reason = REFUSED[case]
    monkeypatch.setattr(graph, "fresh_copy", None)
    latents, positive = change(*clips(variant))
    with pytest.raises(errors.UserError, match=reason):
        train(models(variant), latents, positive, **settings)


def test_model_of_another_pack_is_refused(models) -> None:
    """ComfyUI's own CogVideoX is another model under the same name."""
    with pytest.raises(errors.UserError, match="not a CogVideoX model of this pack|it should be a model of this pack"):
        train(cast(ModelPatcher, object()), *clips("5b"))


def test_progress_shows_curve_and_speed(models, monkeypatch, shown) -> None:
    """A training without a sign of life for hours is one that gets cancelled."""
    previews = []
    bar = nodes.comfy.utils.ProgressBar
    monkeypatch.setattr(bar, "update_absolute", lambda self, value, total, preview: previews.append((value, preview)))
    train(models("5b"), *clips("5b"), steps=3)
    assert [value for value, _ in previews] == [1, 2, 3]
    kind, image, _ = previews[-1][1]
    assert kind == "PNG" and image.size[0] > 300
    assert shown[0].startswith("Step 1 of 3, loss ") and "left" in shown[-2] and shown[-1].startswith("Trained 3 steps")


def test_the_time_left_forgets_slow_steps(monkeypatch, shown) -> None:
    """A mean since the start foretold the slowness of the first steps, and a pause, for all that are left."""
    now = 0.0
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now)
    progress = nodes._Progress(1000, None)
    for done, step_s in enumerate([60.0] * 5 + [2.0] * 10 + [500.0] + [2.0] * 4, start=1):
        now += step_s
        progress.on_step(done, [1.0] * done)
    assert shown[-1].endswith(", 2.0 s a step, 33 min left")
    for done in range(21, 61):  # with longer clips, say
        now += 4.0
        progress.on_step(done, [1.0] * done)
    assert shown[-1].endswith(", 4.0 s a step, 63 min left")


CORE_OPTIONS = {
    "plain": {},
    "bypass": {"bypass_mode": True},
    "checkpointing": {"gradient_checkpointing": True},
    "both": {"gradient_checkpointing": True, "bypass_mode": True},
}


# Every variant and every option once in every run; the long tier has the other pairs.
CORE_PAIRS = dict(zip(VARIANTS, ("both", "bypass", "checkpointing", "plain", "plain"), strict=True))


def core_runs() -> Iterator[Any]:
    for variant, option in itertools.product(VARIANTS, CORE_OPTIONS):
        yield pytest.param(variant, option, marks=() if CORE_PAIRS[variant] == option else pytest.mark.long)


@pytest.mark.parametrize("variant, option", core_runs())
def test_cores_trainer(models, variant, option) -> None:
    """ComfyUI's own Train LoRA learns on every kind of our models, and what it learns survives our file."""
    model, (latents, positive) = models(variant), clips(variant)
    lora, losses = core_train(model, latents, positive, 3e-3, **CORE_OPTIONS[option])
    _, idle = core_train(model, latents, positive, 1e-7, **CORE_OPTIONS[option])
    assert losses[0] == pytest.approx(idle[0], rel=1e-4)
    assert sum(losses[3:]) < sum(idle[3:])
    plain = sample(model, latents, positive)
    applied = sample(stock_apply(model, lora), latents, positive)
    assert relative_error(applied, plain) > 1e-3
    saved = sample(apply(model, save(lora)), latents, positive)
    check_parity("ComfyUI's trained LoRA, saved and applied", saved, applied, 1e-6)


def test_saved_file(models, shown) -> None:
    """In the layout that diffusers reads, with what it was trained with, and never over another file."""
    lora, _, _ = train(models("5b"), *clips("5b"), steps=1, alpha=2.0)
    first, second = save(lora, "styles/mine"), save(lora, "styles/mine")
    assert (first.name, second.name) == ("mine_00001.safetensors", "mine_00002.safetensors")
    assert shown[-1].startswith("Saved mine_00002.safetensors")
    assert {name.split(".")[0] for name in load_file(first)} == {"transformer"}
    assert all("lora_" in name for name in load_file(first))
    with safe_open(first, "pt") as file:
        header = file.metadata()
    assert "lora_adapter_metadata" in header and '"alpha": 2.0' in header["cogvideox_training"]
    diffusers = pytest.importorskip("diffusers")
    state, metadata = diffusers.CogVideoXPipeline.lora_state_dict(first, return_lora_metadata=True)
    assert state.keys() == load_file(first).keys() and metadata["transformer.r"] == FAST["rank"]


def test_saving_what_diffusers_cannot_hold(models, shown) -> None:
    """ComfyUI's trainer also trains biases and norms: kept for ComfyUI, and told; other kinds are refused."""
    model, data = models("5b"), clips("5b")
    lora, _ = core_train(model, *data, 1e-3, steps=1)
    save(lora)
    assert "differences of norms and biases" in shown[-1]
    kronecker, _ = core_train(model, *data, 1e-3, steps=1, algorithm="LoKr")
    with pytest.raises(errors.UserError, match="does not belong to a plain LoRA"):
        Save.execute(kronecker, "made")
    with pytest.raises(errors.UserError, match="no LoRA layer"):
        Save.execute({}, "made")
    broken = {name: torch.full_like(tensor, NAN) for name, tensor in lora.items()}
    with pytest.raises(errors.UserError, match="NaN"):
        Save.execute(broken, "made")


@pytest.mark.parametrize("name", ["", "../out", "/tmp/x", "a/"])
def test_invalid_names_are_refused(name) -> None:
    """The queue says so at once, before anything is trained."""
    assert "is not a valid file name" in str(validated(Save, name=name))
    assert validated(Save, name=None) is True and validated(Save, name="a/b") is True
