"""Traffic forecasts of several cities (Hu et al. 2020, appendix): each city alone, federated, and two simple rules.

A city keeps its table, its graph and the scale of its speeds; what travels is the DCRNN's state, which has the same
layout on every graph. A city alone is a federation of one, so that both see the same code and the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_utils import federation
from fl_utils.data import road_network, traffic
from fl_utils.data.traffic import DAY, Traffic, Windows, windows
from fl_utils.models.traffic import Roads, random_walks, train_on_roads
from fl_utils.training import LocalTraining, Trainer

MEASURES = ("mae", "rmse", "mape")
LOSS = "masked_absolute"


@dataclass(frozen=True, eq=False)
class City:
    """One party: its table, the windows cut from it, and the roads that its forecasts are made on."""

    name: str
    traffic: Traffic
    windows: Windows
    roads: Roads

    def client(self, id: int) -> federation.Client:
        """The party as a client, with its training windows."""
        return federation.Client(id, self.windows.lessons, self.windows.train.y)


def city(name: str, table: Traffic, history: int = 12, horizon: int = 12, stride: int = 1, steps: int = 2) -> City:
    """The party ``name``: its windows, and walks of up to ``steps`` steps on its graph.

    70 % of the time trains, 10 % validates and 20 % tests (Li et al. 2018, section 4). Raises ValueError, naming the
    party, where the table is too short.
    """
    try:
        cut = windows(table, history, horizon, (0.7, 0.1, 0.2), stride)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return City(name, table, cut, Roads(random_walks(table.adjacency, steps), cut.mean, cut.std))


def tables(dataset: str, data_dir: str | Path = "", days: int = 14, seed: int = 0) -> dict[str, Traffic]:
    """Each party's table by its name.

    dataset: cards joined by "+", a party each; one card alone is cut into two districts (:func:`traffic.districts`),
    and "" simulates the cities of :mod:`fl_utils.data.road_network` by ``seed``. days: simulated, or the first so many
    of the tables (0: all). Raises ValueError and DataNotFound as the loaders do.
    """
    if not dataset:
        return {name: road_network.simulate(name, days, seed) for name in road_network.CITIES}
    cards = [card.strip() for card in dataset.split("+")]
    if len(set(cards)) < len(cards):
        raise ValueError(f"dataset is {dataset!r}: want every data set once")
    loaded = {card: traffic.load(card, data_dir).first(days) for card in cards}
    if len(cards) == 1:
        halves = traffic.districts(loaded[cards[0]])
        return {f"{cards[0]} district {number}": half for number, half in enumerate(halves, 1)}
    return loaded


def ahead(cities: Sequence[City], minutes: Sequence[int]) -> dict[str, list[int]]:
    """For every city the places in its horizon of the forecasts so many ``minutes`` ahead.

    Raises ValueError where there is no reading at that distance.
    """
    places = {}
    for place in cities:
        step, horizon = place.traffic.minutes, place.windows.test.y.shape[1]
        if wrong := [m for m in minutes if m % step or not step <= m <= horizon * step]:
            reach = f"{horizon} readings, {step} minutes apart"
            raise ValueError(f"{place.name}: no forecast {wrong[0]} minutes ahead; the horizon has {reach}")
        places[place.name] = [m // step - 1 for m in minutes]
    return places


def errors(forecast: torch.Tensor, truth: torch.Tensor) -> dict[str, list[float]]:
    """MAE, RMSE (in the speeds' unit) and MAPE (%) of each reading ahead, as lists of ``horizon`` numbers.

    forecast, truth: float32 [N, horizon, S]. Readings that are missing in ``truth`` (0) do not count (Li et al. 2018,
    appendix E). Raises ValueError where the shapes differ, or where nothing is known of a reading ahead.
    """
    if forecast.shape != truth.shape:
        raise ValueError(f"forecast {list(forecast.shape)}, truth {list(truth.shape)}: want the same shape")
    known = truth > 0
    count = known.sum((0, 2))
    if len(truth) == 0 or not bool((count > 0).all()):
        raise ValueError(f"truth {list(truth.shape)}: want at least one known reading at every distance")
    wrong = torch.where(known, (forecast - truth).double(), 0.0)
    share = wrong.abs() / torch.where(known, truth, 1.0)
    sums = {"mae": wrong.abs(), "rmse": wrong.square(), "mape": 100 * share}
    means = {name: (values.sum((0, 2)) / count) for name, values in sums.items()}
    means["rmse"] = means["rmse"].sqrt()
    return {name: values.tolist() for name, values in means.items()}


def last_value(place: City) -> torch.Tensor:
    """The last known reading of each test history, for the whole horizon [N, horizon, S]; without one, the mean."""
    part = place.windows.test
    history = part.x.shape[1]
    rows = part.at[:, None] - history + torch.arange(history)
    seen = torch.from_numpy(place.traffic.speeds)[rows]  # [N, history, S]
    newest = torch.where(seen > 0, 1 + torch.arange(history)[None, :, None], 0).amax(1)
    value = seen.gather(1, (newest - 1).clamp(min=0)[:, None])[:, 0]
    value = torch.where(newest > 0, value, place.windows.mean)
    return value[:, None].expand(-1, part.y.shape[1], -1)


def historical_average(place: City) -> torch.Tensor:
    """The mean of each sensor's known training readings at the time of day of every test target [N, horizon, S].

    Where there are none at that time, the mean of all of the sensor's, and where it has none, of all sensors.
    """
    part, table, per_day = place.windows.test, place.traffic, DAY // place.traffic.minutes
    midnight = table.times - table.times.astype("datetime64[D]")
    slot = (midnight / np.timedelta64(table.minutes, "m")).astype(np.int64)
    trained = int(place.windows.train.at[-1]) + place.windows.train.y.shape[1]
    speeds = table.speeds[:trained].astype(np.float64)
    total, count = (np.zeros((per_day, speeds.shape[1])) for _ in range(2))
    np.add.at(total, slot[:trained], speeds)
    np.add.at(count, slot[:trained], speeds > 0)
    overall = total.sum(0) / np.maximum(count.sum(0), 1)
    overall = np.where(count.sum(0) > 0, overall, place.windows.mean)
    average = torch.from_numpy(np.where(count > 0, total / np.maximum(count, 1), overall).astype(np.float32))
    rows = part.at[:, None] + torch.arange(part.y.shape[1])
    return average[torch.from_numpy(slot)[rows]]


def forecast(trainer: Trainer, place: City, batch_size: int = 256) -> torch.Tensor:
    """What the trainer's model forecasts for a city's test windows [N, horizon, S]."""
    trainer.model.use(place.roads)
    return trainer.outputs(place.windows.test.x, batch_size)


def evaluate(trainer: Trainer, cities: Sequence[City]) -> dict[str, dict[str, list[float]]]:
    """:func:`errors` of the model on every city's test windows, by the city's name."""
    return {place.name: errors(forecast(trainer, place), place.windows.test.y) for place in cities}


def rules_of_thumb(place: City) -> dict[str, dict[str, list[float]]]:
    """:func:`errors` on the test windows of what needs no training: "last value" and "historical average"."""
    truth = place.windows.test.y
    rules = {"last value": last_value(place), "historical average": historical_average(place)}
    return {name: errors(guess, truth) for name, guess in rules.items()}


def stages(rounds: int, steps: Sequence[int]) -> list[tuple[int, float]]:
    """Rounds and the learning rate's factor of each stage: it falls to a tenth after each round named in ``steps``.

    >>> stages(10, [6, 8])
    [(6, 1.0), (2, 0.1), (2, 0.01)]
    """
    if rounds < 1 or sorted(set(steps)) != list(steps) or any(step < 1 for step in steps):
        raise ValueError(
            f"rounds is {rounds}, steps {list(steps)}: want at least one round, and steps that rise from 1"
        )
    edges = [0, *(step for step in steps if step < rounds), rounds]
    return [(end - begin, 10.0**-number) for number, (begin, end) in enumerate(pairwise(edges))]


def train(
    build: Callable[[], nn.Module],
    cities: Sequence[City],
    rounds: int,
    local: LocalTraining,
    seed: int,
    steps: Sequence[int] = (),
    device: str = "cpu",
    checkpoint: Callable[[str], Path | None] | None = None,
    name: str = "",
) -> list[federation.Result]:
    """Federate ``cities`` (one alone is a federation of one); one result per stage of the learning rate.

    After the last round the model is evaluated on every city's test part (``evaluations[-1]``).
    steps: rounds after which the learning rate falls to a tenth (:func:`stages`).
    checkpoint: makes a path of a name, as :func:`fl_utils.paths.checkpoint`.
    """
    clients = [place.client(id) for id, place in enumerate(cities)]
    roads = {id: place.roads for id, place in enumerate(cities)}
    results: list[federation.Result] = []
    plan = stages(rounds, steps)
    for number, (count, factor) in enumerate(plan):
        results.append(
            federation.run(
                build,
                clients,
                rounds=count,
                local=replace(local, learning_rate=local.learning_rate * factor, loss=LOSS),
                seed=seed + 1000 * number,
                initial=results[-1].vector if results else None,
                train=partial(train_on_roads, roads=roads),
                device=device,
                evaluate=partial(evaluate, cities=cities) if number + 1 == len(plan) else None,
                checkpoint=checkpoint(f"{name}-{seed}-{number}") if checkpoint else None,
                evaluate_every=count,
            )
        )
    return results
