"""Synthetic traffic: two simulated cities whose congestion builds up, spills back along the roads and dissolves.

Nothing here was measured. Roads are drawn between random junctions and carry the cell transmission model (Daganzo 1994,
junctions as in Daganzo 1995): vehicles move at most at free speed, at most at capacity, and no more of them into a
stretch of road than it has room for, so that a queue grows upstream from a bottleneck as a kinematic wave. Demand has
two peaks a day, its own height every day and less on weekends; incidents and bad weather take capacity away; sensors
are noisy and drop out. Speeds come every five minutes from one sensor per stretch, and the graph is built of driving
distances as the official ones are (:func:`fl_utils.data.traffic_files.gaussian_kernel`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fl_utils.data.traffic import DAY, Traffic
from fl_utils.data.traffic_files import gaussian_kernel

MINUTES = 5  # between two readings
MPH = 1 / 1.609344  # km/h -> mph
START = "2012-03-01T00:00"  # a Thursday: with 14 days, the last three, which test a forecast, are working days
REACH = 8.0  # km; pairs of sensors farther apart are not listed, as in the official tables of distances
LANE, JAM = 30.0, 120.0  # of a lane: vehicles per minute at most, vehicles per km when all stand
WAVE = 0.3  # km per minute: how fast a queue's end moves upstream
QUEUE = 0.5  # share of drivers who wait behind those bound for a full road; the others pass by
DETOUR = 0.2  # share of the others that leaves the network where their road is full, so that no ring locks for good
PATIENCE = 60.0  # drivers per lane who wait to enter a full road; more of them stay away


@dataclass(frozen=True)
class City:
    """A road network and its habits.

    junctions, size: how many, in a square of so many km. spacing: km between sensors. layout: draws the roads.
    peaks: hours of the morning's and the evening's greatest demand. width: hours, of each peak. weekend: its share of a
    working day's demand. load: the busier roads' demand at a peak against their capacity. free: km/h on an empty road.
    incidents: per day. noise: km/h, of a reading. dropouts: share of readings missing.
    """

    name: str
    junctions: int
    size: float
    layout: int
    spacing: float = 2.6
    peaks: tuple[float, float] = (7.75, 17.25)
    width: float = 1.3
    weekend: float = 0.6
    load: float = 1.1
    free: float = 105.0
    incidents: float = 2.0
    noise: float = 4.0
    dropouts: float = 0.015


CITIES = {
    "city a": City("city a", junctions=4, size=9.5, layout=1, load=1.7),
    "city b": City(
        "city b", 5, 10.5, layout=6, peaks=(8.25, 18.0), width=1.6, weekend=0.7, load=1.75, free=112.0, incidents=3.0
    ),
}


@dataclass(frozen=True)
class Stretches:
    """The road network, cut into C stretches of one direction each, with a sensor in the middle.

    ends: float [C, 2, 2], where each begins and ends (km). length: km [C]. lanes: [C]. turn: [C, C], the share of the
    vehicles at a stretch's end that goes on into another; the rest leave the network.
    """

    ends: np.ndarray
    length: np.ndarray
    lanes: np.ndarray
    turn: np.ndarray

    def distances(self) -> np.ndarray:
        """Driving distances (km) [C, C] from sensor to sensor, inf where farther than REACH."""
        from scipy.sparse.csgraph import shortest_path

        step = np.where(self.turn > 0, (self.length[:, None] + self.length) / 2, 0)
        found = shortest_path(step)
        return np.where(found > REACH, np.inf, found)


def stretches(city: City) -> Stretches:
    """The city's roads: junctions at random, two-way roads between neighbours (Gabriel and Sokal 1969)."""
    random = np.random.default_rng(city.layout)
    points = _junctions(city, random)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    ways = []  # (from, to) of each road, both directions
    for a, b in np.argwhere(np.triu(np.ones_like(apart), 1) > 0):
        others = np.delete(np.arange(len(points)), [a, b])
        middle = np.linalg.norm(points[others] - (points[a] + points[b]) / 2, axis=1)
        if (middle >= apart[a, b] / 2).all():  # no other junction in the circle over the road
            ways += [(a, b), (b, a)]
    ends, owner, lanes = [], [], []
    for number, (a, b) in enumerate(ways):
        pieces = max(1, round(apart[a, b] / city.spacing))
        cuts = points[a] + np.linspace(0, 1, pieces + 1)[:, None] * (points[b] - points[a])
        ends += list(pairwise(cuts))
        owner += [number] * pieces
        lanes += [random.integers(2, 5)] * pieces
    ends, owner = np.array(ends), np.array(owner)
    turn = np.zeros((len(ends), len(ends)))
    for index, way in enumerate(owner):
        if index + 1 < len(owner) and owner[index + 1] == way:
            turn[index, index + 1] = 0.95  # the rest take an exit
            continue
        onward = [n for n, (a, b) in enumerate(ways) if a == ways[way][1] and b != ways[way][0]]
        if onward:
            first = [int(np.argmax(owner == n)) for n in onward]
            heading = np.diff(ends[[index, *first]], axis=1)[:, 0]
            heading /= np.linalg.norm(heading, axis=1, keepdims=True)
            liking = np.exp(heading[1:] @ heading[0]) * random.uniform(0.6, 1.4, len(first))
            turn[index, first] = 0.75 * liking / liking.sum()
    return Stretches(ends, np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1), np.array(lanes, float), turn)


