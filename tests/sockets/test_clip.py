"""Token ids and embeddings against diffusers' pipeline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_text_encoder import load_text_encoder
from cogvideox.nodes.text import CogVideoXEncodeText
from cogvideox.sockets import tokenizer as tokenizers
from cogvideox.sockets.tokenizer import CogVideoXTokenizer
from cogvideox.tests.guard import bounded
from cogvideox.tests.support import check_at_most, check_parity, reference_pipeline, relative_error, write_fp32

PROMPTS = {
    "plain": "A panda plays a guitar in a bamboo forest.",
    "empty": "",
    "weighted": "A cat (orange) and a dog (brown:1.3) run",
    "escaped": "A cat \\(orange\\) runs",
    "spaces": "  Line one\n\nLine   two \t end ",
    "unicode": "熊猫 café — “naïve” 😀",
    "embedding": "a embedding:foo bar",
    "long": "words sailing over the water " * 40,
}


@pytest.fixture(scope="module")
def encoders(tiny_pipelines: dict[str, Path]) -> tuple:
    folder = tiny_pipelines["5b"]
    return load_text_encoder(folder, "fp32"), reference_pipeline(folder)


def reference_ids(tokenizer: Callable, prompt: str) -> list[int]:
    out = tokenizer(prompt, padding="max_length", max_length=226, truncation=True, add_special_tokens=True)
    return out.input_ids


@pytest.mark.parametrize("name", PROMPTS)
def test_ids_equal_diffusers(encoders: tuple, name: str) -> None:
    """Parentheses, colons and long prompts must reach the model as diffusers passes them on."""
    clip, pipeline = encoders
    tokens = clip.tokenize(PROMPTS[name])["t5xxl"]
    assert len(tokens) == 1
    want = reference_ids(pipeline.tokenizer, PROMPTS[name])
    assert len(tokens[0]) == len(want)
    check_at_most("token ids, how many differ", sum(token != other for (token, _), other in zip(tokens[0], want)), 0)
    assert all(weight == 1.0 for _, weight in tokens[0])


@pytest.mark.parametrize("name", PROMPTS)
def test_embeddings_equal_diffusers(encoders: tuple, name: str) -> None:
    """A text encoder that masks its padding or drops a shard makes the video ignore the prompt."""
    clip, pipeline = encoders
    with torch.inference_mode():
        got = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPTS[name]))[0][0]
        want, _ = pipeline.encode_prompt(PROMPTS[name], do_classifier_free_guidance=False)
    assert got.shape == (1, 226, 32)
    check_parity("text embeddings", got, want, 2e-6)


def test_official_tokenizer_where_the_folder_has_only_a_spiece_model(tmp_path: Path) -> None:
    """The official folders hold spiece.model alone, which transformers 5 cannot read without protobuf."""
    (tmp_path / "spiece.model").write_bytes(b"")
    tokenizer = CogVideoXTokenizer(tmp_path)
    ids = [token for token, _ in tokenizer.tokenize_with_weights("A panda.")["t5xxl"][0]]
    # T5's vocabulary: "▁A", "▁pan", "d", "a", "."; then </s> and padding
    assert ids[:6] == [71, 2131, 26, 9, 5, 1] and ids[6:] == [0] * 220


@pytest.fixture
def own_tokenizer(tmp_path: Path) -> Path:
    """A checkpoint's tokenizer folder with T5's tokenizer.json."""
    shutil.copy(tokenizers._COMFYUI_TOKENIZER / "tokenizer.json", tmp_path)
    return tmp_path


def test_only_tokenizer_json_is_read(own_tokenizer: Path) -> None:
    """A tokenizer_config.json of a few bytes asked for 100000 more tokens: loading took minutes and gigabytes."""
    (own_tokenizer / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 10**9, "tokenizer_class": "Harm"}))
    (own_tokenizer / "special_tokens_map.json").write_text("not json")
    (own_tokenizer / "added_tokens.json").write_text(json.dumps({f"<{n}>": n for n in range(1000)}))
    assert CogVideoXTokenizer(own_tokenizer).vocab_size == CogVideoXTokenizer(None).vocab_size == 32100


def test_cutting_and_padding_of_the_file_do_not_count(own_tokenizer: Path) -> None:
    """A file saved by a trainer may have both; a prompt would lose its end unseen."""
    path = own_tokenizer / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"truncation": truncation}))
    ids = CogVideoXTokenizer(own_tokenizer).tokenize_with_weights("A panda.")["t5xxl"][0]
    assert ids == CogVideoXTokenizer(None).tokenize_with_weights("A panda.")["t5xxl"][0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "is not a tokenizer"),
        ("{}", "is not a tokenizer"),
        ('{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', "no </s>, <"),
        ("[" * 100_000, "is not a tokenizer"),
        (" " * ((1 << 24) + 1), "more than 16777216 bytes"),
    ],
    ids=["text", "empty", "another", "nested", "large"],
)
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str, words: str) -> None:
    """One sentence with the path, whatever the file holds."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=words):
        CogVideoXTokenizer(tmp_path)


HOSTILE_STEPS = {
    "slow expression": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""},
    "ten for one": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10},
    "another kind": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    "inside": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "a" * 1000}]},
}


@pytest.mark.parametrize("step", HOSTILE_STEPS.values(), ids=HOSTILE_STEPS)
@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer"])
def test_steps_that_are_not_t5s(own_tokenizer: Path, place: str, step: dict) -> None:
    """An expression that backtracks for ever ended ComfyUI's worker, and with it the queue, until a restart."""
    path = own_tokenizer / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {place: step}))
    with pytest.raises(UserError, match="is not T5's tokenizer: it has a step"):
        CogVideoXTokenizer(own_tokenizer)


