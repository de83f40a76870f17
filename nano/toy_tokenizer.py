"""The toys' tokenizers: folders that transformers 4 and 5 read alike, made without either.

What transformers saves, only its own main version reads again: 5 writes `extra_special_tokens` as a list, at which 4
fails, and makes `T5Tokenizer` of tokenizer.json alone, where 4 wants a spiece.model. `T5TokenizerFast` reads the files
below in both.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as in T5
SPACE = "\u2581"  # what stands in front of a word
TOKENIZER_CLASS = "T5TokenizerFast"  # for a model_index.json
_CONFIG = {
    "eos_token": END,
    "extra_ids": 0,
    "model_max_length": 1000000000000000019884624838656,  # transformers' number for no limit
    "pad_token": PAD,
    "tokenizer_class": "T5Tokenizer",
    "unk_token": UNKNOWN,
}


def build_tokenizer(tokens: Sequence[tuple[str, float]]) -> Tokenizer:
    """T5's tokenizer with another vocabulary. tokens: all but the three special ones, each with its log probability."""
    special = (PAD, END, UNKNOWN)
    vocab = [*((token, 0.0) for token in special), *tokens]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=special.index(UNKNOWN), byte_fallback=False))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", END], pair=["$A", END, "$B", END], special_tokens=[(END, special.index(END))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder `tokenizer` of a pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n", "utf-8")
