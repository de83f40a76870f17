"""The nodes' help pages, web/docs: `python3 dev.py bench sizes`, `bench vae` and `bench train`."""

from cogvideox.model_loaders.downloads.repositories import find_repository
from cogvideox.samplers import step_cache
from cogvideox.tests.figures.cells import Cell, fixed
from cogvideox.tests.figures.of_models import weights
from cogvideox.tests.figures.of_speed import cached, counted, over
from cogvideox.tests.figures.phrases import Figure, Value
from cogvideox.video_limits import MAX_VIDEO_PIXELS


def data(what: str) -> Cell:
    return Cell("cpu", "sizes", "Data", (what,), "size")


def train(row: str) -> Cell:
    """Milliseconds of a step of ours."""
    return Cell("cpu", "train", "One training step", (row,), "ours")


def _page(node: str, phrase: str, *values: Value) -> Figure:
    return Figure(f"web/docs/CogVideoX{node}.md", phrase, values)


FIGURES = (
    _page(
        "Decode",
        "{1} GiB in addition to the weights for 720 x 480 in bf16, {1} for 1360 x 768",
        *(counted(frames, "fast", "decode") for frames in (49, 81)),
    ),
    *(
        _page("Decode", phrase, *(counted(frames, mode, "decode") for frames in (49, 81)))
        for mode, phrase in (
            ("low", "rows at a time: {1} and {1} GiB"),
            ("medium", "one in between ({1} and {1} GiB)"),
            ("least", "still less memory ({1} and {1} GiB)"),
        )
    ),
    _page(
        "DecodeToFile",
        "161 frames of 1360 × 768 would be {0} GB as an IMAGE",
        data("an IMAGE of 161 frames of 1360 x 768"),
    ),
    _page(
        "StepCache",
        "at a deviation of {3} on CogVideoX-nano, where ComfyUI's EasyCache at as many steps deviates by {3}",
        cached("ddim", "Step Cache 0.003"),
        cached("ddim", "EasyCache 0.2"),
    ),
    _page(
        "StepCache",
        "The first {0} % of the steps of a run and the last {0} % are always computed",
        fixed(step_cache.FIRST * 100),
        fixed(step_cache.LAST * 100),
    ),
    _page(
        "Download",
        "a checkpoint is about {0} GB (2b), {0} GB (5b) or {0} GB (1.5,",
        *(fixed(find_repository(name).gigabytes) for name in ("CogVideoX-2b", "CogVideoX-5b", "CogVideoX1.5-5B")),
    ),
    _page("EmptyLatent", "have at most {1} billion pixels", fixed(MAX_VIDEO_PIXELS / 1e9)),
    _page(
        "Invert",
        "about {1} GB at 720 x 480 with 49 frames and 50 steps, {1} GB at 1360 x 768 with 81",
        data("an inverted video, 50 steps, 49 frames of 720 x 480"),
        data("an inverted video, 50 steps, 81 frames of 1360 x 768"),
    ),
    _page(
        "LoadModel",
        "in about {1} GB instead of {0} GB",
        *(weights("CogVideoX-5b", f"{bits} bits, GB") for bits in (8, 16)),
    ),
    _page("LoadTextEncoder", "{1} GB in 16 bits", weights("T5", "16 bits, GB")),
    _page("SaveModel", "a file of {1} GiB that loads without conversion", weights("CogVideoX-5b", "8 bits, GiB")),
    _page(
        "TrainingClips",
        "takes about {1} MB with a bf16 VAE, its caption {1} MB",
        data("a training clip of 49 frames of 720 x 480, mean and deviation, bf16"),
        data("a caption, fp16"),
    ),
    _page(
        "TrainLora",
        "with `attention and feed-forward` the file is about {1} times as large",
        data("a LoRA with the feed-forward layers, over one without"),
    ),
    _page(
        "TrainLora",
        "Far less memory for about {1} times the time",
        over(train("fp32, gradient checkpointing"), train("fp32")),
    ),
)
