"""The settings that suit CogVideoX-nano: whoever changes the table changes all that read it."""

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

READERS = ("nano", "devtools")  # the packages whose modules read the table, when they are imported


def _imported() -> dict[str, Any]:
    pattern = re.compile(rf"cogvideox\.({'|'.join(READERS)})(\.|$)")
    return {name: module for name, module in sys.modules.items() if pattern.match(name)}


@pytest.fixture
def imported_anew() -> Iterator[None]:
    """Within the test the packages are imported as for the first time; afterwards they are those that they were."""
    packages = {name: importlib.import_module(f"cogvideox.{name}") for name in READERS}
    before = _imported()
    for name in before:
        del sys.modules[name]
    yield
    for name in _imported():
        del sys.modules[name]
    sys.modules.update(before)
    for name, package in packages.items():  # `from cogvideox import nano` asks the package, not sys.modules
        setattr(sys.modules["cogvideox"], name, package)


def test_a_change_of_the_table_reaches_everything_that_reads_it(imported_anew: None) -> None:
    """The guidance stood three times: a template, `dev.py run` and the scores could each show another toy."""
    table: Any = importlib.import_module("cogvideox.nano.toy_settings")
    table.TEXT = replace(table.TEXT, steps=7, cfg=8.5, changing_cfg=9.5, frames=13)
    table.GIVEN = replace(table.GIVEN, cfg=4.5)
    table.IMAGE = replace(table.IMAGE, cfg=5.5)
    from cogvideox.devtools.build_blueprints import BLUEPRINTS
    from cogvideox.devtools.example_workflows import EXAMPLES
    from cogvideox.devtools.run.recommended import TOYS
    from cogvideox.nano.paint import Settings
    from cogvideox.nano.tasks import TASKS

    def sampled(example: Any, widget: str) -> list:
        nodes = (spec for column in example.columns for spec in column.nodes)
        return [spec.widgets[widget] for spec in nodes if spec.type == "CogVideoXSample"]

    by_name, kinds = {example.name: example for example in EXAMPLES}, ("text", "image", "video")
    templates = [sampled(by_name[f"{kind}_to_video"], "cfg") for kind in kinds]
    apps = [sampled(by_name[f"{kind}_to_video_app"], "cfg") for kind in kinds]
    blueprints = [sampled(one.example, "cfg") for one in BLUEPRINTS]
    assert templates == apps == blueprints == [[8.5], [5.5], [9.5]]
    text = TOYS["CogVideoX-nano 5b"]
    assert [*sampled(by_name["text_to_video"], "steps"), text.steps] == [7, 7]
    assert [text.cfg, TOYS["CogVideoX-nano 5b-I2V"].cfg] == [8.5, 5.5]
    scores = [Settings().cfg, TASKS["edges, control net"].changes["cfg"], TASKS["inversion edit"].changes["cfg"]]
    assert scores == [8.5, 4.5, 9.5]
    assert [text.frames, Settings().frames] == [13, 13]


def test_other_tests_see_the_table_as_it_is() -> None:
    """What the test above imports must not stay: every later test would read other settings."""
    from cogvideox.nano import paint, toy_settings

    assert paint.Settings().cfg == toy_settings.TEXT.cfg == 3.0
