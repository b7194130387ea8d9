"""Numbers of NumPy and PyTorch as Python's own, where an interface takes counts, sizes, seeds and labels."""

import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def plain(value: Any) -> Any:
    """Return scalars of NumPy and PyTorch as numbers, and arrays of one axis as lists, in lists and dicts too.

    All else, such as a batch of images, is returned as it is.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim <= 1:
        return value.tolist()
    if isinstance(value, dict):
        return {plain(name): plain(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def plain_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a function take numbers of NumPy and PyTorch for Python's own."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return call


def settle_fields(config: Any) -> None:
    """Let a frozen dataclass take numbers of NumPy and PyTorch as Python's own, and paths as strings."""
    for entry in fields(config):
        value = plain(getattr(config, entry.name))
        object.__setattr__(config, entry.name, os.fspath(value) if isinstance(value, os.PathLike) else value)
