"""Numbers that mean something else in the wrapper: the same steps, frames, windows, guidance and latents come out."""

import math

import pytest
import torch

from cogvideox.migration.run_numbers import matching_denoise, nearest_frames, window_frames
from cogvideox.migration.target_nodes import TARGETS
from cogvideox.migration.wrapper_nodes import CHECKPOINTS, QUANTIZATION, SCHEDULES, STOCK_SAMPLERS, traits_of
from cogvideox.model_loaders.downloads.repositories import REPOSITORIES
from cogvideox.model_loaders.lora.layers import SCALES
from cogvideox.model_loaders.precision import PRECISIONS
from cogvideox.model_loaders.variants import FAMILY_NAMES
from cogvideox.nodes.long import SCHEDULES as WINDOW_SCHEDULES
from cogvideox.samplers.conditioning import image_scale
from cogvideox.samplers.guidance import dynamic_cfg_scale
from cogvideox.samplers.schedule import total_steps, trailing_timesteps
from cogvideox.sockets.model import CogVideoXLatent
from cogvideox.tests.migration.graph_checks import schemas
from cogvideox.vae.geometry import latent_frames


def wrapper_timesteps(steps: int, strength: float) -> list[int]:
    """Its get_timesteps: the last int(steps * strength) of the whole schedule."""
    start = max(steps - min(int(steps * strength), steps), 0)
    return trailing_timesteps(steps)[start:]


def test_steps_and_strength_run_the_wrapper_s_timesteps() -> None:
    """20 of 25 steps are called 25 at 0.8 there, and 20 at 0.8 here; 7 of 25 (25 at 0.3) are 7 of 23 at 0.3 here, so
    that the strength becomes another number."""
    assert matching_denoise(25, 0.8) == (20, 0.8)
    assert matching_denoise(25, 0.3) == (7, 0.27)
    for steps in range(1, 101):
        for hundredths in range(1, 100):
            strength = hundredths / 100
            expected, found = wrapper_timesteps(steps, strength), matching_denoise(steps, strength)
            if not expected:
                assert found is None
                continue
            assert found is not None
            count, denoise = found
            whole = total_steps(count, denoise)
            assert trailing_timesteps(whole)[whole - count :] == expected, (steps, strength, found)
            assert int(count / denoise) == whole, "KSampler counts without our tolerance"


def test_frames_have_the_wrapper_s_latents() -> None:
    """It takes any number of frames and makes (n - 1) // 4 + 1 latents of them."""
    for frames in range(1, 200):
        ours = nearest_frames(frames)
        assert (ours - 1) % 4 == 0 and ours <= frames
        assert latent_frames(ours) == (frames - 1) // 4 + 1


def test_windows_have_the_wrapper_s_latents() -> None:
    """Its windows are context_frames // 4 latents and share context_overlap // 4; those here go by 4k + 1 frames."""
    assert window_frames(48, 4) == (45, 4)
    for frames in range(8, 101):
        for overlap in range(4, 41):
            found = window_frames(frames, overlap)
            if found is not None:
                # ComfyUI's context handler gets these (nodes/long.py).
                assert latent_frames(found[0]) == frames // 4 and found[1] // 4 == overlap // 4
    assert window_frames(7, 4) is None, "a single latent is no window"
    assert window_frames(8, 4) is None, "it would not move on"


@pytest.mark.parametrize("steps, whole", [(20, 25), (25, 25), (12, 50)])
def test_dynamic_guidance_is_the_wrapper_s(steps: int, whole: int) -> None:
    """1 + cfg (1 - cos(pi ((n - t) / n)^5)) / 2 with the whole schedule's n, also where only its end is run."""
    for timestep in trailing_timesteps(whole)[whole - steps :]:
        theirs = 1 + 6.0 * ((1 - math.cos(math.pi * ((whole - timestep) / whole) ** 5.0)) / 2)
        assert dynamic_cfg_scale(timestep, whole, 6.0) == theirs


