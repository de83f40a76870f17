"""CogVideoX-nano in the loaders' lists, read where it lies in the pack."""

import hashlib
import itertools
import os
import re
import shutil
from pathlib import Path

import folder_paths
import pytest
from comfy_api.latest import io

from cogvideox.errors import UserError
from cogvideox.host import folders, toy
from cogvideox.nodes import NODES, controlnet, load, lora
from cogvideox.nodes.missing_models import say_empty
from cogvideox.system.published_files import SUMS, sums_of
from cogvideox.tests.model_folders import empty_model_folders

LISTS = {
    "pipeline": (load.CogVideoXLoadPipeline, load._find_pipeline),
    "transformer": (load.CogVideoXLoadModel, load._find_model),
    "text_encoder": (load.CogVideoXLoadTextEncoder, load._find_text_encoder),
    "vae": (load.CogVideoXLoadVAE, load._find_vae),
    "controlnet": (controlnet.CogVideoXLoadControlNet, controlnet._find_control_net),
    "lora": (lora.CogVideoXApplyLora, lora._find_lora),
}
FIRST = "CogVideoX-nano 5b"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain ComfyUI's model folders: there, and empty."""
    return empty_model_folders(tmp_path, monkeypatch)


@pytest.fixture
def own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy in place of the pack's, to damage and to add to."""
    weights = Path(shutil.copytree(toy.WEIGHTS, tmp_path / "weights"))
    monkeypatch.setattr(toy, "WEIGHTS", weights)
    return weights


def options(kind: str) -> list[str]:
    """What the list of a loader offers."""
    (listed,) = (
        entry
        for entry in LISTS[kind][0].define_schema().inputs
        if isinstance(entry, io.Combo.Input) and entry.default is None
    )
    return list(listed.options)


@pytest.mark.parametrize("kind", toy.LISTED)
def test_a_pack_that_was_only_cloned_offers_the_toy(models: Path, kind: str) -> None:
    """Without a model of one's own, nothing in the pack could be tried."""
    assert options(kind) == [*toy.LISTED[kind], say_empty(kind)]
    for name in toy.LISTED[kind]:
        assert LISTS[kind][1](name).is_relative_to(toy.WEIGHTS)
        assert LISTS[kind][0].__name__ in {node.__name__ for node in NODES}


def test_every_loader_of_weights_is_looked_at() -> None:
    """A kind that no loader lists would be in the table for nothing."""
    assert set(LISTS) == set(toy.LISTED)


def test_the_users_own_models_come_first(models: Path) -> None:
    """ComfyUI takes the first of a list for a new node: a user with a model wants that one."""
    for name in ("zz-mine", "CogVideoX-5b"):
        (models / "diffusers" / name / "transformer").mkdir(parents=True)
        (models / "diffusers" / name / "model_index.json").touch()
    (models / "checkpoints" / "zzz.safetensors").touch()
    own = ["CogVideoX-5b", "zz-mine", "zzz.safetensors"]
    assert options("pipeline") == [*own, *toy.LISTED["pipeline"]]
    assert options("transformer") == [*own[:2], *toy.LISTED["transformer"]]


def test_a_users_model_of_the_toys_name_is_the_users(models: Path) -> None:
    """Listed once; and whoever has put it there gets it."""
    mine = models / "diffusers" / FIRST
    (mine / "transformer").mkdir(parents=True)
    (mine / "model_index.json").touch()
    assert options("pipeline").count(FIRST) == 1
    assert LISTS["pipeline"][1](FIRST) == mine


def test_a_folder_that_no_list_offers_does_not_hide_the_toy(models: Path) -> None:
    """The list shows the toy's name; what half a download or an empty folder of that name has left was opened."""
    for category in ("diffusers", "diffusion_models", "vae", "text_encoders"):
        (models / category / FIRST).mkdir()
        (models / category / toy.NAME).mkdir()
    for kind in ("pipeline", "transformer", "text_encoder", "vae"):
        for name in toy.LISTED[kind]:
            assert options(kind).count(name) == 1 and toy.is_toy(LISTS[kind][1](name))
    (models / "vae" / toy.NAME / "mine.safetensors").touch()
    assert LISTS["vae"][1](toy.NAME) == models / "vae" / toy.NAME


def test_the_name_of_earlier_copies_is_still_known(models: Path) -> None:
    """Workflows that were saved when `dev.py serve` copied the toy into models/diffusers."""
    for kind in ("pipeline", "transformer", "text_encoder", "vae"):
        assert LISTS[kind][1]("CogVideoX-nano-5b") == toy.WEIGHTS / "5b"


