"""The models of a server of one's own: where they lie, and their names before the server starts.

    python -m cogvideox.devtools.run.local_models COMFYUI BASE [EXTRA_MODEL_PATHS ...]

prints the lists of the pack's loaders as JSON, as a server with these folders has them.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import DevError
from .options import LISTS

EXTRA_PATHS = "extra_model_paths.yaml"
# ComfyUI's names for folders of models -> their paths below its folder models.
_FOLDERS = {
    "checkpoints": "checkpoints",
    "diffusers": "diffusers",
    "diffusion_models": "unet\ndiffusion_models",
    "loras": "loras",
    "text_encoders": "text_encoders\nclip",
    "vae": "vae",
}


def write_extra_paths(models: Path, scratch: Path, custom_nodes: Path | None = None) -> list[Path]:
    """Configurations by which a server finds the folder `models` of another ComfyUI, and what that one is told besides.

    scratch: where to write one. custom_nodes: a folder of further packs of nodes.
    """
    ours = scratch / EXTRA_PATHS
    others = {folder.name: folder.name for folder in models.glob("*/")}  # upscale_models and whatever packs have
    folders = {
        kind: "\n".join(str(models / path) for path in paths.split("\n"))
        for kind, paths in {**others, **_FOLDERS}.items()
    }
    if custom_nodes is not None:
        folders["custom_nodes"] = str(custom_nodes)
    ours.write_text(json.dumps({"cogvideox": folders}), "utf-8")  # JSON is YAML as well
    theirs = models.parent / EXTRA_PATHS
    return [ours, theirs] if theirs.is_file() else [ours]


def local_lists(python: Path, host: Path, base: Path, extra: Sequence[Path]) -> dict[str, list[str]]:
    """The names that a server's loaders will offer, by the keys of LISTS. Raises: DevError."""
    command = [str(python), "-m", __name__, str(host), str(base), *map(str, extra)]
    made = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if made.returncode:
        cause = (made.stderr.strip().splitlines() or ["no message"])[-1]
        raise DevError(f"The models could not be listed ({cause}): check {EXTRA_PATHS} in {host}.")
    return json.loads(made.stdout.splitlines()[-1])


def _list(host: Path, base: Path, extra: Sequence[str]) -> dict[str, list[str]]:
    """As main.py of ComfyUI sets up its folders, without the rest of it."""
    from cogvideox.host.standalone import use_comfyui

    use_comfyui(comfyui=host)
    importlib.import_module("comfy.cli_args").args.base_directory = str(base)
    folder_paths = importlib.import_module("folder_paths")
    read = importlib.import_module("utils.extra_config").load_extra_path_config
    own = host / EXTRA_PATHS
    for file in dict.fromkeys(
        os.path.realpath(file) for file in ([own] if own.is_file() else []) + [*map(Path, extra)]
    ):
        read(file)
    for kind in ("checkpoints", "clip", "vae", "diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.get_output_directory(), kind))
    from cogvideox.host import folders
    from cogvideox.host.toy import with_toy

    names = {
        "pipeline": folders.list_pipelines() + folders.list_files("checkpoints"),
        "transformer": folders.list_components("transformer", "diffusion_models"),
        "text_encoder": folders.list_components("text_encoder", "text_encoders"),
        "vae": folders.list_components("vae", "vae"),
        "lora": folders.list_files("loras", folders.LORA_SUFFIXES),
    }
    return {kind: with_toy(names[kind], kind) for kind in LISTS}


if __name__ == "__main__":
    print(json.dumps(_list(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
