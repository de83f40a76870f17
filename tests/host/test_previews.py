"""Previews of the clip under way: their colours, their scale, their pace, and that they never end a run."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import latent_preview
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image

from cogvideox.host.previews import preview_sender
from cogvideox.media.flipbook import Flipbook
from cogvideox.model_loaders.load_tiny_decoder import first_tiny_decoder, open_tiny_decoder
from cogvideox.sockets.model import CogVideoXLatent
from cogvideox.sockets.preview_renderers import enable_previews, make_renderers
from cogvideox.tests.support import check_parity
from cogvideox.tests.tiny_decoders import NAME, write_tiny_decoder

SCALE = 0.7


@pytest.fixture
def latent_format(monkeypatch: pytest.MonkeyPatch) -> CogVideoXLatent:
    """CogVideoX's latent format, its previews enabled on an untouched latent_preview."""
    stock = getattr(latent_preview.get_previewer, "__wrapped__", latent_preview.get_previewer)
    monkeypatch.setattr(latent_preview, "get_previewer", stock)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    made = CogVideoXLatent(SCALE, 8.0)
    enable_previews(first_tiny_decoder)
    return made


@pytest.fixture
def approximations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/vae_approx, empty, and the setting that asks for a decoder's previews."""
    import folder_paths

    folder = tmp_path / "vae_approx"
    folder.mkdir()
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "vae_approx", ([str(folder)], known["vae_approx"][1]))
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    return folder


def test_the_decoder_that_opens_is_taken(approximations: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A half download that comes first in the alphabet hid the decoder beside it."""
    (approximations / "taecvx-half.pth").write_bytes(b"half")
    assert first_tiny_decoder(torch.device("cpu")) is None and "previews are coarse" in caplog.text
    write_tiny_decoder(approximations / NAME)
    assert first_tiny_decoder(torch.device("cpu")) is not None


def previewer(latent_format: comfy.latent_formats.LatentFormat) -> Any:
    return latent_preview.get_previewer(torch.device("cpu"), latent_format)


def clip(count: int = 5, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.randn(2, 16, count, height, width, generator=torch.Generator().manual_seed(count))


def frames_of(found: Any, x0: torch.Tensor) -> torch.Tensor:
    """What a previewer's flipbook plays after one preview, uint8 [t, H, W, 3]."""
    assert found.decode_latent_to_preview_image("JPEG", x0) is not None
    return found._player._frames


def test_colours_are_those_of_comfyui_in_every_frame(latent_format: CogVideoXLatent) -> None:
    """ComfyUI shows the first frame; the others must have the same colours, of the first video of a batch."""
    x0 = clip()
    got = frames_of(previewer(latent_format), x0)
    stock = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors)
    assert got.shape == (5, 4, 6, 3)
    for t in range(5):
        want = torch.frombuffer(bytearray(stock.decode_latent_to_preview(x0[:, :, t:]).tobytes()), dtype=torch.uint8)
        assert (got[t].flatten().int() - want.int()).abs().max() <= 1


@pytest.mark.parametrize("count", (1, 2, 5))
def test_tiny_decoder_sees_unscaled_latents(latent_format: CogVideoXLatent, approximations: Path, count: int) -> None:
    """A sampler's x0 is scaled for the model, taecvx was trained on the VAE's own latents: forgotten, previews of 5b
    are too flat and those of 2b too harsh."""
    write_tiny_decoder(approximations / NAME)
    x0 = clip(count)
    got = frames_of(previewer(latent_format), x0)
    decoder = open_tiny_decoder(approximations / NAME, torch.device("cpu"), True)
    want = torch.stack(list(decoder.stream(x0[:1] / SCALE))).movedim(1, -1)
    assert got.shape == (count, 32, 48, 3)
    check_parity("preview by the tiny decoder", got / 255, want, 0.01)


def test_pictures_fit_comfyuis_preview_size(latent_format: CogVideoXLatent, approximations: Path) -> None:
    """A full size clip would take seconds to send."""
    write_tiny_decoder(approximations / NAME)
    frames, _ = make_renderers(first_tiny_decoder, torch.device("cpu"), latent_format, True, 20)[0](clip(3))
    assert frames.shape == (3, 13, 20, 3)


@pytest.mark.parametrize(("count", "shown"), ((1, 1), (13, 13), (24, 24), (41, 24)))
def test_long_clips_are_thinned_out_at_their_own_speed(count: int, shown: int) -> None:
    """161 frames at 16 a second last 10 seconds, in the preview too."""
    from cogvideox.media import preview_frames as preview

    indices = preview.shown_frames(count)
    assert len(indices) == shown and indices[0] == 0 and indices[-1] == count - 1 and len(set(indices)) == shown
    assert preview.seconds_per_frame(count, shown, 8) * shown == pytest.approx((4 * count - 3) / 8)


