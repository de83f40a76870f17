"""The settings that suit CogVideoX-nano: whoever changes the table changes all that read it."""

from typing import Any

from cogvideox.tests.children import running


def values_of_a_changed_table() -> dict[str, Any]:
    """In a process of its own: change the table before anything reads it; what its readers then have."""
    from cogvideox.nano import toy_settings

    table: Any = toy_settings
    table.TEXT = table.TEXT._replace(steps=7, cfg=8.5, changing_cfg=9.5, frames=13)
    table.GIVEN = table.GIVEN._replace(cfg=4.5)
    table.IMAGE = table.IMAGE._replace(cfg=5.5)
    from cogvideox.devtools.build_blueprints import BLUEPRINTS
    from cogvideox.devtools.example_workflows import EXAMPLES
    from cogvideox.devtools.run.recommended_settings import TOYS
    from cogvideox.nano.paint import Settings
    from cogvideox.nano.tasks import TASKS

    def sampled(example: Any, widget: str) -> list:
        nodes = (spec for column in example.columns for spec in column.nodes)
        return [spec.widgets[widget] for spec in nodes if spec.type == "CogVideoXSample"]

    by_name, kinds = {example.name: example for example in EXAMPLES}, ("text", "image", "video")
    text = TOYS["CogVideoX-nano 5b"]
    return {
        "templates": [sampled(by_name[f"{kind}_to_video"], "cfg") for kind in kinds],
        "apps": [sampled(by_name[f"{kind}_to_video_app"], "cfg") for kind in kinds],
        "blueprints": [sampled(one.example, "cfg") for one in BLUEPRINTS],
        "steps": [*sampled(by_name["text_to_video"], "steps"), text.steps],
        "run": [text.cfg, TOYS["CogVideoX-nano 5b-I2V"].cfg],
        "scores": [Settings().cfg, *(TASKS[name].changes["cfg"] for name in ("edges, control net", "inversion edit"))],
        "frames": [text.frames, Settings().frames],
    }


def test_a_change_of_the_table_reaches_everything_that_reads_it() -> None:
    """The guidance stood three times: a template, `dev.py run` and the scores could each show another toy."""
    with running("nano.test_toy_settings.values_of_a_changed_table") as child:
        found = child.result()
    assert found["templates"] == found["apps"] == found["blueprints"] == [[8.5], [5.5], [9.5]]
    assert (found["steps"], found["run"]) == ([7, 7], [8.5, 5.5])
    assert (found["scores"], found["frames"]) == ([8.5, 4.5, 9.5], [13, 13])
