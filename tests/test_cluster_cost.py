import math
from dataclasses import replace

import pytest

from fl_utils.cluster_cost import Cost, Measured, errors, fit

CNN = Cost(0.6, 0.003, bytes=6_653_628, serving=0.006, handling=0.02, latency=0.005, bandwidth=1.25e8)


def test_a_round_by_hand():
    transfer = 6_653_628 / 1.25e8
    around = 0.005 + 0.005 + transfer + 0.006
    assert CNN.seconds(2, 10) == pytest.approx(2 * transfer + 5 * 0.605 + around)
    assert CNN.seconds(20, 10) == CNN.seconds(10, 10)  # more workers than clients: some idle
    assert CNN.seconds(3, 10) == pytest.approx(3 * transfer + 4 * 0.605 + around)  # four waves
    assert CNN.seconds(1000, 1000) == pytest.approx(1000 * transfer + 1000 * (transfer + 0.006) + around)
    shared = replace(CNN, cores=2)
    assert shared.seconds(1, 10) == CNN.seconds(1, 10)
    assert shared.seconds(10, 10) == pytest.approx(10 * transfer + 5 * (0.6 + 0.02) + around)
    assert shared.limit(10, 10) == "cores"


def test_efficiency_and_what_limits_it():
    free = Cost(compute=1.0, aggregate=0.0, bytes=0)
    assert [free.efficiency(workers, 1000) for workers in (1, 2, 10, 1000)] == [1, 1, 1, 1]
    assert free.efficiency(2000, 1000) == 0.5
    falling = [CNN.efficiency(workers, 1000) for workers in (1, 2, 10, 100, 1000)]
    assert falling == sorted(falling, reverse=True) and falling[0] > 0.9 > falling[-1]
    assert [CNN.limit(workers, 1000) for workers in (1, 10, 1000)] == ["workers", "workers", "server"]


def test_the_fit_finds_what_made_the_rounds():
    small = Cost(0.02, 0.0005, bytes=796_840, serving=0.001, latency=0.005, bandwidth=1.25e8)
    points = [
        Measured(workers, clients, cost.seconds(workers, clients), replace(cost, latency=9.0, bandwidth=1.0))
        for cost in (CNN, small)
        for workers in (1, 2)
        for clients in (10, 20)
    ]
    latency, bandwidth = fit(points)
    assert latency == pytest.approx(0.005) and bandwidth == pytest.approx(1.25e8)
    assert max(map(abs, errors(points, latency, bandwidth))) < 1e-9
    assert errors(points, 2 * latency, bandwidth)[0] > 0.005
    faster = [replace(point, seconds=point.seconds / 2) for point in points]
    assert fit(faster) == (0.0, math.inf)  # quicker than their compute: nothing is left for either
    with pytest.raises(ValueError, match="1 measured rounds do not tell"):
        fit(points[:1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"compute": -1.0}, "compute is -1.0"),
        ({"cores": 0}, "cores is 0"),
        ({"latency": -1.0}, "latency is -1.0"),
        ({"bandwidth": 0}, "bandwidth is 0"),
    ],
)
def test_values_out_of_range_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(CNN, **changed)
    with pytest.raises(ValueError, match="workers is 0"):
        CNN.seconds(0, 10)
