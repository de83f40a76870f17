"""Pictures, masks and conditioning that do not fit, over the API: each ends in a message that says what was found,
what is expected and what to do, before anything is sampled, and leaves the server able to work."""

import pytest
import torch

from cogvideox.devtools.embedded_checkpoint import folder_name
from cogvideox.tests.graphs import (
    LATENT,
    PIPELINE,
    SAMPLE,
    WIDTH,
    custom_sampling,
    node,
    patched,
    text_to_video,
    with_inputs,
    with_ksampler,
)
from cogvideox.tests.real_files import write_broken, write_pictures, write_videos
from cogvideox.tests.task_graphs import (
    CLIP,
    MASK,
    THE_CLIP,
    VAE,
    clip,
    conditioned,
    fun_control,
    fun_inpaint,
    image_to_video,
    masked,
    saved_latent_only,
    video_to_video,
)
from cogvideox.tests.tiers import long_after, long_but_one_in

T2V, I2V, INPAINT, CONTROL = (folder_name(name) for name in ("5b", "5b-I2V", "Fun-5b-InP", "Fun-5b-Control"))
SAMPLERS = {  # node id -> the graph sampled by it
    "CogVideoXSample": lambda graph: graph,
    "KSampler": with_ksampler,
    "SamplerCustomAdvanced": custom_sampling,
}
CONDITIONING = {
    "CogVideoXImageToVideo": image_to_video(I2V),
    "CogVideoXFunInpaint": fun_inpaint(INPAINT),
    "CogVideoXFunControl": fun_control(CONTROL),
}


@pytest.fixture(autouse=True)
def _media(media) -> None:
    """Every test begins with the same picture, clip (13 frames) and mask."""


def on(graph: dict, folder: str) -> dict:
    """`graph` with another checkpoint in the loader."""
    return with_inputs(graph, PIPELINE, folder=folder)


def continued(**inputs: object) -> dict:
    """A clip that goes on from another's last frames."""
    inputs = {"vae": VAE, "images": [CLIP, 0], "frames": 9, "overlap": 5} | inputs
    return saved_latent_only(T2V) | clip(THE_CLIP) | {LATENT: node("CogVideoXContinueVideo", **inputs)}


# --- the model and what accompanies the prompt ---------------------------------------------------------------------

MISMATCHES = {
    "image on text": (image_to_video(T2V), "made for a start image", "CogVideoX-5b takes nothing"),
    "text on image": (saved_latent_only(I2V), "takes a start image", "has none", "CogVideoX Image to Video"),
    "image on control": (image_to_video(CONTROL), "made for a start image", "a control video", "CogVideoX Fun Control"),
    "control on image": (fun_control(I2V), "made for a control video", "a start image", "CogVideoX Image to Video"),
    "image on inpaint": (image_to_video(INPAINT), "made for a start image", "a masked video", "CogVideoX Fun Inpaint"),
    "inpaint on image": (fun_inpaint(I2V), "made for a masked video", "a start image", "CogVideoX Image to Video"),
    "inpaint on control": (fun_inpaint(CONTROL), "made for a masked video", "a control video"),
    "control on text": (fun_control(T2V), "made for a control video", "CogVideoX-5b takes nothing"),
    "text on control": (saved_latent_only(CONTROL), "takes a control video", "has none", "CogVideoX Fun Control"),
}


@pytest.mark.parametrize("name", long_after(5, MISMATCHES))
def test_conditioning_of_another_model(refused, name):
    """The commonest slip, and two of these pairs have the same channels: only the video would show it, an hour on."""
    graph, *words = MISMATCHES[name]
    error = refused(graph, "CogVideoXSample", "The positive conditioning" if "has none" not in words else "", *words)
    assert "choose" in error.message, error.message


@pytest.mark.parametrize(
    ("name", "sampler"),
    long_but_one_in(2, ["image on text", "text on image", "image on control"], ["KSampler", "SamplerCustomAdvanced"]),
)
def test_conditioning_of_another_model_in_stock_samplers(refused, sampler, name):
    """The check may not hang on our own sampler node."""
    graph, *words = MISMATCHES[name]
    refused(SAMPLERS[sampler](graph), sampler, *words)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_image_beside_one_prompt_only(refused, side):
    """Wires are easily left where they were when the image node comes in between."""
    graph = with_inputs(image_to_video(I2V), SAMPLE, **{side: ["prompt", 0]})
    refused(graph, "CogVideoXSample", f"the {side} conditioning has none", "Pass positive and negative through")


