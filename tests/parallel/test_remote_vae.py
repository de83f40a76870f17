"""A VAE on two ranks against the same VAE in one process."""

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import comfy.model_management as mm
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker

from cogvideox.errors import UserError
from cogvideox.host.standalone import comfyui_nodes
from cogvideox.model_loaders.load_model import load_model
from cogvideox.model_loaders.load_vae import load_vae
from cogvideox.nodes.decode import CogVideoXDecode
from cogvideox.nodes.image import CogVideoXImageToVideo
from cogvideox.nodes.parallel import CogVideoXParallel
from cogvideox.nodes.video import CogVideoXEncodeVideo
from cogvideox.parallel import team
from cogvideox.parallel.rank_answers import Failure, VaePass
from cogvideox.parallel.remote_vae import RemoteVAE, spread_vae
from cogvideox.parallel.team import RankLostError, RankMemoryError, Team
from cogvideox.sockets.vae import CogVideoXVAE
from cogvideox.tests.support import check_at_most, check_parity, relative_error
from cogvideox.tests.tiers import long_after
from cogvideox.vae.plan import FAST, LADDER, LEAST, LOW

pytestmark = pytest.mark.usefixtures("inference", "ray_runs")


def on_two(vae: CogVideoXVAE, goes_on_alone: bool = False) -> RemoteVAE:
    """Of the team that the models of this folder's tests have."""
    return spread_vae(vae, 2, "auto", "", goes_on_alone)


@pytest.fixture(scope="module")
def near(tiny_pipelines: Mapping[str, Path]) -> CogVideoXVAE:
    with torch.inference_mode():
        return load_vae(tiny_pipelines["5b"], "fp32")


@pytest.fixture(scope="module")
def far(near: CogVideoXVAE, ray_runs: None) -> Iterator[RemoteVAE]:
    yield on_two(near)


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(sum(shape)))


def check(what: str, got: Any, want: Any) -> None:
    check_parity(f"VAE {what}, two ranks against one process", got, want, 1e-6)


# Rows that do not divide, of two videos; one row and so one rank without work; an even number of frames; and more rows.
@pytest.mark.parametrize("shape", long_after(3, [(2, 5, 7, 3), (1, 3, 1, 4), (1, 4, 2, 2), (1, 3, 8, 12)]))
def test_decode(near: CogVideoXVAE, far: RemoteVAE, shape: tuple[int, ...]) -> None:
    """Every node that decodes calls one of these."""
    z = latents(shape[0], 16, *shape[1:])
    want = near.decode(z)
    for memory in ("auto", "fast", "low"):
        (got,) = cast(Any, CogVideoXDecode.execute(far, {"samples": z}, memory)).args
        check("decode", got, want.flatten(0, 1))
    check("decode", comfyui_nodes().VAEDecode().decode(far, {"samples": z})[0], want.flatten(0, 1))
    check("tiled decode", far.decode_tiled(z, 4, 4), want)


@pytest.mark.parametrize("size", long_after(2, [(17, 56, 32), (5, 8, 16), (9, 64, 96)]))
def test_encode(near: CogVideoXVAE, far: RemoteVAE, size: tuple[int, int, int]) -> None:
    """Image to video and every edit start from these numbers."""
    images = pictures(*size)
    check("encode", far.encode(images), near.encode(images))
    check("tiled encode", far.encode_tiled(images, 64, 64), near.encode(images))
    check("encode", far.encode(images, posterior_seed=3, sample_count=2), near.encode(images, 3, 2))
    check("encode", far.encode_posterior(images)[1], near.encode_posterior(images)[1])


def test_nodes_that_encode(near: CogVideoXVAE, far: RemoteVAE) -> None:
    """They ask a VAE for what it is, not only to encode."""
    images, conditioning = pictures(9, 64, 96), [[torch.zeros(1, 226, 32), {}]]

    def encoded(vae: CogVideoXVAE) -> list[torch.Tensor]:
        given = (conditioning, conditioning, vae, 96, 64, 9, 1)
        positive = cast(Any, CogVideoXImageToVideo.execute(*given, start_image=images[:1])).args[0]
        (video,) = cast(Any, CogVideoXEncodeVideo.execute(vae, images)).args
        return [video["samples"], positive[0][1]["concat_latent_image"]]

    for got, want in zip(encoded(far), encoded(near)):
        check("encode", got, want)


