"""What one client does: local training over its own examples, and evaluation.

A :class:`Trainer` owns one model whose state lives in one flat vector. A step takes gradients by ``autograd.grad`` and
applies them in place, with no optimizer object and no data loader between: FedAvg's many short trainings pay for those
more than for the arithmetic (the first use of ``torch.optim`` alone costs seconds).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils import flat, metrics, probe

LARGE = 1 << 20  # values of a state: to copy so many takes longer than to have a model look elsewhere and back
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains between two averages. Names and letters are those of McMahan et al. 2017.

    local_epochs: E, passes over the client's examples (the "average interval" of Hu et al. 2020, section 4.2).
    batch_size: B; 0 takes all of the client's examples as one batch. learning_rate: eta.
    optimizer: "sgd" (with ``momentum`` and ``weight_decay``) or "adam". Its state begins anew in every round.
    clip_norm: gradients longer than this are scaled to it; 0 leaves them alone.
    loss: "cross_entropy" (outputs [N, classes]), "binary_cross_entropy" (outputs [N], logits), "masked_absolute"
    (outputs as the float targets; the mean absolute error where a target is neither 0, a missing reading, nor NaN), or
    "own": the model's method ``loss(outputs, targets)``, for losses with weights of their own.
    augment: ``f(x, generator) -> x`` applied to each training batch; a module-level function, since it travels.
    """

    local_epochs: int = 1
    batch_size: int = 10
    learning_rate: float = 0.05
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    loss: str = "cross_entropy"
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for name, least in [("local_epochs", 1), ("batch_size", 0)]:
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}: want a whole number from {least} up")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: want a finite number from 0 up")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: want a number from 0 up to, not including, 1")
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer is {self.optimizer!r}: want 'sgd' or 'adam'")
        if self.momentum and self.optimizer == "adam":
            raise ValueError("momentum is set with optimizer 'adam': it belongs to 'sgd'")
        if self.loss not in (*LOSSES, "own"):
            raise ValueError(f"loss is {self.loss!r}: want one of {', '.join(map(repr, LOSSES))} or 'own'")

    def for_epochs(self, local_epochs: int) -> LocalTraining:
        """The same training with another number of local epochs."""
        return replace(self, local_epochs=local_epochs)


def _binary_cross_entropy(outputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction=reduction)


def _masked_absolute(outputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    known = (targets != 0) & ~torch.isnan(targets)
    errors = torch.where(known, (outputs - targets).abs(), 0.0)
    return errors.sum() / known.sum().clamp(min=1) if reduction == "mean" else errors


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "masked_absolute": _masked_absolute,
}


_drawing = threading.RLock()


@contextmanager
def drawing(device: torch.device | str = "cpu") -> Iterator[None]:
    """Have torch's random generator to oneself, and leave it as it was.

    It is one for all threads of a process: whoever seeds it and draws from it does so inside of this.
    """
    device = torch.device(device)
    with _drawing:
        if device.type == "cuda":
            with torch.random.fork_rng(devices=[device]):
                yield
        else:  # the same, without asking every kind of device first
            kept = torch.default_generator.get_state()
            try:
                yield
            finally:
                torch.default_generator.set_state(kept)


