"""The settings that a checkpoint was published with, and the hint of a run with others."""

import re
import time
from types import SimpleNamespace
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch

from cogvideox.host import running_graph as graphs
from cogvideox.model_loaders.downloads.repositories import REPOSITORIES
from cogvideox.samplers.comfy_sampler import SAMPLERS, build_sampler, schedule_sigmas
from cogvideox.sockets import recommended as module
from cogvideox.sockets.families import FAMILIES
from cogvideox.sockets.recommended import RECOMMENDED, add_settings_hint, describe, hint, recommended_for
from cogvideox.tests.hollow_files import OFFICIAL, hollow_model

OTHERS = "Other settings run, and may look worse."


@pytest.mark.parametrize("name", RECOMMENDED)
def test_settings_are_those_of_the_download(name: str) -> None:
    """The list of downloads and the hint would say two things of one checkpoint."""
    settings = RECOMMENDED[name]
    (entry,) = (entry for entry in REPOSITORIES if entry.name == name)
    numbers = [int(number) for number in re.findall(r"\d+", entry.made_for)]
    assert numbers == [settings.width, settings.height, settings.frames, settings.fps]
    assert settings.sampler in SAMPLERS and settings.takes_size(settings.width, settings.height)
    assert name in {family.name for family in FAMILIES}
    # What they are called elsewhere: previews play at the same rate.
    model = hollow_model(name)
    assert model.model.latent_format.preview_fps == settings.fps


def test_a_smaller_model_has_no_settings() -> None:
    """A toy or a test's model of 5b's architecture is another model: it was never meant for 720 x 480."""
    (family,) = (family for family in FAMILIES if family.name == "CogVideoX-5b")
    shape = {"num_layers": 42, "num_attention_heads": 48}
    assert recommended_for(family, shape) == RECOMMENDED["CogVideoX-5b"]
    for name in shape:
        assert recommended_for(family, shape | {name: 2}) is None
    (fun,) = (family for family in FAMILIES if family.name == "CogVideoX-Fun-5b-InP")
    assert recommended_for(fun, shape) is None


@pytest.mark.parametrize(
    ("name", "used", "said"),
    (
        ("CogVideoX-5b", {"sampler": "ddim"}, "sampler dpm (here ddim)"),
        ("CogVideoX-2b", {"sampler": "dpm", "steps": 20}, "sampler ddim (here dpm), 50 steps (here 20)"),
        ("CogVideoX-5b", {"cfg": 1.0}, "cfg 6 (here 1)"),
        ("CogVideoX-5b", {"size": (480, 720)}, "720 × 480 (here 480 × 720)"),
        ("CogVideoX-5b", {"frames": 81}, "at most 49 frames (here 81)"),
        ("CogVideoX1.5-5B", {"fps": {8.0}}, "16 fps (here 8)"),
        ("CogVideoX1.5-5B", {"fps": {8.0, 16.0, 12.5}}, "16 fps (here 8, 12.5)"),
        (
            "CogVideoX1.5-5B-I2V",
            {"size": (1024, 576)},
            "a shorter side of 768 and a longer one of at most 1360 pixels (here 1024 × 576)",
        ),
    ),
)
def test_what_differs_is_named(name: str, used: dict[str, Any], said: str) -> None:
    """What is recommended, what is set: the user can change it or leave it."""
    assert hint(name, RECOMMENDED[name], used) == f"The authors of {name} recommend {said}. {OTHERS}"


@pytest.mark.parametrize(
    ("name", "used"),
    (
        ("CogVideoX-5b", {}),
        ("CogVideoX-5b", {"sampler": "dpm", "steps": 50, "cfg": 6.0, "size": (720, 480), "frames": 49, "fps": {8.0}}),
        ("CogVideoX-5b", {"frames": 9, "fps": set()}),
        ("CogVideoX1.5-5B", {"frames": 161, "fps": {16.0}}),
        ("CogVideoX1.5-5B-I2V", {"size": (768, 1360)}),
        ("CogVideoX1.5-5B-I2V", {"size": (768, 768)}),
    ),
)
def test_what_is_recommended_is_not_mentioned(name: str, used: dict[str, Any]) -> None:
    """A hint that is always there is read by nobody."""
    assert hint(name, RECOMMENDED[name], used) == ""