@pytest.mark.parametrize(("node_type", "sampler"), long_but_one_in(3, [*CONDITIONING], [*SAMPLERS]))
def test_latent_of_another_size(refused, node_type, sampler):
    """A latent from a node of its own has its own width: the conditioning would be stretched or end in an error."""
    other = node("CogVideoXEmptyLatent", width=128, height=64, frames=9, batch_size=1)
    graph = with_inputs(CONDITIONING[node_type], SAMPLE, latent_image=["other", 0]) | {"other": other}
    words = ("made for 96 x 64", "the latent is 128 x 64 pixels and 9 frames", "Set the same width and height in both")
    refused(SAMPLERS[sampler](graph), sampler, *words)


@pytest.mark.parametrize("node_type", ["CogVideoXFunInpaint", "CogVideoXFunControl"])
def test_latent_of_another_length(refused, node_type):
    """A concatenated video that is shorter than the latent would leave the end of the latent without one."""
    other = node("CogVideoXEmptyLatent", width=96, height=64, frames=13, batch_size=1)
    graph = with_inputs(CONDITIONING[node_type], SAMPLE, latent_image=["other", 0]) | {"other": other}
    words = (
        "and 9 frames (3 latent frames)",
        "and 13 frames (4 latent frames)",
        "Set the same number of frames in both",
    )
    refused(graph, "CogVideoXSample", *words)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", [{"width": 128}, {"frames": 13}])
def test_size_beyond_the_learned_table(comfyui, refused, sampler, size):
    """CogVideoX-5b-I2V knows one size; the message names the node that stretches its table, and that one helps. Only
    what is wrong is to be set."""
    graph = SAMPLERS[sampler](image_to_video(I2V, size=size))
    words = (
        "learned position table fits 96 x 64 pixels with 9 frames; ",
        "with 13. Set frames to 9." if "frames" in size else "with 9. Set width to 96.",
        "CogVideoX Positions stretches the table",
    )
    refused(graph, sampler, *words)
    if sampler == "KSampler":
        stretched = patched(graph, "CogVideoXPositions", riflex=False, resample_table=True)
        assert comfyui.latent(stretched).isfinite().all()


@pytest.mark.parametrize(
    ("positions", "folder", "lacks"),
    [
        ({"riflex": True, "resample_table": False}, folder_name("2b"), "no rotary positions"),
        ({"riflex": False, "resample_table": True}, T2V, "no learned position table"),
    ],
)
def test_positions_that_the_model_lacks(refused, positions, folder, lacks):
    """An option without effect would be looked for in the video."""
    graph = patched(saved_latent_only(folder), "CogVideoXPositions", **positions)
    refused(graph, "CogVideoXPositions", lacks, "Switch that off")


# --- pictures, videos and masks --------------------------------------------------------------------------------------


def with_resized(graph: dict, id_: str, image: list, width: int, height: int) -> dict:
    """`graph` and a node `id_` that scales an IMAGE."""
    scale = {"upscale_method": "nearest-exact", "width": width, "height": height, "crop": "disabled"}
    return graph | {id_: node("ImageScale", image=image, **scale)}


def with_small_mask(graph: dict) -> dict:
    """`graph` whose mask has 48 x 48 pixels."""
    return graph | {MASK: node("SolidMask", value=1.0, width=48, height=48)}


def test_mask_of_another_size(refused):
    """ComfyUI stretches any mask over the video, so that the wrong part changes."""
    words = ("48 x 48", "96 x 64", "one frame or as many as")
    refused(with_small_mask(masked(video_to_video(T2V))), "CogVideoXSample", *words)
    refused(with_small_mask(fun_inpaint(INPAINT)), "CogVideoXFunInpaint", *words)


def test_mask_of_another_length(refused):
    """A mask of some frames says nothing of the others."""
    graph = masked(video_to_video(T2V))
    graph["three"] = node("ImageFromBatch", image=[CLIP, 0], batch_index=0, length=3)
    graph[MASK] = node("ImageToMask", image=["three", 0], channel="red")
    refused(graph, "CogVideoXSample", "The mask has 3 frames", "1, 4 or 13 frames", "one frame or as many as")
    graph = fun_inpaint(INPAINT) | {name: graph[name] for name in ("three", MASK)}
    refused(graph, "CogVideoXFunInpaint", "with 3 frames", "one frame or as many as")


