"""CogVideoX Memory Forecast: what stands on the node."""

import re
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.host.memory_rules import GIB
from cogvideox.host.toy import WEIGHTS
from cogvideox.locales.translations import translate
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes import memory_forecast as module
from cogvideox.nodes.compile import CogVideoXCompile
from cogvideox.nodes.decode import MEMORY_MODES
from cogvideox.nodes.memory_forecast import CogVideoXMemoryForecast
from cogvideox.tests.hollow_files import hollow_model
from cogvideox.tests.quantized_models import needs_int8
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.vae.plan import LADDER


@pytest.fixture(scope="module")
def official() -> ModelPatcher:
    return hollow_model("CogVideoX-5b")


def forecast(model: Any, *size: int, **more: Any) -> str:
    width, height, frames, batch_size = size or (720, 480, 49, 1)
    return CogVideoXMemoryForecast.execute(model, width, height, frames, batch_size, **more).args[0]


def sentence(text: str, beginning: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(beginning)]
    return found


@needs_int8
def test_what_the_node_says(official: ModelPatcher) -> None:
    """The whole text: a table that is one in Markdown, and what to do about it."""
    table, notes = forecast(official, card_gb=12.0).split("\n\n")  # in Markdown, notes would be rows without it
    lines = [*table.splitlines(), *notes.splitlines()]
    assert lines[0] == "CogVideoX-5b, 720 × 480, 49 frames. In GiB, counted and not measured:"
    assert lines[1:7] == [
        "|  | weights | stay on the card | work | peak |",
        "| --- | --- | --- | --- | --- |",
        "| text encoder | 8.9 | 8.9 | 0.2 | 9.1 |",
        "| denoiser | 10.4 | 9.2 | 1.4 | 10.6 |",
        "| VAE, decode, mode fast | 0.4 | 0.4 | 4.6 | 5.0 |",
        "A card of 12 GB has about 11.0 GiB free: the driver and the desktop are taken to hold 1 GiB.",
    ]
    ram = lines.pop(-2)
    assert ram.startswith("Main memory: about 19.8 GiB, the finished frames included")
    assert ram.endswith("Disk: 21.1 GB for transformer, text encoder and VAE in 16 bits.")
    assert lines[7:] == [
        "No VAE and no text encoder is connected: that of the official checkpoints is counted.",
        "Every call of the denoiser streams 1.2 GiB from main memory.",
        "Prompt and negative prompt are computed one after the other, because a batch of both does not fit.",
        "weight_dtype: int8, with 6.0 GiB of weights, and all stay. default is more exact, and streams more.",
        "memory of the decoder: auto, which takes mode fast here.",
        "The authors of CogVideoX-5b recommend sampler dpm, 50 steps, cfg 6, 720 × 480, 49 frames, 8 fps.",
    ]


@pytest.mark.parametrize("card_gb", (2.0, 6.0, 8.0, 24.0, 80.0))
def test_choices_are_those_of_the_widgets(official: ModelPatcher, card_gb: float) -> None:
    """Advice that no list offers cannot be followed."""
    from cogvideox.model_loaders.precision import PRECISIONS

    text = forecast(official, card_gb=card_gb)
    advised = sentence(text, "weight_dtype: ").removeprefix("weight_dtype: ").split(",")[0].rstrip(".")
    assert advised in PRECISIONS
    mode = sentence(text, "memory of the decoder: ")
    assert "auto" in mode and "auto" in MEMORY_MODES and any(f"mode {plan.name} here" in mode for plan in LADDER)
    # The frontend would show it as markup otherwise (host/messages.py, as_html).
    assert not set(text) & set("<>&\"'")


def test_a_large_card_streams_nothing(official: ModelPatcher) -> None:
    """Who has bought it need not choose."""
    text = forecast(official, card_gb=24.0)
    assert "All weights of the denoiser stay: nothing is streamed in a step." in text
    assert sentence(text, "weight_dtype") == "weight_dtype: default." and "in one batch." in text
    assert "The text encoder streams" not in text and "does not fit" not in text


def test_a_card_that_is_too_small_is_told_what_to_do(official: ModelPatcher) -> None:
    """Figures alone leave a user with 2 GB of memory alone."""
    text = forecast(official, 1360, 768, 81, 2, card_gb=2.0)
    assert ", 2 videos." in text.splitlines()[0]
    missing = sentence(text, "The denoiser does not fit: it takes ")
    assert missing.endswith("smaller size, fewer frames or one video, or CogVideoX Context Windows.")


def test_windows_need_less(official: ModelPatcher) -> None:
    """The advice to take context windows has to hold: the forecast counts one window then."""
    from cogvideox.nodes.long import CogVideoXContextWindows

    windows = CogVideoXContextWindows.execute(official, 49, 16, "standard_static", "pyramid", False).args[0]
    long_run = forecast(windows, 720, 480, 161, 1, card_gb=24.0)
    short_run = forecast(official, 720, 480, 49, 1, card_gb=24.0)
    assert sentence(long_run, "| denoiser") == sentence(short_run, "| denoiser")


