"""Numbers in the documents that are no measurement of this project, each with its source."""

from cogvideox.tests.figures.phrases import Given

ARITHMETIC = "arithmetic"
CHOICE = "a setting, a limit or a goal of this project, not a result"

GIVEN = (
    Given("README.md", "the 20 GB model", "model_loaders/downloads/repositories.py, from the official repositories"),
    Given("README.md", "You need Python 3.10 or newer (tested on 3.11)", "pyproject.toml"),
    Given("README.md", "about 8 GB of disk space (3 GB on Windows and macOS)", "devtools/environment.py"),
    Given("docs/exactness.md", "6 steps at denoise 0.6 are the last 6 of 10", ARITHMETIC),
    Given("docs/exactness.md", "`num_inference_steps=10, strength=0.6`", ARITHMETIC),
    Given("docs/exactness.md", "denoise 0.6 against strength 0.6", CHOICE),
    Given("docs/exactness.md", "fp32 itself is accurate to about 1e-7 per operation", "IEEE 754: 2^-24 is 6e-8"),
    Given("docs/farm.md", "none has been heard of for ten minutes", "devtools/farm/farm_work.py: a choice"),
    Given("docs/many-cards.md", "by up to 4 % when cards share", "the bound of tests/host/test_quantized.py"),
    Given("docs/migration.md", "up to 32 MiB, 5000 nodes and 1000 inputs of a node is read", CHOICE),
    Given("docs/migration.md", "rewrite the workflow that is open, of up to 4 MiB,", CHOICE),
    Given("docs/migration.md", "1,000,000 values or 100 levels, or with a number of more than 309 digits", CHOICE),
    Given("docs/migration.md", "at most 20,000 nodes", CHOICE),
    Given("docs/migration.md", "25 at 0.8 is 20 at 0.8", ARITHMETIC),
    Given("docs/migration.md", "25 at 0.3 is 7 at 0.27", ARITHMETIC),
    Given("docs/models.md", "the desktop are taken to hold 1 GiB", "host/memory_rules.py, TAKEN_BYTES: an assumption"),
    Given(
        "docs/models.md",
        "ComfyUI keeps 400 MiB free on Linux, 600 on Windows",
        "ComfyUI, comfy/model_management.py, EXTRA_RESERVED_VRAM",
    ),
    Given(
        "docs/models.md",
        "on parts of one H100 took as much within 12 %",
        "tests/model_loaders/test_forecast.py, test_an_h100_took_as_much",
    ),
    Given("docs/samplers.md", "one wrong answer costs 5 points", "arithmetic: 100 / (4 prompts x 5 attributes)"),
    Given(
        "docs/samplers.md",
        "at sigma 4518.7",
        "ComfyUI, ModelSamplingDiscrete with zsnr: its last alpha is 4.897e-8",
    ),
    Given("docs/samplers.md", "then adds 110 times the difference", "arithmetic: (4518.7 - 20) / 2 / 20"),
    Given("docs/speed.md", "CogVideoX-2b about 90 s on an A100, CogVideoX-5b about 180 s", "the official model cards"),
    Given(
        "docs/speed.md",
        "all of a run of 5b fits in 1.7 GiB of free memory on the card, and of 1.5-5B with 81 frames in 2.0 GiB",
        "tests/model_loaders/test_forecast.py, test_all_of_a_run_on_the_smallest_cards",
    ),
    Given("docs/speed.md", "the aim is at most 5 % where", CHOICE),
    Given("docs/speed.md", "Those of the clock, 0.65 of diffusers' time", CHOICE),
    Given("docs/speed.md", "saves a fifth of the time with an error of at most 3e-7", "host/cpu_products.py"),
    Given("web/docs/CogVideoXDraftDecode.md", "a decoder in a file of 23 MB", "the repository madebyollin/taehv"),
    Given("web/docs/CogVideoXEmptyLatent.md", "is a video of 6 seconds", "arithmetic: 49 frames at 8 a second"),
    Given("docs/speed.md", "loading 1 GB of bf16 safetensors", CHOICE),
    Given("docs/speed.md", "not copied | 1.15 ×, 1.1 ×", CHOICE),
    Given("docs/speed.md", "× the memory | 1.15 ×, 1.1 ×", CHOICE),
    Given(
        "docs/vae.md", "without the 0.40 of the weights", "benchmarks/bench_vae.py; 215,583,907 parameters in 16 bits"
    ),
)