def test_description_names_every_setting() -> None:
    """The forecast shows it, and templates are filled in from the same table."""
    assert describe(RECOMMENDED["CogVideoX-2b"]) == "sampler ddim, 50 steps, cfg 6, 720 × 480, 49 frames, 8 fps"
    assert "81 frames (at most 161), 16 fps" in describe(RECOMMENDED["CogVideoX1.5-5B"])


def told(name: str, sampler: Any, steps: int = 50, size: tuple = (1, 16, 13, 60, 90), **more: Any) -> list[str]:
    """What a run of the official checkpoint says. more: cfg, patches, options, denoise, graph."""
    model, notes = hollow_model(name), []
    add_settings_hint(model, name, RECOMMENDED[name], notes.append)
    model.patches = more.get("patches", {})
    (wrapper,) = model.get_wrappers(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "cogvideox settings")
    options: dict[str, Any] = {"transformer_options": {}} | more.get("options", {})
    guider = SimpleNamespace(model_patcher=model, model_options=options, cfg=more.get("cfg", 6.0))
    sigmas = schedule_sigmas(model.get_model_object("model_sampling"), steps, more.get("denoise", 1.0))
    latent = torch.empty(size, device="meta")

    class Executor:
        class_obj = guider

        def __call__(self, *args: Any, **kwargs: Any) -> str:
            assert args[0] is latent and args[1] is latent and args[2] is sampler and args[3] is sigmas
            return f"ran with {kwargs}"

    assert wrapper(Executor(), latent, latent, sampler, sigmas, None, seed=7) == "ran with {'seed': 7}"
    return notes


def test_a_run_says_it_and_goes_on() -> None:
    """5b at ddim was the default of the pack's sampler, and nothing said that its authors take dpm."""
    assert told("CogVideoX-5b", build_sampler("dpm")) == []
    (note,) = told("CogVideoX-5b", build_sampler("ddim"), 20, cfg=3.0)
    assert note.startswith(
        "The authors of CogVideoX-5b recommend sampler dpm (here ddim), 50 steps (here 20), cfg 6 (here"
    )


def test_stock_samplers_are_a_choice() -> None:
    """Whoever takes euler has chosen it; it has no name in the table."""
    assert told("CogVideoX-5b", comfy.samplers.sampler_object("euler")) == []


def test_a_part_of_a_run_is_no_run_of_few_steps() -> None:
    """Video to video runs the end of a schedule; so does the second sampler of two."""
    assert told("CogVideoX-5b", build_sampler("dpm"), 30, denoise=0.6) == []
    assert told("CogVideoX1.5-5B", build_sampler("dpm"), 30, (1, 16, 43, 96, 170), denoise=0.6) == []


def test_a_lora_may_be_made_for_few_steps() -> None:
    """Distilled LoRAs are run at 4 or 8 steps without guidance: a hint would be wrong."""
    assert told("CogVideoX-5b", build_sampler("dpm"), 8, cfg=1.0, patches={"a": [1]}) == []


def test_windows_and_positions_are_for_longer_videos() -> None:
    """They are put there for just this."""
    long_video = (1, 16, 41, 60, 90)
    assert len(told("CogVideoX-5b", build_sampler("dpm"), size=long_video)) == 1
    assert told("CogVideoX-5b", build_sampler("dpm"), size=long_video, options={"context_handler": object()}) == []


