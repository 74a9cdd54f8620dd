"""Faster imports: torch's compiler, which no network here needs, is left out.

Importing it takes a second and 150 MB. Two things would import it: torchvision, and random initial
values on the meta device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from types import ModuleType

COMPILER = "torch._dynamo.utils"


def import_torchvision_models() -> ModuleType:
    """torchvision.models, imported without torch's compiler.

    torchvision imports the compiler to ask it one question about an operation that no network here
    has. A stand-in takes its place, and imports the compiler when the question is asked.
    """
    if COMPILER in sys.modules:
        return import_module("torchvision.models")

    def find(name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: getattr(import_module(COMPILER), name)(*args)

    stand_in = sys.modules[COMPILER] = ModuleType(COMPILER)
    stand_in.__getattr__ = find
    try:
        return import_module("torchvision.models")
    finally:
        del sys.modules[COMPILER]


def without_initial_values() -> AbstractContextManager:
    """Build modules without random initial values, which weights from a file replace anyway."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class WithoutInitialValues(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (Tensor.normal_, Tensor.uniform_):
                return args[0]
            return function(*args, **kwargs or {})

    return WithoutInitialValues()
