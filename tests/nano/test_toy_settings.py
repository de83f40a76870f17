"""The settings that suit CogVideoX-nano: whoever changes the table changes all that read it."""

import json
import subprocess
import sys

# In a process of its own: what reads the table does so when it is imported.
_CHANGED = """
import json
from dataclasses import replace
from cogvideox.nano import toy_settings as table
table.TEXT = replace(table.TEXT, steps=7, cfg=8.5, changing_cfg=9.5, frames=13)
table.GIVEN = replace(table.GIVEN, cfg=4.5)
table.IMAGE = replace(table.IMAGE, cfg=5.5)
from cogvideox.devtools.build_blueprints import BLUEPRINTS
from cogvideox.devtools.example_workflows import EXAMPLES
from cogvideox.devtools.run.recommended import TOYS
from cogvideox.nano.paint import Settings
from cogvideox.nano.tasks import TASKS

def sampled(example, widget):
    nodes = (spec for column in example.columns for spec in column.nodes)
    return [spec.widgets[widget] for spec in nodes if spec.type == "CogVideoXSample"]

by_name = {example.name: example for example in EXAMPLES}
print(json.dumps({
    "templates": [sampled(by_name[name], "cfg") for name in ("text_to_video", "image_to_video", "video_to_video")],
    "apps": [sampled(by_name[f"{name}_app"], "cfg") for name in ("text_to_video", "image_to_video", "video_to_video")],
    "blueprints": [sampled(one.example, "cfg") for one in BLUEPRINTS],
    "steps": sampled(by_name["text_to_video"], "steps") + [TOYS["CogVideoX-nano 5b"].steps],
    "run": [TOYS["CogVideoX-nano 5b"].cfg, TOYS["CogVideoX-nano 5b-I2V"].cfg],
    "scores": [Settings().cfg, TASKS["edges, control net"].changes["cfg"], TASKS["inversion edit"].changes["cfg"]],
    "frames": [TOYS["CogVideoX-nano 5b"].frames, Settings().frames],
}))
"""


def test_a_change_of_the_table_reaches_everything_that_reads_it() -> None:
    """The guidance stood three times: a template, `dev.py run` and the scores could each show another toy."""
    done = subprocess.run([sys.executable, "-c", _CHANGED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["templates"] == found["apps"] == found["blueprints"] == [[8.5], [5.5], [9.5]]
    assert found["steps"] == [7, 7] and found["run"] == [8.5, 5.5]
    assert found["scores"] == [8.5, 4.5, 9.5] and found["frames"] == [13, 13]
