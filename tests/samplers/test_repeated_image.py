"""NimVideo's cogvideox-2b-img2vid: 2b whose image is concatenated with every frame, against diffusers' transformer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.checkpoints import open_component
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.save_model import save_model
from cogvideox.model_loaders.variants import detect_family, resolve_config
from cogvideox.nodes.load import CogVideoXLoadModel, CogVideoXLoadPipeline
from cogvideox.sockets.families import FAMILIES, LOOKALIKES
from cogvideox.tests.hollow_files import official_weights
from cogvideox.tests.support import check_parity, relative_error, validated, write_fp32
from cogvideox.tests.tasks import HEIGHT, WIDTH, Task, pictures
from cogvideox.tests.tiers import long_but_one_in
from cogvideox.training.objective import objective_for

pytestmark = pytest.mark.usefixtures("inference")
IMG2VID, CONTROL = "CogVideoX-2b-img2vid", "CogVideoX-Fun-2b-Control"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2b with 32 input channels; the index names the pipeline of text to video, as for a model that says nothing."""
    return write_fp32(tmp_path_factory.mktemp("img2vid") / "2b", "2b", in_channels=32)


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    with torch.inference_mode():
        task = Task(folder)
        task.model = load_model(folder, "fp32", family=IMG2VID)
        return task


def image_to_video(task: Task, frames: int, image: torch.Tensor, batch_size: int = 1, **inputs: Any) -> torch.Tensor:
    run = {key: inputs.pop(key) for key in ("model", "sampler", "steps") if key in inputs}
    conditioned = task.condition("image", "CogVideoXImageToVideo", frames, batch_size, start_image=image, **inputs)
    return task.sample(*conditioned, **run)


