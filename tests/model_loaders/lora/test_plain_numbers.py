"""A LoRA's alpha wherever a trainer has put it: as a plain number in a PyTorch file, and in a damaged header."""

import json
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.lora import apply as lora
from cogvideox.tests.lora_files import (
    ATTENTION,
    RANK,
    Subject,
    adapter_header,
    assert_weights,
    fused,
    save,
    write_dialect,
)

OF_ALL = ("lora_alpha", "network_alpha", "ss_network_alpha")


@pytest.fixture(scope="module")
def subject(tiny_pipelines: dict[str, Path]) -> Subject:
    return Subject(tiny_pipelines["5b"])


def with_alphas(subject: Subject, alpha: float) -> tuple[dict[str, Any], dict]:
    """The values of a PyTorch file whose alphas are plain numbers, and the factors."""
    factors = subject.factors(ATTENTION)
    values: dict[str, Any] = dict(write_dialect("diffusers", factors)[0])
    return values | {f"transformer.{layer}.alpha": alpha for layer in factors}, factors


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "mine"])
@pytest.mark.parametrize("alpha", [8, 2.0, 0.1, 0])
def test_numbers_of_layers(subject: Subject, tmp_path: Path, alpha: float, wrapper: str | None, new: bool) -> None:
    """They were left out without a word, and the LoRA had the scale 1."""
    values, factors = with_alphas(subject, alpha)
    whole = values | {"step": 7, "is_trained": True} if wrapper is None else {wrapper: values, "step": 7}
    torch.save(whole, tmp_path / "l.pt", _use_new_zipfile_serialization=new)
    patched, report = lora.apply_lora(subject.model, tmp_path / "l.pt", 1.0)
    assert_weights(patched, fused(subject.weights, factors, alpha / RANK))
    assert report.matched == report.total == 3 * len(ATTENTION) and report.scale_source == "alpha of the tensors"


def test_numbers_in_the_stock_nodes(subject: Subject) -> None:
    """ComfyUI's own nodes read such a file themselves, and hand the numbers over."""
    values, factors = with_alphas(subject, 8)
    patched = comfy.sd.load_lora_for_models(subject.model, None, values | {"step": 7}, 1.0, 0)[0]
    assert patched is not None
    assert_weights(patched, fused(subject.weights, factors, 8 / RANK))
    hooked = subject.model.clone()
    hooked.add_patches(comfy.lora.load_lora(values, comfy.lora.model_lora_keys_unet(subject.model.model, {})), 1.0)
    assert_weights(hooked, fused(subject.weights, factors, 8 / RANK))


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("name", OF_ALL)
def test_one_number_for_all_layers(subject: Subject, tmp_path: Path, name: str, is_wrapped: bool) -> None:
    """Beside the tensors, or beside the dict that holds them."""
    factors = subject.factors(ATTENTION)
    values = write_dialect("diffusers", factors)[0]
    whole = {"state_dict": values, name: 8} if is_wrapped else {**values, name: 8}
    torch.save(whole, tmp_path / "l.pt")
    patched, report = lora.apply_lora(subject.model, tmp_path / "l.pt", 1.0)
    assert_weights(patched, fused(subject.weights, factors, 8 / RANK))
    assert f"scale 2 (alpha beside the tensors, {name})" in report.message()
    if not is_wrapped:
        stock = comfy.sd.load_lora_for_models(subject.model, None, whole, 1.0, 0)[0]
        assert stock is not None
        assert_weights(stock, fused(subject.weights, factors, 8 / RANK))
        hooked = subject.model.clone()
        hooked.add_patches(comfy.lora.load_lora(whole, comfy.lora.model_lora_keys_unet(hooked.model, {})), 1.0)
        assert_weights(hooked, fused(subject.weights, factors, 8 / RANK))


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_number_that_may_be_anything(subject: Subject, tmp_path: Path, is_wrapped: bool) -> None:
    """A loss's alpha or that of a schedule made the LoRA several times too strong."""
    factors = subject.factors(ATTENTION)
    values = write_dialect("diffusers", factors)[0]
    whole = {"state_dict": values, "alpha": 8} if is_wrapped else {**values, "alpha": 8}
    torch.save(whole, tmp_path / "l.pt")
    patched, report = lora.apply_lora(subject.model, tmp_path / "l.pt", 1.0)
    assert_weights(patched, fused(subject.weights, factors, 1.0))
    assert report.scale_source == "the file has no alpha"
    if not is_wrapped:
        stock = comfy.sd.load_lora_for_models(subject.model, None, whole, 1.0, 0)[0]
        assert stock is not None
        assert_weights(stock, fused(subject.weights, factors, 1.0))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, 1e9])
