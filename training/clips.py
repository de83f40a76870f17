"""A dataset on disk: which clips a folder holds, and what their captions are."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, quoted
from ..host.compat import throw_if_interrupted
from ..host.folders import DATASETS, DATASETS_VARIABLE, is_in_datasets
from ..system.inside import is_inside, is_spelled_inside
from ..vae.geometry import SIZE_STEP, TEMPORAL, check_size
from .caption_lists import Row, UnusableClipError, read_csv_rows, read_json_rows, read_line_pairs, read_text
from .config import MAX_SEED
from .fields import check_settings, setting

CACHE = ".cogvideox_cache"  # of what is encoded of a dataset, in its folder
CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # of the numbered pictures in a folder that is one clip
CROPS = ("center", "random")
SHORTER = ("skip", "bucket")
BUCKETS = ("fixed", "auto")
MAX_SIDE, MAX_FRAMES = 16384, 1025
MAX_CAPTION_BYTES = 1 << 16  # a caption of 226 tokens has about 1,000 bytes
_OUTSIDE = (
    f"leads out of the folder. Put the file itself there, or name the folder that it is in under {DATASETS} in "
    f"extra_model_paths.yaml or in the environment variable {DATASETS_VARIABLE}."
)
_EXPECTED = (
    "It should hold clips (mp4, webm, mov, mkv, avi, gif, animated webp, or folders of numbered pictures) and their "
    "captions: clip.txt next to clip.mp4, a metadata.csv or metadata.jsonl with file_name and text, or prompts.txt and "
    "videos.txt"
)


@dataclass(frozen=True)
class DatasetSpec:
    """How each clip is cut, resized and encoded.

    choices: further (width, height, frames). Of all sizes a clip gets the one with the nearest aspect ratio, and among
    these the one with the most frames that it fills.
    image_to_video: keep latents of the first frame as well: the clean one, and image_variants with noise on it.
    """

    frames: int = setting(
        49,
        "Frames of each clip, 4k + 1: 49 for CogVideoX, 81 for CogVideoX 1.5. The models were trained on 8k + 1.",
        least=1,
        most=MAX_FRAMES,
        step=TEMPORAL,
    )
    width: int = setting(720, "Pixels, a multiple of 16.", least=SIZE_STEP, most=MAX_SIDE, step=SIZE_STEP)
    height: int = setting(480, "Pixels, a multiple of 16.", least=SIZE_STEP, most=MAX_SIDE, step=SIZE_STEP)
    fps: float = setting(
        8.0,
        "Frames a second that are taken: 8 for CogVideoX, 16 for CogVideoX 1.5. 0: all there are.",
        least=0.0,
        most=120.0,
        step=0.001,  # 23.976
    )
    buckets: str = setting(
        "fixed",
        "fixed: every clip is cut to width x height. auto: it keeps its own shape, at that area.",
        choices=BUCKETS,
    )
    shorter: str = setting(
        "skip",
        "Clips with fewer frames: skip leaves them out, bucket takes the next lower 8k + 1 of their frames.",
        choices=SHORTER,
    )
    crop: str = setting(
        "center", "What is kept of a clip of another shape: its center, or a random part.", choices=CROPS
    )
    segments: int = setting(1, "Segments that are cut from a long clip, at most; 1 takes its first frames.", least=1)
    image_to_video: bool = setting(
        False, "Keep latents of each clip's first frame as well, for image to video models.", from_recipe=False
    )
    image_variants: int = setting(
        4,
        "Image to video: how many more latents of the first frame to keep, with noise on the picture, as in the "
        "official training.",
        least=0,
        most=64,
    )
    seed: int = setting(0, "Random crops and the noise on first frames come from it.", least=0, most=MAX_SEED)
    choices: tuple[tuple[int, int, int], ...] = ()

    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (width, height, frames) that a clip may go to, the one asked for first."""
        return ((self.width, self.height, self.frames), *self.choices)


class Clip(NamedTuple):
    """name: the path inside the dataset, with /. path: a file, or a folder of pictures."""

    name: str
    path: Path
    caption: str


def check_spec(spec: DatasetSpec) -> None:
    """Raises UserError for a setting outside its limits, or a size that no video has."""
    check_settings(spec)
    for width, height, frames in spec.sizes():
        try:
            check_size(width, height, frames)
        except UserError as error:
            raise UserError(f"The clips cannot be {width} x {height} with {frames} frames: {error}") from error


def find_clips(folder: Path) -> tuple[list[Clip], list[str]]:
    """The clips of a dataset that have a caption, and a sentence on each that cannot be taken.

    Raises UserError where there is no such folder, no clip in it, or its list of captions cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name the folder that holds the clips and their captions.")
    listed = _listed(folder)
    clips, problems = _with_captions(folder) if listed is None else _resolved(folder, *listed)
    if not clips and not problems:
        raise UserError(f"There is no clip in {folder}. {_EXPECTED}.")
    return clips, problems


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names: frame_2 comes before frame_10."""
    found = [path for path in folder.iterdir() if _is_shown(path.name, PICTURE_SUFFIXES)]
    # To open a FIFO would wait for ever.
    found = [path for path in found if path.is_file() and _is_allowed(path, folder)]
    return sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def _listed(folder: Path) -> tuple[str, list[Row]] | None:
    """The name of the dataset's list of captions and its rows; None where there is no list."""
    for name, read in (("metadata.jsonl", read_json_rows), ("metadata.csv", read_csv_rows)):
        if (folder / name).is_file() and _is_allowed(folder / name, folder):
            return name, read(folder / name)
    prompts, videos = folder / "prompts.txt", folder / "videos.txt"
    if not all(path.is_file() and _is_allowed(path, folder) for path in (prompts, videos)):
        return None
    return prompts.name, read_line_pairs(prompts, videos)


