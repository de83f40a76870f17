"""Odd objects that another pack has put among a model's patches."""

import weakref
from typing import Any

import pytest

from cogvideox.host.stock_patches import foreign_patches, owner_of, serve_patches, unserved_patches


class Proxy:
    """What answers any question with an error."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("it is gone")

    def __call__(self, args: Any) -> Any:
        return args


def dead() -> Any:
    return weakref.proxy(type("Gone", (), {"__call__": lambda self: None})())


@pytest.mark.parametrize("make", [Proxy, dead])
def test_an_odd_function_is_named_by_its_class(make: Any) -> None:
    """A run ended with the object's own error, for the sake of a sentence about it."""
    options = {"patches": {"double_block": [make()], "middle_patch": [make()]}}
    assert owner_of(make()) in ("Proxy", "CallableProxyType")
    assert not foreign_patches(options)
    found = list(unserved_patches(options, 2))
    assert ("middle_patch" in [kind for _, kind in found]) and serve_patches(options, 2) is not None


@pytest.mark.parametrize("place", [("double_block",), ("double_block", "one"), ("double_block", 7), (), "middle", 3])
def test_an_odd_place_is_one_that_is_not_served(place: Any) -> None:
    """Other models' blocks have names of other lengths and kinds: one of them ended the run with an IndexError."""

    def patch(args: Any, extra: Any) -> Any:
        return args

    (found,) = unserved_patches({"patches_replace": {"dit": {place: patch}}}, 2)
    assert found[1].startswith("dit in")
    assert not list(unserved_patches({"patches_replace": {"dit": {("double_block", 1): patch}}}, 2))