def _junctions(city: City, random: np.random.Generator) -> np.ndarray:
    """Places [junctions, 2] in the square, none nearer to another than a car drives in two minutes."""
    points = [random.uniform(0, city.size, 2)]
    for _ in range(10_000):
        point = random.uniform(0, city.size, 2)
        if min(np.linalg.norm(np.array(points) - point, axis=1)) >= 2 * city.free / 60:
            points.append(point)
        if len(points) == city.junctions:
            return np.array(points)
    raise ValueError(f"{city.name}: no room for {city.junctions} junctions in a square of {city.size} km")


def simulate(city: City | str, days: int = 14, seed: int = 0) -> Traffic:
    """``days`` of synthetic speeds (mph) in a city (or the name of one of :data:`CITIES`), by ``seed``.

    The roads are the city's own; demand, incidents, weather and noise are drawn by ``seed``.
    """
    if isinstance(city, str):
        if city not in CITIES:
            raise ValueError(f"{city!r} is no simulated city: there are {', '.join(CITIES)}")
        city = CITIES[city]
    if days < 1:
        raise ValueError(f"days is {days}: want a whole number from 1 up")
    roads, random = stretches(city), np.random.default_rng([city.layout, seed])
    weather = np.repeat(random.uniform(0.78, 1.0, days), DAY)
    speeds = _drive(city, roads, _demand(city, roads, days, random), _capacity(city, roads, weather, random), weather)
    speeds += city.noise * random.standard_normal(speeds.shape)
    speeds = np.clip(speeds, 5.0, None) * MPH
    failing = random.random(speeds.shape) < city.dropouts / 6  # each failure lasts six readings
    for later in range(6):
        speeds[later:][failing[: len(failing) - later]] = 0
    return Traffic(
        speeds.astype(np.float32),
        np.datetime64(START, "m") + MINUTES * np.arange(len(speeds)),
        tuple(f"{city.name[-1]}{number:02d}" for number in range(len(roads.length))),
        gaussian_kernel(roads.distances()),
        MINUTES,
        _beside(roads.ends),
    )


def _beside(ends: np.ndarray, offset: float = 0.18) -> np.ndarray:
    """The middle of each stretch, a little to the right of its direction, so that both directions can be seen."""
    heading = ends[:, 1] - ends[:, 0]
    right = np.stack([heading[:, 1], -heading[:, 0]], 1) / np.linalg.norm(heading, axis=1, keepdims=True)
    return ends.mean(1) + offset * right


