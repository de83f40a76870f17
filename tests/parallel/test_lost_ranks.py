"""Ranks that die or cannot go on: all end, the run says so, and the next one is equal."""

import gc
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management as mm
import psutil
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from cogvideox.errors import UserError
from cogvideox.host.standalone import plain_options
from cogvideox.parallel import actors, engine, team
from cogvideox.parallel.team import RankLostError, Team
from cogvideox.tests.parallel.test_remote_model import WHAT, near, on_two, run  # noqa: F401 (a fixture)
from cogvideox.tests.support import check_parity

pytestmark = [pytest.mark.usefixtures("inference", "two_ranks"), pytest.mark.long]


def team_of(model: Any) -> Team:
    return model.weights.team


def ranks_of(model: Any) -> list[int]:
    """The process ids of a model's ranks, which are started for it."""
    team_of(model).start()
    return team_of(model).ask("process")


def after_a_step(model: ModelPatcher, act: Any) -> ModelPatcher:
    """A clone that calls `act` once, after the first step's prediction."""
    clone, calls = model.clone(), []

    def look(args: dict[str, Any]) -> torch.Tensor:
        if not calls:
            calls.append(act())
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(look)
    return clone


def test_a_killed_rank_ends_all(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """The others would wait for it for ever."""
    pids = ranks_of(two_ranks)
    with pytest.raises(
        RankLostError, match="One of the 2 processes that compute together has ended.*Queue the workflow again"
    ):
        run(after_a_step(two_ranks, lambda: os.kill(pids[1], signal.SIGKILL)))
    deadline = time.monotonic() + 10
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_alive, pids))
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)


def test_a_rank_that_ends_between_two_runs(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """The next run starts all again and loses nothing. ComfyUI, which counts and unloads models in the thread that all
    runs are made in, must not meet an exception there: it would never run anything again."""
    for act in (lambda: two_ranks.loaded_size() == 0, mm.unload_all_models, lambda: run(two_ranks)):
        run(two_ranks)
        pids = ranks_of(two_ranks)
        os.kill(pids[1], signal.SIGKILL)
        assert act() is not False
        check_parity(WHAT, run(two_ranks), run(near), 5e-6)
        assert set(ranks_of(two_ranks)).isdisjoint(pids)


def test_models_are_unloaded_after_an_idle_cancel(two_ranks: ModelPatcher) -> None:
    """Cancel marks the run of nobody where nothing runs; to free the models then must not raise its exception."""
    run(two_ranks)
    mm.interrupt_current_processing(True)
    try:
        mm.unload_all_models()
    finally:
        mm.interrupt_current_processing(False)
    assert team_of(two_ranks).ask("loaded_bytes", two_ranks.weights.name) == [0, 0]  # type: ignore[attr-defined]


def test_another_pack_ends_ray_in_the_middle(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """The run says so, and starts no Ray with Ray's own defaults, of an address that everybody reaches."""
    ray = engine._ray()
    with pytest.raises(RankLostError, match="another program in this ComfyUI has ended Ray"):
        run(after_a_step(two_ranks, ray.shutdown))
    assert not ray.is_initialized()
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)


def test_no_room_for_the_meeting(two_ranks: ModelPatcher, near: ModelPatcher, monkeypatch, tmp_path: Path) -> None:  # noqa: F811
    """A full disk is named, no rank is left waiting, and no file either."""
    team = team_of(two_ranks)
    ranks_of(two_ranks)  # Ray itself has begun, in the folder that it has room in
    team.stop()
    with monkeypatch.context() as full:
        full.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        with pytest.raises(UserError, match="nothing can be written to the folder for temporary files"):
            run(two_ranks)
    assert not team.is_running
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)
    assert any(tmp_path.iterdir())
    team.stop()
    assert not any(tmp_path.iterdir())


