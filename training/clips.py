"""A dataset on disk: which clips a folder holds, and what their captions are."""

import csv
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import GeometryError, TrainingError
from ..vae.geometry import check_size

CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # of the numbered pictures in a folder that is one clip
CROPS = ("center", "random")
SHORTER = ("skip", "bucket")
BUCKETS = ("fixed", "auto")
_COLUMNS = ("file_name", "text")
_EXPECTED = (
    "Expected are clips (mp4, webm, mov, mkv, avi, gif, animated webp, or folders of numbered pictures) with captions "
    "beside them (clip.txt for clip.mp4), a metadata.csv or metadata.jsonl with file_name and text, or prompts.txt and "
    "videos.txt"
)


@dataclass(frozen=True)
class DatasetSpec:
    """What becomes of each clip.

    frames (4k + 1; the models were trained with 8k + 1), width, height (multiples of 16): the size asked for.
    choices: further (width, height, frames). A clip goes to the nearest aspect ratio, then to the longest it fills.
    fps: frames a second that the model is trained at; 0 takes each clip's frames as they are.
    crop: what is cut off where the aspect ratio is another, "center" or "random" (by clip and seed).
    segments: take up to so many pieces of a long clip, evenly spaced, none over another; 1 takes its first frames.
    shorter: a clip that fills no choice is left out ("skip"), or takes the next lower 8k + 1 frames ("bucket").
    buckets: "fixed" sizes, or "auto": each clip's own aspect ratio, at the area of the size asked for.
    image_to_video: keep latents of the first frame: the clean one, and image_variants with noise on it.
    """

    frames: int = 49
    width: int = 720
    height: int = 480
    fps: float = 8.0
    choices: tuple[tuple[int, int, int], ...] = ()
    crop: str = "center"
    segments: int = 1
    shorter: str = "skip"
    buckets: str = "fixed"
    image_to_video: bool = False
    image_variants: int = 4
    seed: int = 0

    def sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (width, height, frames) that a clip may go to, the one asked for first."""
        return ((self.width, self.height, self.frames), *(tuple(size) for size in self.choices))


@dataclass(frozen=True)
class Clip:
    """name: the path inside the dataset, with /. path: a file, or a folder of pictures."""

    name: str
    path: Path
    caption: str


def check_spec(spec: DatasetSpec) -> None:
    """Raises GeometryError for a size that no video has, TrainingError for another setting that is none."""
    for width, height, frames in spec.sizes():
        try:
            check_size(width, height, frames)
        except GeometryError as error:
            raise GeometryError(f"The clips' size {width} x {height}, {frames} frames: {error}") from error
    choices = {"crop": CROPS, "shorter": SHORTER, "buckets": BUCKETS}
    for name, known in choices.items():
        if getattr(spec, name) not in known:
            raise TrainingError(f"{name} is {getattr(spec, name)!r}: use {' or '.join(known)}.")
    for name, least in (("fps", 0), ("segments", 1), ("image_variants", 0)):
        if not least <= getattr(spec, name) < float("inf"):  # NaN neither
            raise TrainingError(f"{name} is {getattr(spec, name)}: use {least} or more.")


def find_clips(folder: Path) -> tuple[list[Clip], list[str]]:
    """The clips of a dataset that have a caption, and a sentence on each that cannot be taken.

    Raises TrainingError where there is no such folder, no clip in it, or its list of captions cannot be read.
    """
    if not folder.is_dir():
        raise TrainingError(f"There is no folder {folder}. Name the folder that holds the clips and their captions.")
    listed = _listed(folder)
    clips, problems = _beside(folder) if listed is None else _resolved(folder, *listed)
    if not clips and not problems:
        raise TrainingError(f"There is no clip in {folder}. {_EXPECTED}.")
    return clips, problems


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder by number: frame_2 comes before frame_10."""
    found = [path for path in folder.iterdir() if _is_shown(path.name, PICTURE_SUFFIXES)]
    return sorted(found, key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)])


def _listed(folder: Path) -> tuple[str, list[tuple[str, str]]] | None:
    """The name of the dataset's list of captions and its rows (file name, caption); None where there is no list."""
    for name, read in (("metadata.jsonl", _json_rows), ("metadata.csv", _csv_rows)):
        if (folder / name).is_file():
            return name, read(folder / name)
    prompts, videos = folder / "prompts.txt", folder / "videos.txt"
    if not (prompts.is_file() and videos.is_file()):
        return None
    captions, names = (_text(path).strip("\n").split("\n") for path in (prompts, videos))
    if len(captions) != len(names):
        raise TrainingError(
            f"{prompts} has {len(captions)} lines and {videos.name} {len(names)}. Line by line they name a caption and "
            "its clip: give both as many lines."
        )
    return prompts.name, list(zip(names, captions))


def _json_rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows.append(tuple(str(row[column]) for column in _COLUMNS))
            except (ValueError, KeyError, TypeError) as error:
                raise TrainingError(
                    f'{path}, line {number}, is not {{"file_name": "clip.mp4", "text": "a caption"}} '
                    f"({type(error).__name__}: {error}). Mend or delete that line."
                ) from error
    return rows


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    reader = csv.DictReader(_text(path).splitlines())
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise TrainingError(
            f"{path} has no column {' and no column '.join(missing)}; its first line names "
            f"{', '.join(reader.fieldnames or ['nothing'])}. Let it be: file_name,text"
        )
    return [tuple(row[column] or "" for column in _COLUMNS) for row in reader]


def _resolved(folder: Path, list_name: str, rows: list[tuple[str, str]]) -> tuple[list[Clip], list[str]]:
    clips, problems = [], []
    for name, caption in rows:
        name, caption = name.strip(), caption.strip()
        path = folder / name
        if not name or not path.exists():
            problems.append(f"{name or 'A clip without a name'}: {list_name} names it and there is no such file.")
        elif not caption:
            problems.append(f"{name}: it has no caption in {list_name}.")
        else:
            clips.append(Clip(name, path, caption))
    return clips, problems


def _beside(folder: Path) -> tuple[list[Clip], list[str]]:
    clips, problems = [], []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        try:
            caption = _caption_of(path)
        except TrainingError as error:
            problems.append(f"{name}: {error}")
            continue
        if caption:
            clips.append(Clip(name, path, caption))
        else:
            problems.append(f"{name}: it has no caption. Write one into {_caption_files(path)[0].name} beside it.")
    return clips, problems


def _walk(folder: Path) -> list[Path]:
    """Every clip below `folder`: files, and folders that hold pictures and no clip."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [Path(root) / name for name in files if _is_shown(name, CLIP_SUFFIXES)]
        found += here
        if not here and Path(root) != folder and any(_is_shown(name, PICTURE_SUFFIXES) for name in files):
            found.append(Path(root))
    return sorted(found)


def _caption_of(path: Path) -> str:
    return next((_text(file).strip() for file in _caption_files(path) if file.is_file()), "")


def _caption_files(path: Path) -> list[Path]:
    """Where a clip's caption may lie; the second is the official fine-tuning code's: videos/1.mp4, labels/1.txt."""
    name = f"{path.name if path.is_dir() else path.stem}.txt"
    return [path.parent / name] + ([path.parent.parent / "labels" / name] if path.parent.name == "videos" else [])


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _text(path: Path) -> str:
    """Raises TrainingError where `path` is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as UTF-8 text ({error}). Save it anew as UTF-8.") from error
