"""Latents to start from."""

from comfy_api.latest import io

from ..host.errors import GeometryError
from ..vae.geometry import SIZE_STEP, check_size, empty_latent
from .validation import problem

MAX_SIDE, MAX_FRAMES, MAX_BATCH = 16384, 1025, 64
_SIDE = "Pixels, a multiple of 16."


class CogVideoXEmptyLatent(io.ComfyNode):
    """LATENT out: samples [B, 16, (frames - 1) / 4 + 1, height / 8, width / 8], zeros."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CogVideoXEmptyLatent",
            display_name="Empty CogVideoX Latent",
            category="CogVideoX/latent",
            search_aliases=["empty video latent", "video size", "frames"],
            description="An empty video to paint: 720 x 480 with 49 frames for CogVideoX, 1360 x 768 with 81 for 1.5.",
            inputs=[
                io.Int.Input("width", default=720, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=_SIDE),
                io.Int.Input("height", default=480, min=SIZE_STEP, max=MAX_SIDE, step=SIZE_STEP, tooltip=_SIDE),
                io.Int.Input("frames", default=49, min=1, max=MAX_FRAMES, step=8, tooltip="Video frames, 8k + 1."),
                io.Int.Input("batch_size", default=1, min=1, max=MAX_BATCH, tooltip="Videos made at once."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def validate_inputs(cls, width: int | None, height: int | None, frames: int | None) -> bool | str:
        # None is a linked value, known only when the node runs: anything that fits stands in for it
        width, height = (SIZE_STEP if side is None else side for side in (width, height))
        return problem(lambda: _require_size(width, height, 1 if frames is None else frames))

    @classmethod
    def execute(cls, width: int, height: int, frames: int, batch_size: int) -> io.NodeOutput:
        _require_size(width, height, frames, batch_size)
        return io.NodeOutput({"samples": empty_latent(width, height, frames, batch_size)})


def _require_size(width: int, height: int, frames: int, batch_size: int = 1) -> None:
    """Raises GeometryError where no video has this size.

    ComfyUI holds neither linked values nor those that validate_inputs takes to their limits, and a million frames too
    many take the whole server down.
    """
    check_size(width, height, frames)
    limits = {"width": MAX_SIDE, "height": MAX_SIDE, "frames": MAX_FRAMES, "batch_size": MAX_BATCH}
    for (name, most), value in zip(limits.items(), (width, height, frames, batch_size)):
        if not 1 <= value <= most:
            raise GeometryError(f"{name} is {value}: use 1 to {most}.")