def _resolved(folder: Path, list_name: str, rows: list[Row]) -> tuple[list[Clip], list[str]]:
    """A clip for each row of a list that names one in `folder`, and a sentence on each other row.

    A list may have been downloaded together with its clips, so that nothing outside of the folder is opened for it.
    """
    clips: list[Clip] = []
    problems: list[str] = []
    for line, name, caption in rows:
        throw_if_interrupted()
        name, caption = name.strip(), caption.strip()
        shown, where = quoted(name) or "A clip without a name", f"{list_name}, line {line},"
        path = _path_of(name, folder)
        if not _is_allowed(path, folder):
            problems.append(f"{shown}: {where} names it, but it {_OUTSIDE}")
        elif not name or not _is_there(path):
            problems.append(f"{shown}: {where} names it, but there is no such file.")
        elif not caption:
            problems.append(f"{shown}: it has no caption; {where} names none.")
        elif len(caption.encode()) > MAX_CAPTION_BYTES:
            problems.append(f"{shown}: its caption in {where} has more than {MAX_CAPTION_BYTES} bytes.")
        else:
            clips.append(Clip(name, path, caption))
    return clips, problems


def _is_allowed(path: Path, folder: Path) -> bool:
    """Whether a file of the dataset in `folder` may be opened: it is inside, links followed, or in a folder that the
    user has named for datasets."""
    return is_spelled_inside(path, folder) and (is_inside(path, folder) or is_in_datasets(path))


def _path_of(name: str, folder: Path) -> Path:
    """Where a list's clip is: as it is written first, for on Linux a name may hold a backslash. A list from Windows has
    it between folders."""
    path = folder / name
    # Nothing outside of the folder is asked for.
    if "\\" not in name or "\0" in name or not _is_allowed(path, folder) or _is_there(path):
        return path
    other = folder / name.replace("\\", "/")
    return other if _is_allowed(other, folder) else path


def _is_there(path: Path) -> bool:
    """Whether a clip may be at `path`: a file or a folder, no device or FIFO."""
    return os.path.isfile(path) or os.path.isdir(path)


def _with_captions(folder: Path) -> tuple[list[Clip], list[str]]:
    clips, problems = [], []
    for path in _walk(folder):
        throw_if_interrupted()
        name = path.relative_to(folder).as_posix()
        if not _is_allowed(path, folder):
            problems.append(f"{name}: it {_OUTSIDE}")
            continue
        if not _is_unicode(name):
            problems.append(f"{name}: its name is not UTF-8 text. Rename it.")
            continue
        try:
            caption = _caption_of(path, folder)
        except UnusableClipError as error:
            problems.append(f"{name}: {error}")
            continue
        if caption:
            clips.append(Clip(name, path, caption))
        else:
            problems.append(f"{name}: it has no caption. Write one into {_caption_files(path)[0].name} next to it.")
    return clips, problems


def _walk(folder: Path) -> list[Path]:
    """Every clip below `folder`: files, and folders that hold pictures and no clip. Linked folders that lead out are
    among them, to be reported."""
    found = []
    for root, folders, files in walk_dataset(folder):
        throw_if_interrupted()
        found += [root / name for name in folders if not name.startswith(".") and not _is_allowed(root / name, folder)]
        # In place, so that they are not entered: .cogvideox_cache is one.
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [root / name for name in files if _is_shown(name, CLIP_SUFFIXES)]
        found += [path for path in here if path.is_file()]
        if not here and root != folder and any(_is_shown(name, PICTURE_SUFFIXES) for name in files):
            found.append(root)
    return sorted(found)


def walk_dataset(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`folder` and every folder below it, each with the names of its folders and of its files, as os.walk gives them.

    Links to folders in other folders for datasets are followed, each folder once. Links within `folder` are not: what
    they lead to is walked anyway. The caller may take names out of the list of folders.
    """
    whole = Path(os.path.realpath(folder))
    seen = {str(whole)}
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root)
        true_root = os.path.realpath(root)
        yield here, folders, files
        kept = []
        for name in folders:
            target = os.path.realpath(here / name)
            # By the path and not by islink, which takes Windows' junctions for folders.
            is_link = os.path.normcase(target) != os.path.normcase(os.path.join(true_root, name))
            if target not in seen and (not is_link or _leads_to_another(here / name, folder)):
                seen.add(target)
                kept.append(name)
        folders[:] = kept


def _leads_to_another(path: Path, folder: Path) -> bool:
    """Whether a link of the dataset in `folder` leads out of it, to where the user has named a folder for datasets."""
    return _is_allowed(path, folder) and not is_inside(path, folder)


def _caption_of(path: Path, folder: Path) -> str:
    files = (file for file in _caption_files(path) if file.is_file() and _is_allowed(file, folder))
    return next((read_text(file, MAX_CAPTION_BYTES).strip() for file in files), "")


def _caption_files(path: Path) -> list[Path]:
    """Where a clip's caption may be, best first: next to it, or in labels/1.txt for videos/1.mp4 (THUDM/CogVideo
    sat/data_video.py, SFTDataset)."""
    name = f"{path.name if path.is_dir() else path.stem}.txt"
    return [path.parent / name] + ([path.parent.parent / "labels" / name] if path.parent.name == "videos" else [])


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")  # "._clip.mp4" is one of macOS' system files


def _is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: a name of a file whose bytes are not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
