"""Weights in few bits: codes of 1 to 8 bits, and tables that say what a code stands for (thesis, section 6.5).

Three modes, as Core ML has them:

linear            2^b evenly spaced values from the smallest to the largest weight, zero always among them
linear_symmetric  2^b - 1 evenly spaced values, as many above zero as below; one bit: plus and minus the mean magnitude
kmeans            2^b values placed by k-means (a lookup table)

and three granularities: one table per ``"tensor"``, per output ``"channel"``, or per group of so many neighbouring
output channels (a whole number). The linear modes are those of coremltools' ``linear_quantize_weights``, which has them
at 4 and 8 bits alone; its k-means has 1, 2, 3, 4, 6 and 8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from fl_utils import probe
from fl_utils.training import LocalTraining, Trainer

MODES = ("linear", "linear_symmetric", "kmeans")
BITS = (32, 16, *range(8, 0, -1))
QUANTIZED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Quantized:
    """A weight tensor of ``shape`` as ``codes`` (uint8 [groups, n]) into ``table`` (float32 [groups, values])."""

    codes: torch.Tensor
    table: torch.Tensor
    shape: torch.Size
    bits: int
    mode: str

    def decode(self) -> torch.Tensor:
        """The weights that the codes stand for, float32 of ``shape``."""
        return self.table.gather(1, self.codes.long()).reshape(self.shape)

    def packed(self) -> bytes:
        """Codes, ``bits`` bits each, then what makes the tables: 2 floats a group if linear, 1 if symmetric, or all."""
        bits = np.unpackbits(self.codes.cpu().numpy().reshape(-1, 1), axis=1)[:, 8 - self.bits :]
        numbers = {"linear": self.table[:, [0, -1]], "linear_symmetric": self.table[:, -1:]}.get(self.mode, self.table)
        return np.packbits(bits).tobytes() + numbers.cpu().numpy().astype("<f4").tobytes()


def encode(
    weights: torch.Tensor, bits: int, mode: str = "linear", granularity: str | int = "tensor"
) -> list[Quantized]:
    """``weights`` (float32 [out, ...]) in 1 to 8 bits; one part, or two where the last group has fewer channels.

    Raises ValueError on bits, a mode or a granularity that there is not, and on weights that are not finite.
    """
    _check(bits, mode, granularity)
    if bits > 8:
        raise ValueError(f"bits is {bits}: codes have 1 to 8")
    if not torch.isfinite(weights).all():
        raise ValueError(f"weights {tuple(weights.shape)} hold values that are not finite")
    table = {"linear": _linear, "linear_symmetric": _symmetric, "kmeans": _kmeans}[mode]
    found = []
    for part in _parts(weights, granularity):
        rows = part.reshape(_groups(part, granularity), -1)
        values = table(rows, bits)
        found.append(Quantized(_nearest(rows, values), values, part.shape, bits, mode))
    return found


def quantize(weights: torch.Tensor, bits: int, mode: str = "linear", granularity: str | int = "tensor") -> torch.Tensor:
    """``weights`` (float32 [out, ...]) as they come back from 32 bits (unchanged), 16 (half floats) or 8 to 1."""
    _check(bits, mode, granularity)
    if bits == 32:
        return weights.clone()
    if bits == 16:
        return weights.half().float()
    return torch.cat([part.decode() for part in encode(weights, bits, mode, granularity)])


def compress(model: nn.Module, bits: int, mode: str = "linear", granularity: str | int = "tensor") -> nn.Module:
    """A copy of ``model`` whose convolutions' and linear layers' weights went through :func:`quantize`."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in _layers(model):
            layer.weight.copy_(quantize(layer.weight, bits, mode, granularity))
    return model


