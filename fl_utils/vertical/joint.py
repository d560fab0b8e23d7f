"""The same training in one place: the reference for what two parties do under encryption, and Table 5's first rows.

Terms are what both parties agree on before they begin. The layer in which the parties meet is trained by plain gradient
descent, since its weights exist only as two shares, of which each changes by a sum; everything else, which one party
has to itself, by Adam.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fl_utils import probe
from fl_utils.models.recommendation import AuxiliaryBottom, NeuralCollaborativeFiltering, RatingBottom, RatingTop
from fl_utils.training import client_seed
from fl_utils.vertical.encryption import LIMITS


@dataclass(frozen=True)
class Terms:
    """What both parties must agree on.

    width: of alpha_A, the feature party's activations; outputs: of z, where the parties meet. learning_rate: Adam's.
    interactive_rate: of the layer between them. decay: L2, on the embedding tables alone. steps: to stop after, 0 = as
    many as the epochs have. share_step: half-width of the uniform change of the feature party's share at each step.
    seed: of the order of the rows, which both know. scheme: "ckks" or "paillier" (key_bits is Paillier's).
    Raises ValueError on numbers out of range.
    """

    width: int = 16
    outputs: int = 16
    batch_size: int = 256
    epochs: int = 1
    steps: int = 0
    learning_rate: float = 0.003
    interactive_rate: float = 0.05
    decay: float = 0.001
    share_step: float = 0.125
    seed: int = 0
    scheme: str = "ckks"
    key_bits: int = 2048

    def __post_init__(self) -> None:
        for name, least in [("width", 1), ("outputs", 1), ("batch_size", 1), ("epochs", 1), ("steps", 0), ("seed", 0)]:
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}: want a whole number from {least} up")
        for name in ("learning_rate", "interactive_rate", "decay", "share_step"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: want a finite number from 0 up")
        if self.interactive_rate == 0 or self.share_step == 0:
            raise ValueError("interactive_rate and share_step must be above 0: the backward pass is masked by both")
        if self.scheme not in ("ckks", "paillier"):
            raise ValueError(f"scheme is {self.scheme!r}: want 'ckks' or 'paillier'")

    def check_rows(self, rows: int) -> None:
        """Raise ValueError where so many training rows take the feature party's share beyond what can be encrypted."""
        steps = self.count(rows)
        reach = 5 * self.share_step * (steps / 3) ** 0.5 + 1
        if reach > LIMITS["weights"]:
            raise ValueError(
                f"share_step is {self.share_step:g}: over {steps} steps A's share may reach {reach:.3g}; the "
                f"encryption holds {LIMITS['weights']:g}: take a share_step of {10 * self.share_step / reach:.2g}"
            )

    def count(self, rows: int) -> int:
        """The steps of the whole training on so many rows."""
        steps = self.epochs * -(-rows // self.batch_size)
        return min(steps, self.steps) if self.steps else steps

    def batches(self, rows: int) -> Iterator[torch.Tensor]:
        """The rows of each step, int64, in the order that ``seed`` gives: the same for both parties."""
        step = 0
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(client_seed(self.seed, epoch, 0))
            for chosen in torch.randperm(rows, generator=generator).split(self.batch_size):
                if self.steps and step == self.steps:
                    return
                step += 1
                yield chosen


class Adam:
    """Adam (Kingma and Ba 2015) with an L2 term per tensor, in place; equal to torch.optim's."""

    def __init__(self, parameters: Sequence[torch.Tensor], rate: float, decays: Sequence[float]):
        self.parameters, self.rate, self.decays = list(parameters), rate, list(decays)
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.count = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor]) -> None:
        """Apply one gradient per parameter."""
        self.count += 1
        correction = (1 - 0.999**self.count) ** 0.5
        size = self.rate / (1 - 0.9**self.count)
        both = zip(self.parameters, gradients, self.decays, self.first, self.second, strict=True)
        for parameter, gradient, decay, first, second in both:
            if decay:
                gradient = gradient.add(parameter, alpha=decay)
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(first, second.sqrt().div_(correction).add_(1e-8), value=-size)


