"""A LoRA, from a folder of clips to a video with what was learnt."""

from cogvideox.host.toy import CLIPS
from cogvideox.nano.toy_settings import TEXT

from .table import (
    Column,
    Example,
    Node,
    checkpoint,
    decode,
    prompts,
    sampler,
    save_video,
    size,
)

YOUR_OWN = """\
**Your own clips**: make a folder in *input* with 25 to 100 clips and their captions (*01.mp4* and *01.txt*, …), and \
write its name into *CogVideoX Training Clips*. For image to video switch *image_to_video* on.

**Cancel** keeps a checkpoint; queue again to go on from it. Checkpoints stay in *output/cogvideox_training*, in a \
folder for each training: delete it when you need them no more. The finished LoRA is in *models/loras/CogVideoX*: put \
it on a model with *Load CogVideoX LoRA*.
"""
TRAIN_LORA = f"""\
The toy was not trained on anything pink. **Run** teaches it from 16 clips, which takes a processor one to four \
minutes, and samples a pink star.

{YOUR_OWN}"""

_LEARNT = "A big pink star moves to the right on a blue background."


def train_lora() -> Example:
    """The heights leave room for what nodes show after a run: how many clips there are, and the curve of the loss."""
    clips = Node(
        "clips",
        "CogVideoXTrainingClips",
        {"folder": CLIPS, **size(TEXT)},
        {"vae": "pipeline.VAE", "clip": "pipeline.CLIP"},
        height=420,
    )
    settings: dict[str, object] = {"steps": 250, "batch_size": 8, "learning_rate": 0.005, "rank": 16, "alpha": 16.0}
    data = {"model": "pipeline.MODEL", "latents": "clips.latents", "positive": "clips.positive"}
    train = Node("train", "CogVideoXTrainLora", settings, data, height=770)
    keep = Node("keep", "CogVideoXSaveTrainedLora", {"name": "CogVideoX/example"}, {"lora": "train.lora"}, height=140)
    lora = Node("lora", "LoraModelLoader", {}, {"model": "pipeline.MODEL", "lora": "train.lora"})
    latent = Node("latent", "CogVideoXEmptyLatent", size(TEXT))
    return Example(
        "train_lora",
        "Train a LoRA",
        (
            checkpoint("5b", "33 Train a LoRA for CogVideoX-5b", TRAIN_LORA),
            Column("2  Clips", 300, (clips,)),
            Column("3  Size of the sample", 300, (latent,), is_below=True),
            Column("4  Train", 300, (train, lora)),
            Column("5  Sample with it", 300, (*prompts(_LEARNT), sampler(links={"model": "lora.model"}))),
            Column("6  Video", 300, (decode(), *save_video())),
            Column("7  Keep what was learnt", 300, (keep,), is_below=True),
        ),
    )
