"""Clips and captions to train with."""

import hashlib
import itertools
import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import io

from ..host import folders
from ..host.messages import show_on_node
from ..host.toy import CLIPS
from ..keys import Latent, image_concat, training_latent
from ..system.file_names import is_system_file
from ..training.clips import CACHE, DatasetSpec, walk_dataset
from .file_inputs import checks_files
from .input_checks import check_vae, check_video_size, checked
from .inputs import clip_input, vae_input
from .search_words import SEARCH_WORDS
from .setting_inputs import widget

if TYPE_CHECKING:  # it needs PyAV and more, which ComfyUI's start must not wait for
    from ..training.dataset import Dataset


HAS_CHANGE_TIME = os.name != "nt"  # Windows' st_ctime is the time of creation, which a change leaves as it is
_SAMPLED_BYTES = 1 << 16
_SETTINGS = ("frames", "width", "height", "fps", "buckets", "shorter", "image_to_video", "image_variants")


def _check_folder(folder: str) -> None:
    folders.find_dataset(folder)


@checks_files
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
            search_aliases=SEARCH_WORDS["CogVideoXTrainingClips"],
            description=(
                "Encode a folder of clips and captions for training. What is encoded stays on disk: the next time only "
                "what has changed is encoded again."
            ),
            inputs=[
                vae_input(),
                clip_input(),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="A folder in ComfyUI's input folder, or in a folder for datasets that you have named. "
                    f"{CLIPS} are an example that comes with the pack.",
                ),
                *(widget(DatasetSpec, name) for name in _SETTINGS),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", is_output_list=True, tooltip="A list, one encoded clip each."),
                io.Conditioning.Output(
                    display_name="positive", is_output_list=True, tooltip="A list, one encoded caption each."
                ),
                io.String.Output(
                    display_name="report", tooltip="Which clips are left out and why, and what sizes there are."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    # The folder's name stays the same when clips are added. None: it is linked, and ComfyUI does not know it yet. Then
    # it may be any folder for datasets, and a change in any of them counts. Otherwise a changed clip would not be seen.
    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> str:
        return listing_hash(*(folders.list_datasets() if folder is None else [folders.find_dataset(folder)]))

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
        path = folders.find_dataset(folder)
        cache = folders.dataset_cache(path)
        dataset = build_dataset(path, spec, vae, clip, progress=bar.update_absolute, cache_folder=cache)
        report = "\n".join(dataset.report)
        show_on_node(report, cls.hidden.unique_id)
        return io.NodeOutput(*_sockets(dataset), report)


def listing_hash(*listed: Path) -> str:
    """A hash of the names and states of all files that a dataset in these folders may read, without the cache, which
    the node itself writes to."""
    digest = hashlib.sha256("\n".join(map(str, listed)).encode(errors="backslashreplace"))
    for root, inner, files in itertools.chain.from_iterable(map(walk_dataset, listed)):
        # Not by an exception: ComfyUI catches all that fingerprint_inputs raises, and the interrupt would be lost.
        if mm.processing_interrupted():
            break
        # Hidden ones stay: a list of captions may name a clip in there.
        inner[:] = sorted(name for name in inner if name != CACHE)
        for name in sorted(name for name in files if not is_system_file(name)):
            state = _state_of(root / name)
            digest.update(f"{root}/{name} {state}\n".encode(errors="backslashreplace"))
    return digest.hexdigest()


def _state_of(path: Path) -> tuple[object, ...]:
    """What changes whenever the contents of a file do, or of the file that a link leads to; () where there is none.

    A copy, an archive and rsync can give a file the size and the time of the one that it replaces. Then the inode's own
    time of change tells, which no program can set.
    """
    try:
        status = path.stat()
        state = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        if HAS_CHANGE_TIME or not stat.S_ISREG(status.st_mode):
            return state
        with path.open("rb") as file:
            start = file.read(_SAMPLED_BYTES)
            file.seek(max(0, status.st_size - _SAMPLED_BYTES))
            return *state, zlib.crc32(start), zlib.crc32(file.read(_SAMPLED_BYTES))
    except OSError:  # deleted meanwhile, or a link that leads nowhere
        return ()


def _sockets(dataset: "Dataset") -> tuple[list[Latent], list[list]]:
    """LATENT and CONDITIONING of each sample."""
    latents: list[Latent] = []
    positive: list[list] = []
    empty_text = dataset.empty_text
    for index in range(len(dataset)):
        mm.throw_exception_if_processing_interrupted()
        sample = dataset.load(index)
        std, images = cast(torch.Tensor, sample.get("std")), sample.get("images")
        latents.append(training_latent(sample["latents"][None], std[None], images, empty_text, dataset.hash))
        values: dict[str, Any] = {"pooled_output": None}
        if images is not None:
            # As CogVideoX Image to Video does for a start image without an end image: the clean first frame,
            # [1, 16, 1, h, w].
            values |= image_concat(images[:1], "checkpoint", has_end=False)
        positive.append([[sample["text"][None], values]])
    return latents, positive
