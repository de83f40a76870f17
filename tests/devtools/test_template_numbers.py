"""Every number that a template's card, title or note states: the graph beside it is read, and has to agree."""

import json
import re
from collections.abc import Iterator

import pytest

from cogvideox.devtools import paths
from cogvideox.devtools.build_blueprints import BLUEPRINTS
from cogvideox.devtools.example_workflows import EXAMPLES, file_name
from cogvideox.devtools.example_workflows.table import ADVANCED
from cogvideox.host.toy import CLIPS_FOLDER, INPUT_FPS, INPUT_FRAMES, INPUTS
from cogvideox.host.toy import EXAMPLES as INPUT_FOLDER
from cogvideox.model_loaders.downloads.repositories import find_file, find_repository
from cogvideox.official_settings import OFFICIAL, Settings
from cogvideox.tests.server.test_example_workflows import VIDEOS
from cogvideox.tests.template_runs import Run, _read, widgets_of

SAVED = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(paths.TEMPLATES.glob("*.json"))}
BY_NAME = {file_name(example): example for example in EXAMPLES}
REAL = [name for name, example in BY_NAME.items() if example.needs]
_COUNTS = {"one": 1, "three": 3, "five": 5}
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w-]|\.\d)")


@pytest.mark.parametrize("name", VIDEOS)
def test_the_run_that_is_read_off_a_file_is_the_run_of_the_server(name: str) -> None:
    """Guards the tests below: tests/server runs these, and asserts that their videos are so."""
    assert Run(SAVED[name]).made == VIDEOS[name]


def test_the_example_video_is_as_the_notes_say() -> None:
    assert _read(INPUT_FOLDER / INPUTS["video"]).count == INPUT_FRAMES


def nodes_of(name: str, kind: str) -> list[dict]:
    return [node for node in SAVED[name]["nodes"] if node["type"] == kind]


def settings_of(name: str) -> Settings:
    """With which settings the checkpoint of a template was published, by what its loader loads."""
    for node in nodes_of(name, "CogVideoXLoadModel"):
        file = find_file(str(widgets_of(node)["model_name"]))
        assert file is not None
        (family,) = file.families
        return OFFICIAL[family.replace("CogVideoX-Fun-5b-Control", "CogVideoX-Fun-V1.1-5b-Control")]  # one family
    (loader,) = nodes_of(name, "CogVideoXLoadPipeline")
    return OFFICIAL[str(widgets_of(loader)["folder"])]


def downloads_of(name: str) -> tuple[int, int, int]:
    """(files, folders, GB) that a template needs: the first file that each node offers, and folders."""
    files = [node["properties"]["models"][0]["name"] for node in SAVED[name]["nodes"] if "models" in node["properties"]]
    folders = [str(widgets_of(node)["checkpoint"]) for node in nodes_of(name, "CogVideoXDownload")]
    known = [find_file(file) for file in files]
    gigabytes = sum(file.gigabytes for file in known if file) + sum(find_repository(one).gigabytes for one in folders)
    nets = nodes_of(name, "CogVideoXLoadControlNet")
    return len(files), len(folders) + len(nets), round(round(gigabytes, 1))


def stated_downloads(text: str) -> tuple[int, int]:
    """(files, folders) of words such as "three files and a folder"."""
    files = re.search(r"(\w+) files?\b", text)
    folders = re.search(r"(\w+) folder", text)
    return _COUNTS[files[1]] if files else 0, {"a": 1, **_COUNTS}[folders[1]] if folders else 0


@pytest.mark.parametrize("name", REAL)
def test_a_card_promises_what_the_run_makes(name: str) -> None:
    """Templates 24 and 32 promised 81 and 49 frames, and made 17 of the example's 17: who waits for minutes on a rented
    card gets two seconds."""
    _, downloads, video, *example = BY_NAME[name].needs.splitlines()
    made, best = Run(SAVED[name]).made, settings_of(name)
    size = f"{made.width} x {made.height}"
    if example:  # as long and as fast as the video that is given
        (cut,) = nodes_of(name, "ImageFromBatch")
        assert (made.frames, made.fps) == (INPUT_FRAMES, INPUT_FPS)
        assert example == [f"the example: {made.frames} frames, {made.fps:g} fps"]
        assert video == f"{size}, up to {widgets_of(cut)['length']} frames, {best.fps:g} fps"
        assert (made.width, made.height, widgets_of(cut)["length"]) == (best.width, best.height, best.frames)
    else:
        assert video == f"{size}, {made.frames} frames, {made.fps:g} fps"
    files, folders, gigabytes = downloads_of(name)
    assert downloads.startswith(f"{gigabytes} GB, ")
    assert stated_downloads(downloads) == (files, folders)


