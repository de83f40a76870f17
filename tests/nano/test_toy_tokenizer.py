"""The toys' tokenizers: the same folder for transformers 4 and 5."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from cogvideox.devtools import embedded_checkpoint
from cogvideox.nano import text, toy_tokenizer
from cogvideox.nano.folders import VARIANTS, WEIGHTS
from cogvideox.sockets.tokenizer import CogVideoXTokenizer

PROMPTS = ["a large red star moves up.", "", "two  spaces, (brackets) and Ünknown letters", "heart " * 50]


@pytest.fixture(params=["nano, published", "nano, built", "embedded"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "nano, published":
        return WEIGHTS / "tokenizer"
    build: Callable[[], Tokenizer] = (text if "nano" in request.param else embedded_checkpoint).build_tokenizer
    toy_tokenizer.save_tokenizer(build(), tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_and_the_pack_read_the_same_tokens(folder: Path, prompt: str) -> None:
    """What transformers 5 had saved, transformers 4 did not read: 'list' object has no attribute 'keys'."""
    reference = getattr(transformers, toy_tokenizer.TOKENIZER_CLASS).from_pretrained(folder)
    options = {"padding": "max_length", "max_length": 226, "truncation": True}
    ours = CogVideoXTokenizer(folder)
    (tokens,) = ours.tokenize_with_weights(prompt)["t5xxl"]
    assert [token for token, _ in tokens] == reference(prompt, **options).input_ids
    assert ours.vocab_size == len(reference)


def test_no_field_of_a_config_is_of_one_version_alone(folder: Path) -> None:
    """Whichever transformers the tests run with: 4 fails at a list of extra_special_tokens."""
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    assert isinstance(config.get("extra_special_tokens", {}), dict)
    assert config["tokenizer_class"] == "T5Tokenizer" and "backend" not in config


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pipeline_names_the_class_that_reads_tokenizer_json_in_both(variant: str) -> None:
    """Transformers 4 makes T5Tokenizer of a spiece.model only, which no toy has."""
    index = json.loads((WEIGHTS / variant / "model_index.json").read_text("utf-8"))
    assert index["tokenizer"] == ["transformers", toy_tokenizer.TOKENIZER_CLASS]


def test_published_tokenizer_is_what_nano_builds(tmp_path: Path) -> None:
    """The weights were trained on these ids: another order of the words would make every prompt another one."""
    toy_tokenizer.save_tokenizer(text.build_tokenizer(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (WEIGHTS / "tokenizer" / name).read_bytes()


def test_tokenizer_folder_that_transformers_5_has_saved(tmp_path: Path) -> None:
    """People save whole pipelines with transformers 5 and load them in a ComfyUI with transformers 4. The pack reads
    tokenizer.json alone."""
    toy_tokenizer.save_tokenizer(text.build_tokenizer(), tmp_path)
    plain = CogVideoXTokenizer(tmp_path).tokenize_with_weights(PROMPTS[0])
    config = {"backend": "tokenizers", "extra_special_tokens": ["<extra_id_0>"], "tokenizer_class": "TokenizersBackend"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert CogVideoXTokenizer(tmp_path).tokenize_with_weights(PROMPTS[0]) == plain
