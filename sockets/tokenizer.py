"""T5 token ids exactly as diffusers' pipelines make them."""

import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.text_encoders.sd3_clip
from tokenizers import Tokenizer

from ..errors import UserError, quoted
from ..host.toy import KNOWS, NAME
from ..system.small_files import read_small_text

MAX_TOKENS = 226  # max_text_seq_length in the config of every official checkpoint
MAX_CHARACTERS = 1 << 16  # of a prompt
MAX_WEIGHT = 1000.0  # of a word; weights above 2 are rare
_MOST_BRACKETS = 100
_WORDS_SHOWN = 5
CLIP_NAME = "t5xxl"  # ComfyUI's name for T5 in the tokens of a prompt and in a text model's attributes
_SPECIAL = ("</s>", "<pad>")  # end and padding
_SPACE = "▁"  # before the first letter of a word's token
_STEPS = ("Sequence", "Precompiled", "Strip", "Metaspace", "WhitespaceSplit", "Replace")
_REPLACEMENTS = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": text} for text in ("▁", " ")]
_MAX_FILE_BYTES = 1 << 24  # T5's has 2.4 MB
_COMFYUI_TOKENIZER = Path(os.path.dirname(comfy.text_encoders.sd3_clip.__file__)) / "t5_tokenizer"


class CogVideoXTokenizer:
    """What comfy.sd.CLIP expects of a tokenizer: `max_tokens` ids a prompt, each with weight 1.

    Parentheses and colons are text, as in diffusers, unless prompt weighting is asked for.
    """

    def __init__(self, folder: Path | None, max_tokens: int = MAX_TOKENS, is_toy: bool = False):
        """folder: the checkpoint's `tokenizer`. The official ones hold spiece.model and no tokenizer.json; transformers
        5 reads that format only with protobuf, which ComfyUI does not install. Without tokenizer.json, ComfyUI's own
        copy of T5's tokenizer is used, which has the same vocabulary.
        max_tokens: the max_text_seq_length of the transformer that gets the text. A model that was trained with fewer
        goes astray with more padding. is_toy: of CogVideoX-nano, which has a token for each word that it knows.

        Raises UserError for a tokenizer.json that is not T5's.
        """
        self.tokenizer = _read_tokenizer(_tokenizer_file(folder))
        self.max_tokens, self.is_toy = max_tokens, is_toy
        # The end token is kept whatever else is cut, and padding follows it, as in diffusers.
        self._end, self._pad = (self.tokenizer.token_to_id(token) for token in _SPECIAL)

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs: one more than the largest token id."""
        return _vocab_size(self.tokenizer)

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, prompt_weights: bool = False, **_: Any
    ) -> dict[str, list[list[tuple]]]:
        """{"t5xxl": [max_tokens of (id, weight)]}, or (id, weight, word) with `return_word_ids`.

        prompt_weights: read "(word:1.2)" as ComfyUI's CLIPTextEncode does for other models.
        """
        # Cut here and not by the tokenizer, which would not tell what it has cut, and gets weighted prompts in parts.
        ids = self._weighted_ids(text, prompt_weights)
        for note in self._notes(text, ids):
            logging.warning(note)
        ids = [*ids[: self.max_tokens - 1], (self._end, 1.0)]
        ids += [(self._pad, 1.0)] * (self.max_tokens - len(ids))
        if return_word_ids:
            ids = [(*pair, word) for word, pair in enumerate(ids)]
        return {CLIP_NAME: [ids]}

    def lost_text(self, text: str, prompt_weights: bool = False) -> str:
        """The end of a prompt that does not fit, "" where all of it does."""
        return self._decode_lost(self._weighted_ids(text, prompt_weights))

    def notes(self, text: str, prompt_weights: bool = False) -> list[str]:
        """What there is to say about a prompt, in sentences: its end that does not fit, words unknown to the toy."""
        return self._notes(text, self._weighted_ids(text, prompt_weights))

    def _notes(self, text: str, ids: list[tuple[int, float]]) -> list[str]:
        """notes of a prompt whose tokens are known: all of them, uncut."""
        lost = self._decode_lost(ids)
        unknown = self._unknown_words(text) if self.is_toy else []
        return [lost_text_message(lost, self.max_tokens)] * bool(lost) + [unknown_message(unknown)] * bool(unknown)

    def _unknown_words(self, text: str) -> list[str]:
        """Words that are spelled letter by letter, each once."""
        words = dict.fromkeys(re.findall(r"[^\W\d_]+", text))
        return [word for word in words if self.tokenizer.token_to_id(_SPACE + word) is None]

    def _decode_lost(self, ids: list[tuple[int, float]]) -> str:
        return self.tokenizer.decode([i for i, _ in ids[self.max_tokens - 1 :]]).strip()

    def _weighted_ids(self, text: str, prompt_weights: bool) -> list[tuple[int, float]]:
        """The tokens of all of a prompt, each with its weight. Raises UserError as check_length does."""
        check_length(text)
        text = text.encode(errors="replace").decode()  # half a surrogate pair is no text to the tokenizer
        segments = _weighted_segments(text) if prompt_weights else [(text, 1.0)]
        return [(i, weight) for segment, weight in segments for i in _encode(self.tokenizer, segment)]

    # The methods below complete the interface of ComfyUI's tokenizers (comfy.sd1_clip.SD1Tokenizer).
    def untokenize(self, token_weight_pairs: list[tuple]) -> list[tuple]:
        return [(pair, self.tokenizer.id_to_token(pair[0])) for pair in token_weight_pairs]

    def state_dict(self) -> dict:
        return {}

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=skip_special_tokens)


def vocab_size_of(folder: Path | None) -> int:
    """CogVideoXTokenizer(folder).vocab_size, which takes a tenth of a second only where the file has changed.

    Raises UserError for a tokenizer.json that is not T5's.
    """
    path = _tokenizer_file(folder)
    status = path.stat()
    return _known_vocab_size(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


@lru_cache(maxsize=16)
def _known_vocab_size(path: Path, state: tuple[int, ...]) -> int:
    return _vocab_size(_read_tokenizer(path))


def _vocab_size(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _tokenizer_file(folder: Path | None) -> Path:
    """The tokenizer.json of a checkpoint's tokenizer, or ComfyUI's own where there is none."""
    found = folder if folder is not None and (folder / "tokenizer.json").is_file() else _COMFYUI_TOKENIZER
    return found / "tokenizer.json"


def _weighted_segments(text: str) -> list[tuple[str, float]]:
    """The parts of a prompt with their weights, as ComfyUI reads them.

    Raises UserError for brackets that nest without end, and for a weight that leaves nothing of the text.
    """
    text = comfy.sd1_clip.escape_important(text)  # \( and \) are no brackets
    depths = itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in text)
    if max(depths, default=0) > _MOST_BRACKETS:  # ComfyUI's function calls itself for each
        raise UserError(
            f"The prompt's brackets nest more than {_MOST_BRACKETS} deep. Write a weight instead, as in (word:1.5)."
        )
    segments = [
        (comfy.sd1_clip.unescape_important(segment), weight)
        for segment, weight in comfy.sd1_clip.token_weights(text, 1.0)
    ]
    for segment, weight in segments:
        if not abs(weight) <= MAX_WEIGHT:  # not so for NaN
            raise UserError(
                f"The prompt gives “{quoted(segment)}” the weight {weight:g}: use {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}, "
                "as in (word:1.2).",
                advice="switch weights off",
            )
    return segments


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids. A panic of the tokenizer's Rust code is no Exception, and would end ComfyUI's worker for good."""
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"The checkpoint's tokenizer.json fails on this prompt ({quoted(str(error))}).") from error


