"""PyTorch Mobile: TorchScript files for its lite interpreter, which torch still carries.

The interpreter has no autograd in its files' language, but every operator of torch's: so a step of training is traced
with its gradient before the export, and the file is one function, from images, labels, a rate and a state to the loss
and the next state. A state is every parameter and every buffer, so batch norm's statistics are trained too.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_utils.export import lean, prepare
from fl_utils.export.quiet import silenced
from fl_utils.frameworks.trial import CNN, MOBILENET, REFUSALS, Cell, Trial, attempt, first_line

ENGINE = "qnnpack"  # the integer arithmetic for phones' processors


def cell(column: str, trial: Trial) -> Cell:
    """PyTorch Mobile's cell of ``column``."""
    if column == "inference":
        return attempt(lambda: _inference(trial))
    if column == "quantization":
        return attempt(lambda: _quantization(trial))
    return attempt(lambda: train(trial, column.partition("_")[2]))


def saved(network: nn.Module, example: torch.Tensor, path: Path, optimized: bool = True) -> Callable:
    """Trace ``network``, save it for the lite interpreter as ``path``, and load it there: a function of images."""
    from torch.jit.mobile import _load_for_lite_interpreter
    from torch.utils.mobile_optimizer import optimize_for_mobile

    with silenced(), lean.conversion(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example, check_trace=False)  # its outputs are compared
        if optimized:
            traced = optimize_for_mobile(traced)
        path.parent.mkdir(parents=True, exist_ok=True)
        traced._save_for_lite_interpreter(str(path))
        return _load_for_lite_interpreter(str(path))


def _inference(trial: Trial) -> Cell:
    """With batch norm folded before the trace, as in every export; and what the optimizer's own folding does."""
    outputs, folder = {}, trial.folder / "pytorch_mobile"
    for name, network in trial.networks.items():
        images = trial.inputs(name)
        folded, _, _ = prepare.network(network, tuple(images.shape))
        outputs[name] = _outputs(saved(folded, images, folder / f"{name}.ptl"), images)
    images = trial.inputs(MOBILENET)
    plain = _outputs(saved(trial.networks[MOBILENET], images, folder / "unfolded.ptl"), images)
    gap = trial.gap(MOBILENET, plain)
    wrong = f"; {gap:.0e} where optimize_for_mobile folds batch norm itself" if gap > trial.tolerance else ""
    return trial.inferred_cell(outputs, wrong)


def _outputs(run: Callable, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return run(images).numpy()


def training_step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[Any, list[torch.Tensor]]:
    """One step of SGD of ``network``, as a graph of torch's plain operators, and the state to begin with.

    The graph takes images [N, C, H, W], labels int64 [N], a learning rate and the state's tensors, and gives the loss
    and the next state: parameters first, then buffers.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    network = copy.deepcopy(network).train()
    names = [name for name, _ in network.named_parameters()]
    every = [*names, *(name for name, _ in network.named_buffers())]
    state = [tensor.detach().clone() for tensor in [*network.parameters(), *network.buffers()]]

    def step(images, labels, rate, *state):
        # a buffer is written to in place, so the network gets a copy of it
        values = [
            tensor.detach().requires_grad_() if number < len(names) else tensor.clone()
            for number, tensor in enumerate(state)
        ]
        logits = torch.func.functional_call(network, dict(zip(every, values, strict=True)), (images,))
        loss = functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, values[: len(names)])
        moved = [value.detach() - rate * gradient for value, gradient in zip(values, gradients, strict=False)]
        return loss.detach(), *moved, *values[len(names) :]

    with warnings.catch_warnings(), lean.conversion():
        warnings.simplefilter("ignore")
        return make_fx(step)(images, labels, torch.tensor(0.1), *state), state


def train(trial: Trial, name: str) -> Cell:
    """The network's step as a file, run ``steps`` times by the lite interpreter: every weight and buffer compared."""
    from torch.jit.mobile import _load_for_lite_interpreter

    images, rate = trial.inputs(name)[: trial.batch], torch.tensor(trial.learning_rate)
    graph, _ = training_step(trial.networks[name], images, trial.labels)
    for node in graph.graph.nodes:  # TorchScript knows an operator by its name and finds the overload itself
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
    graph.recompile()
    path = trial.folder / "pytorch_mobile" / f"{name}-step.ptl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with silenced(), lean.conversion():
        torch.jit.script(graph)._save_for_lite_interpreter(str(path))
        run = _load_for_lite_interpreter(str(path))
    network = trial.networks[name]
    keys = [key for key, _ in [*network.named_parameters(), *network.named_buffers()]]
    states, gap = trial.path(name), 0.0
    for before, after in pairwise(states):
        _, *made = run(images, trial.labels, rate, *(before[key].clone() for key in keys))
        gap = max(gap, *(float((value - after[key]).abs().max()) for key, value in zip(keys, made, strict=True)))
    return trial.drifted(gap, sum(after[key].numel() for key in keys), "each from torch's weights, ")


def _quantization(trial: Trial) -> Cell:
    """16 bits by half floats, 8 by torch's post-training quantization, 4 by the one type of 4 bits that torch has."""
    network, images = nn.Sequential(*trial.networks[CNN].children()).eval(), trial.inputs(CNN)
    folder, refused = trial.folder / "pytorch_mobile", ""
    found: dict[int, tuple[int, float | None]] = {}
    for bits in (32, 16, 8, 4):
        path = folder / f"cnn-{bits}.ptl"
        try:
            with phone_integers():
                outputs = _in_bits(network, images, bits, path)
        except REFUSALS as error:
            refused = refused or f"{bits} bits: {first_line(error)}"
            continue
        found[bits] = path.stat().st_size, trial.correlation(CNN, outputs)
    return trial.widths_cell(found, refused)


def _in_bits(network: nn.Module, images: torch.Tensor, bits: int, path: Path) -> np.ndarray:
    if bits == 32:
        run = saved(network, images, path)
    elif bits == 16:
        run = saved(prepare.half(network), images, path, optimized=False)  # its faster convolutions are of 32 bits
    else:
        run = saved(quantized(network, images, bits), images, path)
    return _outputs(run, images)


def quantized(network: nn.Module, images: torch.Tensor, bits: int) -> nn.Module:
    """``network`` through torch's own post-training quantization, calibrated on ``images``: 8 bits, or asked for 4."""
    from torch.ao import quantization
    from torch.ao.quantization import quantize_fx

    if bits == 8:
        mapping = quantization.get_default_qconfig_mapping(ENGINE)
    else:
        weight = quantization.PerChannelMinMaxObserver.with_args(
            dtype=torch.quint4x2, qscheme=torch.per_channel_affine_float_qparams
        )
        asked = quantization.QConfig(activation=quantization.default_observer, weight=weight)
        mapping = quantization.QConfigMapping().set_global(asked)
    with silenced(), lean.conversion(), torch.no_grad():
        watched = quantize_fx.prepare_fx(copy.deepcopy(network), mapping, (images,))
        watched(images)
        return quantize_fx.convert_fx(watched)


@contextlib.contextmanager
def phone_integers() -> Iterator[None]:
    """Quantized layers are packed, saved and run for :data:`ENGINE` inside."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
