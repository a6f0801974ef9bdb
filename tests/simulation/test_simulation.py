import logging

import pytest

from tests.simulation.world import simulate


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="infra.commitlog")


@pytest.mark.parametrize("seed", range(25))
def test_log_keeps_its_promises_whatever_happens(seed: int) -> None:
    result = simulate(seed)
    assert not result.failure, "\n".join([*result.trace, result.failure, f"make sim SEED={seed}"])


def test_a_seed_always_gives_the_same_simulation() -> None:
    assert simulate(3).digest == simulate(3).digest
