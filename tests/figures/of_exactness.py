"""docs/exactness.md, and what other pages say of comparisons with diffusers: `python3 dev.py test --long --save`."""

from cogvideox.tests.figures.cells import Rows
from cogvideox.tests.figures.phrases import Figure

PAGE = "docs/exactness.md"


def cases(*patterns: str) -> Rows:
    return Rows("parity", patterns, "cases", "sum")


def worst(*patterns: str) -> Rows:
    return Rows("parity", patterns, "worst")


def _row(phrase: str, *patterns: str) -> Figure:
    """A row of the table: what is compared, how many cases, the worst."""
    return Figure(PAGE, phrase, (cases(*patterns), worst(*patterns)))


IMAGE_RUNS = ("image to video, *-I2V, *", "image to video, o*", "server: image to video*")
VIDEO_RUNS = ("video to video, *, d*m", "video to video, other*", "server: video to video*")
REPEATED_IMAGE_RUNS = ("image to video, *img2vid, *",)
RUNS = (
    *REPEATED_IMAGE_RUNS,
    "complete run, patches of *",
    *("whole run, *", "odd and even latent counts, *", "batch of 2", "run from given noise", "denoise 0.6*"),
    *(*IMAGE_RUNS, *VIDEO_RUNS, "*sampled posterior*", "dynamic CFG of 1 and less*", "VOID", "guidance rescale*"),
    *("Fun control, *", "Fun inpaint, *", "sampling run with *", "CogVideoX-nano*", "following a video*"),
)

FIGURES = (
    Figure(PAGE, "the largest relative difference is {e}, which is rounding", (worst(*RUNS),)),
    _row("six Fun models and VOID, two sizes each | {} | {e} |", "transformer forward, *"),
    _row("complete run, DDIM, 7, 20, 28 and 50 steps: 2b, 5b, 1.5-5B | {} | {e} |", "whole run, *, ddim"),
    _row("complete run, DPM, the same | {} | {e} |", "whole run, *, dpm"),
    _row("complete run with dynamic CFG, DDIM and DPM | {} | {e} |", "whole run, *, dynamic CFG"),
    _row("dynamic CFG from a guidance of 1 and less, all tasks | {} | {e} |", "dynamic CFG of 1 and less*"),
    _row("guidance rescale, DDIM and DPM | {} | {e} |", "guidance rescale*"),
    _row("(CogVideoX 1.5 pads odd ones) | {} | {e} |", "odd and even latent counts, *"),
    _row(
        "batch of 2; given noise; denoise 0.6 against strength 0.6 | {} | {e} |",
        *("batch of 2", "run from given noise", "denoise 0.6*"),
    ),
    _row("odd and even numbers of latents, other widths and sizes; through the server | {} | {e} |", *IMAGE_RUNS),
    _row("video to video, complete run: 2b, 5b, 1.5-5B; through the server | {} | {e} |", *VIDEO_RUNS),
    _row("with a sampled posterior, one seed for everything, and in a batch | {} | {e} |", "*sampled posterior*"),
    _row("Fun Control, complete run: 2b, 5b, V1.5 (DPM †) | {} | {e} |", "Fun control, *"),
    _row("Fun InP, complete run: 2b, 5b, V1.5 † | {} | {e} |", "Fun inpaint, *"),
    _row("six sizes and lengths, DDIM and DPM † | {} | {e} |", *REPEATED_IMAGE_RUNS),
    _row("every other value that their configs may have † | {} | {e} |", "*, other values in its config"),
    _row("VOID, complete run, with ComfyUI's conditioning † | {} | {e} |", "VOID"),
    _row("complete run on trained weights, CogVideoX-nano | {} | {e} |", "CogVideoX-nano*"),
    _row(
        "ControlNet and the forward with it † | {} | {e} |",
        *("control net, encoded guide", "control net, outputs", "transformer forward with control"),
    ),
    _row("complete runs with one and with two ControlNets † | {} | {e} |", "sampling run with *"),
    _row("inversion, every step: 2b, 5b, 1.5-5B | {} | {e} |", "inversion, *"),
    _row("complete runs that follow the inverted video †: 2b, 5b, 1.5-5B | {} | {e} |", "following a video, *"),
    _row("forward with RIFLEx † | {} | {e} |", "RIFLEx"),
    Figure(
        PAGE,
        "token ids (long, empty, with parentheses and colons, …) | {} | equal |",
        (cases("token ids, how many differ"),),
    ),
    _row("text embeddings | {} | {e} |", "text embeddings"),
    _row(
        "in all four memory modes and narrow bands | {} | {e} |",
        *("VAE decode, memory *", "VAE decode, fast", "VAE decode, medium", "VAE decode, low", "VAE decode, least"),
    ),
    _row("VAE encode of 1, 5, 9 and 17 frames ‡ | {} | {e} |", "VAE encode"),
    _row("in tiles, against diffusers' without | {} | {e} |", "VAE decode, tiled", "VAE encode, tiled"),
    Figure(
        PAGE,
        "‡ Another {} cases encode 1 to 49 frames",
        (cases("VAE encode, *, noisy weights"),),
    ),
    Figure(
        PAGE,
        "diffusers' encode is up to {e} from float64, and ours {e}",
        (worst("VAE encode of diffusers, noisy weights*"), worst("VAE encode, noisy weights*")),
    ),
    Figure(
        PAGE,
        "the error of a decode is at most {2} times that of diffusers, in every mode ({} cases)",
        (worst("VAE decode in half precision*"), cases("VAE decode in half precision*")),
    ),
    Figure("docs/training.md", "equals diffusers' to {0e}", (worst("training loss"),)),
    Figure(
        "docs/training.md",
        "give the gradients of one process to {0e}",
        (worst("gradients of two processes, *"),),
    ),
)
