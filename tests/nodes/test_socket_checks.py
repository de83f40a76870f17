"""What nodes of other packs may give through a link: a sentence that names the input."""

from typing import Any

import pytest
import torch

from cogvideox.errors import UserError
from cogvideox.nodes import NODES

STRANGE: dict[str, list[Any]] = {
    "LATENT": [{}, {"samples": None}, {"samples": [1]}, {"samples": torch.zeros(3)}, {"samples": torch.zeros([1] * 6)}],
    "CONDITIONING": [[[None]], [[torch.zeros(1, 2, 3), None]], [["text", {}]], [torch.zeros(2)], [3]],
    **dict.fromkeys(("IMAGE", "MASK", "MODEL", "CLIP"), []),
}
SOCKETS = [
    pytest.param(node, entry.id, value, id=f"{node.__name__}-{entry.id}-{str(value)[:12]}")
    for node in NODES
    for entry in node.define_schema().inputs
    for value in [3, "text", [[]], *STRANGE.get(entry.io_type, [])]
    if entry.io_type in STRANGE
]


def values_of(node: Any, name: str, given: Any) -> dict[str, Any]:
    """Valid widgets, nothing at the other sockets that come later, and `given` at one."""
    schema = node.define_schema()
    values: dict[str, Any] = {}
    for entry in schema.inputs:
        options = getattr(entry, "options", None) or ["" if entry.io_type == "STRING" else None]
        default = getattr(entry, "default", None)
        values[entry.id] = given if entry.id == name else options[0] if default is None else default
    return {key: [value] for key, value in values.items()} if schema.is_input_list else values


@pytest.mark.parametrize(("node", "name", "given"), SOCKETS)
def test_values_of_another_type(node: Any, name: str, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors about attributes that a None or a str does not have, from deep inside of ComfyUI."""
    from cogvideox.nodes import input_checks

    # The other sockets hold nothing, for which the first of them would be named.
    only = lambda inputs, values, listed: check({name: inputs[name]}, {name: values[name]}, listed)  # noqa: E731
    check = input_checks.check_sockets
    monkeypatch.setattr(input_checks, "check_sockets", only)
    with pytest.raises(UserError, match=rf"{name} (is|has samples of)") as caught:
        node.execute(**values_of(node, name, given))
    assert len(str(caught.value)) < 400


LINKED = [node for node in NODES if {entry.io_type for entry in node.define_schema().inputs} & {*STRANGE}]


@pytest.mark.parametrize("node", LINKED)
def test_nothing_at_all(node: Any) -> None:
    """A node of another pack that returns None, and an optional input that is not connected."""
    schema = node.define_schema()
    required = [entry.id for entry in schema.inputs if entry.io_type in STRANGE and not entry.optional]
    if not required:
        pytest.skip("all of its sockets are optional")
    with pytest.raises(UserError, match=f"{required[0]} is (nothing|not a dictionary)"):
        node.execute(**values_of(node, required[0], None))
