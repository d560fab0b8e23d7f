"""Traffic forecasts: masked errors, the two rules of thumb, the parties, the stages of the learning rate."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fl_utils import forecasts
from fl_utils.data import road_network
from fl_utils.data.traffic import Traffic
from fl_utils.models.traffic import DCRNN
from fl_utils.training import LocalTraining


def table(days=10, sensors=4):
    """Sensor n reads 30 + n + hour of the day, always; no noise."""
    times = np.datetime64("2020-01-01T00:00", "m") + 5 * np.arange(days * 288)
    hour = (np.arange(len(times)) % 288 // 12)[:, None]
    speeds = (30 + np.arange(sensors) + hour).astype(np.float32)
    return Traffic(speeds, times, tuple("abcdefgh"[:sensors]), np.ones((sensors, sensors), np.float32))


def test_errors_leave_out_what_is_missing():
    truth = torch.tensor([[[10.0, 0.0], [20.0, 40.0]], [[10.0, 50.0], [0.0, 40.0]]])
    guess = torch.tensor([[[13.0, 99.0], [20.0, 30.0]], [[10.0, 45.0], [99.0, 44.0]]])
    found = forecasts.errors(guess, truth)
    assert found["mae"] == pytest.approx([8 / 3, 14 / 3])
    assert found["rmse"] == pytest.approx([(34 / 3) ** 0.5, (116 / 3) ** 0.5])
    assert found["mape"] == pytest.approx([(30 + 0 + 10) / 3, (0 + 25 + 10) / 3])
    with pytest.raises(ValueError, match="want the same shape"):
        forecasts.errors(guess[:1], truth)
    with pytest.raises(ValueError, match="at least one known reading"):
        forecasts.errors(guess, truth * torch.tensor([1.0, 0.0])[:, None])


def test_the_historical_average_of_a_regular_city_is_right():
    regular = forecasts.city("regular", table())
    assert torch.allclose(forecasts.historical_average(regular), regular.windows.test.y)
    gaps = table()
    gaps.speeds[[5, 5 + 288], 1] = 0
    gaps = forecasts.city("gaps", gaps)
    assert torch.allclose(forecasts.historical_average(gaps), gaps.windows.test.y)
    unseen = table()
    unseen.speeds[: 9 * 288, 2] = 0
    place = forecasts.city("unseen", unseen)
    assert torch.allclose(forecasts.historical_average(place)[..., 2], torch.tensor(place.windows.mean))


def test_the_last_value_is_the_last_that_is_known():
    gaps = table()
    begin = 8 * 288 + 24  # within the test part
    gaps.speeds[begin - 3 : begin, 1] = 0
    gaps.speeds[begin - 12 : begin, 3] = 0
    place = forecasts.city("gaps", gaps)
    n = int((place.windows.test.at == begin).nonzero())
    value = forecasts.last_value(place)[n]
    assert value.shape == (12, 4) and (value == value[0]).all()
    assert value[0].tolist() == pytest.approx(
        [*gaps.speeds[[begin - 1, begin - 4, begin - 1], [0, 1, 2]], place.windows.mean]
    )
    assert forecasts.errors(value[None], place.windows.test.y[n][None])["mae"][0] > 0


def test_parties_are_two_cities_or_two_districts(tmp_path):
    cities = forecasts.tables("", days=1, seed=2)
    assert list(cities) == ["city a", "city b"] and len(cities["city a"].times) == 288
    one = road_network.simulate("city a", 1)
    lines = [",".join(one.sensors), *(",".join(map(str, row)) for row in one.speeds)]
    (tmp_path / "los_speed.csv").write_text("\n".join(lines))
    np.savetxt(tmp_path / "los_adj.csv", one.adjacency, delimiter=",")
    halves = forecasts.tables("los_loop", tmp_path, days=0)
    assert list(halves) == ["los_loop district 1", "los_loop district 2"]
    assert sum(len(half.sensors) for half in halves.values()) == 20
    assert len(forecasts.tables("los_loop", tmp_path, days=0.5)["los_loop district 1"].times) == 144
    for dataset, message in [("los_loop+los_loop", "every data set once"), ("los_loop+x", "'x' is not a data set")]:
        with pytest.raises(ValueError, match=message):
            forecasts.tables(dataset, tmp_path)
    with pytest.raises(ValueError, match="los_loop: the validation part has 14 readings"):
        forecasts.city("los_loop", halves["los_loop district 1"].first(0.5))
    with pytest.raises(ValueError, match="days is -1"):
        one.first(-1)


def test_minutes_ahead_have_their_places():
    five, fifteen = table(), replace(table(), minutes=15)
    places = forecasts.ahead([forecasts.city("a", five), forecasts.city("b", fifteen)], [15, 30, 60])
    assert places == {"a": [2, 5, 11], "b": [0, 1, 3]}
    for city, minutes in [(forecasts.city("a", five, horizon=6), 60), (forecasts.city("b", fifteen), 20)]:
        with pytest.raises(ValueError, match=f"no forecast {minutes} minutes ahead"):
            forecasts.ahead([city], [15, minutes])


def test_stages_of_the_learning_rate():
    assert forecasts.stages(3, []) == [(3, 1.0)] and forecasts.stages(3, [5]) == [(3, 1.0)]
    assert forecasts.stages(100, [20, 30, 40, 50]) == [(20, 1.0), (10, 0.1), (10, 0.01), (10, 0.001), (50, 1e-4)]
    for wrong in ((0, []), (3, [2, 1]), (3, [0])):
        with pytest.raises(ValueError, match="want at least one round"):
            forecasts.stages(*wrong)


def test_training_in_stages_ends_in_an_evaluation_of_every_city(tmp_path):
    cities = [forecasts.city(name, table, 12, 12, 4, 1) for name, table in forecasts.tables("", days=1).items()]
    local = LocalTraining(1, 32, 0.01, optimizer="adam")
    build = partial(DCRNN, 6, 1, 1)
    run = partial(forecasts.train, build, cities, 2, local, 0, name="both")
    results = run([1], checkpoint=lambda name: tmp_path / name)
    assert len(results) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["both-0-0", "both-0-1"]
    assert results[0].evaluations == [] and set(results[1].evaluations[-1]) == {"city a", "city b"}
    assert [len(values) for values in results[1].evaluations[-1]["city a"].values()] == [12, 12, 12]
    first, second, constant = results[0].vector, results[1].vector, run()[0].vector
    assert second[-1] == constant[-1] == 2 * first[-1]  # batches seen
    moved = [(vector - first)[:-1].norm() for vector in (second, constant)]
    assert 0 < moved[0] < 0.5 * moved[1]  # a tenth of the learning rate moves less