def _demand(city: City, roads: Stretches, days: int, random: np.random.Generator) -> np.ndarray:
    """Vehicles per minute [days * DAY, C] that want to drive onto each stretch from outside of the network."""
    count, hours = len(roads.length), np.arange(DAY) / 60
    peak = np.exp(-np.square((hours[:, None] - city.peaks) / city.width))  # [DAY, 2]
    midday = np.exp(-np.square((hours - 13) / 4.5))[:, None]
    morning = random.uniform(0.35, 1.0, count)
    shape = 0.1 + 0.4 * midday + 0.6 * (peak[:, :1] * morning + peak[:, 1:] * (1.35 - morning))  # [DAY, C]
    weekday = (np.datetime64(START, "D") + np.arange(days)).astype("datetime64[D]").view(np.int64) % 7  # 0: a Thursday
    level = np.where(np.isin(weekday, (2, 3)), city.weekend, 1.0) * random.normal(1, 0.15, days)
    own = level[:, None] * random.normal(1, 0.08, (days, count))  # [days, C]
    slow = np.repeat(random.normal(0, 0.08, (days * DAY // 20, count)), 20, 0)
    wanted = (own[:, None] * shape).reshape(days * DAY, count) * (1 + slow)
    # At full demand the flows f solve f = ramps + turn^T f; scale the ramps so that the busier roads are overloaded.
    own_share = np.random.default_rng(city.layout).uniform(0.4, 1.6, count)
    ramps = own_share * roads.lanes * np.where(roads.turn.sum(0) == 0, 3.0, 1.0)
    flows = np.linalg.solve(np.eye(count) - roads.turn.T, ramps)
    return np.clip(wanted, 0, None) * ramps * (city.load / np.quantile(flows / (LANE * roads.lanes), 0.8))


def _capacity(city: City, roads: Stretches, weather: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Vehicles per minute [minutes, C] that a stretch can let out, less where something happened."""
    whole = weather[:, None] * LANE * roads.lanes
    for _ in range(random.poisson(city.incidents * len(weather) / DAY)):
        begin = random.integers(len(weather) // DAY) * DAY + int(60 * np.clip(random.normal(13, 4.5), 0, 23))
        whole[begin : begin + random.integers(20, 75), random.integers(len(roads.length))] *= random.uniform(0.15, 0.5)
    return whole


def _drive(city: City, roads: Stretches, demand: np.ndarray, capacity: np.ndarray, weather: np.ndarray) -> np.ndarray:
    """Speeds km/h [readings, C]: the cell transmission model, a minute at a time."""
    steps, count = demand.shape
    free, room = city.free / 60, JAM * roads.lanes * roads.length
    inflow, elsewhere, exits = roads.turn.T.copy(), (roads.turn == 0).astype(float), 1 - roads.turn.sum(1)
    vehicles, waiting = np.zeros(count), np.zeros(count)
    out, there = np.zeros((steps, count)), np.zeros((steps, count))
    speed = (free * (0.5 + 0.5 * weather))[:, None] / roads.length
    wave = WAVE / roads.length
    for step in range(steps):
        capable = capacity[step]
        sending = np.minimum(vehicles * speed[step], capable)
        receiving = np.minimum(capable, wave * (room - vehicles))
        wanting = waiting + demand[step]
        let = np.minimum(receiving / (inflow @ sending + wanting + 1e-9), 1.0)
        held = sending * (QUEUE * np.maximum(elsewhere, let).min(1))
        free_to_go = sending * (1 - QUEUE)
        passing = roads.turn @ let
        leaving = held + free_to_go * (exits + passing + DETOUR * (1 - exits - passing))
        waiting = np.minimum(wanting * (1 - let), PATIENCE * roads.lanes)
        there[step], out[step] = vehicles, leaving
        vehicles = vehicles - leaving + inflow @ held + (inflow @ free_to_go + wanting) * let
    per_reading = (steps // MINUTES, MINUTES, count)
    flow, density = out.reshape(per_reading).sum(1), there.reshape(per_reading).sum(1) / roads.length
    crowding = 1 - 0.08 * flow / (MINUTES * LANE * roads.lanes)
    empty = 60 * free * np.ones_like(flow)
    return np.minimum(np.divide(60 * flow, density, out=empty.copy(), where=density > 0.05), empty) * crowding
