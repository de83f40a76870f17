"""The lists of models: everything below the folders, one spelling, and no client of ComfyUI that waits for a disk."""

import asyncio
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import folder_paths
import pytest

from cogvideox.errors import UserError
from cogvideox.host import folders, model_tree
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.host.toy import is_toy
from cogvideox.model_loaders import side_configs
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nodes import NODES, controlnet, draft, load, lora
from cogvideox.tests.support import validated

OLD_NS = 10**18  # a folder that was changed a moment ago is read again
CATEGORIES = folders.CATEGORIES


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder, with a second diffusers root as extra_model_paths.yaml names one."""
    for name in CATEGORIES:
        roots = [tmp_path / name, *([tmp_path / "extra"] if name == "diffusers" else [])]
        for root in roots:
            root.mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(r) for r in roots], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def settle(root: Path) -> None:
    """As if nothing had been changed for long."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(OLD_NS, OLD_NS))


def hub_cache(root: Path, pipeline: Path) -> str:
    """A pipeline as huggingface_hub keeps it: links below snapshots to files below blobs. Returns its name."""
    repository = root / "models--THUDM--CogVideoX-5b"
    snapshot = repository / "snapshots" / ("8fc5b281006c8b82d34fd2543d2f0ebb4e7e3321")
    touch(repository / "refs", "main")
    touch(repository / ".no_exist" / "abc", "model_index.json")
    for number, file in enumerate(sorted(path for path in pipeline.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"{number:064x}", snapshot / file.relative_to(pipeline)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot.relative_to(root).as_posix()


def test_pipelines_at_every_depth(models: Path) -> None:
    """A clone keeps the owner's name, and a hub's cache has levels of its own; ComfyUI's DiffusersLoader lists both."""
    diffusers = models / "diffusers"
    for folder in (diffusers / "plain", diffusers / "THUDM" / "CogVideoX-5b", models / "extra" / "a" / "b" / "c"):
        touch(folder / "transformer", "diffusion_pytorch_model.safetensors")
        touch(folder, "model_index.json")
    touch(diffusers / "zai" / "half" / "vae")  # a download that has just begun
    touch(diffusers / ".cache" / "huggingface" / "download" / "vae", "x.metadata")
    names = folders.list_pipelines()
    assert names == ["THUDM/CogVideoX-5b", "a/b/c", "plain", "zai/half"]
    (theirs,) = comfyui_nodes().DiffusersLoader.INPUT_TYPES()["required"]["model_path"]
    assert {name.replace(os.sep, "/") for name in theirs} <= set(names)
    assert folders.list_components("transformer", "diffusion_models") == names[:3]
    assert folders.find("a/b/c", "diffusers") == models / "extra" / "a" / "b" / "c"


CLASSES = {
    "transformer": ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel", "CogVideoXTransformer3DVCModel"),
    "vae": ("AutoencoderKLCogVideoX", "AutoencoderKLMine"),
    "controlnet": ("CogVideoXControlnet", "CogVideoXControlNetModel", "CogVideoXTransformer3DControlModel"),
    "text_encoder": ("T5EncoderModel", "UMT5EncoderModel"),
}


@pytest.mark.parametrize(("component", "name"), [(part, name) for part, names in CLASSES.items() for name in names])
def test_lists_and_loaders_know_the_same_classes(models: Path, component: str, name: str) -> None:
    """A fine-tune's class of its own, in a folder of its own name: the loader takes it, and so it has to be listed."""
    folder = touch(models / "diffusers" / "mine", "model.safetensors")
    config = {"architectures": [name]} if component == "text_encoder" else {"_class_name": name}
    (folder / "config.json").write_text(json.dumps(config))
    assert not side_configs.is_of_another_kind(component, config)
    assert folders.list_components(component, "vae_approx") == ["mine"]
    others = [other for other in CLASSES if other != component and side_configs.is_of_another_kind(other, config)]
    assert others and all(folders.list_components(other, "vae_approx") == [] for other in others)


# In diffusers 0.42 beside CogVideoX's and ConsisID's, and some of other versions.
OTHER_FAMILIES = {
    "vae": [
        *("AsymmetricAutoencoderKL", "AutoencoderDC", "AutoencoderKL", "AutoencoderOobleck", "AutoencoderRAE"),
        *("AutoencoderTiny", "AutoencoderVidTok", "AutoencoderSAME"),
        *(f"AutoencoderKL{name}" for name in ("Allegro", "Cosmos", "HunyuanImage", "HunyuanVideo", "HunyuanVideo15")),
        *(f"AutoencoderKL{name}" for name in ("LTXVideo", "LTX2Audio", "Magvit", "MiniMaxH3", "Mochi", "QwenImage")),
        *(f"AutoencoderKL{name}" for name in ("KVAE", "TemporalDecoder", "Wan", "Flux2")),
    ],
    "controlnet": [
        *("ControlNetModel", "ControlNetUnionModel", "ControlNetXSAdapter", "CosmosControlNetModel"),
        *("FluxControlNetModel", "FluxMultiControlNetModel", "HunyuanDiT2DControlNetModel", "MultiControlNetModel"),
        *("QwenImageControlNetModel", "SD3ControlNetModel", "SanaControlNetModel", "SparseControlNetModel"),
        *("UNetControlNetXSModel", "ZImageControlNetModel", "MultiControlNetUnionModel"),
    ],
    "transformer": [
        f"{name}Transformer3DModel"
        for name in (
            *("Allegro", "AnyFlow", "AnyFlowFAR", "ChronoEdit", "Cosmos", "EasyAnimate", "HunyuanVideo", "Kandinsky5"),
            *("HunyuanVideoFramepack", "JoyImageEdit", "LTXVideo", "Latte", "Mochi", "SanaVideo", "SkyReelsV2", "Wan"),
            *("WanVACE", "WanAnimate"),
        )
    ],
}


@pytest.mark.parametrize(
    ("component", "name"), [(part, name) for part, names in OTHER_FAMILIES.items() for name in names]
)
def test_other_families_are_not_listed(models: Path, component: str, name: str) -> None:
    """The folder of a Stable Diffusion VAE was offered as a VAE. Chosen all the same, its weights say what it is."""
    folder = touch(models / "diffusers" / "other", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": name}))
    assert not side_configs.is_of_another_kind(component, {"_class_name": name})
    assert [folders.list_components(part, "vae_approx") for part in CLASSES] == [[]] * len(CLASSES)
    assert folders.find("other", "diffusers") == folder


def test_a_root_that_is_a_pipeline(models: Path) -> None:
    """Somebody names the checkpoint itself in extra_model_paths.yaml; DiffusersLoader lists it as a dot."""
    with pytest.raises(UserError, match="is not the name of a model"):
        folders.find(".", "diffusers", "checkpoints")
    touch(models / "extra" / "vae", "a.safetensors")
    touch(models / "extra", "model_index.json")
    assert folders.list_pipelines() == ["."] == folders.list_components("vae", "vae")
    assert folders.find(".", "diffusers", "checkpoints") == models / "extra"


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
def test_a_hubs_cache_loads(models: Path, tiny_pipelines: dict[str, Path]) -> None:
    """Nobody should have to copy 20 GB that are on the disk already."""
    name = hub_cache(models / "diffusers", tiny_pipelines["5b"])
    assert folders.list_pipelines() == [name]
    assert validated(load.CogVideoXLoadPipeline, folder=name, weight_dtype="default") is True
    ours, theirs = (load_model(path) for path in (folders.find(name, "diffusers"), tiny_pipelines["5b"]))
    assert ours.model.model_config.sampling_settings == theirs.model.model_config.sampling_settings
    assert ours.model.latent_format.scale_factor == theirs.model.latent_format.scale_factor


def test_two_transformers_in_one_folder(models: Path, tiny_pipelines: dict[str, Path]) -> None:
    """CogVideoX 1.5 is passed on as transformer_T2V and transformer_I2V beside one VAE."""
    pipeline = models / "diffusers" / "Kijai" / "CogVideoX-5b-1.5"
    for variant, name in (("1.5-5B", "transformer_T2V"), ("1.5-5B-I2V", "transformer_I2V")):
        shutil.copytree(tiny_pipelines[variant] / "transformer", pipeline / name)
    shutil.copytree(tiny_pipelines["1.5-5B"] / "vae", pipeline / "vae")
    names = [f"Kijai/CogVideoX-5b-1.5/transformer_{task}" for task in ("I2V", "T2V")]
    assert folders.list_components("transformer", "diffusion_models") == names
    assert folders.list_components("vae", "vae") == ["Kijai/CogVideoX-5b-1.5"]
    for name in names:
        assert validated(load.CogVideoXLoadModel, model_name=name, weight_dtype="default") is True
    # The same in models/diffusion_models, and a transformer under any name beside the pipelines.
    shutil.copytree(pipeline, models / "diffusion_models" / "video" / "1.5")
    shutil.copytree(pipeline / "transformer_T2V", models / "diffusers" / "mine")
    offered = folders.list_components("transformer", "diffusion_models")
    assert {"video/1.5/transformer_T2V", "mine", *names} <= set(offered)


def test_folders_of_single_files_are_no_models(models: Path) -> None:
    """A deep folder with a collection of files is a folder, not a model; its files are listed."""
    touch(models / "diffusion_models" / "Cog" / "old", "a.safetensors", "b.safetensors")
    touch(models / "diffusion_models" / "sat", "latest")
    touch(models / "diffusion_models" / "sat" / "1", "mp_rank_00_model_states.pt")
    offered = folders.list_components("transformer", "diffusion_models")
    assert "Cog/old" not in offered and {"sat", "Cog/old/a.safetensors", "Cog/old/b.safetensors"} <= set(offered)


LOADERS: dict[str, tuple[Callable[[str], Path], str]] = {
    "pipeline": (load._find_pipeline, "diffusers"),
    "file of a pipeline": (load._find_pipeline, "checkpoints"),
    "model": (load._find_model, "diffusion_models"),
    "text encoder": (load._find_text_encoder, "text_encoders"),
    "vae": (load._find_vae, "vae"),
    "control net": (controlnet._find_control_net, "controlnet"),
    "lora": (lora._find_lora, "loras"),
    "tiny decoder": (lambda name: folders.find(name, draft.TINY_FOLDER), "vae_approx"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_separators_of_the_other_system(models: Path, loader: str) -> None:
    """A workflow that was saved on Windows names Cog\\lora.safetensors."""
    find, category = LOADERS[loader]
    touch(models / category / "Cog" / "new", "a.safetensors")
    for name in ("Cog/new/a.safetensors", "Cog\\new\\a.safetensors", "Cog\\new/a.safetensors"):
        assert find(name) == models / category / "Cog" / "new" / "a.safetensors"
    for name in ("Cog\\..\\..\\secret", "..\\a", "Cog\\new\\b"):
        with pytest.raises(UserError):
            find(name)


@pytest.mark.skipif(os.name == "nt", reason="no such name is possible there")
def test_a_backslash_in_a_name(models: Path) -> None:
    """On Linux it is a letter."""
    touch(models / "loras", "a\\b.safetensors")
    (name,) = folders.list_files("loras")
    assert folders.find(name, "loras").is_file()


posix = pytest.mark.skipif(os.name == "nt", reason="no such name is possible there")
STRANGE = (
    *("x:style", "C:", "C:\\models\\a", "\\server\\share", "..\\a", "a\\..\\b", " a", "~", "a\nb", "%41", "con", "a?*"),
    *("..a", "...", "-rf", "'\"", "\udcff", "视频"),
)


def listed_by(node: str) -> set[str]:
    (entry,) = [entry for entry in NODES_BY_NAME[node].define_schema().inputs if entry.id == LISTED[node][0]]
    options: Any = entry.as_dict()["options"]
    return set(options)


NODES_BY_NAME: dict[str, Any] = {node.__name__: node for node in NODES}
LISTED: dict[str, tuple[str, Callable[[str], Path], tuple[str, ...]]] = {
    "CogVideoXLoadPipeline": ("folder", load._find_pipeline, ("diffusers", "checkpoints")),
    "CogVideoXLoadModel": ("model_name", load._find_model, ("diffusers", "diffusion_models")),
    "CogVideoXLoadTextEncoder": ("text_encoder_name", load._find_text_encoder, ("diffusers", "text_encoders")),
    "CogVideoXLoadVAE": ("vae_name", load._find_vae, ("diffusers", "vae")),
    "CogVideoXLoadControlNet": ("control_net_name", controlnet._find_control_net, ("diffusers", "controlnet")),
    "CogVideoXApplyLora": ("lora_name", lora._find_lora, ("loras",)),
    "CogVideoXDraftDecode": ("decoder", draft._find_decoder, ("vae_approx",)),
}


@posix
@pytest.mark.parametrize("node", LISTED)
def test_what_is_listed_is_found(models: Path, node: str) -> None:
    """A file x:style.safetensors was offered and refused when it was chosen, as a name that leads out of the folder."""
    _, find, categories = LISTED[node]
    for category in categories:
        for name in STRANGE:
            for folder in (models / category, models / category / name):
                if category == "diffusers":
                    touch(folder / f"{name}.p", "model_index.json")
                    for component in folders.COMPONENTS:
                        touch(folder / f"{name}.p" / component, "a.safetensors")
                else:
                    touch(folder, f"{name}.safetensors", f"taecvx{name}.safetensors")
    names = {name for name in listed_by(node) if not is_toy(find(name))}
    assert len(names) >= 2 * len(STRANGE), names
    for name in names:
        assert find(name).exists(), name
        assert os.path.relpath(find(name), models).split(os.sep)[0] in categories, name


def test_a_root_without_an_index_that_is_a_pipeline(models: Path) -> None:
    """It was listed as a dot, and refused when it was chosen."""
    touch(models / "extra" / "vae", "a.safetensors")
    assert folders.list_pipelines() == ["."] == folders.list_components("vae", "vae")
    assert folders.find(".", "diffusers", "checkpoints") == folders.find(".", "diffusers", "vae") == models / "extra"


# (the folder that is found first, and does not hold what is listed; the one that does; the categories)
SAME_NAMES = {
    "a pipeline without a VAE": ("diffusers/a/transformer", "vae/a", ("diffusers", "vae")),
    "an empty folder of another root": ("diffusers/a", "extra/a/vae", ("diffusers", "vae")),
    "a file among the pipelines": ("diffusers/", "vae/", ("diffusers", "vae")),
    "an empty folder before a pipeline": ("diffusers/a", "extra/a/transformer", ("diffusers", "checkpoints")),
}


@pytest.mark.parametrize("what", SAME_NAMES)
def test_one_name_in_two_folders(models: Path, what: str) -> None:
    """The name is listed for the one that can be loaded; the other one was opened, and refused."""
    wrong, right, categories = SAME_NAMES[what]
    touch(models / wrong)
    touch(models / right, "w.safetensors")
    if what == "a file among the pipelines":
        touch(models / wrong, "w.safetensors")
        name, place = "w.safetensors", models / right / "w.safetensors"
    else:
        name, place = "a", models / "/".join(right.split("/")[:2])
    offered = folders.list_components("vae", "vae") if categories[-1] == "vae" else folders.list_pipelines()
    assert name in offered
    assert folders.find(name, *categories) == place


@pytest.mark.parametrize("loader", ["model", "text encoder", "vae", "control net"])
def test_a_category_is_no_model(models: Path, loader: str) -> None:
    """A dot is listed for pipelines alone; with loose files in a loader's own category it opened all of them."""
    find, category = LOADERS[loader]
    touch(models / category, "a.safetensors", "b.safetensors")
    with pytest.raises(UserError, match="is not the name of a model"):
        find(".")


def test_an_entry_that_the_disk_cannot_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged entry among a hundred models made the whole folder empty."""
    touch(models / "loras", "a.safetensors", "b.safetensors")
    real = os.scandir

    class Damaged:
        name = "b.safetensors"

        def is_dir(self) -> bool:
            raise OSError(errno.EIO, "Input/output error")

        is_file = is_symlink = is_dir

    @contextmanager
    def scandir(path: str) -> Iterator[Iterator[Any]]:
        with real(path) as entries:
            yield (Damaged() if entry.name == Damaged.name else entry for entry in entries)

    monkeypatch.setattr(model_tree.os, "scandir", scandir)
    assert folders.list_files("loras") == ["a.safetensors"]


@posix
def test_what_cannot_be_opened_is_not_listed(models: Path) -> None:
    """A FIFO would be waited for, and a link may lead nowhere until a disk is mounted."""
    os.mkfifo(models / "loras" / "fifo.safetensors")
    touch(models / "loras", "a.safetensors")
    (models / "loras" / "b.safetensors").symlink_to(models / "disk" / "b.safetensors")
    settle(models / "loras")
    assert folders.list_files("loras") == ["a.safetensors"]
    touch(models / "disk", "b.safetensors")
    assert folders.list_files("loras") == ["a.safetensors", "b.safetensors"]
    assert folders.find("b.safetensors", "loras").is_file()


def test_one_spelling_in_all_lists(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's own list has the system's separators: a workflow of Windows would name no entry on Linux."""
    for category in CATEGORIES:
        touch(models / category / "Cog", "taecvx.safetensors", "config.json")
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda _: ["Cog\\taecvx.safetensors"])
    for node in NODES:
        if node.__name__ not in ("CogVideoXLoadPipeline", "CogVideoXApplyLora", "CogVideoXDraftDecode"):
            if not node.__name__.startswith("CogVideoXLoad"):
                continue
        options: Any = next(
            entry.as_dict()["options"] for entry in node.define_schema().inputs if entry.io_type == "COMBO"
        )
        assert "Cog/taecvx.safetensors" in options and not [name for name in options if "\\" in name], node


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders that are read."""
    found: list[str] = []
    real = os.scandir

    def scandir(path: Any) -> Any:
        found.append(str(path))
        return real(path)

    monkeypatch.setattr(model_tree.os, "scandir", scandir)
    return found


def test_a_folder_is_read_once_per_change(models: Path, reads: list[str]) -> None:
    """On a network disk each reading takes a tenth of a second and more."""
    root = models / "diffusers"
    for number in range(5):
        touch(root / f"p{number}" / "vae", "a.safetensors")
    settle(root)
    reads.clear()
    model_tree.tree_of(str(root))
    assert len(reads) == 11
    reads.clear()
    assert len(folders.list_pipelines()) == 5 and not [path for path in reads if path.startswith(str(root))]
    touch(root / "p3", "model_index.json")
    assert len(folders.list_pipelines()) == 5
    assert {path for path in reads if path.startswith(str(root))} == {str(root / "p3")}
    shutil.rmtree(root / "p4")
    (root / "p0" / "vae" / "a.safetensors").rename(root / "p0" / "vae" / "b.safetensors")
    assert len(folders.list_pipelines()) == 4
    assert "p0/vae/b.safetensors" in folders.list_files("diffusers")


def test_a_folder_that_changes_twice_at_once(models: Path) -> None:
    """Two files within one step of the file system's clock: the second must appear too."""
    for number in range(20):
        touch(models / "vae", f"{number}.safetensors")
        os.utime(models / "vae", ns=(time.time_ns(), time.time_ns() // 10**9 * 10**9))
        assert len(folders.list_files("vae")) == number + 1


def test_a_config_that_is_edited(models: Path) -> None:
    """The folder's time stays the same then."""
    config = touch(models / "diffusers" / "x", "a.safetensors") / "config.json"
    config.write_text('{"_class_name": "UNet2DModel"}')
    settle(models / "diffusers")
    assert folders.list_control_nets() == []
    config.write_text('{"_class_name": "CogVideoXControlnet"}')
    settle(models / "diffusers")
    assert folders.list_control_nets() == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
def test_links(models: Path) -> None:
    """Models often lie on another disk, and a link may lead back to where it is."""
    touch(models / "disk" / "vae", "a.safetensors")
    (models / "vae" / "link").symlink_to(models / "disk")
    (models / "disk" / "circle").symlink_to(models / "vae")
    (models / "vae" / "nowhere").symlink_to(models / "gone")
    assert folders.list_files("vae") == ["link/vae/a.safetensors"]


def test_too_many_folders(models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A whole disk in extra_model_paths.yaml: a list that is cut, with a word about it."""
    monkeypatch.setattr(model_tree, "_MAX_FOLDERS", 10)
    for number in range(20):
        touch(models / "vae" / str(number))
    assert len(model_tree.tree_of(str(models / "vae"))) == 10 and "more than 10 folders" in caplog.text


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that answers only once the event is set."""
    answers = threading.Event()
    real = os.scandir

    def scandir(path: Any) -> Any:
        answers.wait(20)
        return real(path)

    monkeypatch.setattr(model_tree.os, "scandir", scandir)
    yield answers
    answers.set()


def node_infos() -> float:
    """What ComfyUI answers to /object_info about the pack, on an event loop; returns the seconds."""

    async def ask() -> float:
        began = time.monotonic()
        with folder_paths.cache_helper:
            for node in NODES:
                node.GET_NODE_INFO_V1()
        return time.monotonic() - began

    return asyncio.run(ask())


def test_the_event_loop_does_not_wait(models: Path, slow: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """A network disk that hangs must not hang the page of every client; what it holds is there at a later refresh."""
    touch(models / "diffusers" / "p" / "vae", "a.safetensors")
    caplog.set_level("INFO")
    folders.start_listings()  # as ComfyUI's start does: one wait for all folders together, and none later
    first, second = node_infos(), node_infos()
    assert first < 4 * model_tree._WAIT_S and second < 2 * model_tree._WAIT_S, (first, second)
    slow.set()
    assert folders.list_pipelines() == ["p"]
    assert "will be there at the next refresh" in caplog.text


def test_the_start_lists_each_folder_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI asks node after node for its lists when it loads the pack: each answer had a thread of its own."""
    touch(models / "vae", "a.safetensors")
    listed: list[str] = []
    refreshed = model_tree._refreshed

    def count(root: str, before: dict[str, model_tree.Listed]) -> dict[str, model_tree.Listed]:
        listed.append(root)
        return refreshed(root, before)

    monkeypatch.setattr(model_tree, "_refreshed", count)
    monkeypatch.setattr(model_tree, "_START_S", 600.0)  # a busy machine takes more than its second for all nodes

    async def load() -> list[str]:
        folders.start_listings()
        for node in NODES:
            node.GET_SCHEMA()
        return folders.list_files("vae")

    assert asyncio.run(load()) == ["a.safetensors"]
    assert str(models / "vae") in listed and len(listed) == len(set(listed))

    async def ask() -> list[str]:
        return folders.list_files("vae")

    touch(models / "vae", "b.safetensors")
    monkeypatch.setattr(model_tree._roots[str(models / "vae")], "held_until", 0.0)  # the second is over
    assert asyncio.run(ask()) == ["a.safetensors", "b.safetensors"]


def test_what_is_slow_is_not_repeated_at_every_question(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 folders, asked for by six nodes and again for each input of a prompt."""
    touch(models / "vae", "a.safetensors")
    root = str(models / "vae")
    assert folders.list_files("vae") == ["a.safetensors"]
    monkeypatch.setattr(model_tree._roots[root], "took_s", 1.0)
    monkeypatch.setattr(model_tree, "_begin", lambda _: pytest.fail("lists again"))
    touch(models / "vae", "b.safetensors")

    async def ask() -> list[str]:
        return folders.list_files("vae")

    assert asyncio.run(ask()) == ["a.safetensors"]
    monkeypatch.undo()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([root], {".safetensors"}))
    assert folders.list_files("vae") == ["a.safetensors", "b.safetensors"]  # a script waits for what is true now


def test_file_calls_of_the_event_loop(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """22 pipelines made 656 of them at each page load."""
    for number in range(22):
        for part in folders.COMPONENTS:
            touch(models / "diffusers" / f"p{number}" / part, "a.safetensors", "config.json")
    node_infos()
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                calls.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("stat", "lstat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    node_infos()
    found = calls.copy()
    calls.clear()
    comfyui_nodes().LoadImage.INPUT_TYPES()
    monkeypatch.undo()
    assert found == calls  # the list of one's own images is Load Image's


def test_lists_are_made_once_per_change(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To go through 20,000 names for each input of a prompt takes as long as to read them."""
    touch(models / "diffusers" / "p" / "vae", "a.safetensors")
    touch(models / "diffusers" / "p", "config.json")
    assert folders.list_components("vae", "vae") == ["p"]
    monkeypatch.setattr(folders, "walk", lambda _: pytest.fail("goes through all names"))
    assert folders.list_components("vae", "vae") == ["p"]


def test_a_node_that_runs_does_not_list(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limits are known from the first time; a slow disk would be waited for at each run."""
    node: Any = load.CogVideoXLoadVAE
    assert "There is no" in str(validated(node, vae_name="x", weight_dtype="default"))
    monkeypatch.setattr(folders, "list_components", lambda *_: pytest.fail("lists"))
    assert "There is no" in str(validated(node, vae_name="x", weight_dtype="default"))
    with pytest.raises(UserError, match="There is no"):
        node.execute("x", "default")
