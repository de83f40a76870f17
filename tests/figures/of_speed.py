"""docs/speed.md and docs/vae.md: `python3 dev.py bench`, all of them, on a CPU and on a card."""

from cogvideox.host.attention_kernels import MAX_ERROR
from cogvideox.tests.figures.cells import Cell, Number, fixed
from cogvideox.tests.figures.phrases import Figure, Value

PAGE = "docs/speed.md"
FORWARD, RUN = "One forward, batch 1", "A sampling run"
VARIANTS = ("2b", "5b", "1.5-5B")
MODES = ("fast", "medium", "low", "least")
WARM, COLD = "Loading a transformer, warm", "Loading a transformer, cold"
PLAIN = ("bf16, diffusers' shards", "bf16, one file", "bf16, ComfyUI's names")
PACKED = ("fp8, plain", "fp8, scaled", "int8, ComfyUI's", "GGUF Q8_0")
SIZES = {49: "49 frames, 480 x 720", 81: "81 frames, 768 x 1360"}


def card(row: str, after: str = "", name: str = "") -> Cell:
    """A number of `python3 dev.py bench gpu`, wherever its row is. name: of the card, where it is not the H100."""
    return Cell("cuda", "gpu", None, (row,), "found", after, card=name)


def h200(row: str, after: str = "") -> Cell:
    """Of the calls on an H200, with the pack's kernels and FlashAttention-3."""
    return Cell("cuda", "gpu, one H200", None, (row,), "found", after)


def forward(variant: str, column: str) -> Cell:
    """In fp32."""
    return Cell("cpu", "speed", FORWARD, (variant, "fp32"), column)


def half(variant: str, precision: str) -> Cell:
    """On a processor with AVX512-BF16, by the benchmark of 21 November 2026."""
    return Cell("cpu", "forward", FORWARD, (variant, precision), "ours / diffusers")


def product(what: str, column: str) -> Cell:
    return Cell("cpu", "speed", "Products of this CPU", (what,), column)


def goal(what: str, column: str = "found") -> Cell:
    return Cell("cpu", "speed", "Goals", (what,), column)


def load(title: str, layout: str, column: str = "load / read") -> Cell:
    return Cell("cpu", "load", title, (layout,), column)


MOVERS = (
    "diffusers",
    "ComfyUI's class",
    "ours, torch's operations",
    "ours, comfy-kitchen's rotation",
    "ours, Triton's kernels",
)


def moved(variant: str, who: str, column: str, prompts: int = 2) -> Cell:
    """Of a forward of one or two prompts, counted at the official size."""
    return Cell("cpu", "traffic", f"{variant}, batch {prompts}", (who,), column)


def waited(run: str, who: str) -> Cell:
    """The most reads of one step, counted."""
    return Cell("cpu", "syncs", "Waits for the card, a step", (run,), f"{who} reads")


def copies(variant: str, bits: int) -> Cell:
    """GiB of the copies of weights that are streamed."""
    return Cell("cpu", "traffic", "Copies of streamed weights", (variant,), f"{bits} bits, GiB")


def share(of: str) -> Cell:
    """The warm server's CPU time over another's."""
    return Cell("cpu", "server", "Prompt to mp4", (of,), "the server's share of it")


def decode(precision: str, decoder: str, column: str = "of diffusers' untiled") -> Cell:
    return Cell("cpu", "vae", "Decode", (precision, decoder), column)


def encode(precision: str, encoder: str, column: str = "of diffusers' untiled") -> Cell:
    return Cell("cpu", "vae", "Encode", (precision, encoder), column)


def counted(frames: int, mode: str, direction: str) -> Cell:
    """GiB of the VAE, counted at the official size."""
    return Cell("cpu", "vae", "Memory", (SIZES[frames], f"ours, {mode}"), direction)


def matrix(kind: str, column: str) -> Cell:
    return Cell("cpu", "precision", "A matrix 3072 x 12288", (kind,), column)


