"""The table of deliberate faults keeps up with the code."""

import ast

import pytest

from cogvideox.tests.faults.table import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_every_fault_stands_in_the_code(fault: Fault) -> None:
    """A fault whose text has gone can no longer be put in: its tests would be proven by nothing."""
    code = fault.source()
    ast.parse(code)
    assert code != (ROOT / fault.file).read_text("utf-8")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_of_every_fault_exist(fault: Fault) -> None:
    for test in fault.tests:
        file, *names = test.split("::")  # of a class, a function or both
        assert (ROOT / file).is_file(), test
        text = (ROOT / file).read_text("utf-8")
        for name in names:
            plain = name.partition("[")[0]
            assert f"def {plain}(" in text or f"\nclass {plain}:" in text, test


def test_names_are_different() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