def note_of(name: str) -> str:
    (note,) = nodes_of(name, "MarkdownNote")
    return note["widgets_values"][0]


@pytest.mark.parametrize("name", REAL)
def test_a_note_counts_the_downloads_that_the_graph_has(name: str) -> None:
    """The note of 25 said three files where ComfyUI lists five, and that of 23 22 GB where its card said 21."""
    files, folders, gigabytes = downloads_of(name)
    heading = re.match(r"### (.+), once[:\n]", note_of(name))
    assert heading and stated_downloads(heading[1].lower()) == (files, folders)
    assert re.findall(r"(\d+) GB", note_of(name)) == [str(gigabytes)]
    rows = re.findall(r"^\| (\S+\.safetensors) \| (\w+) \|$", note_of(name), re.M)
    wanted = [node["properties"]["models"][0] for node in SAVED[name]["nodes"] if "models" in node["properties"]]
    assert sorted(rows) == sorted((model["name"], model["directory"]) for model in wanted)


def test_the_table_of_settings_is_that_of_the_checkpoints() -> None:
    """A table in a note, read column by column."""
    rows = re.findall(r"^\| (.*) \|$", note_of("22 Text to video with CogVideoX-5b"), re.M)
    names, _, *lines = ([cell.strip() for cell in row.split("|")] for row in rows)
    columns = dict(zip(names[1:], zip(*(line[1:] for line in lines))))
    assert columns.keys() == {"2b", "5b", "1.5-5B"}
    for column, cells in columns.items():
        one = OFFICIAL[f"CogVideoX{'' if column.startswith('1.5') else '-'}{column}"]
        state = "on" if one.dynamic_cfg else "off"
        assert cells == (f"{one.width} x {one.height}", f"{one.frames}, {one.fps:g}", one.sampler, state)


# What a note says of other things than its graph, and where it is from. An expression each, so that a sentence about
# the graph does not slip through: its numbers have to be claimed below.
_V1_5, _I2V_1_5 = OFFICIAL["CogVideoX-Fun-V1.5-5b-InP"], OFFICIAL["CogVideoX1.5-5B-I2V"]
ELSEWHERE = (
    rf"V1\.5 takes {_V1_5.frames} frames",
    r"up to about 1024 x 1024\) work as well, in multiples of 16",  # web/docs/CogVideoXFunInpaint.md
    rf"safetensors\*, {_I2V_1_5.width} x {_I2V_1_5.height}, {_I2V_1_5.frames} frames, {_I2V_1_5.fps:g} fps; it takes",
    rf"\*noise_augmentation\* {re.escape(ADVANCED)} to 0\.05 or so",  # a value to try
    r"\*strength\* 0\.5 to 1; \*end_percent\* 0\.5 to 0\.8",  # values to try
    r"\*strength\* below 1 or \*end_percent\* below 1",
    r"1 takes over the last picture, 5 or more its motion too\. Frames count as 4k \+ 1: 1, 5, 9, 13, \.\.\.",
    r"about 2\.5 times as much",  # docs/speed.md
    r"\*Upscale Image By\* with 0\.5",  # of four times, so that two remain
    r"25 to 100 clips",  # docs/training.md
    r"There are none for 1\.5 ",
    r"With one card, or with cfg 1, it changes nothing",  # docs/many-cards.md
    r"with gpu:1 for both",  # a value to choose
)