def test_a_panic_of_the_tokenizer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rust's panics are no Exception: ComfyUI does not catch them, and nothing is run any more."""

    class Panic(BaseException):
        pass

    class Panicking:
        def encode(self, *_: object, **__: object) -> None:
            raise Panic("at the disco")

    tokenizer = CogVideoXTokenizer(None)
    monkeypatch.setattr(tokenizer, "tokenizer", Panicking())
    with pytest.raises(UserError, match="fails on this prompt .at the disco"):
        tokenizer.lost_text("a")


@pytest.mark.parametrize("tokens", [10**9, 0, -1, "many", None, 1.5])
def test_absurd_numbers_of_tokens(tiny_pipelines: dict[str, Path], tmp_path: Path, tokens: object) -> None:
    """Every prompt is padded to that many: a small config.json would take all memory."""
    folder = shutil.copytree(tiny_pipelines["5b"], tmp_path / "model")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_text_seq_length": tokens}))
    with pytest.raises(UserError, match="max_text_seq_length; a whole number from 1 to 4096 is expected"):
        load_text_encoder(folder)


def test_prompts_have_an_end(encoders: tuple) -> None:
    """A prompt of megabytes held up the queue for all of its tokens, of which 226 are read."""
    clip, _ = encoders
    text = "x" * (tokenizers.MAX_CHARACTERS + 1)
    with pytest.raises(UserError, match="has 65537 characters. Use at most 65536"):
        clip.tokenize(text)
    assert "Use at most" in str(CogVideoXEncodeText.validate_inputs(text=text))
    assert len(clip.tokenize(text[1:])["t5xxl"][0]) == 226


def test_half_a_letter_in_a_prompt(encoders: tuple) -> None:
    """JSON can spell what is no text; the tokenizer raised an error about its own types."""
    clip, _ = encoders
    assert clip.tokenize("a \ud800 panda") == clip.tokenize("a ? panda")


def test_prompt_weights_only_when_asked(encoders: tuple) -> None:
    """Asked for, (word:1.3) weighs its tokens and leaves no parenthesis in the text."""
    clip, _ = encoders
    tokens = clip.tokenize("a (b:1.3)", prompt_weights=True)["t5xxl"][0]
    assert {weight for _, weight in tokens} == {1.0, 1.3} and len(tokens) == 226


def test_lost_words_are_named(encoders: tuple) -> None:
    """A user must learn which words the model never saw."""
    tokenizer = encoders[0].tokenizer
    assert tokenizer.lost_text("short") == ""
    assert tokenizer.lost_text("x" * 230 + " the very end").endswith("the very end")


def test_as_many_tokens_as_the_transformer_reads(tmp_path: Path) -> None:
    """A model trained on 32 tokens, as CogVideoX-nano is, goes astray with 194 more of padding."""
    folder = write_fp32(tmp_path / "short", "5b", max_text_seq_length=32)
    clip = load_text_encoder(folder)
    assert len(clip.tokenize("a panda")["t5xxl"][0]) == 32
    assert clip.tokenizer.lost_text("x" * 40 + " the end").endswith("the end")


@pytest.mark.parametrize("dtype", ("bf16", "fp16"))
def test_low_precision_weights(tiny_pipelines: dict[str, Path], dtype: str) -> None:
    """Half the memory for T5 must cost no more than the rounding of its weights."""
    half, full = (load_text_encoder(tiny_pipelines["5b"], d) for d in (dtype, "fp32"))
    with torch.inference_mode():
        a, b = (c.encode_from_tokens_scheduled(c.tokenize("A panda."))[0][0] for c in (half, full))
    assert 0 < relative_error(a, b) < 0.02
    assert half.patcher.model_size() < 0.6 * full.patcher.model_size()


@pytest.mark.parametrize("weight", ["1e400", "nan", "inf", "-inf", "1e38", "-1001", "1e4"])
def test_weights_that_leave_no_text(encoders: tuple, weight: str) -> None:
    """The text encoder's file was suspected, and a download advised."""
    with pytest.raises(UserError, match="gives “b” the weight .*: use -1000 to 1000"):
        CogVideoXEncodeText.execute(encoders[0], f"a (b:{weight})", prompt_weights=True)
    assert CogVideoXEncodeText.execute(encoders[0], f"a (b:{weight})").args[0]  # plain text


def test_escaped_brackets_are_text(encoders: tuple) -> None:
    """As for ComfyUI's other models: they were read as weights, and their backslashes as text."""
    tokens = encoders[0].tokenize("a \\(b\\) (c:1.5)", prompt_weights=True)["t5xxl"][0]
    plain = reference_ids(encoders[1].tokenizer, "a (b) c")
    assert [token for token, _ in tokens] == plain
    assert [weight for token, weight in tokens if token > 1] == [1.0] * (plain.index(1) - 1) + [1.5]


@pytest.mark.parametrize("depth", [101, 1000, 20_000])
def test_brackets_without_end(encoders: tuple, depth: int) -> None:
    """ComfyUI's reader calls itself for each bracket, and looks at all of the text each time."""
    for text in ("(" * depth + "a" + ")" * depth, "(" * depth + "a", "(a " * depth):
        with bounded(), pytest.raises(UserError, match="nest more than 100 deep"):
            CogVideoXEncodeText.execute(encoders[0], text, prompt_weights=True)
    fine = "\\(" * 200 + "(a)" * 200 + "\\)" * 200 + "(" * 9 + "a" + ")" * 9
    assert CogVideoXEncodeText.execute(encoders[0], fine, prompt_weights=True).args[0]