def test_two_splits_take_turns(near: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Ray lends each card to one process. Two nodes of a workflow, or one whose split was changed, must not wait for
    ever for each other's cards; here two are pretended."""
    engine.shut_down()
    try:
        with monkeypatch.context() as pretended:
            pretended.setattr(torch.cuda, "device_count", lambda: 2)
            options = plain_options()
            pretended.setattr(comfy.cli_args.args, "cpu", False)
            pretended.setattr(actors, "_options", lambda on_cards: options)  # there is no card to compute on
            first, second = on_two(near, "sequence"), on_two(near, "cfg")
            for far in (first, second, first):
                pressed = threading.Timer(400, mm.interrupt_current_processing)  # ends what waits
                pressed.start()
                check_parity(WHAT, run(far), run(near), 5e-6)
                pressed.cancel()
                assert team_of(far).is_running and len(ranks_of(far)) == 2
            assert not team_of(second).is_running
            with team_of(first).lock, ThreadPoolExecutor(1) as thread:  # as a run of another thread has it
                with pytest.raises(UserError, match="2 cards are asked for in this machine, and 0 of 2 are free"):
                    thread.submit(team_of(second).start).result(60)
    finally:
        engine.shut_down()


def test_rays_server_ends(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """As where the machine has no memory left. Ray would end this process a minute later, and start nothing more."""
    ranks_of(two_ranks)
    (server,) = [each for each in psutil.Process().children() if each.name() == "gcs_server"]
    server.kill()
    server.wait(10)
    assert int(os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"]) > 10**8
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)
    check_parity(WHAT, run(on_two(near, "sequence")), run(near), 5e-6)


def test_another_packs_ray_is_not_used(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """One that has ended ours and started its own, which may ask nobody for a token."""
    ray = engine._ray()
    ranks_of(two_ranks)
    ray.shutdown()
    ray.init(address="local", num_cpus=1, include_dashboard=False, namespace="other", configure_logging=False)
    try:
        with pytest.raises(UserError, match="Something else has started Ray"):
            run(two_ranks)
        engine.shut_down()
        assert ray.is_initialized(), "the other pack's Ray is not ours to end"
    finally:
        ray.shutdown()
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)


def test_another_pack_ends_ray(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """Or a workflow of ours with another address does. Actors of an ended Ray can be asked nothing, not even to end."""
    pids, team = ranks_of(two_ranks), team_of(two_ranks)
    engine.shut_down()
    assert not team.is_running and not any(map(_is_alive, pids))
    team.stop()
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)
    assert set(ranks_of(two_ranks)).isdisjoint(pids)


def test_a_run_goes_on_alone(near: ModelPatcher) -> None:  # noqa: F811
    """By choice: from the step that was lost, in this process; and the next run is on all ranks again."""
    far, want = on_two(near, goes_on_alone=True), run(near, steps=6)
    pids = ranks_of(far)
    check_parity(WHAT, run(after_a_step(far, lambda: os.kill(pids[0], signal.SIGKILL)), steps=6), want, 5e-6)
    check_parity(WHAT, run(far, steps=6), want, 5e-6)
    assert set(ranks_of(far)).isdisjoint(pids)


def test_alone_there_is_room_for_a_step(near: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The ranks' model asks for none here; and the rank on the same card has ended before."""
    far, loaded, load = on_two(near, goes_on_alone=True), list[tuple[str, float, bool]](), mm.load_models_gpu
    pids = ranks_of(far)

    def watched(models: Any, memory_required: int = 0, **options: Any) -> None:
        alive = any(map(_is_alive, pids))
        loaded.extend((type(each.model).__name__, memory_required, alive) for each in models)
        load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(mm, "load_models_gpu", watched)
    run(after_a_step(far, lambda: os.kill(pids[1], signal.SIGKILL)))
    (_, room, alive), *others = [each for each in loaded if each[0] == type(near.model).__name__]
    assert room >= near.model.memory_required([2, 16, 2, 8, 12]) > 0 and not alive and not others


def test_lost_ranks_are_waited_for(two_ranks: ModelPatcher) -> None:
    """Ray ends a process without waiting, and its memory on a card stays as long as it."""
    team = team_of(two_ranks)
    pids = ranks_of(two_ranks)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids]).start()
    team.wait_until_gone()
    assert not any(map(_is_alive, pids))
    team.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits can be set on Linux alone")
def test_a_rank_without_memory_ends_all(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """With what helps, and the next run on new processes."""
    pid = ranks_of(two_ranks)[1]
    with open(f"/proc/{pid}/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    # Enough for the process itself and not for a copy of x: kernels that lack memory say so in other words.
    limit = mapped + (16 << 20)
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    with pytest.raises(RankLostError, match="no memory left.*smaller or shorter"):
        run(two_ranks, (33, 64, 96))
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)


def test_fifty_runs_stay_flat(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """No process more and no memory kept: the prompts of each run are other ones."""
    ranks_of(two_ranks)
    before = _state(two_ranks)
    for seed in range(50):
        run(two_ranks, steps=2, seed=seed)
        if seed == 9:
            before = _state(two_ranks)
    pids, used = _state(two_ranks)
    assert pids == before[0]
    assert used < before[1] * 1.05, (used, before[1])


def test_lost_ranks_stay_lost_for_a_prompt(near: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A second sampler of the workflow would go back to a card that is broken, and lose the run after all."""
    prompt = ["first"]
    monkeypatch.setattr(team, "running_prompt", lambda: prompt[0])
    far: Any = on_two(near, "sequence", goes_on_alone=True)
    pids, ranks = ranks_of(far), team_of(far)
    starts = ranks.start_count
    for act in (lambda: os.kill(pids[1], signal.SIGKILL), lambda: None):
        check_parity(WHAT, run(after_a_step(far, act)), run(near), 5e-6)
        assert ranks.start_count == starts and not ranks.is_running
    prompt[0] = "second"
    check_parity(WHAT, run(far), run(near), 5e-6)
    assert ranks.start_count == starts + 1


def test_a_changed_setting_finds_the_ranks(near: ModelPatcher) -> None:  # noqa: F811
    """ComfyUI forgets the model of before first: another precision, or a LoRA before the node, makes another one."""
    far: Any = on_two(near, split="sequence")
    pids, ranks = ranks_of(far), team_of(far)
    run(far)
    del far
    mm.unload_all_models()
    mm.cleanup_models_gc()
    gc.collect()
    deadline = time.monotonic() + 10
    while ranks._models and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ranks._models
    again: Any = on_two(near, split="sequence")
    check_parity(WHAT, run(again), run(near), 5e-6)
    assert ranks_of(again) == pids


def test_the_last_model_takes_its_ranks_along(near: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Freed with ComfyUI's models: a process holds a gigabyte, and on a card its context."""
    monkeypatch.setattr(team, "_IDLE_SECONDS", 0.5)
    far: Any = on_two(near, split="sequence")  # ranks of its own: those of the other tests are of "auto"
    pids = ranks_of(far)
    run(far)
    mm.unload_all_models()
    assert team_of(far).ask("loaded_bytes", far.weights.name) == [0, 0]
    check_parity(WHAT, run(far), run(near), 5e-6)
    del far
    mm.unload_all_models()
    mm.cleanup_models_gc()
    gc.collect()
    deadline = time.monotonic() + 20
    while any(map(_is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_is_alive, pids))


@pytest.fixture
def other_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the second machine had another fine-tune, and another version of torch."""
    asked = Team.ask

    def ask(self: Team, method: str, *arguments: Any, **options: Any) -> list[Any]:
        answers = asked(self, method, *arguments, **options)
        if method == "fingerprint":
            answers[1] = "other"
        return answers

    monkeypatch.setattr(Team, "ask", ask)
    yield


def test_machines_with_other_weights_are_refused(near: ModelPatcher, other_weights: None) -> None:  # noqa: F811
    """Half of each step would be another model's."""
    with pytest.raises(UserError, match="not the same on every machine"):
        run(on_two(near))


def test_machines_with_other_versions_are_refused(two_ranks: ModelPatcher) -> None:
    """By name and version."""
    team = team_of(two_ranks)
    found = team.ask("versions")
    assert found[0] == found[1] and found[0]["torch"] == torch.__version__
    with pytest.raises(UserError, match=r"differ in the version of torch \(2.0, 2.1\)"):
        team._require_same({"torch": "2.0"}, [{"torch": "2.0"}, {"torch": "2.1"}])


def test_a_second_comfyui_on_the_same_machine(two_ranks: ModelPatcher, near: ModelPatcher) -> None:  # noqa: F811
    """Each has a Ray of its own, which the other cannot enter."""
    from cogvideox.tests.children import Child

    ranks_of(two_ranks)
    other = Child("parallel.other_comfyui.start_ray", environ={"RAY_AUTH_TOKEN": "1" * 64})
    assert other.wait(120) == 0, other.output()
    check_parity(WHAT, run(two_ranks), run(near), 5e-6)


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _state(model: Any) -> tuple[list[int], int]:
    """(process ids, bytes in memory) of the ranks and of this process."""
    pids = [*ranks_of(model), os.getpid()]
    used = 0
    for pid in pids:
        with open(f"/proc/{pid}/statm") as statm:
            used += int(statm.read().split()[1]) * resource.getpagesize()
    return pids, used