def merge(model: str) -> Cell:
    return Cell("cpu", "lora", "The load that merges it", (model,), "ours / loop")


def apply(model: str, column: str) -> Cell:
    return Cell("cpu", "lora", "Applying a LoRA", (model,), column)


def start(what: str) -> Cell:
    return Cell("cpu", "start", "Importing the pack", (what,), "measured")


def least(*values: Value) -> Value:
    return lambda: Number(min(float(value()) for value in values))


def most(*values: Value) -> Value:
    return lambda: Number(max(float(value()) for value in values))


def _both(*values: Value) -> tuple[Value, Value]:
    """The least and the most, as "0.97 to 0.99"."""
    return least(*values), most(*values)


def over(value: Value, other: Value) -> Value:
    return lambda: Number(float(value()) / float(other()))


def _step(model: str, who: str, after: str = "") -> Cell:
    return h200(f"{model} step, batch 2, {who}", after)


def _step_row(phrase: str, model: str, flash: bool = True) -> Figure:
    names = ("diffusers", *(("ours, FLASH",) if flash else ()), "ours, CUDNN", "ours, as chosen")
    return Figure(PAGE, phrase, tuple(_step(model, name, after) for name in names for after in ("", "peak ")))


def _runs(parts: tuple[str, ...], after: str) -> tuple[Cell, ...]:
    return tuple(h200(f"5b run in {part} GiB of the card", after) for part in parts)


def _vae_row(phrase: str, direction: str, modes: tuple[str, ...]) -> Figure:
    rows = [f"VAE {direction}, 49 frames, 480 x 720, {mode}" for mode in modes]
    return Figure(PAGE, phrase, tuple(card(row, after) for after in ("", "peak ") for row in rows))


def _forward_row(variant: str, native_error: str) -> Figure:
    ratios = [forward(variant, f"ours / {who}") for who in ("diffusers", "diffusers compiled", "native")]
    errors = [forward(variant, f"error {who}") for who in ("ours", "native")]
    phrase = f"| {variant} | {{2}} | {{2}} | {{2}} | {{e}}, {{{native_error}}} |"
    return Figure(PAGE, phrase, (*ratios, *errors))


def _moved_row(variant: str) -> Figure:
    columns = "GB moved", "kernels", "peak of activations, GiB"
    phrase = f"| {variant}, batch 2 |" + " {0} GB, {0} kernels, {2} GiB |" * len(MOVERS)
    return Figure(PAGE, phrase, tuple(moved(variant, who, column) for who in MOVERS for column in columns))


def _mode_row(variant: str) -> Figure:
    kinds = "torch's operations", "Triton's kernels"
    phrase = f"| {variant} |" + " {0} GB, {2} GiB |" * 4
    return Figure(
        PAGE,
        phrase,
        tuple(
            moved(variant, f"ours, {mode}{kind}", column, prompts=1)
            for mode in ("", "lean, ")
            for kind in kinds
            for column in ("GB moved", "peak of activations, GiB")
        ),
    )


def compiled(model: str, column: str) -> Cell:
    """Of a forward with compiled blocks."""
    return Cell("cpu", "compile", "Compiled blocks", (model,), column)


def _compiled_row(model: str) -> Figure:
    columns = "compiled / without", "error", "compiling", "at the next start"
    return Figure(PAGE, f"| {model} | {{2}} | {{e}} | {{1}} s, {{1}} s |", tuple(compiled(model, c) for c in columns))


CACHES = (
    *("Step Cache 0.001", "Step Cache 0.003", "Step Cache 0.005", "Step Cache 0.01"),
    *("EasyCache 0.1", "EasyCache 0.2", "EasyCache 0.4", "LazyCache 0.2"),
    *("guidance kept every second step", "25 steps"),
)


def cached(sampler: str, cache: str, column: str = "deviation", model: str = "5b", cfg: int = 6) -> Cell:
    """Of a run of CogVideoX-nano, with a cache of its steps."""
    section = "cache" if model == "5b" else f"cache, {model}"
    return Cell("cpu", section, f"CogVideoX-nano {model}, {sampler}, 50 steps, cfg {cfg}", (cache,), column)


