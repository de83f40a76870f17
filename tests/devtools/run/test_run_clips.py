"""From a request to settings, and from settings to a workflow."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogvideox.devtools.errors import DevError
from cogvideox.devtools.paths import template
from cogvideox.devtools.run import options
from cogvideox.devtools.run.local_models import EXTRA_PATHS, local_lists, write_extra_paths
from cogvideox.devtools.run.media import read_media
from cogvideox.devtools.run.options import Lora
from cogvideox.devtools.run.recommended_settings import OFFICIAL, TOYS, recommended_for
from cogvideox.devtools.run.requests import Request
from cogvideox.devtools.run.run_clips import Clip, settle
from cogvideox.devtools.run.run_graph import build_graph
from cogvideox.host.standalone import comfyui_from_environment
from cogvideox.host.toy import LISTED, NAME
from cogvideox.model_loaders.downloads.repositories import REPOSITORIES
from cogvideox.nodes import NODES


def settled(lists: Any = None, **values: Any) -> Clip:
    request = Request({"prompt": "a star", **values})
    return settle(request, read_media([request]), lists)


def settings_of(lists: Any = None, **values: Any) -> tuple:
    names = ("model", "width", "height", "frames", "fps", "steps", "cfg", "sampler", "dynamic_cfg", "denoise")
    settings = settled(lists, **values).settings
    return tuple(settings[name] for name in names)


def test_toy_is_taken_with_its_templates_settings(picture: Path, video: Callable[..., Path]) -> None:
    """`run --prompt` shows what the template shows; other settings would look worse for no reason."""
    for title, given, name, denoise in (
        ("Text to video", {}, "5b", 1.0),
        ("Image to video", {"image": str(picture)}, "5b-I2V", 1.0),
        ("Video to video", {"video": str(video(17))}, "5b", 0.6),
    ):
        saved = json.loads(template(title).read_text("utf-8"))
        widgets = {node["type"]: node["widgets_values"] for node in saved["nodes"] if node.get("widgets_values")}
        sample = widgets["CogVideoXSample"]
        cfg = sample[3]  # seed, what becomes of it, steps, cfg, sampler, dynamic_cfg, denoise
        assert sample[2:7] == [20, cfg, "dpm", False, denoise]
        assert settings_of(**given) == (f"{NAME} {name}", 64, 64, 17, 8.0, 20, cfg, "dpm", False, denoise)


def test_checkpoint_has_its_authors_settings(lists: dict, picture: Path) -> None:
    """A 5b at ddim, or 1.5 at 8 frames a second, is worse than it could be."""
    assert settings_of(lists, model="CogVideoX-5b") == (("CogVideoX-5b", 720, 480, 49, 8.0, 50, 6.0, "dpm", True, 1.0))
    given = {"model": "cogvideox1.5-5b-i2v", "image": str(picture), "steps": 30, "size": (1024, 768)}
    assert settings_of(lists, **given) == (
        ("THUDM/CogVideoX1.5-5B-I2V", 1024, 768, 81, 16.0, 30, 6.0, "dpm", True, 1.0)
    )
    assert recommended_for("CogVideoX-2b", None, "--like").sampler == "ddim"


def test_precisions_are_those_of_the_loaders() -> None:
    """One that only the loader knows could not be asked for."""
    from cogvideox.model_loaders.precision import PRECISIONS

    assert set(options.PRECISIONS) == set(PRECISIONS)


def test_every_published_checkpoint_has_settings() -> None:
    """The sizes are those that `dev.py models` prints."""
    for entry in REPOSITORIES:
        found = recommended_for(f"somebody/{entry.name}", None, "--like")
        frames, fps = re.findall(r"(\d+) frames, (\d+) fps", entry.made_for)[0]
        assert (found.frames, found.fps) == (int(frames), float(fps)), entry.name
        if size := re.match(r"(\d+) x (\d+)", entry.made_for):
            assert (found.width, found.height) == tuple(map(int, size.groups())), entry.name
    assert TOYS.keys() == LISTED["pipeline"].keys()


def test_name_that_says_nothing_needs_like(lists: dict) -> None:
    """Guessed settings would make a bad video of a good model."""
    lists["pipeline"].append("my-finetune")
    with pytest.raises(DevError, match="'my-finetune' does not tell .*--like .*CogVideoX-5b"):
        settled(lists, model="my-finetune")
    assert settings_of(lists, model="my-finetune", like="cogvideox1.5-5b")[1:4] == (1360, 768, 81)
    with pytest.raises(DevError, match="--like is 'SVD', which is none of the checkpoints: CogVideoX-2b"):
        settled(lists, model="my-finetune", like="SVD")


def test_name_in_no_list_is_answered_with_those_that_are(lists: dict) -> None:
    with pytest.raises(DevError, match="--model is 'CogVideoX-7b', .*: CogVideoX-5b, THUDM/CogVideoX1.5-5B-I2V, Cog"):
        settled(lists, model="CogVideoX-7b")
    with pytest.raises(DevError, match="--lora is 'Pant', .*: styles/Paint.safetensors, CogVideoX-nano pink"):
        settled(lists, lora=(Lora("Pant", 1.0),))
    lists["lora"] = []
    with pytest.raises(DevError, match="--lora is 'Pant', .*list: it is empty"):
        settled(lists, lora=(Lora("Pant", 1.0),))


def test_names_may_be_written_short(lists: dict) -> None:
    """Whoever downloads paint.safetensors calls it paint; two of a short name are not guessed between."""
    assert settled(lists, lora=(Lora("paint", 0.8),)).settings["loras"] == [["styles/Paint.safetensors", 0.8]]
    lists["lora"].append("other/paint.pt")
    with pytest.raises(DevError, match="--lora is 'paint'"):
        settled(lists, lora=(Lora("paint", 0.8),))


def test_transformer_alone_needs_the_other_parts(lists: dict) -> None:
    with pytest.raises(DevError, match="a transformer alone: give --text-encoder and --vae as well"):
        settled(lists, model="CogVideoX_5b_fp8")
    with pytest.raises(DevError, match="give --vae as well"):
        settled(lists, model="CogVideoX_5b_fp8", text_encoder="t5xxl_fp8")
    clip = settled(lists, model="CogVideoX_5b_fp8", text_encoder="t5xxl_fp8", vae="cogvideox_vae")
    graph = build_graph(clip, "", "prefix")
    check_contract(graph)
    assert graph["decode"]["inputs"]["vae"] == ["vae", 0] and graph["prompt"]["inputs"]["clip"] == ["clip", 0]
    assert graph["vae"]["inputs"]["vae_name"] == "cogvideox_vae.safetensors"


def test_model_that_does_not_take_it_is_named(lists: dict, picture: Path, video: Callable[..., Path]) -> None:
    """The sampler says so too, when the model is loaded."""
    with pytest.raises(DevError, match="CogVideoX-5b takes a prompt alone or --video, and --image is given"):
        settled(lists, model="CogVideoX-5b", image=str(picture))
    with pytest.raises(DevError, match="1.5-5B-I2V takes --image, and no picture or video is given"):
        settled(lists, model="CogVideoX1.5-5B-I2V")
    with pytest.raises(DevError, match="Fun-5b-Control takes --video, and --image is given"):
        settled(lists, model="CogVideoX-nano Fun-5b-Control", image=str(picture))


def test_size_that_a_model_cannot_make_is_refused(lists: dict, picture: Path) -> None:
    lists["pipeline"].append("CogVideoX-5b-I2V")
    given = {"model": "CogVideoX-5b-I2V", "image": str(picture)}
    assert settings_of(lists, **given)[1:4] == (720, 480, 49)
    with pytest.raises(DevError, match="--frames: CogVideoX-5b-I2V makes 720x480 with 49 frames and nothing else"):
        settled(lists, **given, frames=81)


def test_length_and_speed_follow_the_video(video: Callable[..., Path]) -> None:
    """A short video is changed as far as it goes, at its own speed; what was asked for is not quietly less."""
    short = str(video(14, fps=24))
    assert settings_of(video=short)[3:5] == (13, 24.0)
    assert settings_of(video=short, frames=9, fps=8.0)[3:5] == (9, 8.0)
    with pytest.raises(DevError, match="--frames is 17 and .*clip.mp4 has 14 frames: ask for 13 or fewer"):
        settled(video=short, frames=17)


def check_contract(graph: dict) -> None:
    """Every node of the pack's has the inputs that its schema asks for, and none that it does not know; links lead to
    outputs that there are."""
    schemas = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}
    for node in graph.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                source = schemas.get(graph[value[0]]["class_type"])
                assert source is None or value[1] < len(source.outputs)
        if schema := schemas.get(node["class_type"]):
            known = {entry.id: entry for entry in schema.inputs}
            assert node["inputs"].keys() <= known.keys(), node
            assert {name for name, entry in known.items() if not entry.optional} <= node["inputs"].keys(), node


@pytest.mark.parametrize("model", TOYS)
def test_workflow_of_each_task_keeps_the_contract(
    lists: dict, picture: Path, video: Callable[..., Path], model: str
) -> None:
    """A node whose input is missing or unknown is refused by the server when it has started."""
    given = {"image": {"image": str(picture)}, "control": {"video": str(video(17))}}.get(TOYS[model].task, {})
    clip = settled(lists, model=model, lora=(Lora("CogVideoX-nano pink", 0.5), Lora("paint", -1.0)), seed=5, **given)
    graph = build_graph(clip, "cogvideox_run/mine.png", "prefix")
    check_contract(graph)
    assert graph["lora 1"]["inputs"] == {
        "model": ["lora 0", 0],
        "lora_name": "styles/Paint.safetensors",
        "strength": -1.0,
    }
    assert graph["sample"]["inputs"]["model"] == ["lora 1", 0] and graph["sample"]["inputs"]["seed"] == 5


@pytest.mark.parametrize(
    ("values", "kind", "source"),
    [
        ({}, "CogVideoXEmptyLatent", None),
        ({"video": "clip"}, "CogVideoXEncodeVideo", "LoadVideo"),
        ({"image": "picture"}, "CogVideoXImageToVideo", "LoadImage"),
        ({"image": "picture", "model": "CogVideoX-nano Fun-5b-InP"}, "CogVideoXFunInpaint", "LoadImage"),
    ],
)
def test_what_is_given_reaches_the_model(
    lists: dict, picture: Path, video: Callable[..., Path], values: dict, kind: str, source: str | None
) -> None:
    """A picture that is linked to nothing makes a video without it, and nothing says so."""
    files = {"clip": str(video(17)), "picture": str(picture)}
    clip = settled(lists, **{name: files.get(value, value) for name, value in values.items()})
    graph = build_graph(clip, "cogvideox_run/mine", "prefix")
    check_contract(graph)
    assert graph["latent"]["class_type"] == kind
    reached, waiting = set(), ["latent"]
    while waiting:
        node = waiting.pop()
        reached.add(graph[node]["class_type"])
        waiting += [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    assert source is None or source in reached
    loaded = [node["inputs"] for node in graph.values() if node["class_type"] == source]
    assert all("cogvideox_run/mine" in inputs.values() for inputs in loaded)


def test_own_server_lists_what_another_comfyui_has(tmp_path: Path, python: Path) -> None:
    """A checkpoint in the user's ComfyUI must be found by its name before anything starts."""
    for place in ("diffusers/CogVideoX-5b/transformer", "loras/deep"):
        (tmp_path / "models" / place).mkdir(parents=True)
    (tmp_path / "models" / "diffusers" / "CogVideoX-5b" / "model_index.json").write_text("{}")
    (tmp_path / "models" / "loras" / "deep" / "x.safetensors").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.safetensors").touch()
    (tmp_path / EXTRA_PATHS).write_text(f"mine:\n  loras: {tmp_path / 'elsewhere'}\n")
    (tmp_path / "scratch").mkdir()
    extra = write_extra_paths(tmp_path / "models", tmp_path / "scratch")
    found = local_lists(python, comfyui_from_environment(), tmp_path / "base", extra)
    assert found["pipeline"] == ["CogVideoX-5b", *LISTED["pipeline"]]
    assert {"deep/x.safetensors", "y.safetensors", *LISTED["lora"]} <= set(found["lora"])
    (tmp_path / EXTRA_PATHS).write_text("mine: [")
    with pytest.raises(DevError, match="The models could not be listed"):
        local_lists(python, comfyui_from_environment(), tmp_path / "base", extra)


def test_settings_of_the_official_models_are_checked() -> None:
    """A size that the nodes refuse would make the defaults unusable."""
    from cogvideox.video_limits import check_size

    for found in (*OFFICIAL.values(), *TOYS.values()):
        check_size(found.width, found.height, found.frames)