def test_half_precision(tiny_pipelines: Mapping[str, Path], near: CogVideoXVAE) -> None:
    """The ranks compute in the precision that was chosen here, and lose no more than one process in it."""
    half = load_vae(tiny_pipelines["5b"], "bf16")
    z, images = latents(1, 16, 3, 4, 3), pictures(5, 32, 24)
    for call in (lambda vae: vae.decode(z), lambda vae: vae.encode(images)):
        exact, one, got = call(near), call(half), call(on_two(half))
        what = "VAE in bf16, two ranks, error over one process's"
        check_at_most(what, relative_error(got, exact) / relative_error(one, exact), 1.1)


def test_the_weights_are_on_the_ranks_cards_alone(tiny_pipelines: Mapping[str, Path]) -> None:
    """This process's card has a model of its own to hold, and the ranks' cards another one."""
    vae = load_vae(tiny_pipelines["5b"], "fp32")
    remote = on_two(vae)
    remote.decode(latents(1, 16, 1, 2, 2))
    assert not any(loaded.model is vae.patcher for loaded in mm.current_loaded_models)
    assert remote.sent_bytes > 0


def test_what_is_wrong_is_said_as_in_one_process(far: RemoteVAE) -> None:
    """Before anything is sent, or after it came back."""
    with pytest.raises(UserError, match=r"\[1, 4, 3, 8, 8\].*16"):
        far.decode(torch.zeros(1, 4, 3, 8, 8))
    with pytest.raises(UserError, match="has decoded contains NaN or Inf"):
        far.decode(latents(1, 16, 1, 2, 2) * 1e38)


def test_cancel_ends_it_within_a_second(near: CogVideoXVAE, far: RemoteVAE) -> None:
    """The ranks finish the chunk that they compute; whoever cancelled need not wait for it."""
    z, pressed = latents(1, 16, 13, 24, 36), list[float]()

    def press() -> None:
        pressed.append(time.monotonic())
        mm.interrupt_current_processing(True)

    timer = threading.Timer(0.5, press)
    far.decode(latents(1, 16, 1, 2, 2))  # they are there
    timer.start()
    with pytest.raises(mm.InterruptProcessingException):
        far.decode(z)
    was_busy = far.team.is_busy  # asks Ray, and waits for nothing
    assert isinstance(was_busy, bool) and time.monotonic() - pressed[0] < 1
    check("decode", far.decode(z[..., :4, :4]), near.decode(z[..., :4, :4]))


def test_a_video_that_is_left_in_the_middle(near: CogVideoXVAE, far: RemoteVAE) -> None:
    """A full disk ends a decode to a file; the ranks go on with the next one, and the other way round."""
    z = latents(1, 16, 5, 3, 2)
    first, second = far.decode_stream(z), far.decode_stream(z)
    parts = [next(first), next(second)]
    second.close()
    check("decode", torch.cat([parts[0], *first]), near.decode(z)[0])
    assert torch.equal(*parts)


def test_the_node(tiny_pipelines: Mapping[str, Path], near: CogVideoXVAE) -> None:
    """A graph that has connected no VAE must say so at the node that decodes, and one that has must use all cards."""
    model, z = load_model(tiny_pipelines["5b"], "fp32"), latents(1, 16, 1, 2, 2)
    _, vae = cast(Any, CogVideoXParallel.execute(model, 2, "auto", vae=near)).args
    assert isinstance(vae, RemoteVAE)
    check("decode", vae.decode(z), near.decode(z))
    _, nothing = cast(Any, CogVideoXParallel.execute(model, 2, "auto")).args
    assert isinstance(nothing, ExecutionBlocker) and "connect one to its input vae" in nothing.message
    with pytest.raises(UserError, match="from another loader"):
        CogVideoXParallel.execute(model, 2, "auto", vae=cast(Any, object()))


