"""The diffusion convolutional recurrent network for traffic speeds (DCRNN, Li et al. 2018).

No weight's shape depends on the number of sensors. The graph and the scale of the speeds are a setting of the module
and stay out of its state, so that networks of different roads can average all that they learn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True, eq=False, repr=False)
class Roads:
    """What a forecast is made on. walks: float32 [M, S, S] (:func:`random_walks`). mean, std: of the speeds."""

    walks: torch.Tensor
    mean: float
    std: float

    def __post_init__(self) -> None:
        shape = tuple(self.walks.shape)
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"walks is {shape}: want [1 + 2 * steps, sensors, sensors]")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean is {self.mean}, std {self.std}: want finite numbers, std above 0")

    def __repr__(self) -> str:  # a checkpoint knows the roads by it
        matrix = self.walks.contiguous().numpy().view(np.uint8).reshape(-1)
        return f"Roads({list(self.walks.shape)}, {zlib.crc32(matrix):08x}, {self.mean:.9g}, {self.std:.9g})"


def random_walks(adjacency: np.ndarray | torch.Tensor, steps: int) -> torch.Tensor:
    """The diffusions of a graph (Li et al. 2018, section 2.2, equation 2), float32 [1 + 2 * steps, S, S].

    With W the ``adjacency`` [S, S]: identity, then (D_out^-1 W)^k along the roads and (D_in^-1 W^T)^k against them, for
    k = 1 .. ``steps``. A sensor without neighbours in a direction has a row of zeros there.
    """
    weights = torch.as_tensor(adjacency, dtype=torch.float64)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"adjacency is {list(weights.shape)}: want a square matrix")
    if steps < 1:
        raise ValueError(f"steps is {steps}: want a whole number from 1 up")
    walks = [torch.eye(len(weights), dtype=torch.float64)]
    for directed in (weights, weights.T):
        total = directed.sum(1, keepdim=True)
        step = torch.where(total > 0, directed / total.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        walks += [torch.linalg.matrix_power(step, k) for k in range(1, steps + 1)]
    return torch.stack(walks).float()


def teacher_share(batches: float, decay: float) -> float:
    """How often the decoder is shown the truth after so many batches: tau / (tau + exp(i / tau)); 0 where tau is 0.

    The curriculum of Bengio et al. 2015 (scheduled sampling, inverse sigmoid), as in Li et al. 2018, section 2.3.
    """
    return decay / (decay + math.exp(min(batches / decay, 700.0))) if decay > 0 else 0.0


class DiffusionCell(nn.Module):
    """A gated recurrent unit whose products are diffusion convolutions (Li et al. 2018, section 2.3).

    inputs, units: values per sensor of the input and of the state. steps: K, the longest walk. The convolution of the
    input (for both gates and the candidate) can be taken for many moments at once, as ``taken(x)``.
    """

    def __init__(self, inputs: int, units: int, steps: int):
        super().__init__()
        walks = 1 + 2 * steps
        self.units = units
        self.input = nn.Parameter(torch.empty(walks * inputs, 3 * units))
        self.gates = nn.Parameter(torch.empty(walks * units, 2 * units))
        self.candidate = nn.Parameter(torch.empty(walks * units, units))
        self.bias = nn.Parameter(torch.cat([torch.ones(2 * units), torch.zeros(units)]))
        with (
            torch.no_grad()
        ):  # as if input and state were one matrix each for the gates and the candidate (Glorot 2010)
            for part, width in ((slice(0, 2 * units), 2 * units), (slice(2 * units, None), units)):
                state = self.gates if width == 2 * units else self.candidate
                bound = math.sqrt(6 / (walks * (inputs + units) + width))
                self.input[:, part].uniform_(-bound, bound)
                state.uniform_(-bound, bound)

    def taken(self, x: torch.Tensor, walks: torch.Tensor) -> torch.Tensor:
        """The input's share [..., S, 3 * units] of x [..., S, inputs]: first for the gates, then for the candidate."""
        spread = diffuse(x, walks)
        return torch.addmm(self.bias, spread, self.input).view(*x.shape[:-1], -1)

    def forward(self, taken: torch.Tensor, state: torch.Tensor, walks: torch.Tensor) -> torch.Tensor:
        """The next state [B, S, units] from ``taken`` [B, S, 3 * units] and the present one."""
        for_gates, for_candidate = taken.view(-1, 3 * self.units).split([2 * self.units, self.units], -1)
        gates = torch.addmm(for_gates, diffuse(state, walks), self.gates).sigmoid().view(*state.shape[:-1], -1)
        reset, update = gates.chunk(2, -1)
        candidate = torch.addmm(for_candidate, diffuse(reset * state, walks), self.candidate).tanh()
        return torch.lerp(candidate.view_as(state), state, update)


