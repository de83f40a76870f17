"""What CogVideoX-nano's Fun models learn from is what the pack's nodes give them, made of the clip itself."""

from typing import Any

import numpy as np
import pytest
import torch
from comfy_extras.nodes_canny import Canny
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX

from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nano import conditions, folders, transformer, world
from cogvideox.sockets.conditioning_images import encode_masked_video
from cogvideox.tests.support import relative_error

SIZE = 9, 64, 64


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    return transformer.draw_clips(3, range(6), *SIZE)[0]


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    return AutoencoderKLCogVideoX.from_pretrained(folders.WEIGHTS / "vae").float().eval()


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_vae(folders.write_pipeline(tmp_path_factory.mktemp("nano") / "5b", "5b"))


def as_pictures(clip: torch.Tensor) -> torch.Tensor:
    """[3, F, H, W] in -1 .. 1 -> [F, H, W, 3] in 0 .. 1."""
    return (clip.permute(1, 2, 3, 0) + 1) / 2


def test_masked_clips_are_the_nodes(clips: torch.Tensor, autoencoder: Any, socket: Any) -> None:
    """Otherwise the toy would be trained for something that the node never gives it."""
    with torch.no_grad():
        made = conditions.masked_clip(autoencoder, clips, np.random.default_rng(1))
    again = np.random.default_rng(1)
    for number, clip in enumerate(clips):
        mask = conditions.draw_mask(clip, again)
        latents, known = encode_masked_video(socket, as_pictures(clip), mask, 0.0, 0)
        assert torch.equal(made["known"][number], known[0])
        if latents.any():
            assert relative_error(made["concat"][number], latents[0]) < 0.02  # bf16 in training
        else:
            assert not made["concat"][number].any()


def test_masks_show_every_task() -> None:
    """A kind that training never shows is one that the toy cannot do."""
    rng, kinds = np.random.default_rng(0), set()
    clip = transformer.draw_clips(5, range(1), 17, 64, 64)[0][0]
    for _ in range(60):
        mask = conditions.draw_mask(clip, rng)
        first, last = bool(mask[0].any()), bool(mask[-1].any())
        moves = not torch.equal(mask[0], mask[8])
        kinds.add("region" if not moves and not mask.all() else "nothing" if first else "both" if not last else "start")
        assert mask.any() and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert kinds == {"region", "nothing", "both", "start"}


def test_edges_are_those_of_the_canny_node(clips: torch.Tensor) -> None:
    pixels = conditions.edge_pixels(clips)
    for clip, edges in zip(clips, pixels):
        assert torch.equal(as_pictures(edges), Canny.execute(as_pictures(clip), *conditions.EDGE_THRESHOLDS).args[0])


def test_the_box_holds_the_whole_path() -> None:
    """A shape that leaves the box would be cut off, and the score for repainting it would be too low."""
    for index in range(20):
        rng = np.random.default_rng([8, index])
        scene = world.draw_scene(rng)
        clip = world.render(scene, rng, 17)
        box = world.path_box(clip)
        background = np.broadcast_to(clip[:, :, :1], clip.shape)
        assert np.array_equal(clip[:, ~box], background[:, ~box]) and box.mean() < 0.9
