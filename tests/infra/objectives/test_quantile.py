import pytest

from infra.objectives.quantile import quantile

BOUNDS = (0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        # rank 9.5 of 10; the second bucket holds 6 to 10: 0.1 + 0.1 * (9.5 - 5) / 5
        (0.95, (5, 5, 0, 0, 0), 0.19),
        # rank 5 is the last of the first bucket, from 0 on: 0.1 * 5 / 5
        (0.5, (5, 5, 0, 0, 0), 0.1),
        # an empty bucket between: rank 9.5 in the fourth, 0.5 + 0.5 * (9.5 - 8) / 2
        (0.95, (8, 0, 0, 2, 0), 0.875),
        # beyond the last bound nothing is known but that bound
        (0.95, (1, 0, 0, 0, 9), 1.0),
        (0.99, (0, 0, 0, 0, 1), 1.0),
        # one of 100: 0.1 * 99 / 100
        (0.99, (100, 0, 0, 0, 0), 0.099),
        # rank 0 is where the first that holds anything begins
        (0.0, (0, 4, 0, 0, 0), 0.1),
        (1.0, (0, 4, 0, 0, 0), 0.2),
        (0.95, (0, 0, 0, 0, 0), None),
    ],
)
def test_quantile_is_interpolated_in_its_bucket(q: float, counts: tuple[int, ...], expected: float | None) -> None:
    assert quantile(q, counts, BOUNDS) == (None if expected is None else pytest.approx(expected))
