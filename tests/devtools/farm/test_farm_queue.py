"""Which clip a worker gets, whatever happens to the others."""

from cogvideox.devtools.farm.farm_plan import Job
from cogvideox.devtools.farm.farm_queue import Queue


def jobs(count: int) -> list[Job]:
    return [Job(str(number), f"line {number}", None) for number in range(count)]


def test_a_lost_clip_is_next_and_not_for_ever() -> None:
    """A clip whose machine was lost three times may be what ends the machines."""
    first, second = jobs(2)
    queue = Queue([first, second], tries=3)
    for begun in (1, 2):
        assert queue.take(begun, "a") is first and queue.begun(first) == begun
        assert queue.put_back(first, begun)
    assert queue.take(3, "b") is first and not queue.put_back(first, 3)
    assert queue.take(1, "a") is second and queue.take(1, "a") is None and len(queue) == 0


def test_a_lost_clip_goes_to_another_worker() -> None:
    """A broken card would lose the same clip until it has failed; but the last worker has to try again itself."""
    first, second = jobs(2)
    queue = Queue([first, second], tries=3)
    assert queue.take(1, "a", ["a"]) is first and queue.put_back(first, 1)
    assert queue.take(1, "a", ["a"]) is second and queue.take(1, "a", ["a"]) is None
    assert queue.take(1, "a") is first and queue.put_back(first, 1)
    assert queue.take(2, "a", ["a"]) is first


def test_a_lost_clip_that_others_refuse_is_tried_again() -> None:
    """Each left it to the other, and the command did not end."""
    (only,) = jobs(1)
    queue = Queue([only], tries=3)
    queue.refuse(queue.take(2, "b", ["a"]) or only, "b", "no model on b")
    assert queue.take(1, "a", ["b"]) is only and queue.put_back(only, 1)
    assert queue.take(2, "b", ["a"]) is None and queue.take(1, "a", ["b", "c"]) is None
    assert queue.take(1, "a", ["b"]) is only


def test_a_clip_that_no_server_has_begun_keeps_its_tries() -> None:
    """A machine whose disk is full would use up the tries of every clip."""
    (only,) = jobs(1)
    queue = Queue([only], tries=1)
    assert queue.take(1, "a") is only
    queue.return_unbegun(only)
    assert queue.take(1, "a") is only and queue.begun(only) == 1


def test_a_machine_without_the_model_leaves_the_clip_to_others() -> None:
    """Machines have different models: the clip is made where it can be, and given up where that is nowhere."""
    (only,) = jobs(1)
    queue = Queue([only], tries=1)
    queue.refuse(queue.take(1, "a") or only, "a", "no model on a")
    assert queue.take(1, "a") is None and queue.drop_refused(["a", "b"]) == []
    assert queue.take(2, "b") is only and queue.begun(only) == 1, "a refusal counts as no try"
    queue.refuse(only, "b", "no model on b")
    assert queue.drop_refused(["a", "b"]) == [(only, "no model on b")]
    assert len(queue) == 0


def test_a_clip_that_nobody_has_refused_waits() -> None:
    """It would be given up with the others."""
    refused, fresh = jobs(2)
    queue = Queue([refused, fresh], tries=1)
    queue.refuse(queue.take(1, "a") or refused, "a", "no")
    assert queue.drop_refused(["a"]) == [(refused, "no")]
    assert queue.take(1, "a") is fresh
