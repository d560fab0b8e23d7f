"""A neural network over two parties' columns, under encryption: the hetero-NN protocol of FATE, step by step.

Source: Zhang and Zhu, "Additively Homomorphical Encryption based Deep Neural Network for Asymmetrically Collaborative
Machine Learning" (2020), which Hu et al. 2020 ran through FATE (section 4.5). Written anew from its formulas; what is
different is marked (*).

Parties. A, the feature party: features x, bottom model f_A, the key pair, and a share E of W_A. B, the rating party:
labels y, its own bottom model, the top model, and the other share W. The layer between them, W_A = W + E [i, o], is
held by nobody. [v] is v under A's key; n rows in the batch; eta the rate of that layer; L the mean loss.

 1  A       alpha = f_A(x) [n, i]                                 A -> B  [alpha], [E]
 2  B       draws R;  [p] = [alpha] W + R                         B -> A  [p]
 3  A       opens p;  t = p + alpha E                             A -> B  t
 4  B       alpha W_A = t - R;  z = W_B alpha_B + alpha W_A + b;  top model, L, delta = n dL/d(alpha W_A) [n, o]
 5  B       draws Q;  [g] = [alpha]^T delta + Q;  [s] = delta ([E] + W)^T = delta W_A^T        B -> A  [g], [s]
 6  A       opens g and s;  draws E';  u = g + (n / eta) E'       A -> B  u;   E <- E + E'
            its own bottom model steps by the gradient s / n of alpha
 7  B       W <- W - (eta / n) (u - Q) = W - eta dL/dW_A - E';    its own models step

so W + E <- W + E - eta dL/dW_A exactly, and neither side ever holds W_A. Prediction is steps 1 to 4 without [E].

What each receiver can learn, both following the protocol (semi-honest; a malicious party is not defended against):

B  from [alpha], [E]: nothing (no key). From t: alpha W_A of each row, that is what it needs, in o numbers; it knows
   neither alpha nor W_A, so that factors are open up to an invertible matrix where o >= i. From u: the batch's
   gradient behind the mask (n / eta) E', uniform in +-share_step n / eta and fresh at every step. W is W_A less a
   random walk of such steps: share_step * sqrt(steps / 3) wide after so many, and no average over steps takes it off.
A  from p and g: nothing but noise. R and Q are real numbers, so they hide statistically and not perfectly: see
   :mod:`fl_utils.vertical.ckks` for widths and bits (a slot that holds at most m is hidden up to m / 2^32). CKKS sums
   rows and blocks at A, under one mask per slot of which B keeps the sums (*): A never has a per-sample product.
   From s: the gradient of its own activations per row, delta W_A^T, without which f_A could not learn. It has rank o
   and follows the labels: who is A can cluster the rows' errors by it (label leakage, Li et al. 2022). W is inside of
   the ciphertext: delta E^T alone would give delta to A, who knows E.
   Moreover A knows which rows are in which batch, so which user rated which film (the alignment says so), not how.

CKKS opens to approximations. Handed to somebody who has the ciphertext, they give the key away (Li and Micciancio
2021). t and u therefore go back only behind A's own numbers: alpha E and (n / eta) E'. Both initial shares are random
(*; FATE begins with E = 0, so that the first t would go back bare). This is masking in the sense of the protocol and
no proof of security against such an attack; a key should not outlive one training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from torch.nn import functional

from fl_utils import probe
from fl_utils.vertical.channel import Channel
from fl_utils.vertical.encryption import Evaluator, Owner, Sealed, uniform
from fl_utils.vertical.joint import FeatureSide, RatingSide, Terms

OnStep = Callable[[int], None]


def agree(channel: Channel, name: str, terms: Terms, counts: dict[str, int], ids: np.ndarray) -> None:
    """Compare terms, row counts and a digest of the rows' ids (int64, in order) with the peer's.

    Raises ValueError, the same at both parties, where they differ.
    """
    digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()
    mine = {"name": name, "terms": asdict(terms), "counts": counts, "rows": digest}
    if channel.mesh.id == 0:
        channel.send_text("agree", mine)
        theirs = channel.receive_text("agree")
    else:
        theirs = channel.receive_text("agree")
        channel.send_text("agree", mine)
    peer = channel.mesh.names[channel.peer]
    for part, count in counts.items():
        other = dict(theirs.get("counts") or {}).get(part)
        if other != count:
            raise ValueError(f"{name} has {count} {part} rows, {peer} has {other}: align the rows again")
    for key, value in mine["terms"].items():
        other = dict(theirs.get("terms") or {}).get(key)
        if other != value:
            raise ValueError(f"{key} is {value!r} at {name} and {other!r} at {peer}: both need the same terms")
    if theirs.get("rows") != digest:
        raise ValueError(f"{name} and {peer} have as many rows, but not the same ones in the same order: align them")


class FeatureParty:
    """A. side: its models; owner: its key."""

    def __init__(self, channel: Channel, terms: Terms, side: FeatureSide, owner: Owner):
        self.channel, self.terms, self.side, self.owner = channel, terms, side, owner
        self.optimizer = side.optimizer(terms)
        channel.send_bytes("key", owner.public())

    def _forward(self, features: torch.Tensor, learns: bool) -> torch.Tensor:
        """Steps 1 and 3; alpha."""
        with torch.set_grad_enabled(learns):
            alpha = self.side.bottom(features)
        values, share = alpha.detach().double().numpy(), self.side.share.numpy()
        self.channel.send_sealed(self.owner.seal_rows(values))
        if learns:
            self.channel.send_sealed(self.owner.seal_weights(share, len(values)))
        opened = self._opened("products", (len(values), self.terms.outputs))
        self.channel.send_array("activations", opened + values @ share)
        return alpha

    def _opened(self, kind: str, shape: tuple[int, int]) -> np.ndarray:
        sealed = self.channel.receive_sealed(kind)
        self.owner.check(sealed, kind, shape)
        return self.owner.open(sealed)

    def step(self, features: torch.Tensor) -> None:
        """One training step on features float32 [n, f]: steps 1, 3 and 6."""
        alpha, n = self._forward(features, learns=True), len(features)
        gradient = self._opened("gradient", (self.terms.width, self.terms.outputs))
        slopes = self._opened("slopes", (n, self.terms.width))
        change = uniform(self.terms.share_step, self.terms.width, self.terms.outputs)
        self.channel.send_array("weights' gradient", gradient + (n / self.terms.interactive_rate) * change)
        self.side.share += torch.from_numpy(change)
        at_alpha = torch.from_numpy(slopes / n).to(alpha.dtype)
        self.optimizer.step(torch.autograd.grad(alpha, self.optimizer.parameters, at_alpha))

    def train(self, features: torch.Tensor, on_step: OnStep = lambda step: None) -> None:
        """All steps of the terms; ``on_step`` is called with the number of each that is done."""
        for step, rows in enumerate(probe.first(self.terms.batches(len(features)), self.terms.count(len(features))), 1):
            self.step(features[rows])
            on_step(step)

    def predict(self, features: torch.Tensor) -> None:
        """Take part in predicting these rows; the result is B's."""
        parts = features.split(self.terms.batch_size)
        for part in probe.first(parts, len(parts)):
            self._forward(part, learns=False)