def claims(name: str) -> Iterator[str]:
    """Expressions of what the graph of a template bears out."""
    made = Run(SAVED[name]).made
    yield rf"\({downloads_of(name)[2]} GB( together)?\)"
    for node in nodes_of(name, "ImageFromBatch"):
        yield rf"Its first {widgets_of(node)['length']} frames are taken"
    for node in nodes_of(name, "CogVideoXFunControl"):
        yield rf"Its first {widgets_of(node)['frames']} frames are taken"
    if nodes_of(name, "CogVideoXApplyControlNet"):
        yield rf"Its first {made.frames} frames are taken"
    if any(widgets_of(node).get("hold_last_frame") for node in SAVED[name]["nodes"] if "inputs" in node):
        yield (
            rf"has {INPUT_FRAMES} frames; \*hold_last_frame\* {re.escape(ADVANCED)} repeats its last one "
            rf"up to {made.frames}, and"
        )
    for node in nodes_of(name, "CogVideoXSample"):
        widgets = widgets_of(node)
        steps, denoise = int(str(widgets["steps"])), float(str(widgets["denoise"]))
        last = rf"{steps} at {denoise:g} are the last {steps} of {int(steps / denoise)}, "
        yield rf"{last}which diffusers calls \*strength {denoise:g}\*"
    if name in REAL:
        best = settings_of(name)
        yield (
            rf"has {made.frames} frames at {made.fps:g} fps, and the new one has too: .+ was trained on {best.frames} "
            rf"frames at {best.fps:g} fps"
        )
    for node in nodes_of(name, "CogVideoXParallel"):
        yield rf"\*cards\* {widgets_of(node)['cards']} takes all cards of this machine"
    if nodes_of(name, "CogVideoXTrainingClips"):
        yield rf"teaches it from {len(list(CLIPS_FOLDER.glob('*.mp4')))} clips"
    titles = [group["title"] for group in SAVED[name]["groups"]]
    if "4  Second clip" in titles and "5  Video" in titles:
        yield r"copy groups 4 and 5\b"


def unaccounted(name: str, text: str) -> list[str]:
    """The numbers of a note that neither the graph nor ELSEWHERE has, with what stands around them."""
    for pattern in (*ELSEWHERE, *claims(name)):
        text = re.sub(pattern, "", text)
    text = re.sub(r"template \*\*.+?\*\*|\*[^* ]*\.\w+\*|\*\*CogVideoX.+?\*\*", "", text)  # titles, files and models
    text = re.sub(r"^\|.*\|$", "", text, flags=re.M)  # tables, which have tests of their own
    text = re.sub(r"\bCogVideoX\S*|\b1\.5-5B(-I2V)?", "", text)
    return [text[max(0, found.start() - 30) : found.end() + 20] for found in _NUMBER.finditer(text)]


@pytest.mark.parametrize("name", SAVED)
def test_every_number_of_a_note_is_true_of_its_graph(name: str) -> None:
    """The note of 03 explained 30 steps beside a sampler with 20; that of 30 asked for 16 frames a second of a model
    that has 8."""
    assert unaccounted(name, note_of(name)) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("20 at 0.6 are the last 20 of 33", "30 at 0.6 are the last 30 of 50"),
        ("first 17 frames", "first 49 frames"),
        ("**denoise**", "Sample 50 steps. **denoise**"),
    ],
)
def test_a_number_that_the_graph_contradicts_is_found(right: str, wrong: str) -> None:
    name = "03 Video to video"
    assert right in note_of(name)
    assert unaccounted(name, note_of(name).replace(right, wrong))


@pytest.mark.parametrize("name", REAL)
def test_a_title_names_the_checkpoint_that_the_template_loads(name: str) -> None:
    """Numbers of a title are a checkpoint's."""
    best = settings_of(name)
    named = re.search(r"CogVideoX\S*", name.replace("CogVideoX-Fun Control", "CogVideoX-Fun"))
    assert named
    if named[0] == "CogVideoX-Fun":
        assert best.task in ("inpaint", "control")
    else:
        assert OFFICIAL[named[0]] == best


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda one: one.name)
def test_a_blueprints_description_names_the_steps_of_the_checkpoints(blueprint) -> None:
    stated = set(map(int, re.findall(r"\d+", blueprint.description)))
    assert stated == {one.steps for one in OFFICIAL.values()}
    saved = json.loads((paths.ROOT / "subgraphs" / f"{blueprint.name}.json").read_text("utf-8"))
    (subgraph,) = saved["definitions"]["subgraphs"]
    assert subgraph["description"] == saved["extra"]["BlueprintDescription"] == blueprint.description