def packed_bytes(model: nn.Module, bits: int, mode: str = "linear", granularity: str | int = "tensor") -> int:
    """Bytes of the whole state when those weights are sent in ``bits`` bits and everything else in 32 (as packed)."""
    _check(bits, mode, granularity)
    weights = [layer.weight.detach() for layer in _layers(model)]
    rest = sum(4 * tensor.numel() for tensor in model.state_dict().values()) - sum(4 * w.numel() for w in weights)
    if bits > 8:
        return rest + sum(w.numel() * bits // 8 for w in weights)
    return rest + sum(len(part.packed()) for w in weights for part in encode(w, bits, mode, granularity))


def compressing(
    rule: Callable, build: Callable[[], nn.Module], bits: int, mode: str = "linear", granularity: str | int = "tensor"
) -> Callable:
    """A rule for :func:`fl_utils.federation.run`: what ``rule`` gives, compressed before it goes to the clients."""
    trainer = Trainer(build)

    def compressed(old: torch.Tensor, updates: Iterable[tuple[torch.Tensor, int]]) -> torch.Tensor:
        trainer.vector.copy_(rule(old, updates))
        with torch.no_grad():
            for layer in _layers(trainer.model):
                layer.weight.copy_(quantize(layer.weight, bits, mode, granularity))
        return trainer.vector.to(old.device, copy=True)

    return compressed


def recalibrate(model: nn.Module, x: torch.Tensor, batch_size: int = 128) -> nn.Module:
    """Estimate batch norm's statistics anew on ``x`` [N, ...], in place: quantized weights have other activations."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return model
    momenta, training = [norm.momentum for norm in norms], model.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    with torch.no_grad():
        for part in probe.few(x.split(batch_size), len(x), batch_size, "recalibrate", model, x):
            if len(part) > 1:
                model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.train(training)


def fine_tune(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    local: LocalTraining | Sequence[LocalTraining],
    seed: int,
    bits: int,
    mode: str = "kmeans",
    granularity: str | int = "channel",
    refresh: int = 8,
) -> nn.Module:
    """Quantization-aware training: a copy of ``model``, trained on examples ``x`` [N, ...], ``y`` [N], compressed.

    The forward pass sees the quantized weights, the gradient goes to the ones behind them as if nothing had been
    rounded (straight-through; Bengio et al. 2013). Tables are made anew every ``refresh`` steps; codes in every step.
    ``local``: several are gone through in turn, say with ever lower rates, by ``seed``, ``seed + 1`` and so on; the
    weights behind stay whole between them. Raises ValueError where there is none.
    """
    _check(bits, mode, granularity)
    turns = [local] if isinstance(local, LocalTraining) else list(local)
    if not turns:
        raise ValueError("local is empty: want at least one LocalTraining")
    model = copy.deepcopy(model)
    layers = list(_layers(model))
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _StraightThrough(bits, mode, granularity, refresh))
    trainer = Trainer(lambda: model, next(model.parameters()).device)
    for number, turn in enumerate(turns):
        trainer.train(x, y, turn, seed + number)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return compress(model, bits, mode, granularity).eval()


class _StraightThrough(nn.Module):
    def __init__(self, bits: int, mode: str, granularity: str | int, refresh: int):
        super().__init__()
        self.how, self.refresh, self.step = (bits, mode, granularity), refresh, 0
        self.tables: list[torch.Tensor] = []

    def extra_repr(self) -> str:
        return f"{self.how}, refresh={self.refresh}"

    def forward(self, weights: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.step % self.refresh == 0:
                parts = encode(weights, *self.how)
                self.tables = [part.table for part in parts]
                rounded = torch.cat([part.decode() for part in parts])
            else:
                rounded = torch.cat(
                    [
                        table.gather(1, _nearest(part.reshape(len(table), -1), table).long()).reshape(part.shape)
                        for part, table in zip(_parts(weights, self.how[2]), self.tables, strict=True)
                    ]
                )
            self.step += self.training
        return weights + (rounded - weights).detach()


def _check(bits: int, mode: str, granularity: str | int) -> None:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: want one of {', '.join(MODES)}")
    if bits not in BITS:
        raise ValueError(f"bits is {bits!r}: mode {mode} has 32, 16 and 8 to 1")
    if granularity not in ("tensor", "channel") and not (type(granularity) is int and granularity > 0):
        raise ValueError(f"granularity is {granularity!r}: want 'tensor', 'channel' or channels per group, from 1 up")


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in model.modules() if isinstance(layer, QUANTIZED))


def _parts(weights: torch.Tensor, granularity: str | int) -> list[torch.Tensor]:
    """``weights`` cut where the last group of channels is not a full one."""
    if not isinstance(granularity, int):
        return [weights]
    whole = len(weights) // granularity * granularity
    return [part for part in (weights[:whole], weights[whole:]) if len(part)]


def _groups(part: torch.Tensor, granularity: str | int) -> int:
    if isinstance(granularity, int):
        return max(1, len(part) // granularity)
    return 1 if granularity == "tensor" else len(part)


def _nearest(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The code of the nearest value for every weight; of two equally near ones the lower."""
    middles = ((table[:, 1:] + table[:, :-1]) / 2).contiguous()
    if table.shape[1] > 8:
        return torch.searchsorted(middles, rows.contiguous()).to(torch.uint8)
    codes = torch.zeros(rows.shape, dtype=torch.uint8, device=rows.device)
    for place in range(middles.shape[1]):  # few values: so many comparisons take a fraction of the search's time
        codes += rows > middles[:, place : place + 1]
    return codes


def _linear(rows: torch.Tensor, bits: int) -> torch.Tensor:
    low = rows.amin(1, keepdim=True).clamp_max(0)
    high = rows.amax(1, keepdim=True).clamp_min(0)
    steps = 2**bits - 1
    scale = (high - low) / steps
    zero = (-low / scale.clamp_min(1e-38)).round().clamp(0, steps)
    return (torch.arange(steps + 1, device=rows.device) - zero) * scale


def _symmetric(rows: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 1:
        return rows.abs().mean(1, keepdim=True) * torch.tensor([-1.0, 1.0], device=rows.device)
    most = 2 ** (bits - 1) - 1
    return torch.arange(-most, most + 1, device=rows.device) * (rows.abs().amax(1, keepdim=True) / most)


def _kmeans(rows: torch.Tensor, bits: int, most: int = 100) -> torch.Tensor:
    """Lloyd's iterations in one dimension, for all groups at once.

    They start from centres as dense as the cube root of the weights' density, which many of them would take in the end
    (Panter and Dite 1951): steps of gap^(2/3) between neighbouring weights. Sorted weights fall into runs, one per
    centre, and a run's mean is a difference of prefix sums.
    """
    groups, n = rows.shape
    count, device = 2**bits, rows.device
    first, last = torch.zeros(groups, 1, device=device), torch.full((groups, 1), n, device=device)
    ordered = rows.sort(1).values.contiguous()
    sums = torch.cat([first.double(), ordered.double().cumsum(1)], 1)
    path = torch.cat([first, ordered.diff(dim=1) ** (2 / 3)], 1).double().cumsum(1)
    marks = path[:, -1:] * ((torch.arange(count, device=device) + 0.5) / count)
    centres = ordered.gather(1, torch.searchsorted(path, marks.contiguous()).clamp_max(n - 1))
    rank = torch.cat([first.long(), (ordered.diff(dim=1) > 0).cumsum(1)], 1)  # of each value among the distinct ones
    distinct = ordered[:, -1:].repeat(1, count).scatter(1, rank.clamp_max(count - 1), ordered)
    centres = torch.where(rank[:, -1:] < count, distinct, centres)
    for _ in range(most):
        middles = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
        ends = torch.searchsorted(ordered, middles, right=True)
        ends = torch.cat([first.long(), ends, last], 1)
        sizes = ends.diff(dim=1)
        means = (sums.gather(1, ends[:, 1:]) - sums.gather(1, ends[:, :-1])) / sizes.clamp_min(1)
        moved = torch.where(sizes > 0, means.float(), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
