"""What a rank's process is started with: which ComfyUI and pack it imports, and ComfyUI's options."""

import json
import sys
from pathlib import Path

import comfy.cli_args
import pytest

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_folder, plain_options, use_comfyui
from cogvideox.parallel import actors, team
from cogvideox.parallel.fingerprint import versions
from cogvideox.parallel.worker import own_folders


def test_ranks_of_this_machine_import_what_the_graph_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """dev.py and comfy-cli set COMFYUI_PATH, which may be another ComfyUI than the one that runs."""
    monkeypatch.setenv("COMFYUI_PATH", "/other/ComfyUI")
    monkeypatch.setenv("COGVIDEOX_PATH", "/other/pack")
    assert own_folders("/pack", "/ComfyUI", in_cluster=False) == (Path("/pack"), Path("/ComfyUI"))
    assert own_folders("/pack", "/ComfyUI", in_cluster=True) == (Path("/other/pack"), Path("/other/ComfyUI"))
    monkeypatch.delenv("COMFYUI_PATH")
    assert own_folders("/pack", "/ComfyUI", in_cluster=True) == (Path("/other/pack"), Path("/ComfyUI"))


def test_fast_is_sent_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """--fast is a set of an enum's members, which another ComfyUI's process has as its own class."""
    chosen = set(list(comfy.cli_args.PerformanceFeature)[:2])
    monkeypatch.setattr(comfy.cli_args.args, "fast", chosen)
    sent = json.loads(json.dumps(plain_options()))
    assert sent["fast"] == sorted(feature.value for feature in chosen)
    monkeypatch.setattr(comfy.cli_args.args, "fast", set())
    monkeypatch.setattr(sys, "path", [str(comfyui_folder()), *sys.path])
    use_comfyui(comfyui=comfyui_folder(), options=sent)
    assert comfy.cli_args.args.fast == chosen


def test_ranks_that_hold_cards_compute_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ComfyUI without a card (--cpu) may ask for those of a cluster."""
    monkeypatch.setattr(comfy.cli_args.args, "cpu", True)
    assert actors._options(on_cards=True)["cpu"] is False
    monkeypatch.setattr(comfy.cli_args.args, "cpu", False)
    assert actors._options(on_cards=False)["cpu"] is True


def test_this_process_is_compared_with_the_ranks() -> None:
    """An update without a restart, or another ComfyUI there, is seen where all ranks are alike."""
    own = versions()
    asked = team.Team("", 2, "auto")
    asked._require_same(own, [own, own])
    other = {**own, "ComfyUI": "0.0.1"}
    with pytest.raises(UserError, match=r"another version of ComfyUI \(0.0.1\) than this ComfyUI"):
        asked._require_same(own, [other, other])
