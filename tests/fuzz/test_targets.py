import pytest

from tests.fuzz.target import put
from tests.fuzz.targets import TARGETS

CASES = 80  # `make fuzz` puts more


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_comes_in_gives_what_was_not_declared(name: str) -> None:
    with TARGETS[name].opened() as look:
        assert put(TARGETS[name], look, CASES, seed=0) == CASES
