"""Runs a module's code in float64, also where the code asks for less.

``module.double()`` widens parameters and buffers; it does not reach a cast that is written
out, as in the norms and softmaxes of language models, whose float32 would leave rounding of
one part in 2**24 in what is compared to far more bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
_REINTERPRETING = (Tensor.view, Tensor.view_as)


class Widened(TorchFunctionMode):
    """While it is entered, casts to narrower floats, and tensors made as such, are float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CASTS:
            return args[0].double()
        if func not in _REINTERPRETING:
            args = [_wide(item) for item in args]
            kwargs = {name: _wide(item) for name, item in kwargs.items()}
        return self.run(func, args, kwargs)

    def run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call ``func``, whose arguments are widened by now."""
        return func(*args, **kwargs)


def _wide(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value
