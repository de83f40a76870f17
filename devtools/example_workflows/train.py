"""A LoRA, from a folder of clips to a video with what was learnt."""

from cogvideox.host.toy import CLIPS

from .table import (
    SIZE,
    Column,
    Example,
    Node,
    checkpoint,
    decode,
    prompts,
    sampler,
    save_video,
)

_TRAIN_LORA = """\
The toy was not trained on anything pink. Run teaches it from 16 clips, in less than a minute, and samples a pink star.

### For a LoRA of your own
1. Put the folder of **CogVideoX-5b** (or 2b, 5b-I2V, 1.5-5B, …) into `models/diffusers`, press **R** and choose it \
above.
2. Make a folder in `input` with 25 to 100 clips and their captions (`01.mp4` and `01.txt`, …), and write its name \
into *CogVideoX Training Clips*.
3. Set:

| | 2b, 5b | 1.5-5B |
|---|---|---|
| width | 720 | 1360 |
| height | 480 | 768 |
| frames | 49 | 81 |
| fps | 8 | 16 |
| steps | 2000 | 2000 |
| rank, alpha | 64 | 64 |
| learning_rate | 0.0001 | 0.0001 |
| gradient_checkpointing | on | on |

For image to video switch `image_to_video` on.

**Cancel** keeps a checkpoint; queue again to go on from it. The finished LoRA is in `models/loras/CogVideoX`: put it \
on a model with *Apply CogVideoX LoRA*.
"""

_LEARNT = "A big pink star moves to the right on a blue background."


def train_lora() -> Example:
    clips = Node(
        "clips",
        "CogVideoXTrainingClips",
        {"folder": CLIPS, **{name: SIZE[name] for name in ("frames", "width", "height")}},
        {"vae": "pipeline.VAE", "clip": "pipeline.CLIP"},
    )
    settings: dict[str, object] = {"steps": 250, "batch_size": 8, "learning_rate": 0.005, "rank": 16, "alpha": 16.0}
    data = {"model": "pipeline.MODEL", "latents": "clips.latents", "positive": "clips.positive"}
    train = Node("train", "CogVideoXTrainLora", settings, data, height=760)
    keep = Node("keep", "CogVideoXSaveTrainedLora", {"name": "CogVideoX/example"}, {"lora": "train.lora"})
    loss = Node("loss", "LossGraphNode", {}, {"loss": "train.loss_map"}, height=320)
    lora = Node("lora", "LoraModelLoader", {}, {"model": "pipeline.MODEL", "lora": "train.lora"})
    latent = Node("latent", "CogVideoXEmptyLatent", SIZE)
    return Example(
        "train_lora",
        (
            checkpoint("5b", _TRAIN_LORA),
            Column("2  Clips and captions", 340, (clips,)),
            Column("3  Train", 400, (train,)),
            Column("4  Keep it", 340, (keep, loss, lora)),
            Column("5  Sample with it", 340, (*prompts(_LEARNT), latent, sampler(links={"model": "lora.model"}))),
            Column("6  Video", 340, (decode(), *save_video())),
        ),
    )
