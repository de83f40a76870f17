"""README.md, docs/models.md and docs/files.md: `python3 dev.py bench sizes`, `bench gpu`, and the tests' tables."""

from cogvideox.tests.figures.cells import Cell, Rows, fixed
from cogvideox.tests.figures.of_exactness import worst
from cogvideox.tests.figures.of_speed import counted, h200
from cogvideox.tests.figures.phrases import Figure
from cogvideox.tests.hollow_files import FULL_SIZE_LAYOUTS
from cogvideox.tests.model_loaders.files import test_official_sizes as official
from cogvideox.video_limits import MAX_VIDEO_PIXELS

README, MODELS, FILES = "README.md", "docs/models.md", "docs/files.md"
SHORT = {"2b": "CogVideoX-2b", "5b": "CogVideoX-5b", "1.5-5B": "CogVideoX1.5-5B"}


def weights(model: str, column: str = "16 bits, GiB") -> Cell:
    return Cell("cpu", "sizes", "Weights", (model,), column)


def step(model: str, column: str = "step, GiB") -> Cell:
    return Cell("cpu", "sizes", "One step", (model,), column)


def error(precision: str, of: str = "forward") -> Rows:
    return Rows("errors", (f"transformer {precision}, {of}",), "error")


def damaged(patterns: str, column: str, by: str) -> Rows:
    return Rows("damaged files", (patterns,), column, by)


def _readme_row(phrase: str, model: str) -> Figure:
    return Figure(README, phrase, (weights(model), step(model)))


def _memory_row(phrase: str, model: str, eight_bits: bool = True) -> Figure:
    values = [weights(model), step(model), step(model, "both, GiB")]
    return Figure(
        MODELS,
        phrase,
        (*values, *([weights(model, "8 bits, GiB"), step(model, "both, 8 bits")] if eight_bits else [])),
    )


def _precision_row(phrase: str, *precisions: str, bits: int | None = None) -> Figure:
    values = [error(name, of) for of in ("forward", "4 steps") for name in precisions]
    return Figure(FILES, phrase, (*values, *([weights("CogVideoX-5b", f"{bits} bits, GB")] if bits else [])))


_STEPS = {
    "2b": "A step of 2b, 49 frames of 480 x 720",
    "5b": "A step of 5b, 49 frames of 480 x 720",
    "1.5-5B": "A step of 1.5-5B, 81 frames of 768 x 1360",
}


def _without_kernels(model: str, attention: str) -> Cell:
    """GiB of a step, before the pack had kernels of its own."""
    return Cell("cuda", "gpu", _STEPS[model], (f"{model} step, batch 2, ours, {attention}",), "found", "peak ")


