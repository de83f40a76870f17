"""Files that are replaced under the same name: the next run loads them again, and no run mixes two models."""

import asyncio
import inspect
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import execution
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from comfy_execution.graph import DynamicPrompt
from safetensors.torch import load_file, save_file

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders import component_files
from cogvideox.model_loaders.file_stamps import stamp_of
from cogvideox.model_loaders.load_controlnet import load_controlnet
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.lora import apply
from cogvideox.nodes import NODES
from cogvideox.tests.support import ticks_during, write_fp32

LOADERS = {
    "CogVideoXLoadPipeline": ("folder", "diffusers"),
    "CogVideoXLoadModel": ("model_name", "diffusion_models"),
    "CogVideoXLoadTextEncoder": ("text_encoder_name", "text_encoders"),
    "CogVideoXLoadVAE": ("vae_name", "vae"),
    "CogVideoXLoadControlNet": ("control_net_name", "controlnet"),
    "CogVideoXApplyLora": ("lora_name", "loras"),
    "CogVideoXDraftDecode": ("decoder", "vae_approx"),
}
CLASSES = {node.__name__: node for node in NODES}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for _, category in LOADERS.values():
        (tmp_path / category).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, category, ([str(tmp_path / category)], {".pt"}))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([], set()))
    return tmp_path


def changed(node: str, value: object) -> Any:
    """What ComfyUI compares with the run before."""
    name = LOADERS[node][0]
    prompt = DynamicPrompt({"1": {"class_type": node, "inputs": {} if value is None else {name: value}}})
    cache = execution.IsChangedCache("prompt", prompt, None)  # type: ignore[arg-type]
    return asyncio.run(cache.get("1"))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, node in CLASSES.items():
        monkeypatch.setitem(comfyui_nodes().NODE_CLASS_MAPPINGS, name, node)


def test_every_loader_looks_for_changes() -> None:
    """A loader that is added without it would go on with the old file. A list without a default is one of files."""
    lists_files = {
        node.__name__
        for node in NODES
        for entry in node.define_schema().inputs
        if isinstance(entry, io.Combo.Input) and entry.default is None
    }
    assert lists_files == {*LOADERS, "CogVideoXOwnImage"}  # whose list is of images; test_own_image.py has it


@pytest.mark.parametrize("node", LOADERS)
def test_a_file_that_is_replaced(models: Path, node: str) -> None:
    """A model or LoRA that was trained further went on being the old one until memory was freed."""
    category = LOADERS[node][1]
    path = models / category / "sub" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"old")
    before = changed(node, "sub/a.safetensors")
    assert changed(node, "sub/a.safetensors") == before
    (path.parent / "other.safetensors").write_bytes(b"of another model")
    assert changed(node, "sub/a.safetensors") == before
    os.utime(path, ns=(1, 1))
    touched = changed(node, "sub/a.safetensors")
    path.write_bytes(b"newer")
    os.utime(path, ns=(1, 1))
    assert len({str(value) for value in (before, touched, changed(node, "sub/a.safetensors"))}) == 3
    path.unlink()
    assert "There is no" in str(changed(node, "sub/a.safetensors"))


@pytest.mark.parametrize("node", LOADERS)
def test_a_file_under_a_linked_name(models: Path, node: str) -> None:
    """ComfyUI does not know the name before the run. Another file there, such as a LoRA that was trained just now, must
    not run a whole video again; what made the name runs before this node, and this node after it."""
    path = models / LOADERS[node][1] / "sub" / "a.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"old")
    before = changed(node, None)
    assert changed(node, None) == before
    path.write_bytes(b"newer")
    assert changed(node, None) == before


def test_a_copy_with_the_times_of_what_it_replaces(tmp_path: Path) -> None:
    """cp -p, rsync -t and tar keep the times; two LoRAs of one rank have one size."""
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for file in (path, other):
        file.write_bytes(file.name.encode())
        os.utime(file, ns=(1, 1))
    before = stamp_of(path)
    os.replace(other, path)
    assert stamp_of(path) != before


