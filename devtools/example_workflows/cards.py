"""One clip on several cards: with ComfyUI's own nodes, and with CogVideoX Parallel."""

from dataclasses import replace

from cogvideox.nano.toy_settings import TEXT

from .table import ADVANCED, Column, Example, Node, checkpoint, decode, prompts, sampler, save_video, size

TWO_CARDS = """\
*MultiGPU CFG Split* has the prompt and the negative prompt computed on two cards at the same time, each with the \
whole model: a step takes about half as long. The video is the same. With one card, or with cfg 1, it changes nothing.

*Select CLIP Device* and *Select VAE Device* choose the cards of the text encoder and the VAE: with gpu:1 for both the \
first card keeps more room for the model.

These three nodes are ComfyUI's own, of its newer versions. In a template for a real checkpoint connect them in the \
same way.
"""
PARALLEL = f"""\
*CogVideoX Parallel* needs the Python package ray, on Linux or macOS. Without it *Run* says so. Install it \
once, with ComfyUI's own Python:

**python -m pip install ray**

It starts a process for each card, which computes a part of every step and some rows of every frame. The first run \
waits for these processes, the next ones find them. The video is the same within rounding.

**Without a second card** it runs too, and is not faster: *cards* 0 takes all cards of this machine, the one that it \
has, or two processes of the CPU where it has none.

**With more cards** set *split* to "cfg" for two and to "both" for four, six and so on: the cards then send each other \
the least. "sequence" is for any number. Where a card may fail, set *on_failure* {ADVANCED} to "continue alone".

In a template for a real checkpoint put the node between loader and sampler in the same way.
"""

_TRIANGLE = "A large green triangle moves down on a white background."
_STAR = "A large yellow star moves up on a blue background."
_REAL = "22 Text to video with CogVideoX-5b"


def two_cards() -> Example:
    text_encoder = Node("encoder", "SelectCLIPDevice", {"device": "default"}, {"clip": "pipeline.CLIP"})
    vae = Node("vae", "SelectVAEDevice", {"device": "default"}, {"vae": "pipeline.VAE"})
    split = Node("split", "MultiGPU_WorkUnits", {"max_gpus": 2}, {"model": "pipeline.MODEL"})
    texts = (replace(each, links={"clip": "encoder.CLIP"}) for each in prompts(_TRIANGLE, 250))
    return Example(
        "two_cards",
        "Text to video on two cards",
        (
            checkpoint("5b", _REAL, TWO_CARDS),
            Column("2  Cards", 300, (split, text_encoder, vae)),
            Column("3  Prompt and size", 300, (*texts, _latent())),
            *_made_by("split.MODEL", "vae.VAE"),
        ),
    )


def parallel() -> Example:
    links = {"model": "pipeline.MODEL", "vae": "pipeline.VAE"}
    # A height with room for what the node says where Ray is missing.
    ranks = Node("ranks", "CogVideoXParallel", {}, links, height=330)
    return Example(
        "parallel",
        "Text to video with CogVideoX Parallel",
        (
            checkpoint("5b", _REAL, PARALLEL),
            Column("2  Cards", 300, (ranks,)),
            Column("3  Prompt and size", 300, (*prompts(_STAR, 250), _latent())),
            *_made_by("ranks.MODEL", "ranks.VAE"),
        ),
    )


def _latent() -> Node:
    return Node("latent", "CogVideoXEmptyLatent", size(TEXT))


def _made_by(model: str, vae: str) -> tuple[Column, Column]:
    """The sampler and the video; both from the outputs that are named."""
    decoded = replace(decode(), links={"vae": vae, "samples": "sample.LATENT"})
    return (
        Column("4  Sample", 300, (sampler(links={"model": model}),)),
        Column("5  Video", 300, (decoded, *save_video())),
    )
