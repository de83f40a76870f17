"""Explicit timesteps: what a text of them may be, and what the presets say."""

import inspect

import pytest
from comfy_api.internal import first_real_override

from cogvideox.devtools.paths import ROOT
from cogvideox.errors import UserError
from cogvideox.nodes.timesteps import CogVideoXTimesteps, describe
from cogvideox.samplers import few_steps
from cogvideox.samplers.few_steps import CUSTOM, PRESETS, chosen_timesteps, read_timesteps
from cogvideox.samplers.schedule import next_timesteps, trailing_timesteps


@pytest.mark.parametrize(
    "text",
    [
        "999, 856, 665, 399",
        "([ 999, 856, 665, 399 ])",
        "[999, 856, 665, 399]",
        " 999 856\n665;399, ",
        "(999,856,665,399)",
        "999，856、665；0399",
    ],
)
def test_lists_as_people_paste_them(text: str) -> None:
    """From a README, a Python script or a Chinese keyboard."""
    assert read_timesteps(text) == [999, 856, 665, 399]


def test_all_timesteps_at_once() -> None:
    """The longest list that there is."""
    assert read_timesteps(", ".join(map(str, range(999, -1, -1)))) == [*range(999, -1, -1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "timesteps holds no number"),
        (" [] ", "timesteps holds no number"),
        ("999, many", "many is not a timestep"),
        ("[999, 500", "[999 is not a timestep"),
        ("999, 500)", "500) is not a timestep"),
        ("[999, 500)", "[999 is not a timestep"),
        ("]999, 500[", "]999 is not a timestep"),
        ("[999], [500]", "999] is not a timestep"),
        ("[", "[ is not a timestep"),
        ("([)]", "[)] is not a timestep"),
        ("(" * 5000 + ")" * 5000, "timesteps holds no number"),
        ("1000, 500", "1000 is not a timestep"),
        ("999, -1", "-1 is not a timestep"),
        ("999, 500.5", "500.5 is not a timestep"),
        ("nan", "nan is not a timestep"),
        ("9_9", "9_9 is not a timestep"),
        ("٩٩٩", "٩٩٩ is not a timestep"),
        ("9" * 5000, "9 … is not a timestep"),
        ("399, 665", "Timestep 665 comes after 399"),
        ("999, 999", "Timestep 999 comes after 999"),
        ("9, " * 5000, "timesteps has 15000 characters; at most 10000 are read"),
    ],
)
def test_lists_that_are_no_timesteps(text: str, words: str) -> None:
    """One sentence before any work, with an example of what is meant."""
    with pytest.raises(UserError) as error:
        chosen_timesteps(text, CUSTOM)
    assert words in str(error.value) and "such as 999, 856, 665, 399" in str(error.value)
    queued = CogVideoXTimesteps.validate_inputs(preset=CUSTOM, timesteps=text)
    assert isinstance(queued, str) and queued.removeprefix("timesteps: ") == str(error.value)


def test_a_preset_or_a_list() -> None:
    """A list beside a preset would be ignored, and the video be that of other steps."""
    assert chosen_timesteps(" ", "PSA 5b 4 steps") == [999, 749, 499, 249]
    with pytest.raises(UserError, match="PSA 5b 4 steps has its own. Clear timesteps, or set preset to custom"):
        chosen_timesteps("999, 500", "PSA 5b 4 steps")
    assert inspect.getfullargspec(first_real_override(CogVideoXTimesteps, "validate_inputs")).args[1:] == [
        "preset",
        "timesteps",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    """A name that promises another count, or a list that falls apart in its own reader, is a preset of nothing."""
    settings = PRESETS[preset]
    timesteps = read_timesteps(str(settings.timesteps))
    assert timesteps == [*settings.timesteps] and preset.endswith(f" {len(timesteps)} steps")
    evenly = trailing_timesteps(len(timesteps))
    assert (timesteps == evenly) == (not preset.startswith("TDM"))
    assert next_timesteps([*timesteps, -1]) == [*timesteps[1:], -1]  # each step ends where the next one begins


@pytest.mark.parametrize("page", ["web/docs/CogVideoXTimesteps.md", "docs/samplers.md"])
def test_pages_have_the_presets_settings(page: str) -> None:
    """Who sets a run up by the page runs the authors' settings, and nobody else's."""
    text = (ROOT / page).read_text("utf-8")
    for preset, settings in PRESETS.items():
        if page.startswith("web"):
            timesteps = ", ".join(map(str, settings.timesteps))
            assert f"`{preset}`: {timesteps}, for sampler {settings.sampler} and cfg {settings.cfg:g}." in text
        else:
            assert f"on {settings.family}: `{preset}`, sampler {settings.sampler}, cfg {settings.cfg:g}." in text


def test_what_the_node_says_of_a_preset() -> None:
    """Without the authors' sampler and cfg the timesteps alone make poor videos."""
    assert "sampler to ddim and cfg to 1" in describe("TDM 2b 4 steps", "CogVideoX-2b")
    assert "this model is" not in describe("BLADE 5b 8 steps", "CogVideoX-5b")
    assert describe("BLADE 5b 8 steps", "CogVideoX-2b").endswith("for CogVideoX-5b, and this model is CogVideoX-2b.")
    assert few_steps.MOST_LETTERS > len(str([*range(1000)]))
