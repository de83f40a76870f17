"""A dataset on disk: which clips a folder holds, and what their captions are."""

import csv
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, quoted
from ..host.compat import throw_if_interrupted
from ..host.folders import DATASETS, DATASETS_VARIABLE, is_in_datasets
from ..host.inside import is_inside, is_spelled_inside
from ..small_files import read_small_text
from ..vae.geometry import SIZE_STEP, check_size
from .config import MAX_SEED
from .fields import check_settings, setting

CLIP_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")  # of the numbered pictures in a folder that is one clip
CROPS = ("center", "random")
SHORTER = ("skip", "bucket")
BUCKETS = ("fixed", "auto")
MAX_SIDE, MAX_FRAMES = 16384, 1025
MAX_LIST_BYTES, MAX_CAPTION_BYTES = 1 << 26, 1 << 16  # a caption of 226 tokens has about 1,000 bytes
_OUTSIDE = (
    f"leads out of the folder. Put the file itself there, or name the folder that it is in under {DATASETS} in "
    f"extra_model_paths.yaml or in the environment variable {DATASETS_VARIABLE}."
)
_MAX_ROW_LETTERS = 1 << 20  # of a list of captions; a caption has at most a sixteenth of it
_COLUMNS = ("file_name", "text")
_EXPECTED = (
    "It should hold clips (mp4, webm, mov, mkv, avi, gif, animated webp, or folders of numbered pictures) and their "
    "captions: clip.txt next to clip.mp4, a metadata.csv or metadata.jsonl with file_name and text, or prompts.txt and "
    "videos.txt"
)


class UnusableClipError(UserError):
    """One clip of a dataset cannot be used. It is left out, the report names it, and the others are used."""