@pytest.mark.parametrize(
    "kind, name",
    [
        (kind, name)
        for kind, name in itertools.product(
            toy.LISTED,
            [
                "CogVideoX-nano 5b/../../../README.md",
                "../nano/weights/5b",
                "CogVideoX-nano /etc",
                "CogVideoX-nano",
                "CogVideoX-nano 5b/transformer",
                "5b",
                str(toy.WEIGHTS / "5b"),
            ],
        )
        if name not in toy.LISTED[kind]
    ],
)
def test_only_names_of_the_list_lead_to_the_toy(models: Path, kind: str, name: str) -> None:
    """A stranger's workflow must not reach the pack's other files through a name that begins with the toy's."""
    with pytest.raises(UserError, match="There is no|is not the name of a model"):
        LISTS[kind][1](name)


@pytest.mark.parametrize("line", ["", "no such line\n", "word\n"])
def test_a_damaged_list_of_hashes_lets_nothing_pass(models: Path, own_weights: Path, line: str) -> None:
    """An empty one would call every damaged file good."""
    (own_weights / SUMS).write_text(line, "utf-8")
    with pytest.raises(UserError, match="SHA256SUMS is damaged"):
        LISTS["pipeline"][1](FIRST)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
def test_a_pipe_is_no_weights(models: Path, own_weights: Path) -> None:
    """Its hash would be waited for, and the queue with it, for ever."""
    file = own_weights / "5b" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="is not a file, and the pack has one of that name"):
        LISTS["pipeline"][1](FIRST)


@pytest.mark.parametrize("change", [-1, 1, 1 << 33])
def test_a_file_of_another_size_is_not_read(
    models: Path, own_weights: Path, change: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of many GB that was put in a toy's place would fill the memory, and the queue would stand still."""
    file = own_weights / "5b" / "transformer" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size + change)  # beyond its end there is nothing on the disk
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read") if path == file else read_bytes(path))
    with pytest.raises(UserError, match="5b/transformer/.* has been changed".replace("/", re.escape(os.sep))):
        LISTS["pipeline"][1](FIRST)


@pytest.mark.parametrize("size", ["", "many", "-1", "9" * 5000])
def test_a_damaged_size_lets_no_file_pass(models: Path, own_weights: Path, size: str) -> None:
    listed = (own_weights / SUMS).read_text("utf-8")
    (own_weights / SUMS).write_text(re.sub(r"(?m)^# [0-9]+ (5b/.*safetensors)", rf"# {size} \1", listed), "utf-8")
    with pytest.raises(UserError, match="SHA256SUMS is damaged"):
        LISTS["pipeline"][1](FIRST)


def test_what_is_not_there_is_not_listed(models: Path, own_weights: Path) -> None:
    """Who deletes the toy to save space sees no name that cannot be loaded."""
    shutil.rmtree(own_weights / "5b-I2V")
    assert "CogVideoX-nano 5b-I2V" not in options("pipeline") and FIRST in options("pipeline")
    with pytest.raises(UserError, match="5b-I2V is missing. Install the pack again"):
        LISTS["pipeline"][1]("CogVideoX-nano 5b-I2V")


def test_the_toy_is_not_in_comfyuis_folders() -> None:
    """Others write previews into the folders of models, and downloads into the first one of a kind."""
    roots = {Path(root) for paths, _ in folder_paths.folder_names_and_paths.values() for root in paths}
    assert not [root for root in roots if root.is_relative_to(toy.WEIGHTS) or toy.WEIGHTS.is_relative_to(root)]


def test_all_that_is_published_is_listed() -> None:
    """A model that was trained and is in no list takes room in every clone, and nobody finds it."""
    assert {path.parent.name for path in toy.WEIGHTS.glob("*/model_index.json")} == set(toy.MODELS)
    alone = {path for kind in ("controlnet", "lora") for path in toy.LISTED[kind].values()}
    known = (*toy.MODELS, *toy.SHARED, *alone)
    files = [path.relative_to(toy.WEIGHTS).as_posix() for path in toy.WEIGHTS.rglob("*.safetensors")]
    assert not [file for file in files if not f"{file}/".startswith(tuple(f"{name}/" for name in known))]