@dataclass
class FeatureSide:
    """The feature party's models: its bottom model and its share of W_A, float64 [width, outputs]."""

    bottom: AuxiliaryBottom
    share: torch.Tensor

    @classmethod
    def draw(cls, terms: Terms, features: int, seed: int) -> FeatureSide:
        """Initial weights from the party's own seed."""
        generator = _seeded(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bottom = AuxiliaryBottom(features, terms.width)
        return cls(bottom, _share(terms, generator))

    def optimizer(self, terms: Terms) -> Adam:
        parameters = list(self.bottom.parameters())
        return Adam(parameters, terms.learning_rate, [0.0] * len(parameters))


@dataclass
class RatingSide:
    """The rating party's models: its bottom and top models and its share of W_A, float64 [width, outputs]."""

    bottom: RatingBottom
    top: RatingTop
    share: torch.Tensor

    @classmethod
    def draw(
        cls, terms: Terms, users: int, items: int, seed: int, embedding: int = 8, hidden: int = 8, mean: float = 3.5
    ) -> RatingSide:
        """Initial weights from the party's own seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            bottom = RatingBottom(users, items, embedding)
            top = RatingTop(embedding, terms.outputs, hidden, mean)
        return cls(bottom, top, _share(terms, _seeded(seed)))

    def optimizer(self, terms: Terms) -> Adam:
        tables, rest = list(self.bottom.parameters()), list(self.top.parameters())
        return Adam([*tables, *rest], terms.learning_rate, [terms.decay] * len(tables) + [0.0] * len(rest))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(client_seed(seed, 0, 1))


def _share(terms: Terms, generator: torch.Generator) -> torch.Tensor:
    """Half of an initial W_A: two of these add up to the variance of torch's own linear layer."""
    draw = torch.rand(terms.width, terms.outputs, generator=generator, dtype=torch.float64) * 2 - 1
    return draw / (2 * terms.width) ** 0.5


class Joint:
    """Training of the whole network in one process, ratings alone (``features`` None) or with the features.

    It begins from copies of both parties' initial models, so that it can be compared with them step by step.
    """

    def __init__(self, terms: Terms, ratings: RatingSide, features: FeatureSide | None = None):
        self.terms = terms
        users, items = ratings.bottom.user.num_embeddings, ratings.bottom.item.num_embeddings
        count = features.bottom.linear.in_features if features else 0
        size = ratings.bottom.embedding
        hidden = ratings.top.upper.out_features
        with torch.random.fork_rng(devices=[]):
            self.model = NeuralCollaborativeFiltering(users, items, count, size, terms.width, terms.outputs, hidden)
        self.model.bottom.load_state_dict(ratings.bottom.state_dict())
        self.model.top.load_state_dict(ratings.top.state_dict())
        tables, rest = list(self.model.bottom.parameters()), list(self.model.top.parameters())
        if features:
            self.model.auxiliary.load_state_dict(features.bottom.state_dict())
            rest += list(self.model.auxiliary.parameters())
            with torch.no_grad():
                self.model.interactive.weight.copy_((features.share + ratings.share).T)
        self.optimizer = Adam([*tables, *rest], terms.learning_rate, [terms.decay] * len(tables) + [0.0] * len(rest))

    def step(self, pairs: torch.Tensor, ratings: torch.Tensor, features: torch.Tensor | None = None) -> float:
        """One step on pairs int64 [n, 2], ratings float32 [n], features float32 [n, f]; the loss before it."""
        between = [] if self.model.interactive is None else [self.model.interactive.weight]
        loss = functional.mse_loss(self.model(pairs, features), ratings)
        own = self.optimizer.parameters
        gradients = torch.autograd.grad(loss, [*own, *between])
        self.optimizer.step(gradients[: len(own)])
        with torch.no_grad():
            for weight, gradient in zip(between, gradients[len(own) :], strict=True):
                weight.sub_(gradient, alpha=self.terms.interactive_rate)
        return loss.item()

    def train(self, pairs: torch.Tensor, ratings: torch.Tensor, features: torch.Tensor | None = None) -> list[float]:
        """All steps of the terms; the loss of each."""
        chosen = probe.first(self.terms.batches(len(pairs)), self.terms.count(len(pairs)), done=100)
        return [self.step(pairs[rows], ratings[rows], None if features is None else features[rows]) for rows in chosen]

    @torch.no_grad()
    def predict(self, pairs: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Ratings, float32 [n], cut to the stars there are: 1 to 5."""
        return self.model(pairs, features).clamp(1, 5)


def squared_error(predicted: torch.Tensor, ratings: torch.Tensor) -> float:
    """The mean squared error of ratings in stars, both float32 [n]."""
    return (predicted - ratings).square().mean().item()


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors by name, detached copies."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