@dataclass(frozen=True)
class DatasetSpec:
    """How each clip is cut, resized and encoded.

    choices: further (width, height, frames). Of all sizes a clip gets the one with the nearest aspect ratio, and among
    these the one with the most frames that it fills.
    image_to_video: keep latents of the first frame as well: the clean one, and image_variants with noise on it.
    """

    frames: int = setting(
        49, "Frames of each clip, 8k + 1: 49 for CogVideoX, 81 for CogVideoX 1.5.", least=1, most=MAX_FRAMES, step=8
    )
    width: int = setting(720, "Pixels, a multiple of 16.", least=SIZE_STEP, most=MAX_SIDE, step=SIZE_STEP)
    height: int = setting(480, "Pixels, a multiple of 16.", least=SIZE_STEP, most=MAX_SIDE, step=SIZE_STEP)
    fps: float = setting(
        8.0,
        "Frames a second that are taken: 8 for CogVideoX, 16 for CogVideoX 1.5. 0: all there are.",
        least=0.0,
        most=120.0,
        step=0.01,
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


@dataclass(frozen=True)
class Clip:
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


def _listed(folder: Path) -> tuple[str, list[tuple[str, str]]] | None:
    """The name of the dataset's list of captions and its rows (file name, caption); None where there is no list."""
    for name, read in (("metadata.jsonl", _json_rows), ("metadata.csv", _csv_rows)):
        if (folder / name).is_file() and _is_allowed(folder / name, folder):
            return name, read(folder / name)
    # The layout of the official trainer (THUDM/CogVideo finetune/README.md).
    prompts, videos = folder / "prompts.txt", folder / "videos.txt"
    if not all(path.is_file() and _is_allowed(path, folder) for path in (prompts, videos)):
        return None
    # Empty lines between others count: line n of one file belongs to line n of the other.
    captions, names = (_text(path, MAX_LIST_BYTES).strip("\n").split("\n") for path in (prompts, videos))
    if len(captions) != len(names):
        raise UserError(
            f"{prompts} has {len(captions)} lines and {videos.name} {len(names)}. Line by line they name a caption and "
            "its clip: give both as many lines."
        )
    return prompts.name, list(zip(names, captions))


def _json_rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(_text(path, MAX_LIST_BYTES).split("\n"), 1):
        throw_if_interrupted()
        _require_row(len(line), path)
        if line.strip():
            try:
                row = json.loads(line)
                name, text = row["file_name"], row["text"]
                if not (isinstance(name, str) and isinstance(text, str)):
                    raise TypeError("null would become the caption None")
                rows.append((name, text))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                # Without the error's own words, which may repeat what the line contains.
                raise UserError(
                    f'{path}, line {number}, is not {{"file_name": "clip.mp4", "text": "a caption"}}. Correct or '
                    "delete that line."
                ) from error
    return rows


class _Lines:
    """The lines of a table. letters: of those that the reader has taken for the row that it is reading."""

    def __init__(self, path: Path):
        self.path, self.letters = path, 0
        self._lines = io.StringIO(_text(path, MAX_LIST_BYTES), newline="")

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.letters += len(line)
        _require_row(self.letters, self.path)
        return line


def _require_row(letters: int, path: Path) -> None:
    """Raises UserError for a row that is read into a thousand times the memory of any other."""
    if letters > _MAX_ROW_LETTERS:
        raise UserError(f"{path} has a row of more than {_MAX_ROW_LETTERS} letters. Correct or delete it.")


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    lines = _Lines(path)
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
        missing = [column for column in _COLUMNS if column not in header]
        if missing:
            raise UserError(
                f"{path} has no column {' and no column '.join(missing)}. Let its first line be: file_name,text"
            )
        name, text = map(header.index, _COLUMNS)
        rows = []
        for row in reader:
            throw_if_interrupted()
            lines.letters = 0  # the next row's
            if row:  # an empty line is no clip
                cells = [*row, *[""] * (1 + max(name, text) - len(row))]
                rows.append((cells[name], cells[text]))
        return rows
    except csv.Error as error:  # a field of more than 128 KiB, or a NUL
        raise UserError(f"{path} cannot be read as a table ({error}). Save it again as CSV in UTF-8.") from error


def _resolved(folder: Path, list_name: str, rows: list[tuple[str, str]]) -> tuple[list[Clip], list[str]]:
    """A clip for each row of a list that names one in `folder`, and a sentence on each other row.

    A list may have been downloaded together with its clips, so that nothing outside of the folder is opened for it.
    """
    clips: list[Clip] = []
    problems: list[str] = []
    for name, caption in rows:
        throw_if_interrupted()
        name, caption = name.strip(), caption.strip()
        shown = quoted(name) or "A clip without a name"
        path = folder / name
        if not _is_allowed(path, folder):
            problems.append(f"{shown}: {list_name} names it, but it {_OUTSIDE}")
        elif not name or not (os.path.isfile(path) or os.path.isdir(path)):  # no device or FIFO
            problems.append(f"{shown}: {list_name} names it, but there is no such file.")
        elif not caption:
            problems.append(f"{shown}: it has no caption in {list_name}.")
        elif len(caption.encode("utf-8", "replace")) > MAX_CAPTION_BYTES:
            problems.append(f"{shown}: its caption in {list_name} has more than {MAX_CAPTION_BYTES} bytes.")
        elif not _is_unicode(name + caption):
            problems.append(f"{shown}: its name or its caption contains what is no Unicode text.")
        else:
            clips.append(Clip(name, path, caption))
    return clips, problems


def _is_allowed(path: Path, folder: Path) -> bool:
    """Whether a file of the dataset in `folder` may be opened: it is inside, links followed, or in a folder that the
    user has named for datasets."""
    return is_spelled_inside(path, folder) and (is_inside(path, folder) or is_in_datasets(path))


def _is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: a name of a file whose bytes are not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """Every clip below `folder`: files, and folders that hold pictures and no clip."""
    found = []
    for root, folders, files in os.walk(folder):
        throw_if_interrupted()
        # In place, so that os.walk does not enter them: .cogvideox_cache is one.
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [Path(root) / name for name in files if _is_shown(name, CLIP_SUFFIXES)]
        found += [path for path in here if path.is_file()]
        if not here and Path(root) != folder and any(_is_shown(name, PICTURE_SUFFIXES) for name in files):
            found.append(Path(root))
    return sorted(found)


def _caption_of(path: Path, folder: Path) -> str:
    files = (file for file in _caption_files(path) if file.is_file() and _is_allowed(file, folder))
    return next((_text(file, MAX_CAPTION_BYTES).strip() for file in files), "")


def _caption_files(path: Path) -> list[Path]:
    """Where a clip's caption may be, best first: next to it, or in labels/1.txt for videos/1.mp4 (THUDM/CogVideo
    sat/data_video.py, SFTDataset)."""
    name = f"{path.name if path.is_dir() else path.stem}.txt"
    return [path.parent / name] + ([path.parent.parent / "labels" / name] if path.parent.name == "videos" else [])


def _is_shown(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _text(path: Path, most_bytes: int) -> str:
    """Raises UnusableClipError where `path` is not UTF-8 text, or is larger than `most_bytes`."""
    try:
        return read_small_text(path, most_bytes)
    except UnicodeDecodeError as error:  # its own words repeat a byte of the file
        raise UnusableClipError(f"{path} is not UTF-8 text. Save it again as UTF-8.") from error
    except OSError as error:
        raise UnusableClipError(f"{path} cannot be read ({error}). Check its permissions.") from error
    except UserError as error:
        raise UnusableClipError(str(error)) from error
