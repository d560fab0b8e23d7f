"""What the converters' packages do beside converting, left out: seconds of work whose result nobody uses here.

The files come out the same. Each part knows one place in a package by its name, and leaves alone a release that does
not have it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING
from unittest import mock

if TYPE_CHECKING:
    import torch

TORCHAO, POST_GRAD = "torchao.prototype.inductor.fx_passes", "torch._inductor.fx_passes.post_grad"


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """To import litert-torch and ExecuTorch inside.

    Both import all of torch's compiler, for two functions: torchao at once registers passes with it, which nothing here
    runs, and ExecuTorch has it undo an operator that functionalization may leave; the compiler is imported where there
    is one to undo. And ExecuTorch reads a long table with a YAML reader in Python: here, with PyYAML's in C.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(paused_collector())
        stack.enter_context(_stand_in(TORCHAO, register_da8w4_concat_linear_cpu_pass=lambda: None))
        stack.enter_context(_stand_in(POST_GRAD, decompose_auto_functionalized=_undone))
        with contextlib.suppress(ImportError):
            import ruamel.yaml
            import yaml

            if hasattr(yaml, "CSafeLoader"):
                read = lambda reader, stream: yaml.load(stream, yaml.CSafeLoader)  # noqa: E731
                stack.enter_context(mock.patch.object(ruamel.yaml.YAML, "load", read))
        yield


@contextlib.contextmanager
def _stand_in(name: str, **functions: Callable) -> Iterator[None]:
    """Module ``name`` has these functions inside, unless it is imported already; the module itself is imported by who
    asks it for anything else."""
    if name in sys.modules:
        yield
        return

    def rest(attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    module = sys.modules[name] = ModuleType(name)
    vars(module).update(functions, __getattr__=rest)
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]


def _undone(graph: torch.fx.Graph) -> None:
    """torch's function of POST_GRAD, imported where ``graph`` has what it undoes."""
    if any("auto_functionalized" in str(node.target) for node in graph.nodes):
        from torch._inductor.fx_passes.post_grad import decompose_auto_functionalized

        decompose_auto_functionalized(graph)


@contextlib.contextmanager
def conversion() -> Iterator[None]:
    """To trace, export and convert a network inside."""
    with paused_collector(), _operators_listed_once():
        yield


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """No garbage collection inside.

    A conversion makes graphs of many small objects; each full collection looks at all of them and at those of every
    package imported, again and again, and JAX hangs a collection of its own on each. What is left over is collected
    after the outermost of these.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _operators_listed_once() -> Iterator[None]:
    """torch.export makes Python names for all of torch's composite operators, some thirty times for each graph it
    decomposes; here once for as many libraries of operators as there are."""
    from torch import ops
    from torch._export import utils

    name, listed = "_materialize_cpp_cia_ops", set()
    original: Callable[[], None] | None = getattr(utils, name, None)

    def once() -> None:
        if len(ops._dir) not in listed:
            original()
            listed.add(len(ops._dir))

    with mock.patch.object(utils, name, once) if original else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def programs_checked_once() -> Iterator[None]:
    """Core ML's converter looks through the whole program after each of a hundred passes, for faults of theirs; here
    after the last one. For use once coremltools is imported."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):
            from coremltools.converters.mil.mil import Program
            from coremltools.converters.mil.mil.passes.pass_pipeline import PassPipelineManager

            apply, check = PassPipelineManager.apply_pipeline, Program.validate

            def checked(program, *passes, **named) -> None:
                with mock.patch.object(Program, "validate", lambda *_, **__: None):
                    apply(program, *passes, **named)
                check(program)

            stack.enter_context(mock.patch.object(PassPipelineManager, "apply_pipeline", staticmethod(checked)))
        yield
