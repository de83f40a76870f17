"""From our exceptions to what ComfyUI's validate_inputs returns."""

from collections.abc import Callable

from ..host.errors import CheckpointError, GeometryError, ScheduleError


def problem(check: Callable[[], object]) -> bool | str:
    """True where `check` passes, otherwise the message of what it raised."""
    try:
        check()
    except (CheckpointError, GeometryError, ScheduleError) as error:
        return str(error)
    return True
