"""The same random T5 encoder as ours, which is ComfyUI's class, and as transformers' own."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from cogvideox.benchmarks.common import interleave
from cogvideox.benchmarks.implementations import relative_error
from cogvideox.devtools.embedded_checkpoint import build_text_encoder, build_tokenizer

PROMPT = "A panda plays a guitar."
# T5-XXL's proportions, narrower: its width is 4096, its feed-forward's 10240, its 64 heads have 64 each
_T5 = {"width": 1024, "d_kv": 64, "d_ff": 2560, "num_layers": 4, "num_heads": 16}


def compare_text_encoders(precision: str, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of a prompt, and the error against transformers in fp64, of each. precision: "fp32" or "bf16"."""
    from cogvideox.model_loaders.load_text_encoder import load_text_encoder

    tokenizer = build_tokenizer()
    generator = torch.Generator().manual_seed(0)
    theirs: Any = build_text_encoder(generator, tokenizer.get_vocab_size(), **_T5).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "text_encoder")
        (Path(folder) / "tokenizer").mkdir()
        tokenizer.save(str(Path(folder) / "tokenizer" / "tokenizer.json"))
        clip = load_text_encoder(Path(folder), precision)
    tokens = clip.tokenize(PROMPT)
    ids = torch.tensor([[token for token, *_ in next(iter(tokens.values()))[0]]])
    with torch.inference_mode():
        exact = theirs.double()(ids)[0]
        theirs = theirs.to(torch.float32 if precision == "fp32" else torch.bfloat16)
        calls = {"ours": lambda: clip.encode_from_tokens_scheduled(tokens)[0][0], "diffusers": lambda: theirs(ids)[0]}
        errors = {name: relative_error(call(), exact) for name, call in calls.items()}
        return interleave(calls, repeats), errors
