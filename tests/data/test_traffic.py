"""Traffic tables out of the official layouts, damaged ones named; windows, districts, and the simulated cities."""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import torch

from fl_utils.data import cards, road_network, traffic, traffic_files

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "traffic"
START = np.datetime64("2012-03-01T00:00", "ns")
IDS = ["773869", "767541", "767542", "717447"]


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as the one string type of Python 2, in protocol 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def graph_bytes(ids, adjacency):
    """A graph as the authors pickled it; numpy's modules by the names they had."""

    stream = io.BytesIO()
    index = {id: place for place, id in enumerate(ids)}
    Python2Pickler(stream, 2).dump((ids, index, Plain(adjacency)))
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Plain:
    """An array that reduces as in Python 2: its bytes are a string."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        rebuild, arguments, state = self.array.__reduce__()
        return rebuild, arguments, (1, *state[1:])


def write_h5(path, speeds, ids=IDS, group="df", times=None, items=None, kind="datetime64", damage=None):
    times = START + np.timedelta64(5, "m") * np.arange(len(speeds)) if times is None else times
    names = np.array(ids) if isinstance(ids[0], int) else np.array(ids, "S")
    with h5py.File(path, "w") as file:
        table = file.create_group(group)
        table["axis0"] = names
        table["axis1"] = times.astype(np.int64)
        table["axis1"].attrs["kind"] = np.bytes_(kind)
        table["block0_items"] = names if items is None else np.array(items, "S")
        table["block0_values"] = speeds
        if damage:
            damage(file, table)
    return path


def adjacency(count=4, seed=0):
    weights = np.random.default_rng(seed).random((count, count)).astype(np.float32)
    return np.where(weights > 0.5, weights, 0).astype(np.float32) + np.eye(count, dtype=np.float32)


def speeds(rows=60, count=4, seed=0):
    return np.random.default_rng(seed).uniform(20, 70, (rows, count))


@pytest.fixture
def metr_la(tmp_path):
    """A folder with a small metr-la.h5 and its graph, whose sensors stand in another order and are one more."""
    write_h5(tmp_path / "metr-la.h5", speeds())
    (tmp_path / "adj_mx.pkl").write_bytes(graph_bytes(["1", *IDS[::-1]], adjacency(5)))
    return tmp_path


# the official layouts


def test_metr_la_with_the_graph_that_python_2_pickled(metr_la):
    assert b"numpy.core.multiarray" in (metr_la / "adj_mx.pkl").read_bytes()
    table = traffic.load("metr_la", metr_la)
    assert table.sensors == tuple(IDS) and table.minutes == 5 and table.unit == "mph"
    assert np.array_equal(table.speeds, speeds().astype(np.float32))
    assert table.times[0] == START and table.times[-1] == START + np.timedelta64(59 * 5, "m")
    assert np.array_equal(table.adjacency, adjacency(5)[1:, 1:][::-1, ::-1])  # by id, not by place


def test_pems_bay_ids_are_numbers_and_its_hour_of_summer_time_becomes_missing_readings(tmp_path):
    ids = [400001, 400017, 400030, 400040]
    times = START + np.timedelta64(5, "m") * np.array([*range(20), *range(32, 60)])
    write_h5(tmp_path / "pems-bay.h5", speeds(48), ids, "speed", times)
    (tmp_path / "sensor_graph").mkdir()
    (tmp_path / "sensor_graph/adj_mx_bay.pkl").write_bytes(graph_bytes([str(id) for id in ids], adjacency()))
    table = traffic.load("pems_bay", tmp_path)
    assert table.sensors == tuple(str(id) for id in ids)
    assert len(table.times) == 60 and not table.speeds[20:32].any()
    assert np.array_equal(table.speeds[32:], speeds(48)[20:].astype(np.float32))
    assert set(np.diff(table.times)) == {np.timedelta64(5, "m")}


def test_columns_follow_axis0_where_the_block_has_another_order(tmp_path):
    found, _, ids = traffic_files.hdf5(write_h5(tmp_path / "a.h5", speeds(), items=IDS[::-1], kind="datetime64[ns]"))
    assert ids == IDS and np.array_equal(found, speeds()[:, ::-1])


def test_times_in_another_unit(tmp_path):
    times = (START + np.timedelta64(5, "m") * np.arange(9)).astype("datetime64[us]")
    _, found, _ = traffic_files.hdf5(write_h5(tmp_path / "a.h5", speeds(9), times=times, kind="datetime64[us]"))
    assert found[0] == START and found.dtype == "datetime64[us]"


def test_the_graph_of_distances_is_the_thresholded_kernel(tmp_path):
    write_h5(tmp_path / "metr-la.h5", speeds())
    costs = {(0, 1): 1000.0, (1, 0): 3000.0, (1, 2): 500.0, (2, 3): 9000.0}
    rows = [f"{IDS[a]},{IDS[b]},{cost}" for (a, b), cost in costs.items()] + [f"{id},{id},0.0" for id in IDS]
    (tmp_path / "distances_la_2012.csv").write_text("from,to,cost\n" + "\n".join([*rows, "9,8,1.0"]) + "\n")
    without_ids = traffic.load("metr_la", tmp_path).adjacency
    (tmp_path / "graph_sensor_ids.txt").write_text(",".join(IDS))
    table = traffic.load("metr_la", tmp_path)
    sigma = np.std([*costs.values(), 0, 0, 0, 0])
    wanted = np.eye(4)
    for (a, b), cost in costs.items():
        wanted[a, b] = np.exp(-((cost / sigma) ** 2))
    assert wanted[2, 3] < 0.1  # too far
    wanted[2, 3] = 0
    assert np.allclose(table.adjacency, wanted, atol=1e-6) and np.array_equal(table.adjacency, without_ids)
    (tmp_path / "graph_sensor_ids.txt").write_text(",".join(IDS[1:]))
    with pytest.raises(ValueError, match=f"graph_sensor_ids.txt lacks {IDS[0]} of the 4 sensors"):
        traffic.load("metr_la", tmp_path)


def write_pair(folder, stem="los", rows=60):
    lines = [",".join(IDS), *(",".join(f"{v:.4f}" for v in row) for row in speeds(rows))]
    (folder / f"{stem}_speed.csv").write_text("\n".join(lines) + "\n")
    np.savetxt(folder / f"{stem}_adj.csv", adjacency(), delimiter=",")
    return folder


@pytest.mark.parametrize(
    ("name", "stem", "minutes", "unit"), [("los_loop", "los", 5, "mph"), ("sz_taxi", "sz", 15, "km/h")]
)
def test_the_pairs_of_t_gcn(tmp_path, name, stem, minutes, unit):
    table = traffic.load(name, write_pair(tmp_path, stem))
    assert table.sensors == tuple(IDS) and (table.minutes, table.unit) == (minutes, unit)
    assert np.allclose(table.speeds, speeds(), atol=1e-4) and np.allclose(table.adjacency, adjacency())
    assert table.times[1] - table.times[0] == np.timedelta64(minutes, "m")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
def test_the_real_los_loop():
    table = traffic.load("los_loop", REAL)
    assert table.speeds.shape == (2016, 207) and (table.speeds > 0).all() and table.sensors[0] == "773869"
    first, second = traffic.districts(table)
    assert sorted(first.sensors + second.sensors) == sorted(table.sensors)
    assert {len(first.sensors), len(second.sensors)} == {103, 104}


# what is damaged


def test_an_unknown_name_and_a_folder_without_the_table(tmp_path):
    with pytest.raises(ValueError, match="not a data set of traffic: there are metr_la"):
        traffic.load("metr", tmp_path)
    with pytest.raises(cards.DataNotFound, match=r"metr-la\.h5"):
        traffic.load("metr_la", tmp_path)


def test_a_graph_of_other_sensors_names_those_it_lacks(metr_la):
    (metr_la / "adj_mx.pkl").write_bytes(graph_bytes(["1", "2", "3", IDS[0]], adjacency()))
    with pytest.raises(ValueError, match=r"the graph lacks 767541, 767542, 717447 of the 4 of .*metr-la\.h5"):
        traffic.load("metr_la", metr_la)


def test_distances_without_some_sensors(tmp_path):
    write_h5(tmp_path / "metr-la.h5", speeds())
    (tmp_path / "distances_la_2012.csv").write_text(f"{IDS[0]},{IDS[1]},5\n")
    with pytest.raises(ValueError, match="the graph lacks 767542, 717447 of the table's 4 sensors"):
        traffic.load("metr_la", tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 0.6, 0.95])
def test_a_truncated_h5(metr_la, keep):
    data = (metr_la / "metr-la.h5").read_bytes()
    (metr_la / "metr-la.h5").write_bytes(data[: keep if keep > 1 else int(keep * len(data))])
    with pytest.raises(ValueError, match=r"metr-la\.h5: not a table in HDF5, truncated or damaged"):
        traffic.load("metr_la", metr_la)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damage": lambda file, table: table.__delitem__("block0_values")}, "damaged: .*block0_values"),
        ({"damage": lambda file, table: file.copy(table, "other")}, "holds df, other; want one group"),
        ({"damage": lambda file, table: table.create_dataset("block1_values", data=[1])}, "want one block"),
        ({"ids": IDS[:3], "items": IDS}, "axis0 and block0_items name different sensors"),
        ({"items": IDS[:3]}, r"block0_values is float64 \(60, 4\); want numbers of shape \(60, 3\)"),
        ({"kind": "string"}, "of kind string; want times"),
        ({"times": START + np.timedelta64(5, "m") * np.arange(60)[::-1]}, "want rising times"),
        ({"times": START + np.timedelta64(1, "m") * np.array([*range(0, 295, 5), 297])}, "row 60 follows"),
        ({"times": START + np.timedelta64(5, "m") * np.array([*range(59), 500])}, "more are missing than there are"),
        ({"ids": [IDS[0], *IDS[:3]]}, "773869 occur more than once"),
    ],
)
def test_a_wrong_h5(metr_la, changes, message):
    write_h5(metr_la / "metr-la.h5", speeds(), **changes)
    with pytest.raises(ValueError, match=message):
        traffic.load("metr_la", metr_la)


@pytest.mark.parametrize("bad", [-3.0, np.inf])
def test_a_speed_that_is_none(metr_la, bad):
    values = speeds()
    values[7, 2] = bad
    write_h5(metr_la / "metr-la.h5", values)
    with pytest.raises(ValueError, match=rf"speed {bad} in row 8, column 3 \(sensor 767542\)"):
        traffic.load("metr_la", metr_la)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), "asks for builtins.print"),
        (b"\x80\x02", "damaged one: EOFError"),
        (pickle.dumps([1, 2]), "a pickled list; want"),
        (pickle.dumps((IDS, dict.fromkeys(IDS, 0), adjacency())), "does not number its 4 ids"),
        (
            pickle.dumps((IDS, dict(zip(IDS, range(4), strict=True)), adjacency(3))),
            r"4 ids, adjacency float32 \(3, 3\)",
        ),
    ],
)
def test_a_wrong_pickle_is_named_and_runs_nothing(metr_la, content, message, capsys):
    (metr_la / "adj_mx.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"adj_mx\.pkl.*{message}"):
        traffic.load("metr_la", metr_la)
    assert capsys.readouterr().out == ""


def corrupt(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_wrong_cells_of_a_csv_are_named_by_row_and_column(tmp_path):
    write_pair(tmp_path)
    table, graph = tmp_path / "los_speed.csv", tmp_path / "los_adj.csv"
    whole = table.read_text()
    cell = whole.splitlines()[2].split(",")[1]
    table.write_text(whole.replace(cell, "fast", 1))
    with pytest.raises(ValueError, match=r"los_speed\.csv: row 3, column 2 \(sensor 767541\) is 'fast'; want a number"):
        traffic.load("los_loop", tmp_path)
    table.write_text(whole.replace(cell, "", 1))  # an empty cell is a missing reading
    assert traffic.load("los_loop", tmp_path).speeds[1, 1] == 0
    table.write_text(whole[:-20])
    with pytest.raises(ValueError, match=r"los_speed\.csv: row 61 has \d cells; want 4 \(is the file truncated\?\)"):
        traffic.load("los_loop", tmp_path)
    table.write_text(whole.splitlines()[0])
    with pytest.raises(ValueError, match="no rows of numbers under a header"):
        traffic.load("los_loop", tmp_path)
    table.write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(ValueError, match=r"los_speed\.csv: not a csv table"):
        traffic.load("los_loop", tmp_path)
    table.write_text(whole)
    np.savetxt(graph, adjacency(5), delimiter=",")
    with pytest.raises(ValueError, match=r"los_adj\.csv: the graph is 5 x 5, the table has 4 sensors: want 4 x 4"):
        traffic.load("los_loop", tmp_path)


def test_a_wrong_distance_is_named_by_its_row(tmp_path):
    path = tmp_path / "d.csv"
    for row, message in [("1,2,far", "row 2, column 3"), ("1,2", "row 2 has 2 cells"), ("1,2,-4", "is '-4'")]:
        path.write_text(f"1,1,0\n{row}\n")
        with pytest.raises(ValueError, match=message):
            traffic_files.distance_graph(path, ["1", "2"])


# windows


@pytest.fixture(scope="module")
def city():
    return road_network.simulate("city a", 3, seed=5)


def test_windows_are_the_readings_they_say(city):
    cut = traffic.windows(city, history=6, horizon=3)
    assert cut.train.x.shape[1:] == (6, 20, 2) and cut.train.y.shape[1:] == (3, 20)
    for part in cut[:3]:
        for n in (0, len(part.x) // 2, len(part.x) - 1):
            at = int(part.at[n])
            past, future = city.speeds[at - 6 : at], city.speeds[at : at + 3]
            assert np.array_equal(part.y[n].numpy(), future)
            assert np.allclose(part.x[n, ..., 0], np.where(past > 0, (past - cut.mean) / cut.std, 0), atol=1e-5)
            assert np.allclose(part.x[n, :, 3, 1], (np.arange(at - 6, at) * 5 % 1440) / 1440, atol=1e-6)
    assert torch.equal(cut.lessons[:, :6], cut.train.x) and cut.lessons.shape[1] == 9
    assert torch.allclose(
        cut.lessons[5, 6:, :, 0] * cut.std + cut.mean, cut.train.y[5].where(cut.train.y[5] > 0, cut.mean), atol=1e-3
    )


def test_no_part_sees_another(city):
    cut = traffic.windows(city, 6, 3)
    changed = replace(city, speeds=city.speeds.copy())
    end = round(0.7 * len(city.times))
    changed.speeds[end:] = 1.0
    other = traffic.windows(changed, 6, 3)
    assert torch.equal(cut.lessons, other.lessons) and torch.equal(cut.train.y, other.train.y)
    assert (cut.mean, cut.std) == (other.mean, other.std)
    assert int(cut.train.at[-1]) + 3 <= end == int(cut.validation.at[0]) - 6
    assert int(cut.validation.at[-1]) + 3 == int(cut.test.at[0]) - 6
    assert int(cut.test.at[-1]) + 3 == len(city.times)


def test_missing_readings_are_not_in_the_scale(city):
    known = city.speeds[: round(0.7 * len(city.times))]
    assert (known == 0).any()
    cut = traffic.windows(city)
    assert np.isclose(cut.mean, known[known > 0].mean(dtype=np.float64)) and np.isclose(
        cut.std, known[known > 0].std(dtype=np.float64)
    )


def test_stride_thins_the_training_windows_alone(city):
    cut, thin = traffic.windows(city), traffic.windows(city, stride=4)
    assert torch.equal(thin.train.at, cut.train.at[::4]) and torch.equal(thin.train.y, cut.train.y[::4])
    assert torch.equal(thin.train.x, cut.train.x[::4]) and len(thin.test.x) == len(cut.test.x)
    assert cut.lessons.untyped_storage().nbytes() == 4 * 2 * city.speeds.size  # views of one table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": 0}, "history is 0"),
        ({"horizon": -1}, "horizon is -1"),
        ({"stride": 0}, "stride is 0"),
        ({"fractions": (0.5, 0.5)}, "want three shares"),
        ({"fractions": (0.7, 0.1, 0.3)}, "add up to 1"),
        ({"history": 80}, r"the validation part has 86 readings \(10% of 864\): want at least 92"),
    ],
)
def test_windows_that_cannot_be_cut(city, change, message):
    with pytest.raises(ValueError, match=message):
        traffic.windows(city, **change)


def test_a_table_without_known_readings(city):
    with pytest.raises(ValueError, match="0 known readings"):
        traffic.windows(replace(city, speeds=np.zeros_like(city.speeds)))


# districts


def connected(table):
    from scipy.sparse.csgraph import connected_components

    return connected_components(np.maximum(table.adjacency, table.adjacency.T) > 0, directed=False)[0] == 1


def test_districts_are_two_connected_halves(city):
    first, second = traffic.districts(city)
    assert connected(first) and connected(second)
    assert not set(first.sensors) & set(second.sensors) and len(first.sensors) + len(second.sensors) == 20
    assert min(len(first.sensors), len(second.sensors)) >= 6
    column = city.sensors.index(second.sensors[3])
    assert np.array_equal(second.speeds[:, 3], city.speeds[:, column])
    assert traffic.districts(city)[0].sensors == first.sensors


def test_two_cliques_are_cut_where_they_touch():
    weights = np.zeros((8, 8), np.float32)
    weights[:4, :4] = weights[4:, 4:] = 1
    weights[3, 4] = 0.1
    table = traffic.Traffic(np.ones((2, 8), np.float32), START + np.arange(2), tuple("abcdefgh"), weights)
    assert {"".join(side.sensors) for side in traffic.districts(table)} == {"abcd", "efgh"}
    apart = replace(table, adjacency=np.eye(8, dtype=np.float32))
    with pytest.raises(ValueError, match="8 sensors, 1 of them connected"):
        traffic.districts(apart)


# the simulated cities


@pytest.mark.parametrize("name", road_network.CITIES)
def test_a_simulated_city_has_rush_hours_gaps_and_a_connected_graph(name):
    table = road_network.simulate(name, 5, seed=1)
    assert table.speeds.shape[0] == 5 * 288 and connected(table) and table.places.shape == (len(table.sensors), 2)
    assert 0.003 < (table.speeds == 0).mean() < 0.05
    hour = np.tile(np.arange(288) // 12, 5)
    working = np.isin(np.repeat(np.arange(5), 288), (0, 1, 4))
    mean = [table.speeds[working & (hour == h)].mean() for h in (3, 8)]
    assert mean[0] > mean[1] + 5  # night against morning, mph
    assert (np.diag(table.adjacency) == 1).all() and not np.array_equal(table.adjacency, table.adjacency.T)


def test_simulation_depends_on_the_seed_alone():
    first, again, other = (road_network.simulate("city b", 1, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.speeds, again.speeds) and not np.array_equal(first.speeds, other.speeds)
    assert np.array_equal(first.adjacency, other.adjacency)  # the same roads on other days


def test_a_queue_grows_upstream_and_dissolves():
    """A chain of stretches whose last one is blocked for half an hour: each sensor slows after the next one does."""
    count, minutes = 6, 240
    ends = np.stack([np.arange(count), np.arange(count) + 1.0], 1)[..., None] * np.array([2.0, 0.0])
    roads = road_network.Stretches(ends, np.full(count, 2.0), np.full(count, 3.0), np.eye(count, k=1))
    demand, capacity = np.zeros((minutes, count)), np.full((minutes, count), 90.0)
    demand[:120, 0] = 60
    capacity[60:90, -1] = 5
    speeds = road_network._drive(road_network.CITIES["city a"], roads, demand, capacity, np.ones(minutes))
    slow = [np.flatnonzero(speeds[:, n] < 50) for n in range(count)]
    first = [times[0] for times in slow if len(times)]
    assert len(first) >= 3 and first[::-1] == sorted(first) and first[-1] == 12  # the queue's end moves away from it
    assert (speeds[:12] > 90).all() and (speeds[-4:] > 90).all()


@pytest.mark.parametrize(("arguments", "message"), [(("city c",), "no simulated city"), (("city a", 0), "days is 0")])
def test_a_wrong_simulation(arguments, message):
    with pytest.raises(ValueError, match=message):
        road_network.simulate(*arguments)
