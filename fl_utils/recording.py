"""A training step recorded once, as the plain tensor operations it comes down to, and replayed without the rest.

Of a small model's step most of the time is not arithmetic: it is modules, autograd's graph, ``vmap``'s bookkeeping, and
gradients that are written to memory only to be read again by the update. A recording has none of them: it is a function
of tensor operations, in which a weight's gradient that is a matrix product is added to the weight by that very product.

What a recording cannot repeat is refused with :class:`CannotRecord`: random numbers, values that Python looked at, and
changes to tensors that outlive the step (batch norm's statistics).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

TRANSPOSE, PRODUCT = torch.ops.aten.transpose.int, torch.ops.aten.bmm.default
UNREPEATABLE = {
    torch.Tag.nondeterministic_seeded: "draws random numbers",
    torch.Tag.data_dependent_output: "makes a Python number of a tensor",
    torch.Tag.dynamic_output_shape: "has an output whose shape depends on the data",
}


class CannotRecord(ValueError):
    """A step that a recording cannot repeat; the text says why."""


@dataclass
class _Call:
    operation: Any
    arguments: tuple
    options: dict
    outputs: list  # tensors, or None for an output that is not one
    single: bool  # returns its only output, not a tuple of them
    rates: bool = False  # takes ``alpha`` and ``beta`` of the update
    inputs: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = _in((*self.arguments, *self.options.values()))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        for tag, reason in UNREPEATABLE.items():
            if tag in operation.tags:
                raise CannotRecord(f"{operation} {reason}")
        if operation is torch.ops.aten.mul.Scalar and args[1] == 1 and args[0].is_floating_point():
            return args[0].detach()  # vmap makes an addition of matrix products so
        result = operation(*args, **(kwargs or {}))
        single = not isinstance(result, tuple | list)
        self.calls.append(_Call(operation, args, kwargs or {}, [result] if single else list(result), single))
        return result


def record(
    step: Callable[..., tuple[torch.Tensor, list[torch.Tensor]]],
    parameters: list[torch.Tensor],
    inputs: list[torch.Tensor],
    fuse: bool,
) -> tuple[Callable, tuple[int, ...]]:
    """Run ``step(parameters, *inputs) -> (loss, gradients)`` once; return it as a function of tensor operations.

    parameters: float32 [clients, ...] each, those of ``gradients``, in order. The recording is bound to their memory.
    Returns ``replay(*inputs, alpha, beta) -> (loss, *gradients)`` and which of the parameters these gradients are of.
    Without ``fuse`` these are all. With it, a gradient that is a batch of matrix products is not returned: the replay
    itself does ``parameter = beta * parameter + alpha * gradient``.

    Raises CannotRecord.
    """
    with _Recorder() as recorder:
        loss, gradients = step(parameters, *inputs)
    every = recorder.calls  # keeps every tensor of the step alive, so that a place in memory names one of them
    _refuse_lasting_changes(every)
    calls = [call for call in every if not _does_nothing(call)]
    left = list(range(len(parameters)))
    if fuse:
        left = [i for i in left if not _fused(calls, gradients[i], parameters[i], gradients)]
    return _compiled(calls, parameters, inputs, [loss, *(gradients[i] for i in left)]), tuple(left)


def _in(values: tuple) -> list[torch.Tensor]:
    """The tensors among ``values`` and in the lists among them."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in values]
    return [each for values in lists for each in values if isinstance(each, torch.Tensor)]


def _place(tensor: torch.Tensor) -> tuple:
    """What makes two tensors the same values in the same memory."""
    return _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(call: _Call) -> list[torch.Tensor]:
    return [output for output in call.outputs if isinstance(output, torch.Tensor)]


