"""One clip on two cards, with ComfyUI's own nodes."""

from dataclasses import replace

from cogvideox.nano.toy_settings import TEXT

from .table import Column, Example, Node, checkpoint, decode, prompts, sampler, save_video, size

TWO_CARDS = """\
*MultiGPU CFG Split* has the prompt and the negative prompt computed on two cards at the same time, each with the \
whole model: a step takes about half as long. The video is the same. With one card, or with cfg 1, it changes nothing.

*Select CLIP Device* and *Select VAE Device* choose the cards of the text encoder and the VAE: with gpu:1 for both the \
first card keeps more room for the model.

These three nodes are ComfyUI's own, of its newer versions. In a template for a real checkpoint connect them in the \
same way.
"""

_TRIANGLE = "A large green triangle moves down on a white background."


def two_cards() -> Example:
    text_encoder = Node("encoder", "SelectCLIPDevice", {"device": "default"}, {"clip": "pipeline.CLIP"})
    vae = Node("vae", "SelectVAEDevice", {"device": "default"}, {"vae": "pipeline.VAE"})
    split = Node("split", "MultiGPU_WorkUnits", {"max_gpus": 2}, {"model": "pipeline.MODEL"})
    texts = (replace(each, links={"clip": "encoder.CLIP"}) for each in prompts(_TRIANGLE, 250))
    decoded = replace(decode(), links={"vae": "vae.VAE", "samples": "sample.LATENT"})
    return Example(
        "two_cards",
        "Text to video on two cards",
        (
            checkpoint("5b", "22 Text to video with CogVideoX-5b", TWO_CARDS),
            Column("2  Cards", 300, (split, text_encoder, vae)),
            Column("3  Prompt and size", 300, (*texts, Node("latent", "CogVideoXEmptyLatent", size(TEXT)))),
            Column("4  Sample", 300, (sampler(links={"model": "split.MODEL"}),)),
            Column("5  Video", 300, (decoded, *save_video())),
        ),
    )
