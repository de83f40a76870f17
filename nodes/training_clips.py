"""Clips and captions to train with."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io

from ..errors import UserError
from ..host.messages import show_on_node
from ..training.clips import DatasetSpec
from .input_checks import check_vae, check_video_size, checked
from .setting_inputs import widget

if TYPE_CHECKING:  # it needs PyAV and more, which ComfyUI's start must not wait for
    from ..training.dataset import Dataset


_SETTINGS = ("frames", "width", "height", "fps", "buckets", "shorter", "image_to_video", "image_variants")


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
        return io.Schema(
            node_id="CogVideoXTrainingClips",
            display_name="CogVideoX Training Clips",
            category="CogVideoX/train",
            search_aliases=["dataset", "finetune", "fine-tune", "lora training", "captions", "make training dataset"],
            description=(
                "Encode a folder of clips and captions for training. What is encoded stays on disk: the next time only "
                "what has changed is encoded again."
            ),
            inputs=[
                io.Vae.Input("vae"),
                io.Clip.Input("clip"),
                io.String.Input("folder", default="", tooltip="A folder in ComfyUI's input folder, or a full path."),
                *(widget(DatasetSpec, name) for name in _SETTINGS),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True),
                io.Conditioning.Output(display_name="positive", is_output_list=True),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    # The folder's name stays the same when clips are added. None: it is linked, and ComfyUI does not know it yet.
    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> str:
        return "" if folder is None else listing_hash(dataset_folder(folder))

    @classmethod
    def execute(
        cls,
        vae: comfy.sd.VAE,
        clip: comfy.sd.CLIP,
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
        from ..training.dataset import build_dataset

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
        bar = comfy.utils.ProgressBar(1)  # the total comes with each update
        dataset = build_dataset(dataset_folder(folder), spec, vae, clip, progress=bar.update_absolute)
        report = "\n".join(dataset.report)
        show_on_node(report, cls.hidden.unique_id)
        return io.NodeOutput(*_sockets(dataset), report)


def dataset_folder(name: str) -> Path:
    """The folder that a user means: a path, or a folder in ComfyUI's input folder.

    Raises UserError where there is none.
    """
    inputs = Path(folder_paths.get_input_directory())
    name = name.strip().strip('"')
    try:
        if name and (inputs / name).is_dir():  # pathlib drops `inputs` before an absolute path
            return inputs / name
    except (OSError, ValueError):  # not a name that this file system could have
        pass
    raise UserError(
        f"There is no folder {name[:200]!r}. Give the name of a folder in {inputs}, or a full path, that holds clips "
        "with their captions (clip.mp4 and clip.txt)."
    )


def listing_hash(folder: Path) -> str:
    """A hash of the names, sizes and times of all files below `folder`, without hidden folders: the cache, which the
    node itself writes to, is one.
    """
    digest = hashlib.sha256(str(folder).encode())
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            status = os.lstat(os.path.join(root, name))
            digest.update(f"{root}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _sockets(dataset: "Dataset") -> tuple[list[dict], list[list]]:
    """LATENT and CONDITIONING of each sample."""
    latents, positive = [], []
    empty_text = dataset.empty_text
    for index in range(len(dataset)):
        sample = dataset.load(index)
        std, images = cast(torch.Tensor, sample.get("std")), sample.get("images")
        latent = {
            "samples": sample["latents"][None],
            "cogvideox_std": std[None],
            "cogvideox_empty_text": empty_text,
            "cogvideox_dataset": dataset.hash,
        }
        values: dict[str, Any] = {"pooled_output": None}
        if images is not None:
            latent["cogvideox_images"] = images
            # The entries that CogVideoX Image to Video adds for a start image without an end image (keys.image_concat):
            # the clean first frame, [1, 16, 1, h, w].
            values |= {
                "concat_latent_image": images[:1],
                "cogvideox_task": "image",
                "cogvideox_scale": "checkpoint",
                "cogvideox_end": False,
            }
        latents.append(latent)
        positive.append([[sample["text"][None], values]])
    return latents, positive