def _refuse_lasting_changes(calls: list[_Call]) -> None:
    own = set()
    for call in calls:
        for position, argument in enumerate(call.operation._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = call.arguments[position : position + 1] or (call.options.get(argument.name),)
            if any(_memory(tensor) not in own for tensor in _in(given)):
                raise CannotRecord(f"{call.operation} changes a tensor that outlives the step")
        inputs = {_memory(tensor) for tensor in call.inputs}
        own |= {_memory(output) for output in _tensors(call)} - (inputs - own)


def _does_nothing(call: _Call) -> bool:
    inputs = set(map(_place, call.inputs))
    return not call.operation._schema.is_mutable and all(_place(output) in inputs for output in _tensors(call))


def _fused(calls: list[_Call], gradient: torch.Tensor, parameter: torch.Tensor, gradients: list[torch.Tensor]) -> bool:
    """Where ``gradient`` is a product of matrices, perhaps transposed: make the update of that product. Is it one?"""
    wanted = Counter(_place(tensor) for call in calls for tensor in call.inputs)
    wanted.update(_place(other) for other in gradients if other is not gradient)
    target, place, followed = parameter.detach(), _place(gradient), 0
    while True:
        made = next((i for i, call in enumerate(calls) if place in map(_place, _tensors(call))), None)
        if made is None or wanted[place] > followed:  # something else reads it
            return False
        call = calls[made]
        if call.operation is not TRANSPOSE:
            break
        target = target.transpose(*call.arguments[1:])
        place, followed = _place(call.arguments[0]), 1
    if call.operation is not PRODUCT or target.shape != call.outputs[0].shape:
        return False
    uses = [i for i, other in enumerate(calls) if any(_memory(t) == _memory(parameter) for t in other.inputs)]
    update = _Call(torch.Tensor.baddbmm_, (target, *call.arguments), {}, [None], True, rates=True)
    calls.insert(max([made, *uses]) + 1, update)
    del calls[made]
    return True


def _compiled(
    calls: list[_Call], parameters: list[torch.Tensor], inputs: list[torch.Tensor], results: list[torch.Tensor]
) -> Callable:
    """``calls`` as one Python function: nothing that is not needed, nothing twice, nothing kept longer than needed."""
    names = {_place(tensor): f"input{i}" for i, tensor in enumerate(inputs)}
    varying, state = {_memory(tensor) for tensor in inputs}, {_memory(parameter) for parameter in parameters}
    constants: dict[str, Any] = {}
    lines: list[tuple[str, list[str], list[str]]] = []  # source, names it reads, names it makes

    def constant(value: Any) -> str:
        name = f"constant{len(constants)}"
        constants[name] = value
        return name

    def name(value: Any) -> str:
        if isinstance(value, list | tuple) and any(isinstance(leaf, torch.Tensor) for leaf in value):
            return f"[{', '.join(map(name, value))}]"
        if not isinstance(value, torch.Tensor):
            return constant(value)
        if _place(value) not in names:
            if _memory(value) in varying:
                raise CannotRecord("a part of a tensor is read that no operation had made")
            names[_place(value)] = constant(value.detach())
        return names[_place(value)]

    for call in calls:
        new = [tensor for tensor in _tensors(call) if _place(tensor) not in names]
        read, made = {_memory(tensor) for tensor in call.inputs}, {_memory(tensor) for tensor in _tensors(call)}
        depends = read & varying or (read & state and not made <= state)
        if call.rates or (depends and (new or call.operation._schema.is_mutable)):
            arguments = [*map(name, call.arguments), *(f"{key}={name(value)}" for key, value in call.options.items())]
            arguments += ["beta=beta", "alpha=alpha"] if call.rates else []
            reads = [names[_place(tensor)] for tensor in call.inputs]
            makes = []
            for output in call.outputs:
                if isinstance(output, torch.Tensor):
                    makes.append(names.setdefault(_place(output), f"value{len(names)}"))
                    varying.add(_memory(output))
                else:
                    makes.append("_")
            source = f"{', '.join(makes)} = {constant(call.operation)}({', '.join(arguments)})"
            lasting = call.rates or call.operation._schema.is_mutable
            lines.append((source, reads, ["always"] if lasting else makes))
    returned = [name(tensor) for tensor in results]

    needed, body = {*returned, "always"}, []
    for source, reads, makes in reversed(lines):
        if needed.isdisjoint(makes):
            continue
        last = sorted({read for read in reads if read not in needed and read not in constants})
        body += [f"    {' = '.join(last)} = None"] * bool(last) + [f"    {source}"]
        needed |= set(reads)
    arguments = ", ".join(f"input{i}" for i in range(len(inputs)))
    text = "\n".join([f"def replay({arguments}, alpha, beta):", *reversed(body), f"    return {', '.join(returned)},"])
    exec(compile(text, "<recorded step>", "exec"), constants)
    return constants["replay"]
