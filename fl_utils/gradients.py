"""Sums of gradients, each example's clipped first: what DP-SGD adds its noise to (Abadi et al. 2016, algorithm 1).

Every engine adds the same to its result, sum_i g_i * min(1, C / |g_i|), g_i being example i's gradient in all
parameters together; they differ in time and memory by large factors, and which one wins depends on the layers:

    hooks, functorch   Opacus: each example's gradient is written out, by layer rules or by torch.func layer by layer
    ghost              Opacus: only the norms are computed, then a second backward pass with weighted losses
    vmap               torch.func: vmap of grad over the whole model; no rule of any layer needed
    bookkeeping        ours: one backward pass down to each layer's output, then norms and the weighted sum by layer
                       rules; no second pass (the idea is Bu et al. 2023, "book-keeping")
    loop               one backward pass per example: the definition, to test the others against
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fl_utils import layer_rules

ENGINES = ("hooks", "functorch", "ghost", "vmap", "bookkeeping", "loop")
Criterion = Callable[..., torch.Tensor]
Add = Callable[[torch.Tensor, torch.Tensor, list[torch.Tensor]], None]

_trusted: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def choose(model: nn.Module) -> str:
    """The engine that is fastest for ``model``'s layers (measured by ``benchmarks/privacy.py``).

    "bookkeeping" where every layer with parameters has a rule, else "vmap", which needs none.
    """
    layers = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    return "bookkeeping" if all(layer_rules.rule_of(layer) for layer in layers) else "vmap"


def check_model(model: nn.Module) -> None:
    """Raise ValueError, naming the layer, where ``model`` has no gradient per example or state outside of its reach."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"layer {name!r} is {type(module).__name__}: it mixes the examples of a batch, so that none has a "
                "gradient of its own, and its statistics would leave without noise; use group norm"
            )
        if isinstance(module, nn.RNNBase):
            raise ValueError(
                f"layer {name!r} is {type(module).__name__}, whose fused kernel gives no gradient per example: "
                "use a twin such as fl_utils.models.private.PrivateSentimentLSTM, or those of opacus.layers"
            )
    state = model.state_dict().keys()
    buffers = [name for name, buffer in model.named_buffers() if name in state and buffer.is_floating_point()]
    if buffers:
        raise ValueError(f"buffers {buffers} belong to the model's state: training could write to them without noise")


@contextmanager
def clipped_sums(model: nn.Module, criterion: Criterion, clip: float, engine: str = "auto") -> Iterator[Add]:
    """A function ``add(x, y, total)``: adds the clipped gradients of a batch to ``total`` (one tensor per parameter).

    model: in training mode. criterion: ``f(outputs, y, reduction="none")`` gives one loss per example. clip: C.
    x [n, ...], y [n, ...]: n >= 1 examples, all of which must fit memory at once. ``total``: in the order of the
    model's trainable parameters. Afterwards the model is as it was: no hooks, no gradients left.

    Before its first use on a model, an engine is tried on one batch against "loop". Raises ValueError where it differs
    (layers it does not know, parameters used outside of their layer), and on what :func:`check_model` refuses.
    """
    if engine not in (*ENGINES, "auto"):
        raise ValueError(f"engine is {engine!r}: want 'auto' or one of {', '.join(map(repr, ENGINES))}")
    check_model(model)
    engine = choose(model) if engine == "auto" else engine
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    make = {"vmap": _vmap, "bookkeeping": _bookkeeping, "loop": _loop}.get(engine, _opacus)
    trusted = _trusted.setdefault(model, {"loop"})
    with _plain(model), make(model, criterion, parameters, clip, engine) as add:

        def tried(x: torch.Tensor, y: torch.Tensor, total: list[torch.Tensor]) -> None:
            if engine not in trusted:
                _try(engine, add, model, criterion, parameters, clip, x, y)
                trusted.add(engine)
            add(x, y, total)

        yield tried


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """The model without what engines cannot follow: writing into inputs, and images laid out channels last.

    An input that is written into is another layer's output, which hooks and rules look at. Of channels-last images
    Opacus' hooks and norms are wrong for convolutions, and vmap refuses them. Without them all engines see the same
    values to the bit, so that no unit at the edge of its kink is on for one and off for another.
    """
    unwanted = ["inplace", "channels_last"]
    changed = [(m, name) for m in model.modules() for name in unwanted if getattr(m, name, False) is True]
    own = {(m, name) for m, name in changed if name in vars(m)}
    for module, name in changed:
        setattr(module, name, False)
        if name == "channels_last":
            module.lay_out(False)
    try:
        yield
    finally:
        for module, name in changed:
            setattr(module, name, True) if (module, name) in own else delattr(module, name)


def scales(squared_norms: torch.Tensor, clip: float) -> torch.Tensor:
    """min(1, C / |g_i|) from |g_i|^2 [n]; a hair less, so that rounding never lifts a clipped norm above C."""
    return (clip / (squared_norms.sqrt() + 1e-6)).clamp(max=1.0)