def client_seed(seed: int, round_number: int, client: int) -> int:
    """A client's own seed for one round: a function of these three, so that neither order nor parallelism matters."""
    return int(np.random.SeedSequence([seed, round_number, client]).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """One model, its flat state ``vector`` (float32 [d], shared memory with the model) and a device."""

    def __init__(self, build: Callable[[], nn.Module], device: str | torch.device = "cpu"):
        with _drawing:  # initial weights are drawn: not in the middle of another thread's training
            self.model = build()
        self.device = torch.device(device)
        self.layout = flat.Layout.of(self.model)
        self.vector = flat.bind(self.model, self.device)
        self._state = flat.tensors(self.model)
        self.trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._modules = list(self.model.modules())

    def move(self, vector: torch.Tensor) -> None:
        """Have the state live in ``vector`` (float32 [d], on this device) from now on, with the values that are there.

        Raises ValueError where that is not a vector of this model's state.
        """
        self.layout.check(vector)
        shift = vector.storage_offset() - self.vector.storage_offset()
        for tensor in self._state:  # with its strides: images' weights may lie channels last
            tensor.data = vector.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() + shift)
        self.vector = vector

    def train(
        self, x: torch.Tensor, y: torch.Tensor, local: LocalTraining, seed: int, start: torch.Tensor | None = None
    ) -> list[float]:
        """Train in place on examples ``x`` [N, ...] and labels ``y`` [N]; the mean loss of each epoch.

        start (float32 [d], only read): the state to begin with instead of the present one.
        The order of examples, dropout and augmentation depend on ``seed`` alone. Raises ValueError where there is no
        example or the lengths differ.
        """
        check_examples(x, y)
        criterion = self._criterion(local.loss)
        losses = []
        if not all(module.training for module in self._modules):
            self.model.train()
        with self._steps(local, start) as step, drawing(self.device):
            _seed(seed, self.device)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(local.local_epochs):
                found, counts = [], []
                size = local.batch_size or len(x)
                for inputs, targets in probe.few(
                    _batches(x, y, size, generator), len(x), size, self.model, x, self.device, local
                ):
                    if local.augment is not None:
                        inputs = local.augment(inputs, generator)
                    loss = criterion(self.model(inputs.to(self.device)), targets.to(self.device))
                    step(gradients(loss, self.trainable))
                    found.append(loss.detach())
                    counts.append(len(targets))
                losses.append(_total(found, counts) / len(x))
        return losses

    @contextmanager
    def _steps(self, local: LocalTraining, start: torch.Tensor | None) -> Iterator[Callable]:
        """:func:`_stepper` of a training that begins with ``start``, where given.

        A large one is not copied where nothing but steps of SGD writes to the state: the model reads it where it lies,
        until the first step has written the present vector.
        """
        own = self.vector
        steps_alone = local.optimizer == "sgd" and len(self._state) == len(self.trainable)
        if start is None or len(own) < LARGE or not steps_alone or start.device != own.device:
            if start is not None:
                own.copy_(start)
            yield _stepper(self.trainable, local)
            return
        here = [parameter.detach() for parameter in self.trainable]
        self.move(start)
        apply = _stepper(here, local, self.trainable)

        def step(gradients: Sequence[torch.Tensor]) -> None:
            apply(gradients)
            if self.vector is start:
                self.move(own)

        try:
            yield step
            if self.vector is start:  # a probe left all steps out
                own.copy_(start)
        finally:
            if self.vector is start:
                self.move(own)

    def _criterion(self, loss: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        if loss == "own" and not callable(getattr(self.model, "loss", None)):
            raise ValueError(f"loss is 'own', but {type(self.model).__name__} has no method loss(outputs, targets)")
        return self.model.loss if loss == "own" else LOSSES[loss]

    @torch.inference_mode()
    def outputs(self, x: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """The model's outputs (on the CPU) for ``x`` [N, ...], in evaluation mode."""
        self.model.eval()
        parts = x.split(batch_size)
        return torch.cat(probe.outputs(lambda part: self.model(part.to(self.device)).cpu(), parts, self.model))

    def evaluate(self, x: torch.Tensor, y: torch.Tensor, loss: str = "cross_entropy", batch_size: int = 256):
        """:class:`fl_utils.metrics.Scores` of the present state on ``x`` [N, ...], ``y`` [N]."""
        check_examples(x, y)
        outputs = self.outputs(x, batch_size)
        binary = outputs.ndim == 1
        predictions = (outputs > 0).long() if binary else outputs.argmax(1)
        classes = 2 if binary else outputs.shape[1]
        return metrics.scores(y.numpy(), predictions.numpy(), classes, LOSSES[loss](outputs, y).item())


def _total(losses: list[torch.Tensor], counts: list[int]) -> float:
    """The sum of ``losses`` (scalars) times ``counts``, added up in order in float32: one transfer, few operations."""
    if not losses:  # a probe left them all out
        return 0.0
    values = torch.stack(losses).cpu().numpy()
    with np.errstate(all="ignore"):  # a loss that is not finite is the caller's to judge
        total = np.float32(0)
        for part in values * np.array(counts, values.dtype):
            total = np.float32(total + part)
    return float(total)


def _batches(x: torch.Tensor, y: torch.Tensor, size: int, generator: torch.Generator, most: int = 1 << 24) -> Iterator:
    """Minibatches in a random order, gathered many at a time (at most ``most`` bytes) and cut as views."""
    together = size * max(1, most // max(1, size * (x.numel() // len(x)) * x.element_size()))
    for chosen in torch.randperm(len(x), generator=generator).split(together):
        inputs, targets = x.index_select(0, chosen.to(x.device)), y.index_select(0, chosen.to(y.device))
        yield from zip(inputs.split(size), targets.split(size), strict=True)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the device in use alone: ``torch.manual_seed`` also queues one call, with its traceback, per absent GPU."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def check_examples(x: torch.Tensor, y: torch.Tensor, who: str = "data") -> None:
    """Raise ValueError where ``x`` and ``y`` hold no example or not the same number."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{who}: {len(x)} examples and {len(y)} labels: want the same number, at least one")


def gradients(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients of ``loss`` (a scalar): ``autograd.grad``, without what it asks about each parameter first.

    That is a tenth of a small model's step. A parameter that the loss does not depend on has zeros.
    """
    if loss.numel() != 1:
        raise ValueError(f"the loss has the shape {tuple(loss.shape)}: want one number")
    found = torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, tuple(parameters), allow_unreachable=True,
        accumulate_grad=False,
    )  # fmt: skip
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(parameter) if gradient is None else gradient for gradient, parameter in pairs]


def _stepper(
    parameters: list[torch.Tensor], local: LocalTraining, start: list[torch.Tensor] | None = None
) -> Callable[[Sequence[torch.Tensor]], None]:
    """A function that takes gradients and changes ``parameters`` in place; equal to torch.optim's SGD or Adam.

    start: tensors like ``parameters``, with whose values the first step of SGD begins; only read.
    """
    rate, state = local.learning_rate, []
    parameters = [parameter.detach() for parameter in parameters]  # the same memory, without a gradient to record
    old = parameters if start is None else [parameter.detach() for parameter in start]

    def clipped(gradients: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if local.clip_norm:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            torch._foreach_mul_(gradients, torch.clamp(local.clip_norm / (norm + 1e-6), max=1.0))
        return gradients

    def sgd(gradients: Sequence[torch.Tensor]) -> None:
        nonlocal old
        gradients = clipped(gradients)
        if local.weight_decay:
            torch._foreach_add_(gradients, old, alpha=local.weight_decay)
        if local.momentum:
            if not state:
                state.extend(torch.zeros_like(gradient) for gradient in gradients)
            torch._foreach_mul_(state, local.momentum)
            torch._foreach_add_(state, gradients)
            gradients = state
        if old is parameters:
            torch._foreach_add_(parameters, gradients, alpha=-rate)
            return
        for value, gradient, parameter in zip(old, gradients, parameters, strict=True):
            torch.add(value, gradient, alpha=-rate, out=parameter)
        old = parameters

    def adam(gradients: Sequence[torch.Tensor]) -> None:
        if not state:
            state.extend([torch.zeros_like(p) for p in parameters] for _ in range(2))
            state.append([torch.zeros((), device=parameters[0].device)] * len(parameters))  # of steps: one for all
        first, second, steps = state
        steps[0].add_(1)
        torch._fused_adam_(
            parameters, [_laid_out(*pair) for pair in zip(clipped(gradients), parameters, strict=True)],
            first, second, [], steps, lr=rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=local.weight_decay,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    return sgd if local.optimizer == "sgd" else adam


def _laid_out(gradient: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``gradient`` with its numbers in the memory's order of ``parameter``'s: the fused step looks at nothing else."""
    alike = gradient.stride() == parameter.stride() or (gradient.is_contiguous() and parameter.is_contiguous())
    return gradient if alike else torch.empty_like(parameter).copy_(gradient)
