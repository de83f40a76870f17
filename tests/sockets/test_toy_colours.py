"""Live previews of CogVideoX-nano: colours fitted to its own VAE."""

import torch

from cogvideox.host.toy import LISTED, find_toy
from cogvideox.model_loaders.load_model import load_model
from cogvideox.nano.preview_colours import drawn_clips, fit, latent_and_colours
from cogvideox.sockets import toy_colours
from cogvideox.sockets.model import CogVideoXLatent
from cogvideox.sockets.preview_renderers import make_renderers
from cogvideox.vae.tiny_decoder import TinyDecoder


def loaded_format(name: str) -> CogVideoXLatent:
    path = find_toy(name, "transformer")
    assert path is not None
    return load_model(path).model.latent_format


def no_decoder(device: torch.device) -> TinyDecoder | None:
    return None


def test_a_preview_has_the_colours_of_the_clip() -> None:
    """A blue background was shown as teal, and a yellow shape as brown: a mean error of 0.53 of -1 .. 1."""
    (render,) = make_renderers(no_decoder, torch.device("cpu"), loaded_format("CogVideoX-nano 5b"), False, 512)
    for clip in drawn_clips(4, seed=7):
        latent, colours = latent_and_colours(clip)
        frames, _ = render(latent[None])
        shown = frames.float().movedim(-1, 0) / 127.5 - 1  # [t, h, w, 3] -> [3, t, h, w]
        assert (shown - colours).abs().mean() < 0.08


def test_every_model_of_the_toy_has_them_and_no_decoder_of_the_official_vae() -> None:
    """taecvx shows nothing of the toy's latents."""

    def fail(device: torch.device) -> TinyDecoder | None:
        raise AssertionError("the tiny decoder was opened")

    for name in ("CogVideoX-nano 2b", "CogVideoX-nano 1.5-5B-I2V", "CogVideoX-nano Fun-5b-InP"):
        assert name in LISTED["transformer"]
        found = loaded_format(name)
        assert found.latent_rgb_factors == toy_colours.TOY_RGB_FACTORS
        assert len(make_renderers(fail, torch.device("cpu"), found, True, 512)) == 1


def test_the_table_is_what_the_script_fits() -> None:
    """After a change of the VAE the table has to be printed again. Fewer clips give nearly the same colours."""
    factors, bias = fit(clips=8)
    for clip in drawn_clips(2, seed=7):
        latent, _ = latent_and_colours(clip)
        ours, fitted = (
            torch.einsum("cthw,cr->rthw", latent, rows) + offset[:, None, None, None]
            for rows, offset in (
                (torch.tensor(toy_colours.TOY_RGB_FACTORS), torch.tensor(toy_colours.TOY_RGB_BIAS)),
                (factors, bias),
            )
        )
        assert (ours - fitted).abs().mean() < 0.05