def test_an_empty_mask_is_refused(refused):
    """A mask that is black everywhere is one painted the wrong way round."""
    graph = fun_inpaint(INPAINT) | {MASK: node("SolidMask", value=0.0, width=96, height=64)}
    refused(graph, "CogVideoXFunInpaint", "there is nothing to inpaint", "white where the video changes")


def test_mask_without_a_video(refused):
    """A mask of nothing: the video's wire is missing."""
    graph = conditioned(saved_latent_only(INPAINT), "CogVideoXFunInpaint", mask=[MASK, 0])
    refused(
        with_small_mask(graph),
        "CogVideoXFunInpaint",
        "There is a mask and no video to apply it to",
        "Connect the video",
    )


@pytest.mark.parametrize(
    ("node_type", "graph", "what"),
    [
        ("CogVideoXFunControl", fun_control(CONTROL, size={"frames": 17}), "The control video has 13 frames"),
        ("CogVideoXFunInpaint", fun_inpaint(INPAINT, size={"frames": 17}), "The video has 13 frames"),
    ],
    ids=["control", "inpaint"],
)
def test_video_shorter_than_the_clip(comfyui, refused, node_type, graph, what):
    """Silently repeated frames would stand still at the end; asked for, they may."""
    refused(graph, node_type, what, "the clip 17", "hold_last_frame")
    made = comfyui.latent(with_inputs(graph, LATENT, hold_last_frame=True))
    assert made.shape[2] == 5 and made.isfinite().all()


def test_wrong_number_of_pictures(refused):
    """A clip where a picture belongs, or more frames than the video has."""
    graph = image_to_video(I2V) | clip(THE_CLIP)
    graph["three"] = node("ImageFromBatch", image=[CLIP, 0], batch_index=0, length=3)
    three = with_inputs(graph, LATENT, start_image=["three", 0])
    refused(three, "CogVideoXImageToVideo", "start_image has 3 pictures", "the video has 9 frames", "Use one picture")
    end = with_inputs(graph, LATENT, end_image=["three", 0])
    refused(end, "CogVideoXImageToVideo", "end_image has 3 pictures", "Use one picture")
    whole = with_inputs(graph, LATENT, start_image=[CLIP, 0])
    refused(whole, "CogVideoXImageToVideo", "start_image has 13 pictures", "fewer than the video has")
    inpaint = with_inputs(fun_inpaint(INPAINT), LATENT, start_image=[CLIP, 0])
    refused(inpaint, "CogVideoXFunInpaint", "start_image has 13 pictures", "the clip 9 frames", "Use fewer pictures")


def test_clips_of_two_sizes(refused):
    """Joined without a look they would end in an error of torch."""
    graph = with_resized(clip(THE_CLIP), "small", [CLIP, 0], 48, 32)
    inputs = {"images_before": [CLIP, 0], "images_after": ["small", 0], "overlap": 1, "blend": False}
    graph["join"] = node("CogVideoXJoinVideos", **inputs)
    graph["save"] = node("SaveImage", images=["join", 0], filename_prefix="joined")
    refused(graph, "CogVideoXJoinVideos", "96 x 64 pixels", "48 x 32 pixels", "Resize one of them")
    graph = with_inputs(graph, "join", images_after=[CLIP, 0], overlap=14)
    refused(graph, "CogVideoXJoinVideos", "overlap is 14", "13 and 13 frames", "use 0 to 13")


@pytest.fixture(scope="module")
def frameless(comfyui) -> str:
    """The name of a video whose frames are lost, of which the stock nodes make an IMAGE of no frames."""
    folder = comfyui.base / "input"
    for write in (write_pictures, write_videos, write_broken):
        write(folder)
    return "no-frames.mp4"


def test_video_without_a_frame(refused, frameless):
    """A damaged download: the message speaks of the video, not of a tensor's size."""
    words = ("no picture in the images", "Check the video")
    for graph, node_type in (
        (with_inputs(image_to_video(I2V) | clip(frameless), LATENT, start_image=[CLIP, 0]), "CogVideoXImageToVideo"),
        (fun_inpaint(INPAINT, frameless), "CogVideoXFunInpaint"),
        (fun_control(CONTROL, frameless), "CogVideoXFunControl"),
        (video_to_video(T2V, frameless), "CogVideoXEncodeVideo"),
        (continued() | clip(frameless), "CogVideoXContinueVideo"),
    ):
        refused(graph, node_type, *words)
    held = with_inputs(fun_control(CONTROL, frameless), LATENT, hold_last_frame=True)
    refused(held, "CogVideoXFunControl", "no picture in the images")