def reference(
    task: Task, sampler: str, frames: int, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """diffusers' image to video pipeline, transformer and VAE, with the picture encoded in every frame."""
    from diffusers import CogVideoXImageToVideoPipeline as Pipeline

    height, width = image.shape[1:3]

    def prepare(self: Any, *args: object) -> tuple:
        generator = next(a for a in args if isinstance(a, torch.Generator))
        # [1, H, W, 3] -> [1, 3, F, H, W], -1 .. 1
        video = (2 * image - 1).permute(3, 0, 1, 2)[None].expand(-1, -1, frames, -1, -1)
        latents = self.vae.encode(video).latent_dist.mode() * self.vae.config.scaling_factor
        noise = torch.randn(1, latents.shape[2], 16, height // 8, width // 8, generator=generator)
        return noise, latents.transpose(1, 2)

    monkeypatch.setattr(Pipeline, "prepare_latents", prepare)
    picture = torch.zeros(1, 3, height, width)
    size = {"height": height, "width": width}
    return task.reference(Pipeline.__name__, sampler, image=picture, num_frames=frames, num_inference_steps=6, **size)


SIZES = ((WIDTH, HEIGHT, 9), (HEIGHT, WIDTH, 9), (144, 64, 9), (WIDTH, HEIGHT, 17), (80, 112, 5), (WIDTH, HEIGHT, 1))


@pytest.mark.parametrize(("size", "sampler"), long_but_one_in(2, SIZES, ("ddim", "dpm")), ids=str)
def test_equals_diffusers(
    task: Task, sampler: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fun's stretched positions would be 0.1 off at another size, and an image in the first frame alone a still."""
    width, height, frames = size
    image = pictures(1, height=height, width=width)
    got = image_to_video(task, frames, image, sampler=sampler, width=width, height=height)
    want = reference(task, sampler, frames, image, monkeypatch)
    check_parity(f"image to video, {IMG2VID}, {sampler}", got, want, 5e-6)


def test_ksampler_and_context_windows(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever node starts the run, and whatever part of the video the model sees."""
    positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    stock: Any = comfyui_nodes().KSampler()
    both = [
        stock.sample(task.model, 3, 2, 6.0, "ddim", "simple", positive, negative, latent)[0]["samples"]
        for _ in range(2)
    ]
    assert torch.equal(*both)
    windows = task.node(
        "long",
        "CogVideoXContextWindows",
        model=task.model,
        context_frames=9,
        overlap_frames=4,
        freenoise=False,
        schedule="standard_static",
        fuse_method="pyramid",
    )[0]
    video = image_to_video(task, 17, pictures(1), model=windows, steps=2)
    assert video.isfinite().all() and video.shape[2] == 5


def test_batches_noise_and_samples(task: Task) -> None:
    """A batch's members differ by their noise; augmentation and samples of the posterior reach every frame."""
    image = pictures(1)
    plain = image_to_video(task, 9, image, steps=2)
    batch = image_to_video(task, 9, image, batch_size=2, steps=2)
    assert relative_error(batch[:1], plain) < 5e-6 and relative_error(batch[1:], plain) > 0.1
    noisy = image_to_video(task, 9, image, steps=2, noise_augmentation=0.1)
    sampled = image_to_video(task, 9, image, batch_size=2, steps=2, sample_posterior=True)
    assert relative_error(noisy, plain) > 1e-4 and relative_error(sampled[:1], plain) > 1e-6


def test_no_image_is_no_channels(task: Task) -> None:
    """As with the official models: without a picture the channels are zero."""
    positive, negative, latent = task.condition("image", "CogVideoXImageToVideo", 9)
    assert task.sample(positive, negative, latent, steps=2).isfinite().all()


def test_what_it_was_not_trained_for(task: Task) -> None:
    """An end image, or several start images, has no place in a picture that stands still."""
    wrong: list[dict[str, Any]] = [{"end_image": pictures(1, seed=5)}, {"start_image": pictures(5)}]
    for given in wrong:
        images: dict[str, Any] = {"start_image": pictures(1), **given}
        conditioned = task.condition("image", "CogVideoXImageToVideo", 9, **images)
        with pytest.raises(UserError, match="sees one start image in every frame.*Use a single start image"):
            task.sample(*conditioned)
    control = task.condition(
        "fun", "CogVideoXFunControl", 9, control_video=pictures(9), strength=1.0, start_percent=0.0, end_percent=1.0
    )
    with pytest.raises(UserError, match=f"made for a control video; {IMG2VID} takes a start image"):
        task.sample(*control)


def test_other_models_do_not_wait_for_it(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is encoded as a video only in a run on the model that needs it, and there once."""
    counted: list[int] = []
    encode = type(task.vae).encode

    def counting(self: Any, pixels: torch.Tensor, *args: Any) -> torch.Tensor:
        counted.append(pixels.shape[0])
        return encode(self, pixels, *args)

    monkeypatch.setattr(type(task.vae), "encode", counting)
    conditioned = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    assert counted == [1]
    task.sample(*conditioned, steps=1)
    task.sample(*conditioned, steps=1)
    assert counted == [1, 9]


def test_conditioning_that_was_saved(task: Task, tmp_path: Path) -> None:
    """ComfyUI's training nodes save CONDITIONING: it stays plain data, without a VAE in it."""
    positive, _, latent = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    torch.save(positive, tmp_path / "conditioning.pt")
    assert (tmp_path / "conditioning.pt").stat().st_size < 300_000
    loaded = torch.load(tmp_path / "conditioning.pt", weights_only=True)
    with pytest.raises(UserError, match="an image that was saved"):
        task.sample(loaded, loaded, latent)


def test_how_it_is_told_apart(folder: Path, tmp_path: Path) -> None:
    """By the user, by a pipeline's index, or by the header of a file of this pack; otherwise it is Fun's, as before."""

    def family(path: Path, said: str = "detect") -> str:
        return load_model(path, "fp32", family=said).model.model_config.family.name

    assert open_component(folder, "transformer").hint == "CogVideoXPipeline"
    assert (family(folder), family(folder, CONTROL), family(folder, IMG2VID)) == (CONTROL, CONTROL, IMG2VID)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = copy / "model_index.json"
    for kind, name in (("CogVideoXImageToVideoPipeline", IMG2VID), ("CogVideoXFunControlPipeline", CONTROL)):
        index.write_text(json.dumps({"_class_name": kind}))
        assert family(copy) == family(copy / "transformer") == name
        assert family(copy, CONTROL) == CONTROL and family(copy, IMG2VID) == IMG2VID
    index.write_text("{")
    assert family(copy / "transformer") == CONTROL
    saved = tmp_path / "any name.safetensors"
    save_model(load_model(folder, "fp32", family=IMG2VID), saved)
    assert family(saved) == IMG2VID and family(saved, CONTROL) == CONTROL
    with pytest.raises(UserError, match=f"not CogVideoX-5b: they have the architecture of {CONTROL} and {IMG2VID}"):
        load_model(folder, family="CogVideoX-5b")
    with pytest.raises(UserError, match="There is no CogVideoX model 'x'"):
        load_model(folder, family="x")


@pytest.mark.parametrize("family", (*FAMILIES, *LOOKALIKES), ids=lambda f: f.name)
def test_a_lone_file_that_the_user_names(family: Any) -> None:
    """Of the official size, and of another number of layers, which no official checkpoint has."""
    weights = official_weights(CONTROL if family in LOOKALIKES else family.name)
    assert detect_family(resolve_config(weights, None, "test", family.name), family.name) == family
    fewer = {name: weight for name, weight in weights.items() if not name.startswith("transformer_blocks.1.")}
    config = resolve_config(fewer, None, "test", family.name)
    assert (config["num_layers"], config["num_attention_heads"]) == (family.layers - 1, family.heads)
    assert detect_family(config, family.name) == family
    with pytest.raises(UserError, match="not the size of an official checkpoint"):
        resolve_config(fewer, None, "test")
    other = next(f for f in FAMILIES if f.in_channels != family.in_channels)
    with pytest.raises(UserError, match=f"are not {other.name}: they have {family.layers} layers of width"):
        resolve_config(weights, None, "test", other.name)


def test_nodes_hand_it_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loaders of a transformer have the input; a saved workflow without it goes on detecting."""
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusers", ([str(folder.parent)], set()))
    for node in (CogVideoXLoadModel, CogVideoXLoadPipeline):
        for given, expected in (({}, CONTROL), ({"family": IMG2VID}, IMG2VID)):
            model = node.execute("2b", "fp32", **given).args[0]
            assert model.model.model_config.family.name == expected
            assert (
                model.cached_patcher_init[0](*model.cached_patcher_init[1]).model.model_config.family.name == expected
            )
        (name,) = (entry for entry in ("model_name", "folder") if entry in node.GET_NODE_INFO_V1()["input"]["required"])
        assert validated(node, **{name: "2b", "weight_dtype": "fp32", "family": IMG2VID}) is True
        told = validated(node, **{name: "2b", "weight_dtype": "fp32", "family": "CogVideoX-5b"})
        assert "These weights are not CogVideoX-5b" in str(told)
        with pytest.raises(UserError, match="family is 'other': use detect"):
            node.execute("2b", "fp32", family="other")


def test_the_message_says_where_to_choose_it(folder: Path) -> None:
    """Whoever connects Image to Video to it has the model that Fun's was taken for."""
    task = Task(folder)
    conditioned = task.condition("image", "CogVideoXImageToVideo", 9, start_image=pictures(1))
    with pytest.raises(UserError, match=f"{CONTROL} takes a control video.*If it is {IMG2VID}, choose that at family"):
        task.sample(*conditioned)


def test_training_is_refused(task: Task) -> None:
    """A training would put the image into the first frame alone, and unlearn the rest."""
    with pytest.raises(UserError, match="sees the start image in every frame, which there is no training for"):
        objective_for(task.model)
