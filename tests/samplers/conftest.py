"""What the tests of a module share is let go with the module."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def tasks_of_one_module() -> Iterator[None]:
    """ComfyUI searches all of Python's objects at every load while a model is in memory whose last run used a clone."""
    from cogvideox.tests.tasks import task_of

    yield
    task_of.cache_clear()
