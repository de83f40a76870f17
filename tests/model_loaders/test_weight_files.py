"""Folders as trainers, downloads and people leave them: the header decides which file is the model."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cogvideox.devtools.embedded_checkpoint import write_controlnet
from cogvideox.errors import UserError
from cogvideox.model_loaders import checkpoints, component_files
from cogvideox.model_loaders.load_controlnet import check_control_net, load_controlnet
from cogvideox.model_loaders.load_model import check_model, load_model
from cogvideox.model_loaders.load_text_encoder import check_text_encoder, load_text_encoder
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.model_loaders.weight_files import file_sets
from cogvideox.tests import layout_files as layouts
from cogvideox.tests.guard import bounded

PARTS = ("transformer", "vae", "text_encoder", "controlnet")


@pytest.fixture(scope="module")
def parts(tiny_pipelines: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a control net in it."""
    folder = Path(shutil.copytree(tiny_pipelines["5b"], tmp_path_factory.mktemp("parts") / "5b"))
    write_controlnet(folder / "controlnet", "5b", dtype=torch.float32)
    return folder


def check_vae(path: Path) -> None:
    checkpoints.check_component(path, "vae")


def weights_of(parts: Path, part: str) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for file in sorted((parts / part).glob("*.safetensors")):
        merged |= load_file(file)
    return merged


def folder_of(parts: Path, part: str, tmp_path: Path) -> Path:
    """A folder of the part with its config and without weights."""
    folder = tmp_path / "a_checkpoint"
    folder.mkdir()
    shutil.copy(parts / part / "config.json", folder)
    return folder


def assert_opens(path: Path, part: str, weights: Mapping[str, torch.Tensor]) -> checkpoints.Weights:
    found = checkpoints.open_component(path, part)
    assert found.state_dict.keys() == weights.keys()
    assert all(torch.equal(found.state_dict[name], weights[name]) for name in weights)
    return found