def _cache_row(cache: str) -> Figure:
    runs = ("ddim", "5b", 6), ("dpm", "5b", 6), ("ddim", "1.5-5B", 6), ("ddim", "5b-I2V", 2)
    columns = "forwards a clip", "deviation"
    values = (cached(sampler, cache, column, model, cfg) for sampler, model, cfg in runs for column in columns)
    return Figure(PAGE, f"| {cache} |" + " {0}, {4} |" * 4, tuple(values))


OTHER_CACHES = (
    *(f"Step Cache {value}" for value in (0.01, 0.02, 0.05)),
    *("FirstBlockCache 0.05", "FirstBlockCache 0.1", "TeaCache 0.07", "TeaCache 0.15", "TeaCache 0.2"),
    *("MagCache 0.06", "MagCache 0.2"),
)


def _other_cache_row(cache: str) -> Figure:
    values = (
        Cell("cpu", "cache, others", f"CogVideoX-nano 5b, {sampler}, 50 steps, cfg 6", (cache,), column)
        for sampler in ("ddim", "dpm")
        for column in ("forwards a clip", "deviation")
    )
    name, _, value = cache.rpartition(" ")
    return Figure(PAGE, f"| {name} at {value} |" + " {0}, {4} |" * 2, tuple(values))


_RUNS = [Cell("cpu", "speed", RUN, (v, "fp32"), "ours / diffusers") for v in VARIANTS]
_ESTIMATES = [
    goal(f"{v}, estimate in mode {mode} over the counted peak") for v in VARIANTS for mode in ("default", "lean")
]
_PARTS = ("8", "4", "2.75")
_WHOLE, _LEAN = (f"5b run on the whole card, {mode} mode" for mode in ("default", "lean"))
_IN_DYNAMIC = "5b run, dynamic VRAM, 6 GiB of the card"
_LOADING, _PEAK = "loading, ", "peak "
CARD = (
    Figure(
        PAGE,
        "take about {0} s, of CogVideoX 1.5 with 81 frames {0} s; without it {0} s and {0} s",
        tuple(_step(m, who).times(50) for who in ("ours, as chosen", "ours, CUDNN") for m in ("5b", "1.5-5B")),
    ),
    _step_row("| 2b, 49 frames of 720 × 480 |" + " {2} s, {2} GiB |" * 4, "2b"),
    _step_row("| 5b, the same |" + " {2} s, {2} GiB |" * 4, "5b"),
    _step_row("| 1.5-5B, 81 frames of 1360 × 768 | {2} s, {2} GiB | |" + " {2} s, {2} GiB |" * 2, "1.5-5B", False),
    Figure(
        PAGE,
        "ComfyUI's native class takes {2} s and {2} GiB for 5b",
        tuple(_step("5b", "ComfyUI's class", after) for after in ("", _PEAK)),
    ),
    Figure(
        PAGE,
        "takes {2} (2b), {2} (5b) and {2} (1.5-5B) of diffusers' time, with cuDNN's kernel {2}, {2} and {2}",
        tuple(_step(m, who, "), ") for who in ("ours, as chosen", "ours, CUDNN") for m in ("2b", "5b", "1.5-5B")),
    ),
    Figure(PAGE, "alone, a step with FlashAttention-3 took {2} s", (h200("5b step, ours, compiled", "eager "),)),
    Figure(
        PAGE,
        "On an H100 with cuDNN's kernel a step of 5b took {2} s, {2} of diffusers' {2} s",
        (
            card("5b step, batch 2, ours, CUDNN"),
            card("5b step, batch 2, ours, CUDNN", "), "),
            card("5b step, batch 2, diffusers"),
        ),
    ),
    Figure(
        PAGE,
        "Without them a step of 5b takes {2} s instead of {2} s",
        (_step("5b", "ours unfused"), _step("5b", "ours, CUDNN")),
    ),
    Figure(
        PAGE,
        "| 5b, a step with all weights on the card | {2} | {2} |",
        (h200(_WHOLE, _LOADING), h200(_WHOLE, _PEAK)),
    ),
    Figure(
        PAGE,
        "| in 8, 4 and 2.75 GiB of the card, weights streamed | {2}, {2}, {2} | {2}, {2}, {2} |",
        (*_runs(_PARTS, _LOADING), *_runs(_PARTS, _PEAK)),
    ),
    Figure(PAGE, "| in 1.7 GiB of the card | {2} | {2} |", (*_runs(("1.7",), _LOADING), *_runs(("1.7",), _PEAK))),
    Figure(
        PAGE,
        "| in the lean memory mode, all weights on the card | {2} | {2} |",
        (h200(_LEAN, _LOADING), h200(_LEAN, _PEAK)),
    ),
    Figure(
        PAGE,
        "| with ComfyUI's dynamic VRAM in 6 GiB | {2} | {2} without the weights |",
        (h200(_IN_DYNAMIC, _LOADING), h200(_IN_DYNAMIC, _PEAK)),
    ),
    Figure(PAGE, "5b ran in 1.7 GiB of the card with a peak of {2} GiB", _runs(("1.7",), _PEAK)),
    Figure(
        PAGE,
        "The lean mode took {2} of the default mode's time with all weights on the card, and the run in 1.7 GiB {2}",
        (
            over(h200(_LEAN, _LOADING), h200(_WHOLE, _LOADING)),
            over(_runs(("1.7",), _LOADING)[0], h200(_WHOLE, _LOADING)),
        ),
    ),
    Figure(
        PAGE,
        "a step of 5b takes {2} s and {2} GiB with it, {2} s and {2} GiB without; diffusers' blocks, compiled one by "
        "one, take {2} s. The first step waits {1} s",
        (
            *(
                h200("5b step, ours, compiled", after)
                for after in ("", _PEAK, "eager ", "peak 2.24 GiB; eager 1.17 s (1.17 - 1.18), peak ")
            ),
            h200("5b step, diffusers, compiled"),
            h200("5b step, ours, compiled", "first call "),
        ),
    ),
    Figure(
        PAGE,
        "the pack's were {} at most there too, but for previews with up to {}",
        (
            h200("Follow Video: waits of one step"),
            h200("Step Cache, previews: waits of one step"),
        ),
    ),
    Figure(PAGE, "but for context windows with {}", (h200("Context Windows: waits of one step", "ComfyUI's "),)),
    _vae_row(
        "| VAE, decode of 49 frames of 720 × 480: fast, medium, low, least | {2}, {2}, {2}, {2} | {2}, {2}, {2}, {2} |",
        *("decode", MODES),
    ),
    Figure(
        PAGE,
        "| the same on an H200 | {2}, {2}, {2}, {2} | {2}, {2}, {2}, {2} |",
        tuple(h200(f"VAE decode, 49 frames, 480 x 720, {mode}", after) for after in ("", "peak ") for mode in MODES),
    ),
    _vae_row(
        "| VAE, encode of the same: fast, medium, low, least | {2}, {2}, {2}, {2} | {2}, {2}, {2}, {2} |",
        *("encode", MODES),
    ),
    _vae_row("| VAE of diffusers, tiled, decode of the same | {2} | {2} |", "decode", ("diffusers, tiled",)),
    Figure(
        PAGE,
        "rank 64, 49 frames, gradient checkpointing | {2} | {2}, weights included |",
        tuple(
            card("5b LoRA, rank 64, one clip of 49 frames, bf16, gradient checkpointing", after)
            for after in ("", "peak ")
        ),
    ),
    Figure(
        PAGE,
        "take {2} and {2} of bf16's time; fp8_e4m3fn_fast takes {2} of it, int8_fast {2}",
        tuple(h200(f"5b, 8 layers, {kind}", "), ") for kind in ("fp8_e4m3fn", "int8", "fp8_e4m3fn_fast", "int8_fast")),
    ),
    Figure(PAGE, "is at most {2} times that of ComfyUI's first", (fixed(MAX_ERROR),)),
    Figure(
        "docs/training.md",
        "one of four trainings repeated to {e} only",
        (card("training, 5b, bf16: restart and second run", "by "),),
    ),
)