FIGURES = (
    _readme_row("49 frames, 8 fps | {1} | {1} | Apache-2.0 |", "CogVideoX-2b"),
    _readme_row("49 frames, 8 fps | {1} | {1} | [CogVideoX LICENSE][] |", "CogVideoX-5b"),
    _readme_row("81 frames, 16 fps | {1} | {1} | [CogVideoX LICENSE][] |", "CogVideoX1.5-5B"),
    Figure(README, "T5 ({1} GiB) runs before sampling", (weights("T5"),)),
    Figure(README, "the VAE ({1} GiB) after it", (weights("VAE"),)),
    Figure(
        README,
        "Decoding works from {1} GiB for 720 × 480 or {1} GiB for 1360 × 768",
        (counted(49, "least", "decode"), counted(81, "least", "decode")),
    ),
    *(
        Figure(
            MODELS,
            f"| [zai-org/{name}] | {{1}} + {{1}} + {{1}} GiB |",
            (weights(name), weights("T5"), weights("VAE")),
        )
        for name in ("CogVideoX-2b", "CogVideoX-5b", "CogVideoX-5b-I2V", "CogVideoX1.5-5B", "CogVideoX1.5-5B-I2V")
    ),
    _memory_row("| CogVideoX-2b | {1} | {1} | {1} | | |", "CogVideoX-2b", eight_bits=False),
    _memory_row("| CogVideoX-5b, 5b-I2V | {1} | {1} | {1} | {1} | {1} |", "CogVideoX-5b"),
    _memory_row("| CogVideoX1.5-5B, 1.5-5B-I2V | {1} | {1} | {1} | {1} | {1} |", "CogVideoX1.5-5B"),
    Figure(
        MODELS,
        "prompt in one batch: {2}, {2} and {2} GiB for text to video",
        tuple(step(name) for name in SHORT.values()),
    ),
    Figure(
        MODELS,
        "with FlashAttention-2 took {2}, {2} and {2} GiB, and {2}, {2} and {2} with cuDNN's kernel",
        tuple(_without_kernels(m, attention) for attention in ("FLASH", "CUDNN") for m in SHORT),
    ),
    Figure(
        MODELS,
        "With the pack's Triton kernels they took {2}, {2} and {2} GiB on an H200",
        tuple(h200(f"{model} step, batch 2, ours, CUDNN", "peak ") for model in ("2b", "5b", "1.5-5B")),
    ),
    Figure(MODELS, "The 8-bit figure is {1} GB for 5b", (weights("CogVideoX-5b", "8 bits, GB"),)),
    Figure(MODELS, "have at most {1} billion pixels", (fixed(MAX_VIDEO_PIXELS / 1e9),)),
    Figure(
        FILES,
        "it takes {1} instead of {1} GB for the 5b transformer",
        (weights("CogVideoX-5b", "8 bits, GB"), weights("CogVideoX-5b", "16 bits, GB")),
    ),
    _precision_row("| bf16, fp16 | {e}, {e} | {e}, {e} | {1} GB |", "bf16", "fp16", bits=16),
    _precision_row("| int8 (one scale per row) | {e} | {e} | {1} GB |", "int8", bits=8),
    _precision_row("| fp8_e4m3fn (one scale per matrix) | {e} | {e} | {1} GB |", "fp8_e4m3fn", bits=8),
    _precision_row(
        "| int8_fast, fp8_e4m3fn_fast | {e}, {e} | {e}, {e} | {1} GB |", "int8_fast", "fp8_e4m3fn_fast", bits=8
    ),
    _precision_row("| GGUF: Q8_0, Q4_0 | {e}, {e} | {e}, {e} |", "Q8_0", "Q4_0"),
    Figure(
        FILES,
        "on a random model of width 1024: int8 {e}, fp8 {e}, Q8_0 {e}, Q4_0 {e}",
        tuple(
            Cell("cpu", "precision", "One forward of a transformer", (kind,), "error")
            for kind in ("int8", "fp8_e4m3fn", "GGUF Q8_0", "GGUF Q4_0")
        ),
    ),
    Figure(FILES, "In fp32 the error of a forward against diffusers is {e}", (worst("transformer forward, *"),)),
    Figure(
        FILES,
        "a forward in int8_fast takes {2} of fp32's time",
        (Cell("cpu", "precision", "One forward of a transformer", ("int8_fast",), "of fp32's"),),
    ),
    Figure(
        FILES,
        "8 layers of 5b take {2} of bf16's time in fp8_e4m3fn_fast, {2} in int8_fast, {2} in fp8_e4m3fn and "
        "{2} in int8",
        tuple(h200(f"5b, 8 layers, {kind}", "), ") for kind in ("fp8_e4m3fn_fast", "int8_fast", "fp8_e4m3fn", "int8")),
    ),
    *(
        Figure(FILES, f"| {phrase} | {{}} of 12 |", (Rows("layouts", patterns, "models", "least"),))
        for phrase, patterns in (
            ("diffusers folder; shards with and without index; one shard of a set", ("diffusers *",)),
            ("single file, diffusers' names: fp32, bf16, fp16; .safetensors, .bin", ("diffusers *",)),
            ("ComfyUI's names, alone or with the prefix `model.diffusion_model.`", ("ComfyUI*",)),
            ("SAT: .pt (`mp_rank_00_model_states.pt`, `3d-vae.pt`) and safetensors", ("SAT*",)),
            ("GGUF blocks inside safetensors (`Q4_0_qweight`)", ("blocks in safetensors",)),
            ("plain fp8; scaled fp8 (`scale_weight`; `weight_scale` with `comfy_quant`)", ("plain fp8", "scaled fp8*")),
            ("int8: ComfyUI's `int8_tensorwise`, torchao's (two spellings)", ("int8*",)),
        )
    ),
    Figure(
        FILES, "IQ4_NL, IQ4_XS, tested by their blocks) | {} of 12 |", (Rows("layouts", ("GGUF*",), "models", "least"),)
    ),
    Figure(
        FILES,
        "Files of {word} transformer, {word} T5 and {word} VAE layouts were damaged {} times each",
        (
            *(damaged(f"{part}, *", "copies", "count") for part in ("transformer", "text_encoder", "vae")),
            damaged("*, *", "copies", "least"),
        ),
    ),
    Figure(FILES, "refused with one sentence, within {1} s", (damaged("*, *", "s", "worst"),)),
    Figure(
        FILES,
        "in {word} of these layouts, T5-XXL in {word} and the VAE in {word}",
        (
            fixed(len(FULL_SIZE_LAYOUTS) + len(official.GGUF_KINDS) + 2),
            fixed(len(official.T5)),
            fixed(len(official.VAE)),
        ),
    ),
)