def test_every_shard_of_a_variant(tmp_path: Path) -> None:
    """diffusers once put the variant behind the number: a shard that was replaced went unnoticed."""
    shards = [tmp_path / f"model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    for shard in shards:
        shard.write_bytes(b"old")
    before = stamp_of(shards[0])
    shards[1].write_bytes(b"newer")
    assert stamp_of(shards[0]) != before


# What loading a part of a pipeline reads, and one file that it does not.
READ = {
    "transformer": (
        "transformer/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ),
    "vae": ("vae/config.json",),
    "text_encoder": ("text_encoder/config.json", "transformer/config.json", "tokenizer/tokenizer_config.json"),
}


@pytest.mark.parametrize("inner", ["", "component"])
@pytest.mark.parametrize("component", READ)
def test_every_file_of_a_pipeline_that_is_read(tiny_pipelines: Any, tmp_path: Path, component: str, inner: str) -> None:
    """A scheduler config or a tokenizer that is put right counts as much as the weights."""
    folder = tmp_path / "p"
    shutil.copytree(tiny_pipelines["5b"], folder)
    path = folder / component if inner else folder
    stamps = [stamp_of(path, component)]
    (folder / "README.md").write_text("not read")
    assert stamp_of(path, component) == stamps[0]
    other = "vae" if component == "transformer" else "transformer"
    for weights in (folder / other).glob("*.safetensors"):
        os.utime(weights, ns=(1, 1))
    assert stamp_of(path, component) == stamps[0]
    for file in [*(folder / component).glob("*.safetensors"), *(folder / name for name in READ[component])]:
        assert file.is_file(), file
        os.utime(file, ns=(1, 1))
        stamps.append(stamp_of(path, component))
    assert len(set(stamps)) == len(stamps)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_every_shard(tmp_path: Path, name: str) -> None:
    """Whichever of them is chosen, all are read."""
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(b"x")
    before = stamp_of(tmp_path / name, "transformer")
    os.utime(tmp_path / "model-00002-of-00002.safetensors", ns=(1, 1))
    assert stamp_of(tmp_path / name, "transformer") != before


def test_weights_below_the_folder(tmp_path: Path) -> None:
    """DeepSpeed's file "latest" names the folder of SAT's weights."""
    (tmp_path / "1").mkdir()
    for path in (tmp_path / "latest", tmp_path / "1" / "mp_rank_00_model_states.pt"):
        path.write_text("1")
    stamps = [stamp_of(tmp_path, "transformer")]
    for path in (tmp_path / "latest", tmp_path / "1" / "mp_rank_00_model_states.pt"):
        os.utime(path, ns=(1, 1))
        stamps.append(stamp_of(tmp_path, "transformer"))
    assert len(set(stamps)) == 3


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_fp32(tmp_path / "5b", "5b")


LOADED: dict[str, Callable[[Path], Any]] = {
    "transformer": load_model,
    "vae": lambda path: load_vae(path).patcher,
    "text_encoder": lambda path: load_text_encoder(path).patcher,
}


@pytest.mark.parametrize("component", LOADED)
def test_a_second_loading_of_a_file_that_was_replaced(pipeline: Path, component: str) -> None:
    """ComfyUI loads a model again for a compiled or a trained copy: one copy would have the weights of another file."""
    patcher = LOADED[component](pipeline)
    load_again, arguments = patcher.cached_patcher_init
    again = load_again(*arguments, disable_dynamic=True)
    assert again.model is not patcher.model
    for path in (pipeline / component).glob("*.safetensors"):
        new = path.with_suffix(".new")
        save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, new)
        os.replace(new, path)
    with pytest.raises(UserError, match="has changed since it was loaded. Queue the prompt again"):
        load_again(*arguments, disable_dynamic=True)
    old, new = (loaded.model.state_dict() for loaded in (patcher, LOADED[component](pipeline)))
    assert any(not torch.equal(new[key].float(), old[key].float()) for key in old)


@pytest.mark.parametrize("node", [name for name in LOADERS if name != "CogVideoXDraftDecode"])
def test_clients_are_answered_while_a_file_is_read(
    models: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipelines: Any, node: str
) -> None:
    """A header of a disk that hangs stopped every client's page, when one of them queued a prompt."""
    name, category = LOADERS[node]
    if node == "CogVideoXLoadPipeline":
        shutil.copytree(tiny_pipelines["5b"], models / category / "a")
    else:
        (models / category / "a").write_bytes(b"a file")
    threads: set[threading.Thread] = set()

    def slow(path: Path) -> Any:
        threads.add(threading.current_thread())
        time.sleep(0.5)
        raise UserError("slow")

    for module in (component_files, apply):
        monkeypatch.setattr(module, "read_header", slow)
    inputs: dict[str, Any] = {entry.id: getattr(entry, "default", None) for entry in CLASSES[node].GET_SCHEMA().inputs}
    prompt = {"1": {"class_type": node, "inputs": {**inputs, "model": ["2", 0], name: "a"}}}
    source = {"2": {"class_type": "CogVideoXLoadModel", "inputs": {}}}
    if node != "CogVideoXApplyLora":
        del prompt["1"]["inputs"]["model"]
    answer, ticks = queued(prompt | source, {"2": (True, [], "2")})
    assert "slow" in str(answer[1]) and threads and threading.main_thread() not in threads
    assert ticks > 10, ticks


def queued(prompt: dict[str, Any], validated: dict[str, Any]) -> tuple[Any, int]:
    """What ComfyUI answers about node "1" of a prompt that is queued, and how often its event loop could turn to other
    clients meanwhile. validated: the answers about the nodes before it."""
    return asyncio.run(ticks_during(execution.validate_inputs("id", prompt, "1", validated)))


# Nodes that write a file or read a folder, beside the loaders.
NAMING = (
    *("CogVideoXSaveModel", "CogVideoXSaveLora", "CogVideoXSaveTrainedLora", "CogVideoXDecodeToFile"),
    "CogVideoXTrainingClips",
)


@pytest.fixture
def calls_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the file system by the main thread, on which ComfyUI's event loop runs."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                calls.append(f"{name} {args[:1]}")
            return real(*args, **kwargs)

        return call

    for name in ("stat", "lstat", "scandir", "listdir", "readlink", "access", "open", "mkdir", "statvfs"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("node", CLASSES)
def test_no_check_keeps_the_event_loop_waiting(
    models: Path, monkeypatch: pytest.MonkeyPatch, calls_on_the_loop: list[str], node: str
) -> None:
    """A models folder in a network that hangs stopped every client's page when one of them queued a Save node."""
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(models / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(models))
    cls: Any = CLASSES[node]
    inputs = {entry.id: entry for entry in cls.define_schema().inputs}
    check: Any = getattr(cls, "validate_inputs", None)
    names = [name for name in inspect.signature(check).parameters if name in inputs] if check else []
    values = {name: getattr(inputs[name], "default", None) for name in names}
    if node in LOADERS:
        values[LOADERS[node][0]] = "a"
    if node == "CogVideoXTrainingClips":
        values["folder"] = "vae"

    if cls.define_schema().is_input_list:
        values = {name: [value] for name, value in values.items()}

    async def queue() -> object:
        calls_on_the_loop.clear()
        answer = check(**values) if names else True
        return await answer if asyncio.iscoroutine(answer) else answer

    answer = asyncio.run(queue())
    assert not [call for call in calls_on_the_loop if str(models) in call]
    assert node in LOADERS or answer is True


@pytest.mark.skipif(os.name == "nt", reason="links are for administrators there")
@pytest.mark.parametrize("node", NAMING)
def test_clients_are_answered_while_a_name_is_looked_up(
    models: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """As ComfyUI asks: others are served meanwhile, and the message arrives."""
    for root in (models, models / "diffusion_models", models / "loras"):
        (root / "out").symlink_to(models.parent)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(models))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(models))
    resolve, threads = Path.resolve, set[threading.Thread]()

    def slow(path: Path, *args: Any, **kwargs: Any) -> Path:
        threads.add(threading.current_thread())
        time.sleep(0.2)
        return resolve(path, *args, **kwargs)

    monkeypatch.setattr(Path, "resolve", slow)
    inputs = {entry.id: getattr(entry, "default", None) for entry in CLASSES[node].GET_SCHEMA().inputs}
    inputs |= {name: "out" if name == "folder" else "out/a" for name in ("name", "filename_prefix", "folder")}
    prompt = {"1": {"class_type": node, "inputs": {name: value for name, value in inputs.items() if value is not None}}}
    answer, ticks = queued(prompt, {})
    expected = "There is no folder 'out'" if node == "CogVideoXTrainingClips" else "leads out of"
    assert expected in str(answer[1])
    assert ticks > 5 and threads and threading.main_thread() not in threads


def test_a_second_loading_of_a_control_net(tmp_path: Path) -> None:
    from cogvideox.devtools.embedded_checkpoint import write_controlnet

    write_controlnet(tmp_path / "net", "5b")
    patcher: Any = load_controlnet(tmp_path / "net").patcher
    load_again, arguments = patcher.cached_patcher_init
    load_again(*arguments)
    os.utime(next((tmp_path / "net").glob("*.safetensors")), ns=(1, 1))
    with pytest.raises(UserError, match="has changed since it was loaded"):
        load_again(*arguments)