CPU = (
    Figure(
        PAGE,
        "take {} kernels and copies with Triton, and {} without",
        tuple(
            Cell("cpu", "vae", "Operations of a decode", ("in all",), column)
            for column in ("with Triton's kernels", "without")
        ),
    ),
    *map(_moved_row, VARIANTS),
    *map(_mode_row, VARIANTS),
    *map(_cache_row, CACHES),
    *map(_other_cache_row, OTHER_CACHES),
    Figure(
        PAGE,
        "by ComfyUI's rules {2} GiB for 2b and {2} GiB for 5b and 1.5-5B in 16 bits, {2} and {2} GiB in int8",
        tuple(copies(variant, bits) for bits in (16, 8) for variant in ("2b", "5b")),
    ),
    *map(_compiled_row, ("2b", "5b")),
    Figure(
        PAGE,
        "On a CPU, the transformer takes {2} to {2} of diffusers' time",
        _both(*(forward(v, "ours / diffusers") for v in VARIANTS)),
    ),
    Figure(
        PAGE,
        "The VAE decodes in {2} of diffusers' time in fp32 and in {2} of it in bf16",
        (decode("fp32", "ours, fast"), decode("bf16", "ours, fast")),
    ),
    _forward_row("2b", "2"),
    _forward_row("5b", "e"),
    _forward_row("1.5-5B", "e"),
    Figure(
        PAGE,
        "A sampling run with guidance takes {2} to {2} of diffusers' time, a prompt through T5 {2} of transformers'",
        (*_both(*_RUNS), Cell("cpu", "speed", "T5, one prompt", ("fp32",), "ours / diffusers")),
    ),
    Figure(
        PAGE,
        "oneDNN takes {2} of the time of torch's product and has an error of {e}",
        (product("fp32 by oneDNN / by torch", "time"), product("fp32 by oneDNN / by torch", "error of the first")),
    ),
    Figure(
        PAGE,
        "A forward in bf16 takes {2} of diffusers' time there, and took {1} to {1} by ComfyUI's rule",
        (half("5b", "bf16"), *_both(*(half(v, "bf16 stored") for v in VARIANTS))),
    ),
    Figure(PAGE, "multiplies bf16 in {1} times fp32's", (product("bf16 / fp32", "time"),)),
    Figure(
        PAGE,
        "at most {2} above what is counted, and all of a run takes {2} GiB of 1.7 and {2} GiB of 2.0",
        (
            lambda: Number(max(estimate() for estimate in _ESTIMATES) - 1),
            goal("CogVideoX-5b, 49 frames, GiB of all of a run with 1.7 GiB free"),
            goal("CogVideoX1.5-5B, 81 frames, GiB of all of a run with 2.0 GiB free"),
        ),
    ),
    Figure(
        PAGE,
        "| diffusers, untiled | {} | {} | {} | {} | {0}, {e} | {0}, {e} |",
        (
            *(side(precision, "diffusers") for side in (decode, encode) for precision in ("fp32", "bf16")),
            *(side(precision, "diffusers", "error") for side in (decode, encode) for precision in ("fp32", "bf16")),
        ),
    ),
    Figure(
        PAGE,
        "| diffusers, tiled | {2} | {2} | | | {0e}, {0e} | |",
        tuple(
            decode(p, "diffusers, tiled", column)
            for column in ("of diffusers' untiled", "error")
            for p in ("fp32", "bf16")
        ),
    ),
    *(
        Figure(
            PAGE,
            phrase,
            (
                *(side(precision, name) for side in (decode, encode) for precision in ("fp32", "bf16")),
                *(side(precision, name, "error") for side in (decode, encode) for precision in ("fp32", "bf16")),
            ),
        )
        for name, phrase in (
            (
                "ComfyUI's own",
                "| ComfyUI's own | {2} | {2} | {2} | {2} | {0e}, {0e} | {1}, {1} |",
            ),
            ("ours, fast", "| ours, fast | {2} | {2} | {2} | {2} | {e}, {e} | {e}, {e} |"),
            ("ours, low", "| ours, low | {2} | {2} | {2} | {2} | {e}, {e} | {e}, {e} |"),
            ("ours, least", "| ours, least | {2} | {2} | {2} | {2} | {e}, {e} | {e}, {e} |"),
        )
    ),
    Figure(
        "docs/exactness.md",
        "the error of a decode is {e} and that of an encode {e}",
        (decode("fp32", "ours, fast", "error"), encode("fp32", "ours, fast", "error")),
    ),
    Figure(
        PAGE,
        "a frame takes {0} ms of a video of 9 frames, and {0} ms of one of 65",
        tuple(Cell("cpu", "vae", "Time by length", (frames,), "a frame, at best") for frames in ("9", "65")),
    ),
    Figure(
        PAGE,
        "bytecode written, {} nodes | {3} s, {1} MiB, no diffusers | 0.1 s, 10 MiB |",
        (start("nodes"), start("time"), start("resident memory")),
    ),
    Figure(
        PAGE,
        "warm cache, against reading the files | {2} to {2} × the time, {2} × the memory, mapped and not copied |",
        (*_both(*(load(WARM, name) for name in PLAIN)), most(*(load(WARM, name, "peak resident") for name in PLAIN))),
    ),
    Figure(
        PAGE,
        "| the same of fp8, int8 and GGUF files | {2} to {2} × the time, {2} × the memory |",
        (*_both(*(load(WARM, name) for name in PACKED)), most(*(load(WARM, name, "peak resident") for name in PACKED))),
    ),
    Figure(
        PAGE,
        "the reads alone took {1} to {1} s) | {1} to {1} × the time |",
        (
            *_both(*(load(COLD, name, "read") for name in (*PLAIN, *PACKED))),
            *_both(*(load(COLD, name) for name in (*PLAIN, *PACKED))),
        ),
    ),
    Figure(
        PAGE,
        "split and joined, warm cache | {1} × the time, {2} × the memory |",
        (load(WARM, "bf16, SAT .pt"), load(WARM, "bf16, SAT .pt", "peak resident")),
    ),
    Figure(
        PAGE,
        "→ int8 while loading | {1} s, {1} s for {1} GB: save the result",
        (
            *(load(WARM, f"bf16, one file -> {kind}", "load") for kind in ("fp8", "int8")),
            load(WARM, "bf16, one file -> int8", "file"),
        ),
    ),
    Figure(
        PAGE,
        "against *LoraLoaderModelOnly* | {3} s, {1} to {1} × the time |",
        (
            most(*(apply(model, "CogVideoXApplyLora") for model in ("fp32", "bf16", "int8", "GGUF Q8_0"))),
            *_both(*(apply(model, "ours / stock") for model in ("fp32", "bf16", "int8", "GGUF Q8_0"))),
        ),
    ),
    Figure(
        PAGE,
        "against a plain loop: fp32, bf16, int8 | {1}, {2}, {1} × the time",
        (merge("fp32"), merge("bf16"), merge("int8")),
    ),
    Figure(
        PAGE,
        "fp8 {e} (torchao {e}) and int8 {e} ({e})",
        tuple(matrix(kind, "of the product") for kind in ("fp8_e4m3fn", "torchao fp8", "int8", "torchao int8")),
    ),
    Figure(
        PAGE,
        "takes {2} × fp32's time in fp8 (torchao {2} ×), {2} × in int8 ({2} ×), and {2} × where int8 is "
        "also multiplied in eight bits ({2} ×)",
        tuple(
            matrix(kind, "of fp32's")
            for kind in (
                *("fp8_e4m3fn", "torchao fp8", "int8", "torchao int8"),
                *("int8_fast", "torchao int8, dynamic"),
            )
        ),
    ),
)