def test_vae_of_another_loader(refused):
    """ComfyUI's own CogVideoX VAE, or any other, gives other numbers without a word."""
    words = ("The VAE is a VAE from another loader", "Connect the VAE of Load CogVideoX VAE")
    graphs = CONDITIONING | {"CogVideoXEncodeVideo": video_to_video(T2V), "CogVideoXContinueVideo": continued()}
    for node_type, graph in graphs.items():
        other = {"other": node("VAELoader", vae_name="pixel_space")}
        refused(with_inputs(graph, LATENT, vae=["other", 0]) | other, node_type, *words)


# --- numbers ---------------------------------------------------------------------------------------------------------


def check_number(refused, graph: dict, node_type: str, name: str, value: int, *words: str) -> None:
    """Refused when it is typed, before the run; and when it comes from another node, by that node."""
    place = next(id_ for id_, n in graph.items() if n["class_type"] == node_type)
    assert refused(with_inputs(graph, place, **{name: value}), node_type, *words).kind == "rejected"
    linked = with_inputs(graph, place, **{name: ["number", 0]}) | {"number": node("PrimitiveInt", value=value)}
    assert refused(linked, node_type, *words).kind == "failed"


NO_SIZES = [
    ("width", 100, ("width 100", "use 96 or 112")),
    ("height", 72, ("height 72", "use 64 or 80")),
    ("frames", 10, ("frames 10", "use 9 or 17")),
]


@pytest.mark.parametrize(("node_type", "size"), long_but_one_in(3, [*CONDITIONING], NO_SIZES))
def test_size_that_does_not_fit(refused, node_type, size):
    """Cut to another size without a word the video would not be what was asked for."""
    name, value, words = size
    check_number(refused, CONDITIONING[node_type], node_type, name, value, *words)


@pytest.mark.parametrize("name", ["width", "height"])
@pytest.mark.parametrize(
    ("node_type", "graph"),
    [("CogVideoXEncodeVideo", video_to_video(T2V)), ("CogVideoXContinueVideo", continued())],
    ids=["encode", "continue"],
)
def test_size_of_a_video_that_does_not_fit(refused, node_type, graph, name):
    """0 is the video's own size, everything else must fit as it is."""
    check_number(refused, graph, node_type, name, 100, f"{name} 100", "use 96 or 112")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("overlap", 3, ("overlap 3 is not 4k + 1", "use 1 or 5")),
        ("overlap", 9, ("overlap 9 leaves nothing new", "use a smaller overlap")),
        ("frames", 10, ("frames 10", "use 9 or 17")),
    ],
)
def test_overlap_that_does_not_fit(refused, name, value, words):
    """The frames taken over are whole latents, and something new comes after them."""
    check_number(refused, continued(), "CogVideoXContinueVideo", name, value, *words)


def test_overlap_longer_than_the_clip(refused):
    """Known only when the clip is."""
    graph = continued(frames=25, overlap=17)
    refused(graph, "CogVideoXContinueVideo", "has 13 frames", "overlap 17", "Use an overlap of 13 or less")


@pytest.mark.parametrize(("name", "value"), [("context_frames", 6), ("context_frames", 1), ("overlap_frames", 13)])
def test_windows_that_cannot_be(refused, name, value):
    """Windows that never move on would run for ever."""
    windows = {"context_frames": 13, "overlap_frames": 4, "schedule": "standard_static", "fuse_method": "pyramid"}
    graph = patched(saved_latent_only(T2V), "CogVideoXContextWindows", **windows, freenoise=False)
    words = ("context_frames is 1: use 5 to 1025.",) if value == 1 else ("are not possible", "Use 4k + 1 frames")
    check_number(refused, graph, "CogVideoXContextWindows", name, value, *words)


def test_server_works_after_all_of_it(comfyui, untouched):
    """A run that failed halfway could leave state behind, for which the next one would pay."""
    assert torch.equal(comfyui.make_again(text_to_video()).latent, untouched)
    for node_type, graph in CONDITIONING.items():
        made = comfyui.latent(graph)
        assert made.shape[-1] == WIDTH // 8 and made.isfinite().all(), node_type
