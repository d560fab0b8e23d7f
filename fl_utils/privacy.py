"""Differentially private local training, DP-SGD (Abadi et al. 2016), and what it costs (Hu et al. 2020, section 4.3).

The unit of privacy is one example at one party: two data sets are neighbours where one holds an example more. The
parties' examples are disjoint and averaging looks at nothing but their noisy updates, so in the federated model an
example has the epsilon of its own party (parallel composition, post-processing). A person with many examples, or one
example that two parties hold, has less. Public are: the number N of a party's examples, the settings, and whatever else
was made from the data outside of the private steps (a vocabulary, a choice of hyper-parameters).

The accountants are those of Opacus, for Poisson sampling: RDP, the moments accountant in today's form, and PRV. What
the guarantee does not cover: noise and sampling come from torch's seeded generator, which is no cryptographic one (as
in Opacus without ``secure_mode``), so whoever knows the seed can take the noise off again; and Gaussian noise in
floating-point numbers is not quite the real-valued Gaussian of the proof (Mironov 2012).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn

from fl_utils import federation, gradients, probe, training
from fl_utils.cohorts import Client
from fl_utils.training import LocalTraining, Trainer

# Renyi orders, about a tenth apart and up to what small epsilons need. Orders below 1.75 are slow, and of use only
# where epsilon is beyond 20; the figure is an upper bound whatever the orders.
ORDERS = (
    *(1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5),
    *range(5, 17),
    *(18, 20, 22, 25, 28, 32, 36, 40, 45, 50, 56, 64, 80, 96, 128, 192, 256, 512, 1024),
)


class BudgetExceeded(ValueError):
    """Private training was asked for steps that its budget does not hold; nothing was trained."""


@dataclass(frozen=True)
class Budget:
    """What one party may spend in all: ``steps`` steps of DP-SGD with ``noise_multiplier``, and what they cost.

    Each step draws a lot: every one of ``num_examples`` with probability ``sample_rate``, ``lot_size`` of them on
    average. epsilon: spent at ``delta`` by the RDP accountant. epsilon_prv: the same by PRV, None where it gives no
    figure, and then ``prv_error`` says why.
    """

    num_examples: int
    lot_size: int
    epochs: int
    delta: float
    noise_multiplier: float
    epsilon: float
    epsilon_prv: float | None = None
    prv_error: str = ""

    @property
    def sample_rate(self) -> float:
        """q = lot / N."""
        return self.lot_size / self.num_examples

    @property
    def steps_per_epoch(self) -> int:
        """Lots that make an epoch: N / lot, rounded, at least 1."""
        return max(1, round(self.num_examples / self.lot_size))

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch


def budget(num_examples: int, epsilon: float, *, epochs: int, delta: float = 0.0, lot_size: int = 0) -> Budget:
    """The budget with the least noise (to 0.5 % of epsilon) that keeps a party (epsilon, delta)-private.

    num_examples: N. epochs: of the whole training, all rounds together. delta: 0 stands for 1 / N as in the paper,
    which is weak: a mechanism that publishes one example of the N as it is has that delta. lot_size: 0 stands for
    sqrt(N), rounded. Raises ValueError on a value out of range and where no noise is enough.
    """
    for name, value in [("num_examples", num_examples), ("epochs", epochs)]:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}: want a whole number from 1 up")
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: want a finite number above 0")
    if not 0 <= delta < 1 or (delta == 0 and num_examples == 1):
        raise ValueError(f"delta is {delta} with N = {num_examples}: want it between 0 and 1, or 0 for 1 / N, N > 1")
    if not isinstance(lot_size, int) or not 0 <= lot_size <= num_examples:
        raise ValueError(f"lot_size is {lot_size!r}: want 1 to N = {num_examples} examples, or 0 for sqrt(N)")
    lot_size = lot_size or round(math.sqrt(num_examples))
    return _budget(num_examples, lot_size, epochs, delta or 1 / num_examples, float(epsilon))


@lru_cache(maxsize=1024)
def _budget(num_examples: int, lot_size: int, epochs: int, delta: float, epsilon: float) -> Budget:
    planned = Budget(num_examples, lot_size, epochs, delta, math.nan, math.nan)
    noise = _noise_multiplier(planned, epsilon)
    return replace(planned, noise_multiplier=noise, **spent(noise, planned))


def spent(noise_multiplier: float, plan: Budget, steps: int | None = None) -> dict:
    """What ``steps`` steps (by default all) of ``plan`` with this noise cost: epsilon, epsilon_prv and prv_error."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    history = [(noise_multiplier, plan.sample_rate, plan.steps if steps is None else steps)]
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = history
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the best order being the outermost: the figure is then an upper bound
        epsilon = max(0.0, float(rdp.get_epsilon(plan.delta, alphas=ORDERS)))  # below 0: delta alone is enough
        found = {"epsilon": epsilon, "epsilon_prv": None, "prv_error": ""}
        if not 0.001 < epsilon < 1000:
            return {**found, "prv_error": f"not asked: epsilon {epsilon:.4g} by RDP would need too large a grid"}
        try:
            found["epsilon_prv"] = float(prv.get_epsilon(plan.delta, eps_error=min(0.01, epsilon / 20)))
        except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
            found["prv_error"] = f"{type(error).__name__}: {error}"
    return found