def test_unscaled_image_latents_are_the_wrapper_s() -> None:
    """It multiplies the image's latent by 0.7 in one node and divides it by 0.7 in another; the checkpoint's own
    convention would divide it once."""
    latent = torch.tensor([1.25])
    theirs = latent * 0.7 / 0.7
    assert torch.allclose(latent * image_scale("unscaled", 0.7, True), theirs)
    assert not torch.allclose(latent * image_scale("checkpoint", 0.7, True), theirs)


def test_latents_of_the_wrapper_in_this_pack_s_layout() -> None:
    """What the message says of a saved latent: x.permute(0, 2, 1, 3, 4) / scaling_factor."""
    raw = torch.randn(1, 16, 3, 8, 12)  # as the VAE makes it, [B, C, T, H, W]
    theirs = raw.permute(0, 2, 1, 3, 4) * 0.7
    ours = theirs.permute(0, 2, 1, 3, 4) / 0.7
    assert torch.allclose(ours, raw)
    # In a run, ComfyUI scales it to what the wrapper's transformer gets.
    assert torch.allclose(CogVideoXLatent(0.7, 8).process_in(ours), theirs.permute(0, 2, 1, 3, 4))


def test_the_table_s_words_are_choices_of_the_nodes() -> None:
    """A value that a node does not offer would make the whole workflow invalid."""
    import comfy.samplers

    assert set(QUANTIZATION.values()) <= set(PRECISIONS)
    assert set(SCHEDULES.values()) <= set(WINDOW_SCHEDULES)
    assert set(STOCK_SAMPLERS.values()) <= set(comfy.samplers.KSampler.SAMPLERS)
    assert {entry.family for entry in CHECKPOINTS.values()} <= set(FAMILY_NAMES)
    assert {"as trained", "1 / rank (DimensionX)"} == set(SCALES)
    official = {entry.official for entry in CHECKPOINTS.values()} - {""}
    assert official <= {repository.name for repository in REPOSITORIES}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_are_the_nodes_schemas(kind: str) -> None:
    """Widgets are saved by their order: another order would put every value into the wrong one."""
    target, schema = TARGETS[kind], schemas()[kind]
    required, optional = schema["input"]["required"], schema["input"].get("optional") or {}
    names = [name for name, _, _ in target.inputs]
    assert names[: len(names) - target.optional] == list(required)
    known = list(optional)[: target.optional]
    assert names[len(names) - target.optional :] == known, "a new input goes last"
    for name, type_, default in target.inputs:
        spec = (required | optional)[name]
        assert type_ == ("COMBO" if isinstance(spec[0], list) else spec[0])
        if default is not None and len(spec) > 1 and "default" in spec[1]:
            assert spec[1]["default"] == default, name
    assert [type_ for _, type_ in target.outputs] == list(schema["output"])
    controlled = [n for n, s in (required | optional).items() if len(s) > 1 and s[1].get("control_after_generate")]
    assert [target.control] * bool(target.control) == controlled


def test_traits_are_the_wrapper_s() -> None:
    """It decides by the name what a model takes; a wrong guess would refuse or distort a workflow that works."""
    assert traits_of("THUDM/CogVideoX-5b-I2V").takes_image
    assert traits_of("alibaba-pai/CogVideoX-Fun-V1.5-5b-InP").is_inpaint
    assert not traits_of("alibaba-pai/CogVideoX-Fun-V1.5-5b-InP").unscaled_image
    assert traits_of("CogVideoX_5b_fun_1_1_Pose_GGUF_Q4_0.safetensors").is_control
    assert traits_of("CogVideoX_5b_1_5_I2V_GGUF_Q4_0.safetensors").unscaled_image
    assert traits_of("feizhengcong/CogvideoX-Interpolation").takes_image
    assert not traits_of("THUDM/CogVideoX-2b").takes_image
