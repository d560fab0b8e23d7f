"""What a layer's inputs and the loss' slopes at its outputs say about each example's gradient in its parameters.

A rule takes a layer, its ``inputs`` and ``slopes`` (the gradients of the summed losses in the layer's outputs; the
first dimension of both is the example) and gives two things: the squared norms of the examples' gradients, float [n],
and a function ``weigh(weights, totals)`` that adds the sum of those gradients, weighted by ``weights`` [n], to the
tensor that ``totals`` has for each of the layer's trainable parameters. An example's own gradient is written out only
where that is the cheaper way (Goodfellow 2015; Bu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Totals = dict[nn.Parameter, torch.Tensor]
Weigh = Callable[[torch.Tensor, Totals], None]
Rule = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Weigh]]


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule for ``layer``'s type or what it derives from, or None."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return None
    return next((RULES[kind] for kind in type(layer).__mro__ if kind in RULES), None)


def join_calls(calls: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The (inputs, slopes) of a layer's calls as one; a layer called at each time step is one over all of them."""
    if len(calls) == 1:
        return calls[0]
    inputs, slopes = ([_steps(part) for part in parts] for parts in zip(*calls, strict=True))
    return torch.cat(inputs, 1), torch.cat(slopes, 1)


def _steps(tensor: torch.Tensor) -> torch.Tensor:
    """[n, features] or [n, ..., features] as [n, steps, features]."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _square(tensor: torch.Tensor) -> torch.Tensor:
    """Squared norm of each example's part of ``tensor`` [n, ...]."""
    flat = tensor.flatten(1)
    return torch.linalg.vecdot(flat, flat)


def _matrix(rows: torch.Tensor, parameter: nn.Parameter | None) -> tuple[torch.Tensor | float, Weigh]:
    """Of a parameter whose gradients are written out: ``rows`` [n, ...]; None for a parameter that is not there."""
    if parameter is None or not parameter.requires_grad:
        return 0.0, lambda weights, totals: None
    return _square(rows), lambda weights, totals: totals[parameter].view(-1).addmv_(rows.flatten(1).T, weights)


def _both(first: tuple[torch.Tensor | float, Weigh], second: tuple[torch.Tensor | float, Weigh]):
    """Two parameters' parts as one."""

    def weigh(weights, totals):
        first[1](weights, totals)
        second[1](weights, totals)

    return first[0] + second[0], weigh


def _linear(layer: nn.Linear, inputs: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, Weigh]:
    if inputs.ndim > 2:
        return _outer(layer, _steps(inputs).transpose(1, 2), _steps(slopes).transpose(1, 2))
    bias = _matrix(slopes, layer.bias)
    if not layer.weight.requires_grad:
        return bias

    def weigh(weights, totals):
        totals[layer.weight].addmm_((slopes * weights.unsqueeze(1)).T, inputs)

    return _both((_square(slopes) * _square(inputs), weigh), bias)


def _outer(layer: nn.Module, inputs: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, Weigh]:
    """Gradients that are ``slopes`` [n, out, steps] times ``inputs`` [n, in, steps] transposed, summed over steps."""
    steps, (rows, columns) = slopes.shape[2], (slopes.shape[1], inputs.shape[1])
    bias = _matrix(slopes.sum(2), layer.bias)
    if steps * (rows + columns) > rows * columns or not layer.weight.requires_grad:
        return _both(_matrix(slopes @ inputs.transpose(1, 2), layer.weight), bias)
    # |sum_t g_t a_t'|^2 = sum_ts (g_t . g_s)(a_t . a_s); rounding may leave a norm of 0 below it
    squared = ((inputs.transpose(1, 2) @ inputs) * (slopes.transpose(1, 2) @ slopes)).sum((1, 2)).clamp(min=0)

    def weigh(weights, totals):
        weighted = (slopes * weights.view(-1, 1, 1)).transpose(0, 1).flatten(1)
        totals[layer.weight].view(rows, columns).addmm_(weighted, inputs.transpose(0, 1).flatten(1).T)

    return _both((squared, weigh), bias)


def _conv2d(layer: nn.Conv2d, inputs: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, Weigh]:
    padding = layer.padding
    if isinstance(padding, str):  # as nn.Conv2d itself writes it: left, right, top, bottom
        inputs, padding = functional.pad(inputs, layer._reversed_padding_repeated_twice), 0
    inputs = functional.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    slopes = slopes.flatten(2)
    if layer.groups == 1:
        return _outer(layer, inputs, slopes)
    kernels = slopes.unflatten(1, (layer.groups, -1)) @ inputs.unflatten(1, (layer.groups, -1)).transpose(2, 3)
    return _both(_matrix(kernels, layer.weight), _matrix(slopes.sum(2), layer.bias))


def _embedding(layer: nn.Embedding, inputs: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, Weigh]:
    inputs, slopes = inputs.reshape(len(inputs), -1), _steps(slopes)
    if layer.padding_idx is not None:
        slopes = slopes * (inputs != layer.padding_idx).unsqueeze(2)
    count, steps = inputs.shape
    # A word met twice has one row: its slopes add up before the norm.
    if layer.weight.numel() < steps * steps:
        rows = slopes.new_zeros(count * layer.num_embeddings, slopes.shape[2])
        places = inputs + layer.num_embeddings * torch.arange(count, device=inputs.device).unsqueeze(1)
        rows.index_add_(0, places.flatten(), slopes.flatten(0, 1))
        return _matrix(rows.view(count, -1), layer.weight)
    same = inputs.unsqueeze(2) == inputs.unsqueeze(1)
    squared = ((slopes @ slopes.transpose(1, 2)) * same).sum((1, 2)).clamp(min=0)

    def weigh(weights, totals):
        weighted = (slopes * weights.view(-1, 1, 1)).flatten(0, 1)
        totals[layer.weight].index_add_(0, inputs.flatten(), weighted)

    return squared, weigh


def _normalisation(layer: nn.Module, inputs: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, Weigh]:
    if isinstance(layer, nn.GroupNorm):
        normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
        parts = [part.reshape(*part.shape[:2], -1).sum(2) for part in (slopes * normal, slopes)]
    else:
        normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        parts = [part.reshape(len(inputs), -1, layer.weight.numel()).sum(1) for part in (slopes * normal, slopes)]
    return _both(_matrix(parts[0], layer.weight), _matrix(parts[1], layer.bias))


RULES: dict[type, Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.Embedding: _embedding,
    nn.GroupNorm: _normalisation,
    nn.LayerNorm: _normalisation,
}