def test_a_compiled_model(official: ModelPatcher) -> None:
    """The compiler's own memory is in no figure: whoever trusts them has to know."""
    compiled = CogVideoXCompile.execute(official).args[0]
    assert sentence(forecast(compiled, card_gb=24.0), "The model is compiled").endswith("keeps that much free.")
    assert "compiled" not in forecast(official, card_gb=24.0)


def test_this_machine_without_a_card(tiny_pipelines: dict[str, Path]) -> None:
    """On a CPU there is nothing to stream and no card to speak of."""
    folder = tiny_pipelines["5b"]
    vae, clip = load_vae(folder, "fp32"), load_text_encoder(folder, "fp32")
    text = forecast(load_model(folder, "fp32"), 96, 64, 9, 1, vae=vae, clip=clip)
    assert "ComfyUI computes on the CPU here" in text and "nothing is streamed in a step" in text
    assert "is connected" not in text and "recommend" not in text  # a tiny model of its own


def test_the_toy_is_called_by_its_name() -> None:
    """'CogVideoX-5b' above figures of a few MiB was read as what 5b takes."""
    for name in ("5b", "1.5-5B-I2V"):
        text = forecast(load_model(WEIGHTS / name, "fp32"), 64, 64, 17, 1)
        assert text.splitlines()[0].startswith(f"CogVideoX-nano {name}, 64 × 64, 17 frames.")


def test_nothing_is_loaded(official: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked before a run, perhaps while another one holds the card."""
    monkeypatch.setattr(mm, "load_models_gpu", lambda *_, **__: pytest.fail("loads a model"))
    monkeypatch.setattr(mm, "free_memory", lambda *_, **__: pytest.fail("unloads a model"))
    before = list(mm.current_loaded_models)
    forecast(official, card_gb=8.0)
    assert mm.current_loaded_models == before


def test_more_than_the_machine_has(official: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that swaps for an hour looks like a hang."""
    monkeypatch.setattr(module, "total_ram", lambda: 16 * GIB)
    assert "which is more than the 16.0 GiB of this machine" in forecast(official, card_gb=8.0)
    monkeypatch.setattr(module, "total_ram", lambda: 64 * GIB)
    assert "which is more than" not in forecast(official, card_gb=8.0)


class _Flux:
    """A MODEL of another architecture, as far as the sockets' check looks."""

    model = object()
    get_model_object = clone = None


def test_another_model_is_refused_in_one_sentence() -> None:
    """Figures for a model that this pack does not run would be wrong."""
    with pytest.raises(UserError) as caught:
        forecast(_Flux())
    assert str(caught.value) == (
        "The model is a object, not a CogVideoX model of this pack. Connect a model from Load CogVideoX Model or Load "
        "CogVideoX Pipeline."
    )


@pytest.mark.parametrize(
    ("size", "more", "said"),
    (
        ((721, 480, 49, 1), {}, "width 721 is not divisible by 16"),
        ((720, 480, 50, 1), {}, "frames 50 is not 4k"),
        ((16384, 16384, 1025, 64), {}, "billion|pixels"),
        ((720, 480, 49, 1), {"card_gb": -1.0}, "card_gb is -1.0: use 0 to 1024"),
        ((720, 480, 49, 1), {"card_gb": float("nan")}, "card_gb is nan: use 0 to 1024"),
        ((720, 480, 49, 1), {"vae": object()}, "The VAE is a object from another loader"),
    ),
)
def test_what_cannot_be_is_refused(official: ModelPatcher, size: tuple, more: dict, said: str) -> None:
    """A linked value may be anything."""
    with pytest.raises(UserError, match=said):
        forecast(official, *size, **more)


# Of a Chinese forecast: what things are called, on a node or in a file, and units.
CHINESE_HAS = {
    *("CogVideoX-5b", "CogVideoX", "ComfyUI", "ControlNet", "Transformer", "VAE", "CPU", "torch"),
    *("GiB", "GB", "fps", "cfg", "dpm", "memory", "auto", "weight_dtype", "default", "int8"),
    *(plan.name for plan in LADDER),
}


@pytest.mark.parametrize(
    ("connected", "card_gb"), long_but_one_in(2, [(), ("vae",), ("clip",), ("vae", "clip")], (2.0, 24.0, 0.0))
)
def test_a_chinese_forecast_is_in_chinese(
    official: ModelPatcher, tiny_pipelines: dict[str, Path], connected: tuple[str, ...], card_gb: float
) -> None:
    """A word of another language in the middle of a sentence, where a sentence is put together of parts."""
    loads = {"vae": load_vae, "clip": load_text_encoder}
    parts = {name: loads[name](tiny_pipelines["5b"], "fp32") for name in connected}
    model = official if len(connected) < 2 else CogVideoXCompile.execute(official).args[0]
    size = (1360, 768, 81, 2) if card_gb == 2.0 else ()
    english = forecast(model, *size, card_gb=card_gb, **parts)
    chinese = translate(english, "zh")
    found = set(re.findall(r"[A-Za-z][\w.-]*\w", chinese))
    assert not found - CHINESE_HAS, chinese
    assert len(chinese.splitlines()) == len(english.splitlines()) and "| Transformer |" in chinese
    assert not re.search("[\u4e00-\u9fff](Transformer|VAE)|(Transformer|VAE)[\u4e00-\u9fff]", chinese)