def _try(engine, add, model, criterion, parameters, clip, x, y) -> None:
    """Compare ``add`` with one example at a time, on three examples.

    vmap rounds otherwise than the plain layers do, and a unit at the edge of its kink may turn by that: a small
    difference, which is looked at again on three others.
    """
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    for module in dropouts:
        module.eval()
    try:
        with _loop(model, criterion, parameters, clip, "loop") as loop:
            for begin in range(0, max(1, min(len(x) - 1, 9)), 3):
                few = slice(begin, begin + 3)
                sums = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
                add(x[few], y[few], sums[0])
                loop(x[few], y[few], sums[1])
                ours, right = (torch.cat([s.flatten() for s in each]) for each in sums)
                gap, size = (ours - right).norm().item(), right.norm().item()
                if gap <= 1e-3 * size + 1e-6 * clip:
                    return
                if not gap <= 3e-2 * size:
                    break
    finally:
        for module in dropouts:
            module.train()
    raise ValueError(
        f"engine {engine!r} does not give this model's clipped gradients (relative error {gap / (size or 1):.2g}): "
        "a layer mixes examples, or its parameters are used in a way the engine does not see; try 'vmap'"
    )


@contextmanager
def _loop(model, criterion, parameters, clip, engine) -> Iterator[Add]:
    def add(x, y, total):
        for index in range(len(x)):
            one = slice(index, index + 1)
            loss = criterion(model(x[one]), y[one], reduction="none").sum()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            squared = torch.stack(torch._foreach_norm(gradients)).square().sum()
            torch._foreach_add_(total, torch._foreach_mul(gradients, scales(squared, clip)))

    yield add


@contextmanager
def _vmap(model, criterion, parameters, clip, engine) -> Iterator[Add]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def loss(values, x, y):
        outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x.unsqueeze(0),))
        return criterion(outputs, y.unsqueeze(0), reduction="none").sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")

    def add(x, y, total):
        _weigh([p.detach() for p in gradients([p.detach() for p in parameters], x, y)], total, clip)

    yield add


@torch.no_grad()
def _weigh(gradients: list[torch.Tensor], total: list[torch.Tensor], clip: float) -> None:
    """Clip each example's gradients (one tensor [n, ...] per parameter) and add their sum to ``total``."""
    flat = [gradient.flatten(1) for gradient in gradients]
    scale = scales(sum(torch.linalg.vector_norm(g, dim=1).square() for g in flat), clip)
    for target, gradient in zip(total, flat, strict=True):
        target.view(-1).addmv_(gradient.T, scale)


@contextmanager
def _opacus(model, criterion, parameters, clip, engine) -> Iterator[Add]:
    from opacus.grad_sample.utils import prepare_module

    try:
        hooks = prepare_module(model, engine, wrap_model=False, loss_reduction="sum")
    except NotImplementedError as error:
        raise ValueError(f"engine {engine!r} does not take this model ({error}): try 'vmap'") from error
    attribute = "_norm_sample" if engine == "ghost" else "grad_sample"

    def captured(gradients) -> list[torch.Tensor]:
        """What the hooks left on each parameter that had a gradient, taken off again."""
        found = []
        for parameter, gradient in zip(parameters, gradients, strict=True):
            value = getattr(parameter, attribute, None)
            setattr(parameter, attribute, None)
            if value is None and gradient is not None:
                raise ValueError(f"engine {engine!r} does not see how a parameter is used: try 'vmap'")
            found.append(value)
        return found

    def add(x, y, total):
        hooks.enable_hooks()
        losses = criterion(model(x), y, reduction="none")
        first = torch.autograd.grad(losses.sum(), parameters, retain_graph=engine == "ghost", allow_unused=True)
        hooks.disable_hooks()
        samples = captured(first)
        if engine != "ghost":
            used = [(s, t) for s, t in zip(samples, total, strict=True) if s is not None]
            _weigh(*map(list, zip(*used, strict=True)), clip)
            return
        norms = torch.stack([norm.reshape(-1) for norm in samples if norm is not None])
        weighted = torch.dot(losses, scales(norms.square().sum(0), clip))
        torch._foreach_add_(total, torch.autograd.grad(weighted, parameters, materialize_grads=True))

    hooks.disable_hooks()
    try:
        with warnings.catch_warnings():  # of hooks on layers whose inputs are words, and of words that autocast leaves
            warnings.filterwarnings("ignore", "Full backward hook is firing|In CPU autocast")
            yield add
    finally:
        hooks.cleanup()
        for module in model.modules():
            for left in ("activations", "max_batch_len"):
                if hasattr(module, left):
                    delattr(module, left)


@contextmanager
def _bookkeeping(model, criterion, parameters, clip, engine) -> Iterator[Add]:
    layers = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    rules = {layer: layer_rules.rule_of(layer) for layer in layers}
    for layer, rule in rules.items():
        if rule is None:
            raise ValueError(f"engine 'bookkeeping' has no rule for {type(layer).__name__}: try 'vmap'")
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    recording = False

    def record(layer, inputs, output):
        if recording:
            calls.append((layer, inputs[0].detach(), output))

    def add(x, y, total):
        nonlocal recording
        recording = True
        try:
            loss = criterion(model(x), y, reduction="none").sum()
            slopes = torch.autograd.grad(loss, [output for _, _, output in calls], allow_unused=True)
            used: dict[nn.Module, list] = {}
            for (layer, inputs, _), slope in zip(calls, slopes, strict=True):
                if slope is not None:
                    used.setdefault(layer, []).append((inputs, slope))
        finally:
            recording = False
            calls.clear()
        with torch.no_grad():
            known = [(layer, *rules[layer](layer, *layer_rules.join_calls(pairs))) for layer, pairs in used.items()]
            scale = scales(sum(squared for _, squared, _ in known), clip)
            totals = dict(zip(parameters, total, strict=True))
            for _, _, weigh in known:
                weigh(scale, totals)

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield add
    finally:
        for handle in handles:
            handle.remove()
