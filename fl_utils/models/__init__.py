"""The networks of the papers: plain torch modules.

Importing this package makes a later ``import torchvision`` cheap. ``torchvision.ops.roi_align`` takes one function from
``torch._dynamo.utils`` that it calls on a compiled device only, and with it the whole compiler: about 4 of the 5 CPU
seconds of the import, in every process. A stand-in gives that function on demand, and leaves as soon as it was asked.
"""

from __future__ import annotations

import importlib
import sys
import types

_COMPILER = "torch._dynamo.utils"


class _StandIn(types.ModuleType):
    """In place of torch._dynamo.utils until an attribute is taken from it; every other user gets the real one."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        if name == "is_compile_supported" and _COMPILER not in sys.modules:
            return lambda device: importlib.import_module(_COMPILER).is_compile_supported(device)
        return getattr(importlib.import_module(_COMPILER), name)


if not {"torchvision", _COMPILER} & sys.modules.keys():
    sys.modules[_COMPILER] = _StandIn(_COMPILER)
