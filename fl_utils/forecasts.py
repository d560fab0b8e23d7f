"""Traffic forecasts of several cities (Hu et al. 2020, appendix): each city alone, federated, and two simple rules.

A city keeps its table, its graph and the scale of its speeds; what travels is the DCRNN's state, which has the same
layout on every graph. A city alone is a federation of one, so that both see the same code and the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fl_utils import federation
from fl_utils.data.traffic import DAY, Part, Traffic, Windows, windows
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


def city(
    name: str,
    traffic: Traffic,
    history: int = 12,
    horizon: int = 12,
    stride: int = 1,
    steps: int = 2,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
) -> City:
    """The party ``name`` with these readings: windows as :func:`windows` cuts them, walks of up to ``steps`` steps."""
    cut = windows(traffic, history, horizon, fractions, stride)
    return City(name, traffic, cut, Roads(random_walks(traffic.adjacency, steps), cut.mean, cut.std))


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


def last_value(place: City, part: Part) -> torch.Tensor:
    """The last known reading of each history, for the whole horizon [N, horizon, S]; the training mean without one."""
    history = part.x.shape[1]
    rows = part.at[:, None] - history + torch.arange(history)
    seen = torch.from_numpy(place.traffic.speeds)[rows]  # [N, history, S]
    newest = torch.where(seen > 0, 1 + torch.arange(history)[None, :, None], 0).amax(1)
    value = seen.gather(1, (newest - 1).clamp(min=0)[:, None])[:, 0]
    value = torch.where(newest > 0, value, place.windows.mean)
    return value[:, None].expand(-1, part.y.shape[1], -1)


def historical_average(place: City, part: Part) -> torch.Tensor:
    """The mean of each sensor's known training readings at that time of day [N, horizon, S]; its mean without any."""
    traffic, per_day = place.traffic, DAY // place.traffic.minutes
    midnight = traffic.times - traffic.times.astype("datetime64[D]")
    slot = (midnight / np.timedelta64(traffic.minutes, "m")).astype(np.int64)
    trained = int(place.windows.train.at[-1]) + place.windows.train.y.shape[1]
    speeds = traffic.speeds[:trained].astype(np.float64)
    total, count = (np.zeros((per_day, speeds.shape[1])) for _ in range(2))
    np.add.at(total, slot[:trained], speeds)
    np.add.at(count, slot[:trained], speeds > 0)
    overall = total.sum(0) / np.maximum(count.sum(0), 1)
    overall = np.where(count.sum(0) > 0, overall, place.windows.mean)
    average = torch.from_numpy(np.where(count > 0, total / np.maximum(count, 1), overall).astype(np.float32))
    rows = part.at[:, None] + torch.arange(part.y.shape[1])
    return average[torch.from_numpy(slot)[rows]]


def forecast(trainer: Trainer, place: City, part: Part, batch_size: int = 256) -> torch.Tensor:
    """What the trainer's model forecasts for a city's windows [N, horizon, S]."""
    trainer.model.use(place.roads)
    return trainer.outputs(part.x, batch_size)


def evaluate(trainer: Trainer, cities: Sequence[City], part: str = "test") -> dict[str, dict[str, list[float]]]:
    """:func:`errors` of the model in every city, by its name."""
    parts = {place.name: getattr(place.windows, part) for place in cities}
    return {place.name: errors(forecast(trainer, place, parts[place.name]), parts[place.name].y) for place in cities}


def stages(rounds: int, steps: Sequence[int]) -> list[tuple[int, float]]:
    """Rounds and the learning rate's factor of each stage: it falls to a tenth after each round named in ``steps``.

    >>> stages(10, [6, 8])
    [(6, 1.0), (2, 0.1), (2, 0.01)]
    """
    if rounds < 1 or sorted(set(steps)) != list(steps) or any(step < 1 for step in steps):
        raise ValueError(f"rounds is {rounds}, steps {list(steps)}: want at least one round, and rising rounds to step at")
    edges = [0, *(step for step in steps if step < rounds), rounds]
    return [(end - begin, 10.0**-number) for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False))]


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

    The model is evaluated on every city's validation part after each round, and on its test part after the last
    (``evaluations[-1]["test"]``). steps: rounds after which the learning rate falls to a tenth (:func:`stages`).
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
                evaluate=partial(_scores, cities=cities),
                checkpoint=checkpoint(f"{name}-{seed}-{number}") if checkpoint else None,
                evaluate_every=count,
            )
        )
    return results


def _scores(trainer: Trainer, cities: Sequence[City]) -> dict:
    return {part: evaluate(trainer, cities, part) for part in ("test",)}