def test_numbers_that_no_trainer_writes(subject: Subject, tmp_path: Path, number: float) -> None:
    values, _ = with_alphas(subject, number)
    torch.save(values, tmp_path / "l.pt")
    with pytest.raises(UserError, match="NaN or Inf|damaged"):
        lora.apply_lora(subject.model, tmp_path / "l.pt", 1.0)
    torch.save(write_dialect("diffusers", subject.factors(ATTENTION))[0] | {"lora_alpha": number}, tmp_path / "l.pt")
    with pytest.raises(UserError, match="not a finite number|damaged"):
        lora.apply_lora(subject.model, tmp_path / "l.pt", 1.0)


def test_a_model_beside_plain_numbers(tiny_pipelines: dict[str, Path], subject: Subject, tmp_path: Path) -> None:
    """Numbers that count steps are nothing to a model."""
    (tmp_path / "config.json").write_bytes((tiny_pipelines["5b"] / "transformer" / "config.json").read_bytes())
    torch.save({**subject.weights, "step": 3, "alpha": 0.5, "lora_alpha": 8}, tmp_path / "a.pt")
    assert_weights(load_model(tmp_path, "fp32"), subject.weights)


DAMAGED = ["{", "[]", "8", '"lora_alpha"', "{'r': 4}", '{"transformer.lora_alpha": 8', "[" * 100_000]


@pytest.mark.parametrize("alpha", [8, 2.0])
def test_settings_of_finetrainers(subject: Subject, tmp_path: Path, alpha: float) -> None:
    """finetrainers, which trains CogVideoX, writes its settings into the header under a name of its own."""
    factors = subject.factors(ATTENTION)
    settings = {"r": RANK, "lora_alpha": alpha, "init_lora_weights": True, "target_modules": ["to_q", "to_k"]}
    header = {"format": "pt", "lora_config": json.dumps(settings, indent=4)}
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0], header)
    patched, report = lora.apply_lora(subject.model, path, 1.0)
    assert_weights(patched, fused(subject.weights, factors, alpha / RANK))
    assert report.scale_source == "alpha of the header"
    # diffusers' own go before them
    header |= adapter_header({"r": RANK, "lora_alpha": 1})
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0], header)
    assert_weights(lora.apply_lora(subject.model, path, 1.0)[0], fused(subject.weights, factors, 1 / RANK))


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:12])
def test_damaged_settings(subject: Subject, tmp_path: Path, text: str) -> None:
    """The alpha in them was lost without a word, and the LoRA several times too weak or too strong."""
    files = write_dialect("diffusers", subject.factors(ATTENTION))[0]
    path = save(tmp_path / "l.safetensors", files, {"lora_adapter_metadata": text})
    with pytest.raises(
        UserError, match="under lora_adapter_metadata in its header, which is not a JSON object"
    ) as caught:
        lora.apply_lora(subject.model, path, 1.0)
    assert len(str(caught.value)) < 400
    path = save(tmp_path / "l.safetensors", files, {"lora_config": '{"lora_alpha": 8'})
    with pytest.raises(UserError, match="under lora_config in its header, which is not a JSON object"):
        lora.apply_lora(subject.model, path, 1.0)
    # whoever chooses the scale does not need them
    lora.apply_lora(subject.model, path, 1.0, lora.SCALES[1])


def test_settings_without_an_alpha(subject: Subject, tmp_path: Path) -> None:
    """A program that has nothing to say may write so."""
    factors = subject.factors(ATTENTION)
    for text in ("", "null", "{}", json.dumps({"transformer.lora_alpha": None})):
        path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0], {"lora_adapter_metadata": text})
        assert_weights(lora.apply_lora(subject.model, path, 1.0)[0], fused(subject.weights, factors, 1.0))
    header = adapter_header({"r": RANK, "lora_alpha": 8}) | {"config": "my_config.yaml", "lora_config": "mine"}
    path = save(tmp_path / "l.safetensors", write_dialect("diffusers", factors)[0], header)
    assert_weights(lora.apply_lora(subject.model, path, 1.0)[0], fused(subject.weights, factors, 2.0))