def save_trainer_state(folder: Path) -> None:
    """What accelerate leaves beside the weights: dicts of numbers, plain objects and one that is no torch file."""
    moments = {0: {"step": 3, "exp_avg": torch.zeros(2, 3)}}
    torch.save({"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]}, folder / "optimizer.bin")
    torch.save({"base_lrs": [1e-4], "last_epoch": 3}, folder / "scheduler.bin")
    torch.save({"arguments": Path("x")}, folder / "a_training_args.bin")
    (folder / "rng_state.pth").write_bytes(b"no torch file")
    (folder / "random_states_0.pkl").write_bytes(b"\x80\x02.")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ("pytorch_model.bin", "zz.safetensors"))
def test_optimizer_beside_the_model(parts: Path, tmp_path: Path, part: str, name: str) -> None:
    """A trainer's folder: the optimizer comes before the model in the alphabet, and was opened and refused."""
    folder, weights = folder_of(parts, part, tmp_path), weights_of(parts, part)
    save_trainer_state(folder)
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file({"decay": torch.zeros(3)}, folder / "a_ema_state.safetensors")
        layouts.write_safetensors(folder / name, weights)
    assert assert_opens(folder, part, weights).config


def test_all_parts_in_one_flat_folder(parts: Path, tmp_path: Path) -> None:
    """Each loader finds its own part, and takes the config of another part for none of its own."""
    config = tmp_path / "config.json"
    for part in PARTS:
        layouts.write_safetensors(tmp_path / f"{part}.safetensors", weights_of(parts, part))
    for part in PARTS:
        shutil.copy(parts / part / "config.json", config)
        for other in PARTS:
            found = assert_opens(tmp_path, other, weights_of(parts, other))
            assert bool(found.config) == (other == part)


def test_two_models_are_both_named(parts: Path, tmp_path: Path) -> None:
    """The alphabet would choose one of them, and the user would not know which."""
    folder, weights = folder_of(parts, "transformer", tmp_path), weights_of(parts, "transformer")
    layouts.write_safetensors(folder / "mine.safetensors", weights)
    layouts.write_safetensors(folder / "yours.safetensors", weights)
    with pytest.raises(
        UserError, match=r"holds a CogVideoX transformer \(2 times\): mine.safetensors, yours.safetensors"
    ):
        checkpoints.check_component(folder, "transformer")
    assert_opens(folder / "yours.safetensors", "transformer", weights)
    (folder / "yours.safetensors").unlink()
    layouts.write_gguf(folder / "mine.gguf", weights, "Q8_0")
    with pytest.raises(UserError, match=r"\(2 times\): mine.safetensors, mine.gguf"):
        checkpoints.check_component(folder, "transformer")
    (folder / "mine.gguf").unlink()
    (folder / "mine.safetensors").rename(folder / "mine.fp16.safetensors")
    layouts.write_safetensors(folder / "mine.bf16.safetensors", weights)
    with pytest.raises(UserError, match=r"\(2 times\): mine.bf16.safetensors, mine.fp16.safetensors"):
        checkpoints.check_component(folder, "transformer")


@pytest.mark.parametrize(
    ("taken", "other"),
    (
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("model.safetensors", "pytorch_model.bin"),
        ("model.fp16.safetensors", "pytorch_model.fp16.bin"),
    ),
)
def test_other_forms_of_one_model(parts: Path, tmp_path: Path, taken: str, other: str) -> None:
    """Repositories hold one model twice: the full precision goes before half, and safetensors before pickles."""
    folder, weights = folder_of(parts, "transformer", tmp_path), weights_of(parts, "transformer")
    for name, held in ((taken, weights), (other, {n: w + 1 for n, w in weights.items()})):
        if name.endswith(".bin"):
            torch.save(held, folder / name)
        else:
            layouts.write_safetensors(folder / name, held)
    assert_opens(folder, "transformer", weights)


def test_what_was_trained_beside_what_it_began_with(parts: Path, tmp_path: Path) -> None:
    """accelerate writes model.safetensors: the model from which a training began was loaded without a word."""
    folder, weights = folder_of(parts, "transformer", tmp_path), weights_of(parts, "transformer")
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        layouts.write_safetensors(folder / name, weights)
    with pytest.raises(UserError, match=r"\(2 times\): diffusion_pytorch_model.safetensors, model.safetensors"):
        checkpoints.check_component(folder, "transformer")


@pytest.mark.parametrize("part", ("vae", "transformer", "text_encoder"))
def test_a_chosen_files_config_is_not_passed_over(parts: Path, tmp_path: Path, part: str) -> None:
    """It named the class, and an entry that cannot be followed: the file loaded as another model."""
    folder = Path(shutil.copytree(parts / part, tmp_path / part))
    path = folder / "config.json"
    wrong = {"vae": {"act_fn": "gelu"}, "transformer": {"norm_eps": 2}, "text_encoder": {"num_layers": -1}}[part]
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    for chosen in (folder, next(folder.glob("*.safetensors"))):
        with pytest.raises(UserError, match=next(iter(wrong))):
            checkpoints.check_component(chosen, part)


def test_a_header_is_that_of_the_file_that_is_there(tmp_path: Path) -> None:
    """A file that was written over within one tick of the clock, or copied with its times, had the one's header and the
    other's tensors."""
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for age_s in (0, 100):
        for number, file in enumerate((path, other)):
            save_file({"a": torch.zeros(1)}, file, {"alpha": str(number)})
            os.utime(file, (10**9 - age_s, 10**9 - age_s))
        assert component_files.read_header(path).metadata["alpha"] == "0"
        os.replace(other, path)
        assert component_files.read_header(path).metadata["alpha"] == "1"


def test_a_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the system came as a traceback."""

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cogvideox.model_loaders.weight_files.os.listdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        file_sets(tmp_path)


def test_both_formats_of_a_set_with_one_index_each(parts: Path, tmp_path: Path) -> None:
    """T5's repositories hold two sets of shards with an index each; a download often fetches only one of the sets."""
    folder = Path(shutil.copytree(parts / "text_encoder", tmp_path / "text_encoder"))
    files = sorted({*json.loads(next(folder.glob("*.index.json")).read_text())["weight_map"].values()})
    missing = {f"w{n}": f"a_pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)}
    (folder / "a_pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": missing}))
    assert [path.name for path in checkpoints.check_component(folder, "text_encoder")] == files