def diffuse(x: torch.Tensor, walks: torch.Tensor) -> torch.Tensor:
    """All M diffusions of x [..., S, C], side by side: [rows, M * C], a row for each sensor of each of the others.

    walks: [S * M, S], ordered by sensor, then by walk.
    """
    sensors, channels = x.shape[-2:]
    spread = torch.matmul(walks, x.reshape(-1, sensors, channels))
    return spread.view(-1, len(walks) // sensors * channels)


class DCRNN(nn.Module):
    """Encoder and decoder of diffusion cells (Li et al. 2018, section 2.3).

    units, layers: of both. steps: K. horizon: readings to forecast. decay: tau of :func:`teacher_share`, in batches.
    Call :meth:`use` first. Input: float32 [N, history, S, 2], standardised speed and time of day. Output: float32
    [N, horizon, S], speeds in the roads' own unit. While training, the input may have the horizon behind the history:
    the decoder is then sometimes shown those speeds in place of its own last forecast, by a coin per reading and batch.
    In evaluation whatever lies behind ``history`` is not looked at.

    With 64 units, 2 layers and K = 2 it has the 372,352 weights of the authors' network.
    """

    walks: torch.Tensor | None

    def __init__(
        self,
        units: int = 64,
        layers: int = 2,
        steps: int = 2,
        history: int = 12,
        horizon: int = 12,
        decay: float = 2000.0,
    ):
        super().__init__()
        for name, value in (("units", units), ("layers", layers), ("history", history), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name} is {value}: want a whole number from 1 up")
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay is {decay}: want a finite number of batches from 0 up")
        self.units, self.steps, self.history, self.horizon, self.decay = units, steps, history, horizon, decay
        self.encoder = nn.ModuleList(DiffusionCell(2 if n == 0 else units, units, steps) for n in range(layers))
        self.decoder = nn.ModuleList(DiffusionCell(1 if n == 0 else units, units, steps) for n in range(layers))
        self.output = nn.Parameter(torch.empty(units, 1))
        nn.init.xavier_uniform_(self.output)
        # A counter by this name belongs to the flat state: it is averaged, saved and resumed like a weight.
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.register_buffer("walks", None, persistent=False)
        self.mean, self.std = 0.0, 1.0

    def use(self, roads: Roads) -> DCRNN:
        """Forecast on these roads from now on."""
        if roads.walks.shape[0] != 1 + 2 * self.steps:
            raise ValueError(
                f"{roads.walks.shape[0]} walks: a network of {self.steps} steps wants {1 + 2 * self.steps}"
            )
        stacked = roads.walks.transpose(0, 1).reshape(-1, roads.walks.shape[2])
        self.walks, self.mean, self.std = stacked.to(self.output.device), roads.mean, roads.std
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.walks is None:
            raise RuntimeError("no roads: call use(roads) before a forecast")
        if x.ndim != 4 or x.shape[1] not in (self.history, self.history + self.horizon):
            raise ValueError(f"input {list(x.shape)}: want [N, {self.history} (+ {self.horizon}), sensors, 2]")
        if x.shape[2] != self.walks.shape[1] or x.shape[3] != 2:
            raise ValueError(
                f"input {list(x.shape)}: the graph has {self.walks.shape[1]} sensors, each reading 2 values"
            )
        truth = x[:, self.history :, :, :1] if self.training and x.shape[1] > self.history else None
        forecast = self._decode(self._encode(x[:, : self.history]), truth)
        return forecast * self.std + self.mean

    def _encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The last state of every layer, each [N, S, units]."""
        states = []
        x = x.transpose(0, 1).contiguous()  # by time: [history, N, S, 2]
        for number, cell in enumerate(self.encoder):
            state, passed = x.new_zeros(*x.shape[1:3], self.units), []
            for taken in cell.taken(x, self.walks):
                state = cell(taken, state, self.walks)
                passed.append(state)
            states.append(state)
            if number + 1 < len(self.encoder):
                x = torch.stack(passed)
        return states

    def _decode(self, states: list[torch.Tensor], truth: torch.Tensor | None) -> torch.Tensor:
        shown = self._coins() if truth is not None else []
        value, forecast = torch.zeros_like(states[0][..., :1]), []
        for moment in range(self.horizon):
            if moment > 0 and truth is not None and shown[moment]:
                value = truth[:, moment - 1]
            signal = value
            for number, cell in enumerate(self.decoder):
                states[number] = signal = cell(cell.taken(signal, self.walks), states[number], self.walks)
            value = signal @ self.output
            forecast.append(value)
        return torch.cat(forecast, -1).transpose(1, 2)

    def _coins(self) -> list[bool]:
        """Whether the decoder is shown the truth before each reading of this batch; counts the batch."""
        share = teacher_share(float(self.num_batches_tracked), self.decay)
        with torch.no_grad():
            self.num_batches_tracked += 1
        return (torch.rand(self.horizon) < share).tolist()


def train_on_roads(trainer, client, local, seed: int, roads: Mapping[int, Roads]) -> float:
    """A federation's ``train``: the model takes the client's own roads (``roads`` by client id), then trains.

    Give it as ``partial(train_on_roads, roads=...)``. Raises ValueError for a client without roads.
    """
    if client.id not in roads:
        raise ValueError(f"client {client.id} has no roads: there are those of {', '.join(map(str, roads))}")
    trainer.model.use(roads[client.id])
    return trainer.train(client.x, client.y, local, seed)[-1]
