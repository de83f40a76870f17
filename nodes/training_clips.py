"""Clips and captions to train with."""

import hashlib
import os
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..errors import TrainingError
from ..host.messages import show_on_node
from .checks import check_vae, check_video_size, checked
from .inputs import MAX_FRAMES, MAX_SIDE

_SHORTER, _BUCKETS = ("skip", "bucket"), ("fixed", "auto")  # training is imported only when the node runs
_MAX_VARIANTS = 64


def _check_folder(folder: str) -> None:
    dataset_folder(folder)


@checked(_check_folder, check_video_size, check_vae)
class CogVideoXTrainingClips(io.ComfyNode):
    """Lists out, one entry a clip: LATENT samples [1, 16, T, h, w], unscaled, and CONDITIONING [1, 226, text width].

    Each LATENT also holds, for the pack's own training: cogvideox_std (of the posterior), cogvideox_images
    [1 + V, 16, 1, h, w] (image to video only), cogvideox_empty_text [1, 226, text width], cogvideox_dataset (a hash).
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"min": 16, "max": MAX_SIDE, "step": 16, "tooltip": "Pixels, a multiple of 16."}
        return io.Schema(
            node_id="CogVideoXTrainingClips",
            display_name="CogVideoX Training Clips",
            category="CogVideoX/train",
            search_aliases=["dataset", "finetune", "fine-tune", "lora training", "captions", "make training dataset"],
            description=(
                "Encode a folder of clips and captions for training. What is encoded stays on disk: the next time only "
                "what has changed is encoded anew."
            ),
            inputs=[
                io.Vae.Input("vae"),
                io.Clip.Input("clip"),
                io.String.Input("folder", default="", tooltip="A folder in ComfyUI's input folder, or a whole path."),
                io.Int.Input("frames", default=49, min=1, max=MAX_FRAMES, step=8, tooltip="Frames a clip, 8k + 1."),
                io.Int.Input("width", default=720, **side),
                io.Int.Input("height", default=480, **side),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=0.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Frames a second that are taken: 8 for CogVideoX, 16 for CogVideoX 1.5. 0: all there are.",
                ),
                io.Combo.Input(
                    "buckets",
                    options=list(_BUCKETS),
                    default="fixed",
                    tooltip="fixed: every clip is cut to width x height. auto: it keeps its own shape, at that area.",
                ),
                io.Combo.Input(
                    "shorter",
                    options=list(_SHORTER),
                    default="skip",
                    tooltip="Clips with fewer frames: leave them out, or take the next lower 8k + 1 of them.",
                ),
                io.Boolean.Input(
                    "image_to_video",
                    default=False,
                    tooltip="Keep latents of each clip's first frame as well, for image to video models.",
                ),
                io.Int.Input(
                    "image_variants",
                    default=4,
                    min=0,
                    max=_MAX_VARIANTS,
                    tooltip="How many of them have noise on the picture, as in the official training.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True),
                io.Conditioning.Output(display_name="positive", is_output_list=True),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: object) -> str:
        return "" if folder is None else listing_hash(dataset_folder(folder))

    @classmethod
    def execute(
        cls,
        vae: object,
        clip: object,
        folder: str,
        frames: int,
        width: int,
        height: int,
        fps: float,
        buckets: str,
        shorter: str,
        image_to_video: bool,
        image_variants: int,
    ) -> io.NodeOutput:
        from ..training.dataset import DatasetSpec, build_dataset

        spec = DatasetSpec(
            frames=frames,
            width=width,
            height=height,
            fps=fps,
            buckets=buckets,
            shorter=shorter,
            image_to_video=image_to_video,
            image_variants=image_variants,
        )
        bar = comfy.utils.ProgressBar(1)
        dataset = build_dataset(dataset_folder(folder), spec, vae, clip, progress=bar.update_absolute)
        report = "\n".join(dataset.report)
        show_on_node(report, cls.hidden.unique_id)
        return io.NodeOutput(*_sockets(dataset), report)


def dataset_folder(name: str) -> Path:
    """The folder that a user means: a path, or a folder in ComfyUI's input folder.

    Raises TrainingError where there is none.
    """
    inputs = Path(folder_paths.get_input_directory())
    name = name.strip().strip('"')
    try:
        if name and (inputs / name).is_dir():  # an absolute path stays as it is
            return inputs / name
    except (OSError, ValueError):  # no name that this file system could have
        pass
    raise TrainingError(
        f"There is no folder {name[:200]!r}. Give the name of a folder in {inputs}, or a whole path, that holds clips "
        "with their captions (clip.mp4 and clip.txt)."
    )


def listing_hash(folder: Path) -> str:
    """Of names, sizes and times of all that lies in `folder` but what is hidden: the cache is."""
    digest = hashlib.sha256(str(folder).encode())
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            status = os.lstat(os.path.join(root, name))
            digest.update(f"{root}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sockets(dataset: object) -> tuple[list[dict], list[list]]:
    """LATENT and CONDITIONING of each sample."""
    latents, positive = [], []
    empty_text = dataset.empty_text
    for index in range(len(dataset)):
        sample = dataset.load(index)
        latent = {
            "samples": sample["latents"][None],
            "cogvideox_std": sample["std"][None],
            "cogvideox_empty_text": empty_text,
            "cogvideox_dataset": dataset.hash,
        }
        values = {"pooled_output": None}
        if sample["images"] is not None:
            latent["cogvideox_images"] = sample["images"]
            # as CogVideoX Image to Video gives it: the first frame alone, nothing is known of the others
            values |= {
                "concat_latent_image": sample["images"][:1],
                "cogvideox_task": "image",
                "cogvideox_scale": "checkpoint",
                "cogvideox_end": False,
            }
        latents.append(latent)
        positive.append([[sample["text"][None], values]])
    return latents, positive