def _memory_row(phrase: str, frames: int, direction: str) -> Figure:
    values = [counted(frames, mode, direction) for mode in MODES]
    if direction == "decode":
        values.append(Cell("cpu", "sizes", "The VAE of diffusers", (SIZES[frames],), "decode, GiB"))
    return Figure("docs/vae.md", phrase, tuple(values))


def _used(direction: str, mode: str) -> Value:
    """What is counted over what a card has used."""
    return over(counted(49, mode, direction), card(f"VAE {direction}, 49 frames, 480 x 720, {mode}", "peak "))


_FREED = [
    card(f"VAE {direction}, 49 frames, 480 x 720, {mode}: forecast", "used: ")
    for direction in ("decode", "encode")
    for mode in ("fast", "medium", "low")
]
VAE = (
    Figure("docs/vae.md", "49 frames of 720 × 480 decode with {1} GiB or more", (counted(49, "least", "decode"),)),
    Figure(
        "docs/vae.md",
        "without the {2} of the weights",
        (Cell("cpu", "sizes", "Weights", ("VAE",), "16 bits, GiB"),),
    ),
    _memory_row("| decode, 49 frames 720 × 480 | {2} | {2} | {2} | {2} | {1} |", 49, "decode"),
    _memory_row("| decode, 81 frames 1360 × 768 | {2} | {2} | {2} | {2} | {1} |", 81, "decode"),
    _memory_row("| encode, 49 frames 720 × 480 | {2} | {2} | {2} | {2} | |", 49, "encode"),
    _memory_row("| encode, 81 frames 1360 × 768 | {2} | {2} | {2} | {2} | |", 81, "encode"),
    Figure(
        "docs/vae.md",
        "those of 49 frames were {2} to {2} of what was used, and those of `least` {2} and {2}",
        (
            *_both(*(_used(direction, mode) for direction in ("decode", "encode") for mode in MODES[:3])),
            *(_used(direction, "least") for direction in ("decode", "encode")),
        ),
    ),
    Figure("docs/vae.md", "asks ComfyUI to free {2} to {2} times as much as was used", _both(*_FREED)),
    Figure(
        "docs/vae.md",
        "161 frames of 1360 × 768 would take {0} GB as an IMAGE",
        (Cell("cpu", "sizes", "Data", ("an IMAGE of 161 frames of 1360 x 768",), "size"),),
    ),
)