@pytest.mark.parametrize("kept", ("one file", "shards", "shards with their index"))
def test_index_of_absent_files(parts: Path, tmp_path: Path, kept: str) -> None:
    """An index that was left by an earlier download must not hide the complete model beside it."""
    folder, weights = folder_of(parts, "transformer", tmp_path), weights_of(parts, "transformer")
    absent = {name: f"diffusion_pytorch_model-0000{n % 3 + 1}-of-00003.safetensors" for n, name in enumerate(weights)}
    (folder / "a.safetensors.index.json").write_text(json.dumps({"weight_map": absent}))
    with pytest.raises(UserError, match="lacks diffusion_pytorch_model-00001-of-00003.*named in a.safetensors.index"):
        checkpoints.check_component(folder, "transformer")
    if kept == "one file":
        layouts.write_safetensors(folder / "diffusion_pytorch_model.safetensors", weights)
    else:
        for file in (parts / "transformer").glob("*.safetensors" + ("*" if "index" in kept else "")):
            shutil.copy(file, folder)
    assert_opens(folder, "transformer", weights)


def test_half_a_model_is_none(parts: Path, tmp_path: Path) -> None:
    """A file that an index names together with an absent one, whatever it is called, is not the model by itself."""
    folder, weights = folder_of(parts, "transformer", tmp_path), weights_of(parts, "transformer")
    last = "transformer_blocks.1.ff.net.2.bias"
    layouts.write_safetensors(folder / "first.safetensors", {n: w for n, w in weights.items() if n != last})
    names = dict.fromkeys(weights, "first.safetensors") | {last: "second.safetensors"}
    (folder / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="lacks second.safetensors, named in x.safetensors.index.json"):
        checkpoints.check_component(folder, "transformer")
    layouts.write_safetensors(folder / "second.safetensors", {last: weights[last]})
    assert_opens(folder, "transformer", weights)


def test_why_no_file_is_the_model(parts: Path, tmp_path: Path) -> None:
    """With several candidates the message says of each what it is."""
    folder = folder_of(parts, "transformer", tmp_path)
    layouts.write_safetensors(folder / "other.safetensors", weights_of(parts, "vae"))
    save_trainer_state(folder)
    with pytest.raises(
        UserError, match=r"None of the files in .* holds a CogVideoX transformer. .*other.safetensors"
    ) as e:
        checkpoints.check_component(folder, "transformer")
    assert "looks like a CogVideoX VAE" in str(e.value)


