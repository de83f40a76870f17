"""Numbers that mean something else in the wrapper: sizes, frames, steps and windows."""

from .migration_report import Work, shown
from .node_graph import Link, Node

_SIDE_STEP = 16  # pixels; the wrapper takes multiples of 8 and fails in the transformer
_TOLERANCE = 1e-6  # as samplers/schedule.py, total_steps
_RESIZERS = ("ImageResizeKJ", "ImageScale")


def nearest_frames(frames: int) -> int:
    """The 4k + 1 frames that have as many latents as `frames` have in the wrapper, (frames - 1) // 4 + 1."""
    return (max(frames, 1) - 1) // 4 * 4 + 1


def matching_denoise(steps: int, strength: float) -> tuple[int, float] | None:
    """(steps, denoise) here for the wrapper's last int(steps * strength) of `steps`; None where that is no step.

    A sampler here runs its steps as the last of int(steps / denoise). Where that is not the wrapper's schedule, denoise
    is the nearest number with few digits for which it is.
    """
    count = min(int(steps * strength), steps)
    if count < 1:
        return None
    middle = count / (steps + 0.5)
    shares = (strength, round(count / steps, 2), *(round(middle, digits) for digits in (2, 3, 4, 6)), middle)
    # ComfyUI's own samplers have no tolerance for a quotient that is just below the integer.
    fits = (share for share in shares if 0 < share <= 1 and _schedule_lengths(count, share) == {steps})
    return count, next(fits, middle)


def _schedule_lengths(steps: int, denoise: float) -> set[int]:
    """The lengths of the schedule of which a sampler runs `steps`: KSampler's, and that of samplers/schedule.py."""
    return {int(steps / denoise), int(steps / denoise + _TOLERANCE)}


def window_frames(frames: int, overlap: int) -> tuple[int, int] | None:
    """(context_frames, overlap_frames) here for the wrapper's, whose windows have frames // 4 latents; None for windows
    that CogVideoX Context Windows cannot have."""
    latents, shared = frames // 4, overlap // 4
    if latents < 2 or not 0 <= shared < latents - 1:
        return None
    return 4 * latents - 3, 4 * shared


def even_frames(work: Work, node: Node, value: object) -> object:
    """`frames` for a number of frames of the wrapper's, or for a link to one. Raises CannotConvert."""
    known = work.graph.constant(value)
    if known is None and isinstance(value, Link):
        work.changed(node, "frames comes from another node: it has to be 4k + 1, 8k + 1 at best.")
        return work.graph.resolve(value)
    if not isinstance(known, int) or isinstance(known, bool) or known < 1:
        raise work.refuse(node, f"its num_frames is {shown(known)}: type in a count of 1 or more.")
    frames = nearest_frames(known)
    if frames == known:
        return value
    work.changed(node, f"{known} frames become {frames}: 4k + 1, with as many latents.")
    return frames


def even_side(work: Work, node: Node, name: str, value: object) -> object:
    """width or height for one of the wrapper's, or for a link to one. Raises CannotConvert."""
    known = work.graph.constant(value)
    if known is None and isinstance(value, Link):
        return work.graph.resolve(value)
    if not isinstance(known, int) or isinstance(known, bool) or known < _SIDE_STEP:
        raise work.refuse(node, f"its {name} {shown(known)} is not a size of a video. Type one in.")
    side = known // _SIDE_STEP * _SIDE_STEP
    if side == known:
        return value
    work.changed(node, f"{name} {known} becomes {side}, a multiple of 16.")
    return side


def video_size(work: Work, user: Node, image: Link) -> tuple[object, object]:
    """width and height of the images at a link: numbers where a node that resizes them says so; else what is measured
    in a run, by the user's own node or by ComfyUI's Get Image Size."""
    node = work.graph.nodes[image.node]
    if node.type == "GetImageSizeAndCount":
        inner = work.graph.resolve(node.inputs.get("image"))
        static = _static_size(work, work.graph.nodes[inner.node]) if isinstance(inner, Link) else None
        return static or (Link(node.id, 1), Link(node.id, 2))
    static = _static_size(work, node)
    if static is not None:
        return static
    if (image.node, f"size {image.slot}") not in work.made:
        added = work.add("GetImageSize", user, (0, -1), image=image)
        work.made[image.node, f"size {image.slot}"] = Link(added.id, 0)
        work.changed(user, "its size is measured in the run, by Get Image Size. It has to be in multiples of 16.")
    measured = work.made[image.node, f"size {image.slot}"]
    return measured, Link(measured.node, 1)


def _static_size(work: Work, node: Node) -> tuple[int, int] | None:
    """The size that a node gives its images, if it is typed in."""
    if node.type not in _RESIZERS:
        return None
    first = 0 if node.type == "ImageResizeKJ" else 1
    found = [
        work.graph.constant(node.inputs.get(name, node.widget(first + number, name)))
        for number, name in enumerate(("width", "height"))
    ]
    if node.type == "ImageResizeKJ":
        others = ("get_image_size", "width_input", "height_input")
        if node.widget(3, "keep_proportion") is not False or any(node.inputs.get(name) is not None for name in others):
            return None
        divisor = node.widget(4, "divisible_by")
        if not isinstance(divisor, int) or divisor < 1:
            return None
        found = [side // divisor * divisor if isinstance(side, int) else None for side in found]
    width, height = found
    return (width, height) if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0 else None
