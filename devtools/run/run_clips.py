"""A request settled: every setting has its value, from the command line, a line of a file, or the checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideox.errors import UserError
from cogvideox.official_settings import Settings
from cogvideox.video_limits import TEMPORAL, check_size

from ..errors import DevError
from .media import Media
from .options import FPS_RANGE, LISTS, Lists, Lora
from .recommended_settings import TOY_FOR, recommended_for
from .requests import Request


@dataclass(frozen=True)
class Clip:
    """What one run makes. model: a name in the list "pipeline", or, with text_encoder and vae, in "transformer".

    task: as in Settings. media: its picture or video. settings: as JSON has them, for the record.
    """

    settings: Mapping[str, Any]
    loras: tuple[Lora, ...]
    task: str
    family: str
    image: Media | None
    video: Media | None


def settle(request: Request, media: Mapping[Path, Media], lists: Lists | None) -> Clip:
    """The clip of a request. lists: None where only the toy is asked for. Raises: DevError."""
    values = request.values
    given = next((kind for kind in ("image", "video") if kind in values), "")
    asked = values.get("model", TOY_FOR[given])
    names = _names(request, asked, lists)
    like = recommended_for(names["model"], values.get("like"), request.label("like"))
    _check_task(request, like, names["model"], given)
    picture, video = (media[path] if (path := request.file(kind)) else None for kind in ("image", "video"))
    width, height = values.get("size", (like.width, like.height))
    changes = like.task == "text" and video is not None
    settings = {
        "prompt": values["prompt"],
        "negative": values.get("negative", ""),
        **names,
        "weight_dtype": values.get("weight_dtype", "default"),
        "loras": [[lora.name, lora.strength] for lora in _loras(request, lists)],
        "width": width,
        "height": height,
        "frames": _frames(request, like, video),
        "fps": values.get("fps", _fps(like, video)),
        "steps": values.get("steps", like.changing_steps if changes else like.steps),
        "cfg": values.get("cfg", like.changing_cfg if changes else like.cfg),
        "sampler": values.get("sampler", like.sampler),
        "dynamic_cfg": values.get("dynamic_cfg", like.dynamic_cfg),
        "denoise": values.get("denoise", like.denoise) if changes else 1.0,
        "seed": values.get("seed", 0),
    }
    for kind, file in (("image", picture), ("video", video)):
        if file is not None:
            settings |= {kind: values[kind], f"{kind}_sha256": file.sha256}
    _check_size(request, like, settings)
    return Clip(settings, tuple(_loras(request, lists)), like.task, like.family, picture, video)


def needs_lists(requests: Sequence[Request]) -> bool:
    """Whether anything but the toy, which every server with the pack has, is named."""
    return any(option in request.values for request in requests for option in set(LISTS.values()))


def _names(request: Request, asked: str, lists: Lists | None) -> dict[str, str]:
    """The names of the model and, where it is a transformer alone, of its text encoder and VAE."""
    parts = [part for part in ("text_encoder", "vae") if part in request.values]
    if lists is None:
        return {"model": asked}
    whole = _match(asked, lists["pipeline"])
    if whole is not None and not parts:
        return {"model": whole}
    alone = _match(asked, lists["transformer"])
    if alone is None:
        label = request.label("model") if "model" in request.values else "The toy"
        known = lists["pipeline"] if not parts else lists["transformer"]
        raise DevError(f"{label} is {asked!r}, which is not in the server's list: {_listed(known)}.")
    if len(parts) < 2:
        missing = " and ".join(f"--{part.replace('_', '-')}" for part in ("text_encoder", "vae") if part not in parts)
        raise DevError(f"{asked} is a transformer alone: give {missing} as well.")
    return {"model": alone, **{part: _named(request, part, request.values[part], lists) for part in parts}}


def _loras(request: Request, lists: Lists | None) -> list[Lora]:
    loras = request.values.get("lora", ())
    return [Lora(_named(request, "lora", lora.name, lists or {}), lora.strength) for lora in loras]


def _named(request: Request, kind: str, asked: str, lists: Lists) -> str:
    """The name in a list that is meant. Raises: DevError, with those that there are."""
    known = lists.get(kind, ())
    name = _match(asked, known)
    if name is None:
        raise DevError(f"{request.label(kind)} is {asked!r}, which is not in the server's list: {_listed(known)}.")
    return name


def _match(asked: str, known: Sequence[str]) -> str | None:
    """The one name in a list that is `asked`, else that is so in other letters, without its folder or its suffix."""
    if asked in known:
        return asked

    def forms(name: str) -> set[str]:
        last = name.replace("\\", "/").rpartition("/")[2]
        return {form.lower() for form in (name, last, Path(name).stem, Path(last).stem)}

    found = [name for name in known if asked.lower() in forms(name)]
    return found[0] if len(found) == 1 else None


def _listed(known: Sequence[str]) -> str:
    return ", ".join(known) if known else "it is empty"


def _check_task(request: Request, like: Settings, model: str, given: str) -> None:
    """Raises: DevError where the model does not take what is given, or lacks what it needs."""
    takes = {"text": ("", "video"), "image": ("image",), "inpaint": ("", "image"), "control": ("video",)}[like.task]
    if given in takes:
        return
    named = {"": "no picture or video", "image": "--image", "video": "--video"}
    wanted = " or ".join("a prompt alone" if kind == "" else named[kind] for kind in takes)
    what = request.label(given) if given else named[given]
    raise DevError(
        f"{model} takes {wanted}, and {what} is given: choose another model, or say with --like which checkpoint it "
        "was made from."
    )


def _frames(request: Request, like: Settings, video: Media | None) -> int:
    """As many as asked for; as the checkpoint's authors recommend; but no more than the video has. Raises: DevError."""
    asked = request.values.get("frames", like.frames)
    if video is None or video.frames >= asked:
        return asked
    most = (video.frames - 1) // TEMPORAL * TEMPORAL + 1
    if "frames" in request.values:
        raise DevError(
            f"{request.label('frames')} is {asked} and {request.values['video']} has {video.frames} frames: ask for "
            f"{most} or fewer."
        )
    return most


def _fps(like: Settings, video: Media | None) -> float:
    """Frames a second: those of the video, where there is one."""
    return video.fps if video is not None and FPS_RANGE[0] <= video.fps <= FPS_RANGE[1] else like.fps


def _check_size(request: Request, like: Settings, settings: Mapping[str, Any]) -> None:
    """Raises: DevError for a size and length that do not fit."""
    size = settings["width"], settings["height"], settings["frames"]
    labels = " and ".join(request.label(name) for name in ("size", "frames") if name in request.values)
    if like.one_size and size != (like.width, like.height, like.frames):
        raise DevError(
            f"{labels}: {settings['model']} makes {like.width}x{like.height} with {like.frames} frames and nothing "
            "else: leave them out."
        )
    try:
        check_size(*size)
    except UserError as error:
        raise DevError(f"{labels or 'size'}: {error}") from error