LOADERS: dict[str, Callable[..., Any]] = {
    "transformer": load_model,
    "vae": load_vae,
    "text_encoder": load_text_encoder,
    "controlnet": load_controlnet,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layout", ("latest", "one shard", "one file"))
def test_config_beside_the_weights(parts: Path, tmp_path: Path, part: str, layout: str) -> None:
    """DeepSpeed's weights are one folder below their config; of a set of shards or a lone file the user may choose the
    file. Without the config, weights of another than an official size are refused."""
    folder, weights = folder_of(parts, part, tmp_path), weights_of(parts, part)
    shutil.copytree(parts / "tokenizer", tmp_path / "tokenizer")
    if layout == "latest":
        (folder / "latest").write_text("global_step3")
        (folder / "global_step3").mkdir()
        path = layouts.write_sat(folder / "global_step3" / "mp_rank_00_model_states.pt", weights)
        save_trainer_state(path.parent)
        path = folder
    elif layout == "one file":
        path = layouts.write_safetensors(folder / "any name.safetensors", weights)
    else:
        names = sorted(weights)
        for number, some in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            held = {name: weights[name] for name in some}
            path = layouts.write_safetensors(folder / f"m-0000{number}-of-00002.safetensors", held)
    assert assert_opens(path, part, weights).config == json.loads((parts / part / "config.json").read_text())
    LOADERS[part](path)


def test_config_of_another_model_beside_a_file(parts: Path, tmp_path: Path) -> None:
    """In a folder with files of several models, a config.json is that of one of them: the weights say of which."""
    weights = weights_of(parts, "transformer")
    path = layouts.write_safetensors(tmp_path / "one.safetensors", weights)
    own = json.loads((parts / "transformer" / "config.json").read_text())
    others = [
        own | {"num_layers": 42},
        own | {"in_channels": 33},
        {"_class_name": "WanModel", "num_layers": 2},
        {"a": 1},
    ]
    for config in (*others, {"num_layers": -1}, [], json.loads((parts / "vae" / "config.json").read_text())):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert checkpoints.open_component(path, "transformer").config is None
    (tmp_path / "config.json").write_text("{")
    assert checkpoints.open_component(path, "transformer").config is None
    (tmp_path / "config.json").write_text(json.dumps(own))
    assert checkpoints.open_component(path, "transformer").config == own


def test_a_config_beside_a_file_is_checked_once(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check walks through all entries, whenever a prompt is queued; the first answer is the one that counts."""
    path = layouts.write_safetensors(tmp_path / "one.safetensors", weights_of(parts, "transformer"))
    own = json.loads((parts / "transformer" / "config.json").read_text())
    sources: list[str] = []
    check = checkpoints.checked_config

    def counted(component: str, config: dict, source: str) -> dict:
        sources.append(source)
        return check(component, config, source)

    monkeypatch.setattr(checkpoints, "checked_config", counted)
    for name in ("CogVideoXTransformer3DModel", None):
        (tmp_path / "config.json").write_text(json.dumps(own | {"_class_name": name}))
        checkpoints.check_component(path, "transformer")
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": -1}))  # somebody else's
    checkpoints.check_component(path, "transformer")
    (tmp_path / "config.json").write_text(json.dumps(own | {"num_layers": -1}))
    with pytest.raises(UserError, match="num_layers"):
        checkpoints.check_component(path, "transformer")
    assert sources == [str(tmp_path / "config.json")] * 4


def test_the_header_s_config_goes_before_the_one_beside_a_file(parts: Path, tmp_path: Path) -> None:
    """A saved file carries its own config; in a folder without a config.json it is read as well."""
    weights, own = weights_of(parts, "transformer"), json.loads((parts / "transformer" / "config.json").read_text())
    header = {"config": json.dumps({"transformer": own | {"sample_frames": 13}})}
    path = layouts.write_safetensors(tmp_path / "saved.safetensors", weights, header)
    assert (checkpoints.open_component(tmp_path, "transformer").config or {})["sample_frames"] == 13
    (tmp_path / "config.json").write_text(json.dumps(own))
    assert (checkpoints.open_component(path, "transformer").config or {})["sample_frames"] == 13


# what asks for a component -> the component, and the entry of its config that the weights contradict
CONFLICTS: dict[Callable[[Path], object], tuple[str, str, object]] = {
    check_model: ("transformer", "num_layers", 7),
    load_model: ("transformer", "num_layers", 7),
    check_vae: ("vae", "block_out_channels", [64, 64, 64, 64]),
    check_text_encoder: ("text_encoder", "num_layers", 7),
    load_text_encoder: ("text_encoder", "num_layers", 7),
    check_control_net: ("controlnet", "num_layers", 7),
    load_controlnet: ("controlnet", "num_layers", 7),
}


@pytest.mark.parametrize("is_in_header", [False, True])
@pytest.mark.parametrize("open_it", CONFLICTS, ids=lambda function: function.__name__)
def test_where_a_wrong_config_stands(
    parts: Path, tmp_path: Path, open_it: Callable[[Path], object], is_in_header: bool
) -> None:
    """Who was told to move a config.json looked for one, while the file's own header was wrong."""
    component, entry, value = CONFLICTS[open_it]
    config = json.loads((parts / component / "config.json").read_text()) | {entry: value}
    header = {"config": json.dumps({component: config})} if is_in_header else None
    layouts.write_safetensors(tmp_path / "a.safetensors", weights_of(parts, component), header)
    if not is_in_header:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="do not belong together: .* .config against weights.") as caught:
        open_it(tmp_path)
    said = str(caught.value)
    assert ("Put the config.json of this" in said) != is_in_header and ("config.json" in said) != is_in_header
    assert ("The config in the header of" in said and "save the model again" in said) == is_in_header


def test_an_index_of_countless_shards(parts: Path, tmp_path: Path) -> None:
    """A name announces a thousand shards, and an index of 16 MB has room for a hundred thousand names."""
    names = {f"w{n}": f"m{n}-00001-of-01000.safetensors" for n in range(100_000)}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with bounded(), pytest.raises(UserError, match="names more than 2000 files"):
        checkpoints.check_component(tmp_path, "transformer")


def test_more_files_than_any_model_has(tmp_path: Path) -> None:
    """Each file's header is read while the prompt is queued."""
    for number in range(2001):
        (tmp_path / f"{number}.bin").touch()
    with pytest.raises(UserError, match="has 2001 files with weights. At most 2000"):
        checkpoints.check_component(tmp_path, "transformer")
