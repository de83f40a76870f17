"""Download checkpoints from a model hub into ComfyUI's model folders."""

import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..errors import UserError
from ..host.messages import show_on_node
from ..model_loaders.downloads.background import Cancelled
from ..model_loaders.downloads.fetch import Progress, download_checkpoint
from ..model_loaders.downloads.manifest import MANIFEST, is_complete
from ..model_loaders.downloads.repositories import HUGGING_FACE, REPOSITORIES, SOURCES, find_repository, find_source
from .input_checks import checked
from .search_words import SEARCH_WORDS

_MB = 10**6
_SHOW_S = 0.5
_CHOICES = "\n".join(f"{entry.describe()}, made for {entry.made_for}" for entry in REPOSITORIES)


def _folder(name: str) -> Path:
    """The folder that the checkpoint of that name has, or will have.

    Raises UserError where ComfyUI has no models/diffusers folder.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths("diffusers")]
    if not roots:
        raise UserError("This ComfyUI has no models/diffusers folder. Check its extra_model_paths.yaml.")
    return next((root / name for root in roots if (root / name).is_dir()), roots[0] / name)


class _Display:
    """A download's progress on the node: the bar, and a line of text twice a second, with speed, size and time left."""

    def __init__(self, node_id: str | None):
        self.node_id, self.bar, self.shown = node_id, None, 0.0

    def __call__(self, progress: Progress) -> None:
        # At the first call: the total is not known before.
        self.bar = self.bar or comfy.utils.ProgressBar(max(progress.total // _MB, 1), node_id=self.node_id)
        self.bar.update_absolute(progress.done // _MB)
        if time.monotonic() - self.shown >= _SHOW_S:
            self.shown = time.monotonic()
            show_on_node(progress.describe(), self.node_id)


@checked()
class CogVideoXDownload(io.ComfyNode):
    """A checkpoint of the model hub -> the name of its folder under models/diffusers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXDownload",
            display_name="CogVideoX Download",
            category="CogVideoX/load",
            search_aliases=SEARCH_WORDS["CogVideoXDownload"],
            description=(
                "Download a checkpoint from a model hub into models/diffusers: 13 to 31 GB, under the licence of the "
                "checkpoint, which you accept by downloading it (the tooltip of the input lists them). An interrupted "
                "download is resumed, and every file is compared with the hub's hash."
            ),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[entry.name for entry in REPOSITORIES],
                    default=REPOSITORIES[0].name,
                    tooltip=_CHOICES,
                ),
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default=HUGGING_FACE,
                    optional=True,
                    tooltip="Hugging Face, or the mirror of it that the environment variable HF_ENDPOINT names; or "
                    "ModelScope, where the same authors publish. What one has begun, the other goes on with.",
                ),
            ],
            # The loaders' inputs are combos, to which ComfyUI links no STRING (comfy_execution/validation.py).
            outputs=[io.Combo.Output(display_name="folder", tooltip="The folder's name, for Load CogVideoX Pipeline.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, source: str | None = HUGGING_FACE) -> float:
        """NaN, which equals nothing, as long as a file is missing: ComfyUI runs the node again until all are there."""
        if checkpoint is None:  # linked: ComfyUI does not know the value yet
            return float("nan")
        folder = _folder(find_repository(checkpoint).name)
        return (folder / MANIFEST).stat().st_mtime if is_complete(folder) else float("nan")

    @classmethod
    def execute(cls, checkpoint: str, source: str = HUGGING_FACE) -> io.NodeOutput:
        entry, source = find_repository(checkpoint), find_source(source)
        folder = _folder(entry.name)
        show_on_node(f"{entry.describe()}, from {entry.on(source)} on {source}, into {folder}", cls.hidden.unique_id)
        try:
            downloaded = download_checkpoint(
                entry,
                folder,
                _Display(cls.hidden.unique_id),
                comfy.model_management.processing_interrupted,
                source,
            )
        except Cancelled:
            # Raises ComfyUI's own exception and clears the interrupt flag: the run shows as cancelled, not as failed.
            comfy.model_management.throw_exception_if_processing_interrupted()
            raise
        what = f"{downloaded / 1e9:.2f} GB downloaded" if downloaded else "nothing to download"
        show_on_node(
            f"{entry.name} is complete and verified: {what}. Licence: {entry.licence}, {entry.licence_url}",
            cls.hidden.unique_id,
        )
        return io.NodeOutput(entry.name)