def _noise_multiplier(plan: Budget, epsilon: float) -> float:
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=plan.delta,
                sample_rate=plan.sample_rate,
                steps=plan.steps,
                epsilon_tolerance=epsilon / 200,
                alphas=ORDERS,
            )
    except (ArithmeticError, ValueError) as error:
        raise ValueError(
            f"epsilon {epsilon} at delta {plan.delta:.3g}, {plan.steps} steps, lots of {plan.lot_size} of "
            f"{plan.num_examples} examples: the accountant finds no noise multiplier ({error}); "
            "want another epsilon or delta"
        ) from error


def lot_of(num_examples: int, multiple: float) -> int:
    """The lot size of ``multiple`` times sqrt(N) examples, rounded. Raises ValueError where it is not 1 to N."""
    lot = round(multiple * math.sqrt(num_examples)) if math.isfinite(multiple) else -1
    if not 1 <= lot <= num_examples:
        raise ValueError(
            f"a lot of {multiple} sqrt(N) with N = {num_examples} records: want 1 to N records, "
            f"so multiples from {0.5 / math.sqrt(num_examples):.2g} to {math.sqrt(num_examples):.4g}"
        )
    return lot


def run(
    build: Callable[[], nn.Module],
    clients: Sequence[Client],
    *,
    epsilon: float,
    epochs: int,
    local: LocalTraining,
    clip_norm: float,
    seed: int = 0,
    delta: float = 0.0,
    lot_multiple: float = 1.0,
    average_interval: int = 1,
    engine: str = "auto",
    physical_batch: int = 256,
    **options,
) -> tuple[federation.Result, dict[int, Budget]]:
    """:func:`federation.run` in which every client keeps to (epsilon, delta); the result, and each client's budget.

    epochs: of the whole training, averaged every ``average_interval`` of them. lot_multiple: lots in units of sqrt(N),
    N being each client's own number of examples. options: further ones of :func:`federation.run`. The others are those
    of :func:`budget` and :func:`private_training`, which also name the errors; all are raised before training.
    """
    rounds = federation.intervals(epochs, average_interval)
    budgets = {
        client.id: budget(len(client), epsilon, epochs=epochs, delta=delta, lot_size=lot_of(len(client), lot_multiple))
        for client in clients
    }
    train = private_training(budgets, rounds, seed, clip_norm=clip_norm, engine=engine, physical_batch=physical_batch)
    return federation.run(build, clients, rounds=rounds, local=local, seed=seed, train=train, **options), budgets


def private_training(
    budgets: Mapping[int, Budget],
    rounds: Sequence[int],
    seed: int,
    *,
    clip_norm: float,
    engine: str = "auto",
    physical_batch: int = 256,
) -> partial:
    """The ``train`` of :func:`federation.run` that spends ``budgets`` (client id -> budget), and never more.

    rounds: the local epochs of each round (:func:`federation.intervals`); their sum is every budget's epochs.
    ``rounds`` and ``seed`` are those of the run: by its seed a client knows which round it is in, so that a run with
    more rounds, longer ones or another seed stops before it trains. A client_fraction below 1 spends less.
    clip_norm: C, the largest norm of an example's gradient. engine: one of :data:`gradients.ENGINES` or "auto".
    physical_batch: examples in memory at once; the lot is gathered from so many at a time, and the result is that of
    one piece.

    The result is picklable and its settings are part of a checkpoint's identity. Raises ValueError on bad input.
    """
    schedule = tuple(rounds)
    for id, own in budgets.items():
        if own.epochs != sum(schedule):
            raise BudgetExceeded(
                f"client {id} has a budget for {own.epochs} epochs, and the rounds have {sum(schedule)} "
                f"({len(schedule)} rounds): want the same"
            )
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm is {clip_norm}: want a finite number above 0, the bound of an example's gradient")
    if not isinstance(physical_batch, int) or physical_batch < 1:
        raise ValueError(f"physical_batch is {physical_batch!r}: want a whole number from 1 up")
    if engine not in (*gradients.ENGINES, "auto"):
        raise ValueError(f"engine is {engine!r}: want 'auto' or one of {', '.join(map(repr, gradients.ENGINES))}")
    return partial(
        train_privately,
        budgets=dict(budgets),
        rounds=schedule,
        run_seed=seed,
        clip_norm=clip_norm,
        engine=engine,
        physical_batch=physical_batch,
    )