@pytest.mark.long  # the model's ranks do the same in test_lost_ranks.py
@pytest.mark.parametrize("goes_on_alone", [False, True])
def test_a_killed_rank(near: CogVideoXVAE, goes_on_alone: bool) -> None:
    """All end, and the run says so or goes on in this process, with each frame once."""
    import os
    import signal

    far, z = on_two(near, goes_on_alone), latents(1, 16, 7, 4, 4)
    frames = far.decode_stream(z)
    parts = [next(frames)]
    os.kill(far.team.ask("process")[1], signal.SIGKILL)
    if goes_on_alone:
        check("decode", torch.cat([*parts, *frames]), near.decode(z)[0])
    else:
        with pytest.raises(
            RankLostError, match="One of the 2 processes that compute together has ended.*Queue the workflow again"
        ):
            list(frames)
    check("decode", far.decode(z), near.decode(z))


def test_a_prompt_that_has_lost_its_ranks_decodes_alone(near: CogVideoXVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sampler has lost them to a card that may be broken: the video is not lost to the same one."""
    far, z = on_two(near, True), latents(1, 16, 3, 4, 4)
    far.team.start()
    starts = far.team.start_count
    monkeypatch.setattr(team, "running_prompt", lambda: "first")
    far.team._lost(Failure("", "gone", ""))
    check("decode", far.decode(z), near.decode(z))
    assert far.team.start_count == starts
    monkeypatch.setattr(team, "running_prompt", lambda: "second")
    check("decode", far.decode(z), near.decode(z))
    assert far.team.start_count == starts + 1


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No memory is left in a rank at the second chunk, but for the leanest mode. Returns the modes that were asked."""
    asked, modes = Team.ask, list[str]()

    def ask(self: Team, method: str, *arguments: Any, **options: Any) -> list[Any]:
        answers = asked(self, method, *arguments, **options)
        if method == "decode":
            plan = LADDER[arguments[0].settings.least]
            modes.append(plan.name)
            if modes.count(plan.name) == 2 and plan != LEAST:
                raise RankMemoryError("One of 2 cards has no memory left.")
        return answers

    monkeypatch.setattr(Team, "ask", ask)
    return modes


@pytest.mark.parametrize("memory, first", [("auto", ["fast", "fast"]), ("low", [])])
def test_out_of_memory_all_ranks_take_a_leaner_mode(
    near: CogVideoXVAE, far: RemoteVAE, cramped: list[str], memory: str, first: list[str]
) -> None:
    """As one process does: from the first chunk, with each frame once."""
    z, said = latents(1, 16, 7, 4, 2), list[str]()
    far.notify = said.append
    frames = list(far.decode_stream(z, memory))
    check("decode", torch.cat(frames), near.decode(z)[0])
    assert cramped == [*first, "low", "low", "least", "least", "least"]
    assert ["memory mode low" in sentence for sentence in said] == [True] * bool(first) + [False]
    assert "memory mode least" in said[-1]


def test_the_ranks_heed_the_mode(far: RemoteVAE) -> None:
    """One that computes the widest frames again sends less; both send something."""
    z, sent = latents(1, 16, 1, 4, 2), {}
    for least in (FAST, LOW):
        list(far._pass("decode", (z,), VaePass(1, "fast", None, False, LADDER.index(least))))
        sent[least.name] = far.sent_bytes
    assert 0 < sent["low"] < sent["fast"]


def test_ranks_release_a_vae_that_is_gone(near: CogVideoXVAE, far: RemoteVAE) -> None:
    """A server that runs for weeks loads many."""
    other = on_two(near)
    other.decode(latents(1, 16, 1, 2, 2))
    team, name = other.team, other.name
    del other
    gc.collect()
    deadline = time.monotonic() + 10
    while name in team._models and time.monotonic() < deadline:
        time.sleep(0.05)
    assert name not in team._models and far.team.is_running
