"""The tiny decoder against ComfyUI's TAEHV on the same weights, and the files that it refuses."""

from pathlib import Path

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.model_loaders.load_tiny_decoder import load_tiny_decoder, open_tiny_decoder
from cogvideox.sockets.draft_decoder import decode_draft
from cogvideox.tests.peak_bytes import PeakBytes
from cogvideox.tests.support import check_parity, relative_error
from cogvideox.tests.tiny_decoders import NAME, reference, write_tiny_decoder
from cogvideox.vae.tiny_decoder import VALUES_PER_PIXEL


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_decoder(tmp_path_factory.mktemp("tiny") / NAME)


def latents(count: int, batch: int = 1) -> torch.Tensor:
    return 2 * torch.randn(batch, 16, count, 4, 6, generator=torch.Generator().manual_seed(count))


def decode(file: Path, samples: torch.Tensor) -> torch.Tensor:
    return decode_draft(load_tiny_decoder(file), samples)


@pytest.mark.parametrize("count", (1, 2, 3, 4, 5, 7))
def test_draft_equals_comfyui(file: Path, count: int) -> None:
    """A memory that takes another frame, or an even count cut otherwise, makes drafts flicker or lose their start."""
    z = latents(count)
    got = decode(file, z)
    with torch.no_grad():
        want = reference().decode(z).clamp(0, 1).movedim(1, -1)
    assert got.shape == (1, 4 * count - 3, 32, 48, 3) and got.dtype == torch.float32
    assert 0.05 < want.std()
    check_parity("tiny decoder", got, want, 5e-6)


def test_even_counts_are_those_of_the_exact_decoder(file: Path) -> None:
    """CogVideoX Decode repeats the last of an even number of latents and drops what that adds; a draft of the same
    latent must have the same frames at the same times."""
    z = latents(4)
    longer = decode(file, torch.cat([z, z[:, :, -1:]], dim=2))
    assert torch.equal(decode(file, z), longer[:, :13])


def test_node_lays_a_batch_end_to_end(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SaveVideo takes one row of frames; a batch must come out video after video, as from CogVideoX Decode."""
    from cogvideox.nodes import draft

    monkeypatch.setattr(draft, "find", lambda name, *_: file)
    z = latents(3, batch=2)
    got = draft.CogVideoXDraftDecode.execute({"samples": z}, NAME).args[0]
    assert got.shape == (18, 32, 48, 3) and 0 <= got.min() and got.max() <= 1
    assert relative_error(got[9:], decode(file, z[1:])[0]) <= 1e-6


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("name", ("taecvx_fp16.safetensors", "taecvx.pth"))
def test_every_file_of_the_repository(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """taehv offers both formats, in half precision: whichever a user has fetched must load."""
    got = decode(write_tiny_decoder(tmp_path / name, dtype), latents(2))
    with torch.no_grad():
        want = reference().decode(latents(2)).clamp(0, 1).movedim(1, -1)
    assert relative_error(got, want) < 0.02


def test_one_frame_a_latent(file: Path) -> None:
    """Sampling previews leave out what multiplies frames, as ComfyUI's network does when told so: three quarters of
    the frames would be thrown away."""
    z = latents(5)
    decoder = open_tiny_decoder(file, torch.device("cpu"), one_per_latent=True)
    got = torch.stack(list(decoder.stream(z)))
    full = reference()
    theirs = type(full)(16, decoder_time_upscale=(False, False, False)).eval().requires_grad_(False)
    weights = full.state_dict()
    for name, parameter in theirs.state_dict().items():
        weights[name] = weights[name][-len(parameter) :]
    theirs.load_state_dict(weights)
    with torch.no_grad():
        want = theirs.decode(z).clamp(0, 1)[0].movedim(1, 0)
    check_parity("tiny decoder, one frame a latent", got, want, 5e-6)


def test_room_that_a_draft_asks_for(file: Path) -> None:
    """Too small an estimate and the card overflows, too large and models are evicted in vain; and it must not grow
    with the clip."""
    decoder = open_tiny_decoder(file, torch.device("cpu"))
    height, width = 8, 12
    peaks = []
    for count in (2, 5):
        latents = torch.randn(1, 16, count, height, width)
        with PeakBytes() as used, torch.no_grad():
            for _ in decoder.stream(latents):
                pass
        peaks.append(used.peak / (64 * height * width * 4))
    assert peaks[0] <= VALUES_PER_PIXEL <= 1.25 * peaks[0], peaks
    assert peaks[1] <= 1.02 * peaks[0], peaks


def test_what_is_no_taecvx_is_refused_with_its_name(tmp_path: Path) -> None:
    """Another model's tiny decoder under this name, a web page or half a download: say so before any work."""
    from cogvideox import errors
    from cogvideox.model_loaders import load_tiny_decoder as tiny

    complete = write_tiny_decoder(tmp_path / NAME)
    page, half, other = (tmp_path / name for name in ("taecvx_page.pth", "taecvx_half.safetensors", "taecvx_48.pth"))
    page.write_bytes(b"<html>")
    half.write_bytes(complete.read_bytes()[:5000])
    write_tiny_decoder(other, decoder__1__weight=torch.zeros(256, 48, 3, 3))
    missing_layer = write_tiny_decoder(tmp_path / "taecvx_7.pth", decoder__13__conv__weight=torch.zeros(128, 128, 1, 1))
    unlike = tmp_path / "taecvx_vae.pth"
    torch.save({"encoder.1.weight": torch.zeros(2)}, unlike)
    for path, word in (
        (page, "is not a weight file"),
        (half, "only the beginning"),
        (other, "48 channels"),
        (missing_layer, "4 frames"),
        (unlike, "decoder."),
        (tmp_path / "taecvx_gone.pth", "no file"),
    ):
        with pytest.raises(errors.UserError, match=word) as refused:
            tiny.check_tiny_decoder(path)
        assert path.name in str(refused.value)


def test_bad_latents_are_refused_before_any_work(file: Path) -> None:
    """Another model's latent, or one of NaN, gets the exact decoder's message, not a picture of noise."""
    from cogvideox import errors

    with pytest.raises(errors.UserError, match="16"):
        decode(file, torch.zeros(1, 4, 3, 4, 6))
    broken = latents(3)
    broken[:, :, 1] = float("nan")
    with pytest.raises(errors.UserError, match="latent frame 1"):
        decode(file, broken)


def test_weights_that_do_not_compute_are_named(tmp_path: Path) -> None:
    """A damaged file must not give a black draft."""
    path = write_tiny_decoder(tmp_path / NAME, decoder__1__weight=torch.full((256, 16, 3, 3), float("nan")))
    with pytest.raises(UserError, match="Download the tiny decoder"):
        decode(path, latents(2))
