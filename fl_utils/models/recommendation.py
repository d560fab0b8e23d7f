"""Neural collaborative filtering (He et al. 2017) that predicts ratings, whole and cut between two parties.

He et al. let a generalised matrix factorisation (GMF: the product of a user's and an item's embedding, element by
element) and a multi-layer perceptron (MLP, with embeddings of its own) meet in one last layer. Hu et al. 2020, section
3.4, use "a variation" for ratings and do not print it. Here the last layer predicts the rating itself (mean squared
error), each user and item has a bias, and auxiliary features of the user and the item enter the MLP's first layer:

    z = W_B alpha_B + W_A alpha_A + b        alpha_B the MLP's embeddings, alpha_A = tanh(V features + c)
    rating = mean + bias_user + bias_item + h_1 . (p_user * q_item) + h_2 . elu(U elu(z) + d)

He et al. have ReLU where ELU stands: at ReLU's kink the last bits of z decide whether a row has a gradient at all, so
that the rounding of an encrypted z (some 1e-5) grew to 1e-2 in the weights within 140 steps; under ELU it stays 2e-5.

The cut goes through that layer: alpha_A comes from the one party's bottom model (:class:`AuxiliaryBottom`); all else
(:class:`RatingBottom`, :class:`RatingTop`) belongs to the ratings' owner. Without features W_A alpha_A is left out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class AuxiliaryBottom(nn.Module):
    """The bottom model of auxiliary features: float32 [n, features] -> alpha_A in [-1, 1], float32 [n, width]."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.linear = nn.Linear(features, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(features))


class RatingBottom(nn.Module):
    """The ratings' own bottom model: pairs int64 [n, 2] (user, item) -> float32 [n, 1 + 3 * embedding].

    Columns: the biases' sum, the GMF product, then alpha_B, the MLP's embeddings of user and item.
    """

    def __init__(self, users: int, items: int, embedding: int):
        super().__init__()
        self.user = nn.Embedding(users, 2 * embedding + 1)  # GMF, MLP, bias
        self.item = nn.Embedding(items, 2 * embedding + 1)
        self.embedding = embedding
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.05)
            with torch.no_grad():
                table.weight[:, -1] = 0

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        user, item, size = self.user(pairs[:, 0]), self.item(pairs[:, 1]), self.embedding
        product = user[:, :size] * item[:, :size]
        return torch.cat([(user + item)[:, -1:], product, user[:, size : 2 * size], item[:, size : 2 * size]], 1)


class RatingTop(nn.Module):
    """The rest: RatingBottom's output [n, 1 + 3 * embedding] and W_A alpha_A [n, outputs] -> ratings, float32 [n].

    outputs: width of z, where the two parties meet. hidden: width of the layer above. mean: the rating to begin from.
    """

    def __init__(self, embedding: int, outputs: int, hidden: int, mean: float):
        super().__init__()
        self.own = nn.Linear(2 * embedding, outputs)  # W_B and b
        self.upper = nn.Linear(outputs, hidden)
        self.output = nn.Linear(embedding + hidden, 1)
        self.embedding = embedding
        with torch.no_grad():
            self.output.weight[:, :embedding] = 1.0  # GMF begins as plain matrix factorisation
            self.output.bias.fill_(mean)

    def forward(self, bottom: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        bias, product, own = bottom.split([1, self.embedding, 2 * self.embedding], 1)
        z = self.own(own) if other is None else self.own(own) + other
        deep = functional.elu(self.upper(functional.elu(z)))
        return (bias + self.output(torch.cat([product, deep], 1))).squeeze(1)


class NeuralCollaborativeFiltering(nn.Module):
    """The whole network in one place: (pairs int64 [n, 2], features float32 [n, f] or None) -> ratings, float32 [n].

    features: how many auxiliary features there are; 0 for ratings alone. width: of alpha_A. Raises ValueError where
    features are given to a network without them, or the other way round.
    """

    def __init__(
        self,
        users: int,
        items: int,
        features: int = 0,
        embedding: int = 8,
        width: int = 16,
        outputs: int = 16,
        hidden: int = 8,
        mean: float = 3.5,
    ):
        super().__init__()
        self.bottom = RatingBottom(users, items, embedding)
        self.top = RatingTop(embedding, outputs, hidden, mean)
        self.auxiliary = AuxiliaryBottom(features, width) if features else None
        self.interactive = nn.Linear(width, outputs, bias=False) if features else None  # W_A

    def forward(self, pairs: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        if (features is None) != (self.auxiliary is None):
            raise ValueError(
                "features were given to a network without auxiliary features: build it with their number"
                if self.auxiliary is None
                else f"no features: this network wants [n, {self.auxiliary.linear.in_features}] beside the pairs"
            )
        other = None if features is None else self.interactive(self.auxiliary(features))
        return self.top(self.bottom(pairs), other)
