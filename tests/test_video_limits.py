"""Sizes that are each within a widget's limit, and together terabytes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.media.continuation import continuation_latent
from cogvideox.media.masks import hold_last
from cogvideox.media.pictures import fit_pictures
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.decode import CogVideoXDecode
from cogvideox.nodes.decode_to_file import CogVideoXDecodeToFile
from cogvideox.nodes.fun import CogVideoXFunControl, CogVideoXFunInpaint
from cogvideox.nodes.image import CogVideoXImageToVideo
from cogvideox.nodes.inputs import MAX_BATCH, MAX_FRAMES, MAX_SIDE
from cogvideox.nodes.invert import CogVideoXInvert
from cogvideox.nodes.latent import CogVideoXEmptyLatent
from cogvideox.nodes.sample import CogVideoXSample
from cogvideox.nodes.video import CogVideoXEncodeVideo
from cogvideox.samplers.checks import check_latent
from cogvideox.samplers.noise import NoiseStream
from cogvideox.sockets.draft_decoder import decode_draft
from cogvideox.tests.guard import bounded
from cogvideox.vae.geometry import empty_latent
from cogvideox.video_limits import MAX_VIDEO_PIXELS, check_amount

TOO_MUCH = "billion pixels. At most 2.1 billion fit into one run"
SIZES = {"width": MAX_SIDE, "height": MAX_SIDE, "frames": MAX_FRAMES, "batch_size": MAX_BATCH}
PICTURE = torch.zeros(1, 16, 16, 3)


def spread(*shape: int) -> torch.Tensor:
    """A tensor of any shape that takes four bytes."""
    return torch.zeros(1).expand(*shape)


LATENT = spread(MAX_BATCH, 16, 257, MAX_SIDE // 8, MAX_SIDE // 8)  # 70 TB of pictures


@pytest.fixture(scope="module")
def loaded(tiny_pipelines: Mapping[str, Path]) -> tuple[Any, Any]:
    CogVideoXEmptyLatent.execute(64, 64, 9, 1)  # the first node imports ComfyUI's server, which takes a second
    return load_model(tiny_pipelines["5b"], "fp32"), load_vae(tiny_pipelines["5b"], "fp32")


def test_what_is_allowed() -> None:
    """The longest video at Full HD, and the largest batch of the usual ones."""
    for size in (
        (1920, 1088, 1025),
        (1360, 768, 1025, 1),
        (720, 480, 49, MAX_BATCH),
        (MAX_SIDE, 16, 1025),
        (768, 1360, 81, 16),
    ):
        check_amount(*size)
    check_amount(1 << 15, 1 << 15, 2)
    with pytest.raises(UserError, match=r"32768 x 32768 pixels x 3 frames are 3.2 billion pixels"):
        check_amount(1 << 15, 1 << 15, 3)
    assert 1920 * 1088 * 1025 < MAX_VIDEO_PIXELS


@pytest.mark.parametrize(
    "node",
    [CogVideoXEmptyLatent, CogVideoXImageToVideo, CogVideoXFunInpaint, CogVideoXFunControl],
    ids=lambda n: n.__name__,
)
def test_nodes_with_sizes(loaded: tuple[Any, Any], node: Any) -> None:
    """Refused when the prompt is queued, and before the node works where the sizes come through links."""
    given: dict[str, Any] = {} if node is CogVideoXEmptyLatent else {"positive": [], "negative": [], "vae": loaded[1]}
    if node is CogVideoXFunControl:
        given |= {"control_video": PICTURE, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    queued = {"start_percent": 0.0, "end_percent": 1.0} if node is CogVideoXFunControl else {}
    for sizes in (SIZES, SIZES | {"batch_size": 1}, SIZES | {"frames": 1, "width": 8192}):
        assert TOO_MUCH in str(node.validate_inputs(**sizes, **queued)), sizes
        with bounded(), pytest.raises(UserError, match=TOO_MUCH):
            arguments: dict[str, Any] = {**given, **sizes}
            node.execute(**arguments)


WORK: dict[str, Callable[[Any, Any], Any]] = {
    "empty_latent": lambda model, vae: empty_latent(MAX_SIDE, MAX_SIDE, MAX_FRAMES, MAX_BATCH),
    "encode": lambda model, vae: CogVideoXEncodeVideo.execute(
        vae, spread(4097, 16, 16, 3), width=MAX_SIDE, height=MAX_SIDE
    ),
    "fit": lambda model, vae: fit_pictures(spread(1025, 8, 8, 3), MAX_SIDE, MAX_SIDE, "letterbox"),
    "decode": lambda model, vae: CogVideoXDecode.execute(vae, {"samples": LATENT}, "auto"),
    "stock decode": lambda model, vae: vae.decode(LATENT),
    "stock tiled decode": lambda model, vae: vae.decode_tiled(LATENT, 64, 64),
    "draft": lambda model, vae: decode_draft(None, LATENT),  # type: ignore[arg-type]
    "decode to file": lambda model, vae: CogVideoXDecodeToFile.execute(
        vae, {"samples": LATENT}, 8.0, "v", "mp4 (h264)", 18, "auto"
    ),
    "sample": lambda model, vae: CogVideoXSample.execute(
        model, [], [], {"samples": LATENT}, 0, 1, 1.0, "ddim", False, 1.0
    ),
    "invert": lambda model, vae: CogVideoXInvert.execute(model, [], [], {"samples": LATENT}, 1, 1.0),
    "any sampler": lambda model, vae: check_latent(model.model, LATENT),
    "noise": lambda model, vae: NoiseStream(0).draw(LATENT.shape),
    "batch_index": lambda model, vae: NoiseStream(0, (10**9,)).draw((1, 16, 13, 60, 90)),
    "hold a picture": lambda model, vae: hold_last(spread(1, MAX_SIDE, MAX_SIDE, 3), MAX_FRAMES),
    "hold a mask": lambda model, vae: hold_last(spread(1, MAX_SIDE, MAX_SIDE), MAX_FRAMES),
    "continue": lambda model, vae: continuation_latent(spread(1, 16, 1, 2048, 2048), MAX_FRAMES),
}


@pytest.mark.parametrize("what", WORK)
def test_what_makes_videos(loaded: tuple[Any, Any], what: str) -> None:
    """Nothing is allocated for what cannot be made, whichever node asks for it."""
    with bounded(), pytest.raises(UserError, match=TOO_MUCH):
        WORK[what](*loaded)