def _refuse_foreign_steps(steps: list[Any], path: Path) -> None:
    """Raises UserError for a step that T5's tokenizers do not have: a regular expression may take for ever, and a step
    that replaces a letter by ten, eight times, all memory."""
    for step in steps:
        if isinstance(step, list):
            _refuse_foreign_steps(step, path)
        if not isinstance(step, dict):
            continue
        if step.get("type") not in _STEPS or (step["type"] == "Replace" and step not in _REPLACEMENTS):
            raise UserError(
                f"{path} is not T5's tokenizer: it has a step {quoted(str(step.get('type')))!r} of another kind. "
                "Download it again."
            )
        _refuse_foreign_steps([step.get(name) for name in ("normalizers", "pretokenizers", "decoders")], path)


def check_length(text: str) -> None:
    """Raises UserError for a text that no prompt is: a few megabytes would take the tokenizer minutes, and all but the
    first 226 tokens are thrown away."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"The prompt has {len(text)} characters. Use at most {MAX_CHARACTERS}; CogVideoX reads about 1,000 of them."
        )


def _read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from tokenizer.json alone. transformers would read tokenizer_config.json too, which can demand any
    number of tokens to be added (extra_ids), one after the other."""
    try:
        text = read_small_text(path, _MAX_FILE_BYTES)
        parts = json.loads(text)
        _refuse_foreign_steps([parts.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")], path)
        tokenizer = Tokenizer.from_str(text)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises Exception itself, and a panic of its Rust code is no Exception
        raise UserError(f"{path} is not a tokenizer ({quoted(str(error))}). Download it again.") from error
    missing = [token for token in _SPECIAL if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{path} is not T5's tokenizer: it has no {', '.join(missing)}. Download it again.")
    # Both may be set in the file. Cutting and padding happen in tokenize_with_weights.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def lost_text_message(lost: str, max_tokens: int) -> str:
    """The message for a prompt that was cut: `lost` is its end."""
    return (
        f"This model reads {max_tokens} tokens; the prompt is longer and its end was left out: “{quoted(lost)}”. "
        "Shorten the prompt to keep it."
    )


def unknown_message(words: Sequence[str]) -> str:
    """The message for a prompt with `words` that CogVideoX-nano has no token for."""
    shown = ", ".join(f"“{quoted(word)}”" for word in words[:_WORDS_SHOWN])
    more = f" and {len(words) - _WORDS_SHOWN} more words" if len(words) > _WORDS_SHOWN else ""
    return f"This is {NAME}, the toy that comes with the pack: it does not know {shown}{more}. {KNOWS}"
