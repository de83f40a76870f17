"""What the schemas tell a user who looks for a node, hovers over it, folds it or types a number into it."""

import math

import pytest
from comfy_api.latest import io

from cogvideox.devtools.paths import ROOT
from cogvideox.errors import UserError
from cogvideox.nodes import NODES
from cogvideox.nodes.search_words import SEARCH_WORDS
from cogvideox.vae.geometry import check_size

SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
FRAMES = [(node_id, entry) for node_id, schema in SCHEMAS.items() for entry in schema.inputs if entry.id == "frames"]
NUMBERS = [
    (f"{node_id}.{entry.id}", entry)
    for node_id, schema in SCHEMAS.items()
    for entry in schema.inputs
    if isinstance(entry, (io.Int.Input, io.Float.Input))
]


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_every_socket_and_widget_has_a_tooltip(node_id: str) -> None:
    """Who hovers over a socket without one learns its type, which the colour has told already."""
    schema = SCHEMAS[node_id]
    silent = [entry.id for entry in schema.inputs if not entry.tooltip]
    silent += [f"-> {output.display_name or output.io_type}" for output in schema.outputs if not output.tooltip]
    assert not silent
    told = schema.get_v1_info(None).output_tooltips or [] if schema.outputs else []
    assert len(told) == len(schema.outputs) and all(told)  # as ComfyUI hands them to the frontend


def test_search_words_reach_the_schemas() -> None:
    """A word in the table that no node gets finds nothing; a node with none is found by its title alone."""
    found = {node_id: schema.search_aliases for node_id, schema in SCHEMAS.items()}
    assert all(found.values()) and {node_id: found.get(node_id) for node_id in SEARCH_WORDS} == SEARCH_WORDS
    for node_id, words in SEARCH_WORDS.items():
        assert len({word.lower() for word in words}) == len(words), node_id
        assert node_id not in words and SCHEMAS[node_id].display_name not in words, node_id


def test_no_node_is_among_the_essentials() -> None:
    """The frontend takes a node with an essentials category out of its pack: 0.24 and 0.30 list it under ComfyUI's own
    nodes and not under Extensions, away from its neighbours, while their Essentials tab holds ComfyUI's choice alone.
    """
    assert not [node_id for node_id, schema in SCHEMAS.items() if schema.essentials_category]


def test_ids_that_titles_mislead_about_are_said() -> None:
    """Who writes API JSON for CogVideoX Sampler took CogVideoXSampler, which samples nothing."""
    for node_id in ("CogVideoXSample", "CogVideoXSampler"):
        page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
        assert f"In API JSON this node is `{node_id}`." in page
        assert f"is {node_id}" in SCHEMAS[node_id].description


@pytest.mark.parametrize(("node_id", "entry"), FRAMES, ids=[node_id for node_id, _ in FRAMES])
def test_every_number_of_frames_that_works_can_be_typed(node_id: str, entry: io.Int.Input) -> None:
    """The frontend rounds what is typed to the widget's steps: 21 frames became 25."""
    assert (entry.min, entry.max) == (1, 1025)
    for frames in range(entry.min, entry.max + 1):
        try:
            check_size(16, 16, frames)
        except UserError as error:
            assert f"frames {frames} is not 4k + 1" in str(error)
        else:
            assert _as_the_frontend_rounds(entry, frames) == frames


@pytest.mark.parametrize(("name", "entry"), NUMBERS, ids=[name for name, _ in NUMBERS])
def test_defaults_and_limits_can_be_typed(name: str, entry: io.Int.Input) -> None:
    """A default that the widget itself would not keep is gone as soon as somebody touches it."""
    for value in (entry.default, entry.min, 2.5e-6 if name.endswith(".learning_rate") else entry.default):
        assert _as_the_frontend_rounds(entry, value) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", ["CogVideoXDecodeToFile.fps", "CogVideoXTrainingClips.fps"])
def test_film_rates_can_be_typed(name: str) -> None:
    """23.976 became 23.98: after a minute the sound is off by a frame's third."""
    assert _as_the_frontend_rounds(dict(NUMBERS)[name], 23.976) == pytest.approx(23.976, abs=1e-9)


def _as_the_frontend_rounds(entry: io.Int.Input | io.Float.Input, value: float) -> float:
    """What a number widget makes of a typed `value`: useIntWidget and useFloatWidget of comfyui_frontend_package
    1.47.12. tests/browser/test_found.py types into the widget itself."""
    step = entry.step or (1 if isinstance(entry, io.Int.Input) else 0.5)
    if isinstance(entry, io.Int.Input):
        shift = entry.min % step
        return math.floor((value - shift) / step + 0.5) * step + shift
    decimals = max(0, -math.floor(math.log10(step)))
    unit = entry.round or 10**-decimals
    rounded = math.floor(value / unit + 0.5) * unit if decimals or entry.round else value
    return round(rounded, decimals) if decimals or entry.round else value


def test_common_widgets_have_comfyuis_order() -> None:
    """Hands that know KSampler find seed, steps, cfg, sampler and denoise where they are there."""
    order = ["seed", "steps", "cfg", "sampler", "denoise"]
    for node_id, schema in SCHEMAS.items():
        if schema.category == "CogVideoX/sample":
            found = [entry.id for entry in schema.inputs if entry.id in order]
            assert found == [name for name in order if name in found], node_id


def test_what_is_rarely_changed_is_folded() -> None:
    """A node of a dozen widgets hides the three that matter. A required socket cannot be folded away."""
    folded = {(node_id, entry.id) for node_id, schema in SCHEMAS.items() for entry in schema.inputs if entry.advanced}
    rarely = (
        "seed",
        "family",
        "guidance_rescale",
        "hold_last_frame",
        "noise_augmentation",
        "sample_posterior",
        "scale",
    )
    for node_id, schema in SCHEMAS.items():
        for entry in schema.inputs:
            if entry.optional and entry.id in rarely:
                assert (node_id, entry.id) in folded, (node_id, entry.id)
            if (node_id, entry.id) in folded:
                assert isinstance(entry, io.WidgetInput), (node_id, entry.id)