def test_every_file_has_its_hash() -> None:
    """One without could be damaged unseen; one too many would be of an older publication."""
    assert {*toy.published_files(toy.WEIGHTS), toy.WEIGHTS / SUMS} == {*filter(Path.is_file, toy.WEIGHTS.rglob("*"))}
    assert (toy.WEIGHTS / SUMS).read_text("utf-8") == sums_of(toy.WEIGHTS, toy.published_files(toy.WEIGHTS))


@pytest.mark.parametrize("kind, damaged", [("pipeline", "5b/transformer"), ("pipeline", "vae"), ("vae", "vae")])
def test_a_damaged_file_is_found_by_its_hash(models: Path, own_weights: Path, kind: str, damaged: str) -> None:
    """One flipped bit makes other colours, and every score of this model wrong; nothing else would tell."""
    file = own_weights / damaged / "diffusion_pytorch_model.safetensors"
    name = next(iter(toy.LISTED[kind]))
    assert LISTS[kind][1](name) == own_weights / "5b"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        UserError,
        match="has been changed: its sha256 is not the one in SHA256SUMS. Install the pack again, or run `git checkout",
    ):
        LISTS[kind][1](name)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        LISTS[kind][1](name)


@pytest.mark.parametrize(
    "kind, changed",
    [
        ("pipeline", "5b/model_index.json"),
        ("transformer", "5b/transformer/config.json"),
        ("transformer", "scheduler/scheduler_config.json"),
        ("vae", "vae/config.json"),
        ("text_encoder", "tokenizer/tokenizer.json"),
        ("controlnet", "controlnet-edges/config.json"),
    ],
)
def test_a_changed_config_is_found_by_its_hash(models: Path, own_weights: Path, kind: str, changed: str) -> None:
    """Another scale, schedule or vocabulary makes worse videos, with no error that says why."""
    file, name = own_weights / changed, next(iter(toy.LISTED[kind]))
    content = file.read_bytes()
    assert b"\n" in content
    file.write_bytes(content.replace(b"\n", b"\r\n"))  # as git may write it on Windows
    LISTS[kind][1](name)
    file.write_bytes(content.replace(b"1", b"2"))
    with pytest.raises(UserError, match=f"{file.name} has been changed"):
        LISTS[kind][1](name)
    os.truncate(file, 1 << 33)
    with pytest.raises(UserError, match=f"{file.name} has been changed"):
        LISTS[kind][1](name)
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is a part of the pack, and it is missing"):
        LISTS[kind][1](name)


def test_a_config_that_was_not_published_is_found(models: Path, own_weights: Path) -> None:
    """A pipeline's own config goes before the one that all share."""
    shutil.copytree(own_weights / "2b" / "scheduler", own_weights / "5b" / "scheduler")
    with pytest.raises(UserError, match="scheduler_config.json does not belong to the pack"):
        LISTS["transformer"][1](FIRST)


