"""What is written of CogVideoX-nano beside the weights."""

import shutil
from pathlib import Path

import pytest
from diffusers import AutoencoderKLCogVideoX

from cogvideox.host import toy
from cogvideox.model_loaders import checkpoints
from cogvideox.nano.publish import write_own_configs


def test_own_configs_are_those_that_the_loaders_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2b sampled with 5b's schedule, and 1.5's images scaled as 5b's, would not be what was trained."""
    weights = Path(shutil.copytree(toy.WEIGHTS, tmp_path / "weights"))
    vae = AutoencoderKLCogVideoX.from_pretrained(weights / "vae")
    monkeypatch.setattr(toy, "WEIGHTS", weights)
    found = {}
    for variant in ("2b", "5b", "1.5-5B-I2V"):
        shutil.copytree(weights / "5b", weights / f"of {variant}")
        write_own_configs(weights / f"of {variant}", variant, vae)
        siblings = checkpoints.open_component(weights / f"of {variant}", "transformer").siblings
        found[variant] = siblings["scheduler"]["snr_shift_scale"], siblings["vae"]["invert_scale_latents"]
        assert siblings["vae"]["scaling_factor"] == vae.config["scaling_factor"]
        assert checkpoints.open_component(weights / f"of {variant}", "vae").state_dict
    assert found == {"2b": (3.0, False), "5b": (1.0, False), "1.5-5B-I2V": (1.0, True)}