GRAPH = {
    "1": {"class_type": "CogVideoXLoadPipeline", "inputs": {}},
    "2": {"class_type": "CogVideoXSample", "inputs": {"model": ["1", 0], "seed": 8}},
    "3": {"class_type": "CogVideoXDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
    "4": {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": 8.0}},
    "5": {"class_type": "SaveVideo", "inputs": {"video": ["4", 0]}},
    "6": {"class_type": "FrameInterpolate", "inputs": {"images": ["3", 0], "multiplier": 2}},
    "7": {"class_type": "CreateVideo", "inputs": {"images": ["6", 0], "fps": 99}},
    "8": {"class_type": "VHS_VideoCombine", "inputs": {"images": ["3", 0], "frame_rate": 12}},
    "9": {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": ["1", 0]}},
}


def test_frame_rates_are_found() -> None:
    """Where the video is played, but for what was interpolated, and what is not typed in."""
    assert graphs.frame_rates_after(GRAPH, "2") == {8.0, 12.0}
    assert graphs.frame_rates_after(GRAPH, "6") == {99.0}
    assert graphs.frame_rates_after(GRAPH, "5") == set()
    # ComfyUI refuses a circle, but not before other nodes are validated; one must not hang the run.
    circle = {
        name: {"class_type": "VAEDecode", "inputs": {"a": [other, 0]}} for name, other in (("1", "2"), ("2", "1"))
    }
    assert graphs.frame_rates_after(circle, "1") == set()


@pytest.mark.parametrize("running", (True, False))
def test_15_at_8_fps_is_said(running: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5 was trained at 16 frames a second: at 8 it plays in slow motion, and nothing said why."""
    item = (0, "a run", GRAPH, {}, [])
    queue = SimpleNamespace(currently_running={0: item if running else (0, "another", GRAPH, {}, [])})
    server = SimpleNamespace(prompt_queue=queue, last_node_id="2", last_prompt_id="a run")
    monkeypatch.setattr(graphs, "prompt_server", lambda: server)
    notes = told("CogVideoX1.5-5B", build_sampler("dpm"), size=(1, 16, 21, 96, 170))
    assert notes == ([f"The authors of CogVideoX1.5-5B recommend 16 fps (here 8, 12). {OTHERS}"] if running else [])


def test_comfyui_s_queue_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of this version of ComfyUI, not what we take it to be."""
    import execution

    queue = execution.PromptQueue(SimpleNamespace(queue_updated=lambda: None))
    server = SimpleNamespace(prompt_queue=queue, last_node_id="2", last_prompt_id="mine")
    monkeypatch.setattr(graphs, "prompt_server", lambda: server)
    assert graphs.running_graph() is None
    queue.put((1, "mine", GRAPH, {}, ["5"], {}))
    assert graphs.running_graph() is None  # it waits
    queue.get()
    assert graphs.running_graph() == (GRAPH, "2")


def _queue(running: Any) -> SimpleNamespace:
    queue = SimpleNamespace(currently_running=running)
    return SimpleNamespace(prompt_queue=queue, last_node_id="2", last_prompt_id="x")


@pytest.mark.parametrize(
    "server", (None, SimpleNamespace(), _queue(None), _queue({}), _queue({0: ()}), _queue({0: (0, "x", 5)}))
)
def test_a_server_that_does_not_say(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint must not end a run, in whatever version of ComfyUI."""
    monkeypatch.setattr(graphs, "prompt_server", lambda: server)
    assert graphs.running_graph() is None


def test_loaded_checkpoints_have_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loader, so that every sampler node says it; the toy of the same family says its own."""
    from cogvideox.host.toy import WEIGHTS
    from cogvideox.model_loaders import load_model as loader

    added: list[str] = []
    monkeypatch.setattr(loader, "add_settings_hint", lambda patcher, name, *_: added.append(name))
    loader.load_model(WEIGHTS / "5b", "fp32")
    assert added == []
    monkeypatch.setattr(loader, "recommended_for", lambda family, config: RECOMMENDED["CogVideoX-5b"])
    loader.load_model(WEIGHTS / "5b", "fp32")
    assert added == ["CogVideoX-5b"]
    assert set(OFFICIAL) >= set(RECOMMENDED) and module.RECOMMENDED is RECOMMENDED


def test_graphs_of_strangers_do_not_stop_a_hint() -> None:
    """ComfyUI checks only what an output needs: the rest of a prompt may be anything, and of any size."""
    odd = {
        "1": {"class_type": "VAEDecode", "inputs": {"samples": ["0", 0]}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 10**400}},
        "3": {"class_type": "CreateVideo", "inputs": []},
        "4": {"class_type": "CreateVideo", "inputs": None},
    }
    assert graphs.frame_rates_after(odd, "0") == set()  # type: ignore[arg-type]
    many = {str(n): {"class_type": "PreviewImage", "inputs": {"images": [str(n - 1), 0]}} for n in range(1, 100_000)}
    began = time.process_time()
    assert graphs.frame_rates_after(many, "0") == set()
    assert time.process_time() - began < 1


def test_what_is_linked_is_found_among_anything() -> None:
    """A stranger's workflow may have nodes with inputs of any kind, as long as nothing needs them."""
    graph: dict = {"1": {"inputs": []}, "2": {}, "3": {"inputs": {"vae": ["7", 1], "seed": 1}}}
    assert graphs.is_linked(graph, "7", 1)
    assert not graphs.is_linked(graph, "7", 0) and not graphs.is_linked(graph, "3", 1)
    assert not graphs.is_linked({}, "7", 1)