def train_privately(
    trainer: Trainer,
    client: Client,
    local: LocalTraining,
    seed: int,
    *,
    budgets: Mapping[int, Budget],
    rounds: tuple[int, ...],
    run_seed: int,
    clip_norm: float,
    engine: str,
    physical_batch: int,
) -> float:
    """One client's part of one round under DP-SGD; made by :func:`private_training`.

    A step draws a lot, clips each example's gradient to C over all parameters together, adds to the sum one draw of
    Gaussian noise of standard deviation sigma * C, divides by the expected lot size, and hands that to the optimizer
    of ``local`` (momentum, Adam and weight decay are post-processing). An empty lot is a step too: noise alone.
    ``local.batch_size`` has no part in it. Returns nan: the loss of private examples is not for release.

    Raises :class:`BudgetExceeded` where this is no round of the plan, ValueError where the client, ``local`` or the
    model do not fit.
    """
    own = budgets.get(client.id)
    if own is None:
        raise ValueError(f"client {client.id} has no budget: there are budgets for {sorted(budgets)}")
    if own.num_examples != len(client):
        raise ValueError(f"client {client.id} has {len(client)} examples, its budget is for {own.num_examples}")
    if local.clip_norm:
        raise ValueError(f"local training sets clip_norm {local.clip_norm}: want 0, each example is clipped instead")
    numbers = range(len(rounds))
    number = next((n for n in numbers if training.client_seed(run_seed, n, client.id) == seed), None)
    if number is None or rounds[number] != local.local_epochs or sum(rounds) != own.epochs:
        raise BudgetExceeded(
            f"client {client.id}: {local.local_epochs} epochs with this seed are no round of the plan "
            f"(seed {run_seed}, local epochs {list(rounds)}): the budget of {own.epochs} epochs does not cover them"
        )
    steps = local.local_epochs * own.steps_per_epoch
    seeds = np.random.SeedSequence(seed).generate_state(3, np.uint64) >> np.uint64(1)
    for_sampling, for_noise, for_model = map(int, seeds)  # streams of their own: the lots tell nothing of the noise
    device, parameters = trainer.device, trainer.trainable
    sums = torch.zeros(sum(parameter.numel() for parameter in parameters), device=device)
    parts = sums.split([parameter.numel() for parameter in parameters])
    views = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
    noise = torch.empty_like(sums)
    criterion, step = training.LOSSES[local.loss], training._stepper(parameters, local)
    trainer.model.train()
    with training.drawing(device), gradients.clipped_sums(trainer.model, criterion, clip_norm, engine) as add:
        training._seed(for_model, device)
        sampling = torch.Generator().manual_seed(for_sampling)
        noising = torch.Generator(device).manual_seed(for_noise)
        kind = (trainer.model, client.x, device, local, engine, own.lot_size, physical_batch)
        for _ in probe.few(range(steps), steps, 1, *kind):
            drawn = torch.rand(len(client), generator=sampling, dtype=torch.float64) < own.sample_rate
            sums.zero_()
            lot = drawn.nonzero().squeeze(1)
            for chosen in lot.split(physical_batch) if len(lot) else ():
                x = client.x[chosen]
                if local.augment is not None:
                    x = local.augment(x, sampling)
                add(x.to(device), client.y[chosen].to(device), views)
            sums.add_(noise.normal_(generator=noising), alpha=own.noise_multiplier * clip_norm)
            step(tuple(torch._foreach_div(views, own.lot_size)))
    return math.nan