def test_only_what_is_loaded_must_be_whole(models: Path, own_weights: Path) -> None:
    """A broken model keeps nobody from the others."""
    (own_weights / "5b-I2V" / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert LISTS["pipeline"][1](FIRST) and LISTS["vae"][1](toy.NAME)
    (own_weights / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert LISTS["transformer"][1](FIRST) and LISTS["text_encoder"][1](toy.NAME)
    (own_weights / SUMS).unlink()
    with pytest.raises(UserError, match=f"{SUMS} cannot be read"):
        LISTS["transformer"][1](FIRST)


def test_files_of_one_kind_are_found_by_path(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA is one file and a control net a folder: both are checked as a pipeline is."""
    for inner in ("lora.safetensors", "net/model.safetensors"):
        (own_weights / inner).parent.mkdir(exist_ok=True)
        (own_weights / inner).write_bytes(inner.encode())
    (own_weights / SUMS).write_text(sums_of(own_weights, toy.published_files(own_weights)), "utf-8")
    listed = {**toy.LISTED, "lora": {"L": "lora.safetensors"}, "controlnet": {"N": "net"}}
    monkeypatch.setattr(toy, "LISTED", listed)
    assert toy.with_toy(["mine"], "lora") == ["mine", "L"]
    assert toy.find_toy("L", "lora") == own_weights / "lora.safetensors"
    assert toy.find_toy("N", "controlnet") == own_weights / "net"
    assert toy.find_toy("L", "controlnet") is toy.find_toy("N", "lora") is None
    (own_weights / "lora.safetensors").write_bytes(b"other")
    (own_weights / "net" / "model.safetensors").write_bytes(b"other")
    for name, kind in (("L", "lora"), ("N", "controlnet")):
        with pytest.raises(UserError, match="has been changed"):
            toy.find_toy(name, kind)


def test_a_pipelines_own_part_goes_before_the_shared_one(own_weights: Path) -> None:
    """2b's scheduler has another shift, and the VAE's config of 1.5's image to video another scale: with the shared
    ones they would paint noise."""
    assert toy.part_folder(own_weights / "5b", "scheduler") == own_weights / "scheduler"
    (own_weights / "5b" / "scheduler").mkdir()
    assert toy.part_folder(own_weights / "5b", "scheduler") == own_weights / "5b" / "scheduler"
    (own_weights / "5b" / "vae").mkdir()
    shutil.copy(own_weights / "vae" / "config.json", own_weights / "5b" / "vae")
    own = toy.part_folder(own_weights / "5b", "vae")
    assert own == own_weights / "5b" / "vae" and toy.weights_folder(own) == own_weights / "vae"
    (own / "own.safetensors").touch()
    assert toy.weights_folder(own) == own


def test_a_users_pipeline_borrows_nothing(tmp_path: Path) -> None:
    """Half a download must not be completed with the toy's VAE."""
    assert toy.part_folder(tmp_path, "vae") == tmp_path / "vae"
    assert toy.weights_folder(tmp_path / "vae") == tmp_path / "vae"


def test_the_clips_are_a_dataset_that_keeps_nothing_in_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training's template must run without files in the input folder; a user's dataset of that name is the user's."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    found = folders.find_dataset(toy.CLIPS)
    assert found == toy.CLIPS_FOLDER
    cache = folders.dataset_cache(found)
    assert cache is not None and cache.is_relative_to(tmp_path / "temp")
    for name in (f"{toy.CLIPS}/..", f"{toy.CLIPS}/../..", str(toy.CLIPS_FOLDER)):
        with pytest.raises(UserError, match="There is no folder"):
            folders.find_dataset(name)
    mine = tmp_path / "input" / toy.CLIPS
    mine.mkdir(parents=True)
    assert folders.find_dataset(toy.CLIPS) == mine and folders.dataset_cache(mine) is None


@pytest.mark.parametrize("changed", ["clip_00.mp4", "clip_00.txt", "clip_99.mp4"])
def test_a_changed_clip_is_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    """A LoRA of other clips would be called one of the toy's. ComfyUI's input folder is not looked into for them."""
    copy = Path(shutil.copytree(toy.EXAMPLES, tmp_path / "examples"))
    for module, name, path in ((toy, "EXAMPLES", copy), (toy, "CLIPS_FOLDER", copy / "clips")):
        monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(folders, "CLIPS_FOLDER", copy / "clips")
    assert folders.find_dataset(toy.CLIPS) == copy / "clips"
    (copy / "clips" / changed).write_bytes(b"another")
    is_listed = changed != "clip_99.mp4"
    told = "has been changed: .* nano/examples" if is_listed else "does not belong to the pack"
    with pytest.raises(UserError, match=f"{changed} {told}"):
        folders.find_dataset(toy.CLIPS)
    (copy / "clips" / changed).unlink()
    if is_listed:
        with pytest.raises(UserError, match=f"{changed} is a part of the pack, and it is missing"):
            folders.find_dataset(toy.CLIPS)


def test_a_users_own_of_the_toys_name_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A template would run with it, and nothing tell that its video is not the toy's."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    mine = tmp_path / "input" / toy.CLIPS
    mine.mkdir(parents=True)
    (mine / "clip_00.mp4").write_bytes(b"mine")
    model = models / "diffusers" / FIRST
    (model / "transformer").mkdir(parents=True)
    (model / "model_index.json").touch()
    for _ in range(3):
        assert folders.find_dataset(toy.CLIPS) == mine and LISTS["pipeline"][1](FIRST) == model
    assert [record.message for record in caplog.records] == [
        f"{name!r} is read from {path}, where you have put it, and not from the pack, which has something of that name "
        "too. Rename yours to get that."
        for name, path in ((toy.CLIPS, mine), (FIRST, model))
    ]
    assert (mine / "clip_00.mp4").read_bytes() == b"mine" and len(list(mine.iterdir())) == 1


def test_hashes_are_not_read_again(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI asks for the path several times a run."""
    toy.find_toy(FIRST, "pipeline")
    monkeypatch.setattr(hashlib, "sha256", lambda *_: pytest.fail("hashed again"))
    toy.find_toy(FIRST, "pipeline")