def test_no_previews_where_the_user_wants_none(latent_format: CogVideoXLatent, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's setting counts."""
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    assert previewer(latent_format) is None


def test_other_models_and_packs_keep_their_previewers(
    latent_format: CogVideoXLatent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model's latents, or a pack that has put its own previewer there, must not notice us."""
    assert type(previewer(comfy.latent_formats.HunyuanVideo())) is latent_preview.Latent2RGBPreviewer
    other = SimpleNamespace(decode_latent_to_preview=None)
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: other)
    enable_previews(first_tiny_decoder)
    assert previewer(latent_format) is other


def test_a_pack_that_looks_inside_finds_what_it_knows(latent_format: CogVideoXLatent) -> None:
    """Packs that animate previews themselves (VideoHelperSuite) read the colours off ComfyUI's previewer."""
    found = previewer(latent_format)
    assert isinstance(found, latent_preview.Latent2RGBPreviewer) and found.latent_rgb_factors.shape == (3, 16)
    assert found.decode_latent_to_preview(clip()).size == (6, 4)


def test_missing_decoder_says_so(
    latent_format: CogVideoXLatent, approximations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the file a run has rough previews, and one line tells how to have better ones."""
    with caplog.at_level(logging.WARNING):
        assert len(frames_of(previewer(latent_format), clip())) == 5
    assert len(caplog.records) == 1 and "taecvx" in caplog.text and "models/vae_approx" in caplog.text


@pytest.mark.parametrize("what", ("rubbish", "cut short", "other channels", "not a number", "empty"))
def test_broken_decoder_ends_no_run(
    latent_format: CogVideoXLatent, approximations: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Nobody loses an hour of sampling to a preview."""
    path = approximations / NAME
    if what == "other channels":
        write_tiny_decoder(path, decoder__1__weight=torch.zeros(256, 48, 3, 3))
    elif what == "not a number":
        write_tiny_decoder(path, decoder__1__weight=torch.full((256, 16, 3, 3), float("nan")))
    else:
        write_tiny_decoder(path)
        path.write_bytes({"rubbish": b"<html>not found</html>", "empty": b""}.get(what, path.read_bytes()[:1000]))
    with caplog.at_level(logging.WARNING):
        assert len(frames_of(previewer(latent_format), clip())) == 5
    assert what == "not a number" or len(caplog.records) == 1


def test_a_preview_that_fails_midway_falls_back(
    latent_format: CogVideoXLatent, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of memory in a preview: the next is the rough one, and with nothing left there is none."""
    found = previewer(latent_format)

    def fail(x0: torch.Tensor) -> tuple:
        raise torch.OutOfMemoryError("no room")

    found._renderers.insert(0, fail)
    assert len(frames_of(found, clip())) == 5 and "rougher" in caplog.text
    found._renderers[:] = [fail]
    found._player = None
    for _ in range(2):
        assert found.decode_latent_to_preview_image("JPEG", clip()) is None


def test_previews_take_a_small_share_of_the_time(latent_format: CogVideoXLatent) -> None:
    """A slow preview at each of a model's steps would hold up sampling; the last clip goes on instead."""
    found = previewer(latent_format)
    rendered = []

    def slow(x0: torch.Tensor) -> tuple[torch.Tensor, float]:
        time.sleep(0.06)
        rendered.append(x0)
        return torch.full((2, 4, 6, 3), len(rendered), dtype=torch.uint8), 0.5

    found._renderers.insert(0, slow)
    for _ in range(3):
        kind, image, _ = found.decode_latent_to_preview_image("JPEG", clip())
        assert kind == "JPEG" and image.getpixel((0, 0)) == (1, 1, 1)
    assert len(rendered) == 1
    assert 1.5 < found._due() - time.perf_counter() < 30  # 0.06 s are 3 % of 2 s


def test_cheap_previews_come_at_every_step(latent_format: CogVideoXLatent) -> None:
    """Latent colours take a millisecond, and who waits wants to see the last step."""
    found = previewer(latent_format)
    found._renderers.insert(0, lambda x0: (torch.full((1, 4, 6, 3), int(x0), dtype=torch.uint8), 0.5))
    for step in range(5):
        _, image, _ = found.decode_latent_to_preview_image("JPEG", torch.tensor(step))
        assert image.getpixel((0, 0)) == (step, step, step)


def test_flipbook_plays_every_frame_in_turn_until_dropped() -> None:
    """The clip moves while a step takes its minutes, and stops with the run."""
    sent: list[Image.Image] = []
    book = Flipbook(lambda image: sent.append(image) or True)
    frames = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 2, 3, 3).contiguous()
    assert book.show(frames, 0.1).getpixel((0, 0)) == (0, 0, 0)
    deadline = time.perf_counter() + 10
    while len(sent) < 6 and time.perf_counter() < deadline:
        time.sleep(0.02)
    thread = book._thread
    assert thread is not None
    del book
    thread.join(5)
    assert not thread.is_alive()
    assert [image.getpixel((0, 0)) for image in sent[:6]] == [(t, t, t) for t in (1, 2, 3, 0, 1, 2)]
    assert sent[0].size == (3, 2)


def test_flipbook_stops_when_nobody_looks_and_a_still_needs_none() -> None:
    """A client that has gone, a node that has ended; and one frame is no clip."""
    book = Flipbook(lambda image: False)
    frames = torch.zeros(3, 2, 3, 3, dtype=torch.uint8)
    book.show(frames[:1], 0.1)
    assert book._thread is None
    book.show(frames, 0.1)
    thread = book._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()


def test_sender_sends_to_nobody_outside_a_run() -> None:
    """Where no server runs (a script), a flipbook must not raise in its thread."""
    assert preview_sender(512)(Image.new("RGB", (2, 2))) is False