class RatingParty:
    """B. side: its models; make: from A's public parameters and the scheme to an evaluator."""

    def __init__(self, channel: Channel, terms: Terms, side: RatingSide, make: Callable[[bytes, str], Evaluator]):
        self.channel, self.terms, self.side = channel, terms, side
        self.optimizer = side.optimizer(terms)
        self.evaluator = make(channel.receive_bytes("key"), terms.scheme)

    def _received(self, kind: str, shape: tuple[int, int], n: int) -> Sealed:
        sealed = self.channel.receive_sealed(kind)
        self.evaluator.check(sealed, kind, shape)
        if sealed.rows != n:
            raise ValueError(f"sealed {kind} laid out for {sealed.rows} rows: this batch has {n}")
        return sealed

    def _forward(self, rows: Sealed) -> np.ndarray:
        """Steps 2 and 4: alpha W_A, float64 [n, o]."""
        products, mask = self.evaluator.products(rows, self.side.share.numpy())
        self.channel.send_sealed(products)
        return self.channel.receive_array("activations", mask.shape) - mask

    def step(self, pairs: torch.Tensor, ratings: torch.Tensor) -> float:
        """One training step on pairs int64 [n, 2] and ratings float32 [n]: steps 2, 4, 5 and 7. The loss before it."""
        n, width, outputs = len(pairs), self.terms.width, self.terms.outputs
        rows = self._received("rows", (n, width), n)
        weights = self._received("weights", (width, outputs), n)
        other = torch.from_numpy(self._forward(rows)).float().requires_grad_()
        loss = functional.mse_loss(self.side.top(self.side.bottom(pairs), other), ratings)
        *own, at_other = torch.autograd.grad(loss, [*self.optimizer.parameters, other])
        slopes, share = at_other.double().numpy() * n, self.side.share.numpy()
        gradient, mask = self.evaluator.gradient(rows, slopes)
        self.channel.send_sealed(gradient)
        self.channel.send_sealed(self.evaluator.slopes(weights, share, slopes))
        change = self.channel.receive_array("weights' gradient", mask.shape) - mask
        self.side.share -= torch.from_numpy(change) * (self.terms.interactive_rate / n)
        self.optimizer.step(own)
        return loss.item()

    def train(self, pairs: torch.Tensor, ratings: torch.Tensor, on_step: OnStep = lambda step: None) -> list[float]:
        """All steps of the terms; the loss of each."""
        losses = []
        for step, rows in enumerate(probe.first(self.terms.batches(len(pairs)), self.terms.count(len(pairs))), 1):
            losses.append(self.step(pairs[rows], ratings[rows]))
            on_step(step)
        return losses

    @torch.no_grad()
    def predict(self, pairs: torch.Tensor) -> torch.Tensor:
        """Ratings of these rows, float32 [n], 1 to 5 stars; A takes part by its own :meth:`FeatureParty.predict`."""
        found, parts = [], pairs.split(self.terms.batch_size)
        for part in probe.first(parts, len(parts)):
            rows = self._received("rows", (len(part), self.terms.width), len(part))
            other = torch.from_numpy(self._forward(rows)).float()
            found.append(self.side.top(self.side.bottom(part), other))
        found += [found[0][: len(part)] for part in parts[len(found) :]]  # of a probe
        return torch.cat(found).clamp(1, 5)
