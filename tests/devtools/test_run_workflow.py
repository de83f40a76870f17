import json
from types import SimpleNamespace

import pytest

pytest.importorskip("aiohttp")

from cogvideox.devtools import demo, run_workflow  # noqa: E402
from cogvideox.devtools.client import RunError, RunResult  # noqa: E402
from cogvideox.devtools.errors import DevError  # noqa: E402


@pytest.fixture
def video(tmp_path):
    av, np = pytest.importorskip("av"), pytest.importorskip("numpy")
    with av.open(str(tmp_path / "out.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shade in range(9):
            picture = np.full((64, 96, 3), shade * 20, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return tmp_path / "out.mp4"


@pytest.fixture
def workflow(tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps({"1": {"class_type": "Save", "inputs": {}}}), "utf-8")
    return tmp_path / "graph.json"


def run(monkeypatch, workflow, result: RunResult) -> int:
    monkeypatch.setattr(run_workflow.client, "object_info", lambda url: {})
    monkeypatch.setattr(run_workflow.client, "run_workflow", lambda url, api, on_event: result)
    return run_workflow.main([str(workflow), "http://host", str(workflow.parent)])


def test_video_is_named_with_what_a_player_finds(monkeypatch, workflow, video, capsys):
    result = RunResult(outputs={"1": {"images": [{"filename": "out.mp4", "subfolder": "", "type": "output"}]}})
    assert run(monkeypatch, workflow, result) == 0
    assert f"{video.resolve()}  (9 frames, 96x64, 8 fps)" in capsys.readouterr().out


def test_failed_workflow_ends_in_one_sentence_and_a_status(monkeypatch, workflow, capsys):
    assert run(monkeypatch, workflow, RunResult(error=RunError("failed", "1", "Save", "disk full"))) == 1
    assert capsys.readouterr().err == (
        "error: The workflow graph.json did not run to its end: Save (node 1) failed: disk full\n"
    )


def test_workflow_without_a_file_is_no_success(monkeypatch, workflow, capsys):
    assert run(monkeypatch, workflow, RunResult()) == 1
    assert "saved no file" in capsys.readouterr().err


def test_file_that_is_no_workflow_is_named(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no json", "utf-8")
    assert run_workflow.main([str(tmp_path / "notes.txt"), "http://host", str(tmp_path)]) == 1
    assert "notes.txt cannot be read as a workflow" in capsys.readouterr().err


def test_demo_shows_the_videos_that_its_workflows_have_saved(tmp_path, monkeypatch, video, capsys):
    """It looked for what is new in the output folder, and found the videos of another program there too."""
    shown = []
    sheet = SimpleNamespace(save=lambda file, optimize: file.touch())
    monkeypatch.setattr(demo, "contact_sheet", lambda videos: shown.extend(videos) or sheet)
    monkeypatch.setattr(
        demo.run_workflow, "run", lambda workflow, url, output: [video, tmp_path / f"{workflow.stem}.png"]
    )
    (tmp_path / "of another program.mp4").touch()
    assert demo.main(["http://host", str(tmp_path), "Text to video", "Inpaint a region of a video"]) == 0
    assert shown == [video, video]
    assert str(tmp_path / "demo.png") in capsys.readouterr().out and (tmp_path / "demo.png").exists()


def test_failed_demo_is_one_sentence(monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise DevError("The workflow failed.")

    monkeypatch.setattr(demo.run_workflow, "run", fail)
    assert demo.main(["http://host", str(tmp_path), "Text to video"]) == 1
    assert capsys.readouterr().err == "error: The workflow failed.\n"
