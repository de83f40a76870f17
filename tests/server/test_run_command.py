"""`dev.py run` on a real server, as a program that reads its results would call it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cogvideox.devtools import cli, paths, server
from cogvideox.devtools.comfyui import prepare_base
from cogvideox.devtools.paths import PACK_NAME, ROOT
from cogvideox.devtools.run_workflow import Video, inspect_video
from cogvideox.host import toy


def command(url: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "dev.py"), "run", "--server", url, *map(str, arguments)]


@pytest.mark.skipif(sys.platform == "win32", reason="ends a whole group of processes by a signal of POSIX")
def test_two_clips_and_a_kill_after_the_first(comfyui, tmp_path: Path) -> None:
    """A machine that goes down in the middle of a night's work: the next start makes what is missing and no more."""
    star = "A big yellow star moves to the right on a gradient from blue to purple."
    second = {
        "prompt": "A small red circle moves up on a white background.",
        "seed": 5,
        "steps": 12,
        "lora": "CogVideoX-nano pink:0.5",
    }
    (tmp_path / "prompts.txt").write_text(f"{star}\n{json.dumps(second)}\n")
    out = tmp_path / "clips"
    given = command(comfyui.url, "--prompts", tmp_path / "prompts.txt", "--out", out / "%03d.mp4", "--steps", 3)
    process = subprocess.Popen(
        given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait(30)
    assert (first["file"], first["seed"]) == (str(out / "001.mp4"), 0)
    assert not (out / "002.mp4").exists()
    before = (out / "001.mp4").stat()
    comfyui.free()  # the server has gone on with the second clip, and would only look up what it has made
    made = subprocess.run(given, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    results = [json.loads(line) for line in made.stdout.splitlines()]
    assert results[0] == first and (out / "001.mp4").stat().st_mtime_ns == before.st_mtime_ns
    # The server may have taken any step of the second clip before it is asked for one.
    assert "is there already" in made.stderr and not re.search(r"step \d+ of 3\b", made.stderr), made.stderr
    settings = results[1]["settings"]
    assert (settings["seed"], settings["steps"], settings["loras"]) == (5, 12, [["CogVideoX-nano pink", 0.5]])
    for result in results:
        assert inspect_video(Path(result["file"])) == Video(17, 64, 64, 8)
    names = ["001.mp4", "001.mp4.json", "002.mp4", "002.mp4.json"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_picture_begins_the_video(comfyui, tmp_path: Path) -> None:
    """`python3 dev.py demo --image first_frame.png --prompt "..."` as well: that picture begins the video, and a word
    that the toy does not know is named."""
    picture = np.full((64, 64, 3), (30, 160, 60), np.uint8)
    picture[20:44, 20:44] = (245, 225, 50)
    Image.fromarray(picture).save(tmp_path / "first.png")
    prompt = "A large yellow square dances on a green background."
    given = command(comfyui.url, "--prompt", prompt, "--image", "first.png", "--out", "square.mp4")
    made = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    with av.open(json.loads(made.stdout)["file"]) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(first - picture).mean() < 25
    assert "it does not know “dances”" in made.stderr


def test_video_is_changed_and_leads(comfyui, media, tmp_path: Path) -> None:
    """Video to video, and a control model: the same option, and a length that the video has."""
    clip = comfyui.base / "input" / "clip.mov"  # 13 frames, 8 a second
    for model, name in (("CogVideoX-nano 5b", "changed.mp4"), ("CogVideoX-nano Fun-5b-Control", "led.mp4")):
        given = command(comfyui.url, "--prompt", "a star", "--video", clip, "--model", model, "--steps", 2)
        made = subprocess.run([*given, "--out", tmp_path / name], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        assert inspect_video(tmp_path / name) == Video(13, 64, 64, 8)


def test_what_the_server_refuses_is_its_own_sentence(comfyui, media, tmp_path: Path) -> None:
    """How many steps the noise levels have room for is known to the sampler's node alone."""
    clip, steps = comfyui.base / "input" / "clip.mov", ("--steps", 100, "--denoise", 0.05)  # the last 100 of 2000
    given = command(comfyui.url, "--prompt", "a star", "--video", clip, *steps, "--out", tmp_path / "a.mp4")
    made = subprocess.run(given, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout) == (1, "")
    assert "was not made: CogVideoXSample (node" in made.stderr and "rejected" in made.stderr


@pytest.mark.long
def test_own_server_starts_with_the_models_of_another_comfyui_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Whoever has ComfyUI already has the LoRAs there, and no server runs on after the command."""
    base, theirs = tmp_path / "base", tmp_path / "ComfyUI" / "models"
    prepare_base(base, ROOT, PACK_NAME)
    (theirs / "loras").mkdir(parents=True)
    shutil.copyfile(toy.WEIGHTS / "pink.safetensors", theirs / "loras" / "mine.safetensors")
    monkeypatch.setattr(paths, "BASE", base)
    monkeypatch.setattr(paths, "LOGS", tmp_path / "logs")
    own = json.dumps({"host": os.environ["COMFYUI_PATH"], "models": str(theirs), "port": None})
    given = ["run", "--prompt", "A big pink star moves up.", "--lora", "mine:0.9", "--steps", "2"]
    assert cli.main([*given, "--out", str(tmp_path / "star.mp4"), "--ready", own]) == 0
    captured = capfd.readouterr()
    (result,) = map(json.loads, captured.out.splitlines())
    assert result["settings"]["loras"] == [["mine.safetensors", 0.9]]
    assert inspect_video(tmp_path / "star.mp4") == Video(17, 64, 64, 8)
    assert not list((base / "output").rglob("*.mp4")) and not list(base.glob("run-*"))
    (url,) = re.findall(r"ComfyUI answers at (\S+)", captured.err)
    with pytest.raises(OSError, match="refused"):
        server.request(f"{url}/system_stats", timeout_s=5)