# The line of the page, and the run of the benchmark.
_WAITS = {
    "ddim, euler of KSampler, image to video": "ddim",
    "dpm, with live previews": "dpm, previews",
    "ddim with dynamic cfg and guidance_rescale": "ddim, dynamic cfg, guidance_rescale",
    "*CogVideoX Step Cache*, with live previews": "Step Cache, previews",
    "Step Cache with previews, dpmpp_2m of KSampler": "Step Cache, dpmpp_2m, previews",
    "image to video with 5b-I2V's weights streamed": "image to video, streamed",
    "dpmpp_2m of KSampler, whose loop compares a sigma": "dpmpp_2m of ComfyUI's KSampler",
    "*CogVideoX Context Windows*, whose schedule looks up the step": "Context Windows",
    "EasyCache of ComfyUI, which reads changes and timesteps": "EasyCache of ComfyUI",
}
SERVER = (
    *(
        Figure(PAGE, f"| {line} | {{0}} | {{0}} |", (waited(run, "the pack's"), waited(run, "ComfyUI's")))
        for line, run in _WAITS.items()
    ),
    Figure(
        PAGE,
        "the toy takes {2} of the CPU time of diffusers' pipeline that is loaded already, and {2} of that of a "
        "diffusers script from its start",
        (share("diffusers, pipeline loaded"), share("diffusers script, from its start")),
    ),
)

FIGURES = (*CARD, *CPU, *VAE, *SERVER)
