"""Argument checks: each error gives the value, what was expected and what to do."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import numpy as np
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LARGEST = 2**31 - 1  # a count that every library here can hold

# Removed options, by the only value that a saved network or config may still give them (docs/study.md).
REMOVED: dict[str, dict[str, Any]] = {
    "UNet": {"middle_blocks": 0, "second_kernel_size": 3},
    "training": {"optimizer": "adamw", "log_normal_levels": None, "stratified_timesteps": True},
}
LAST_COMMIT_WITH_THEM = "e7d8e90"


def drop_removed(owner: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved arguments of "UNet" or "training" without the removed ones; `ValueError` for other values."""
    for name, default in REMOVED[owner].items():
        check_not_removed(arguments.get(name, default) != default, name, arguments.get(name))
    return {name: value for name, value in arguments.items() if name not in REMOVED[owner]}


def check_not_removed(is_removed: bool, name: str, value: Any) -> None:
    """Raise `ValueError`, with the last commit that has it, for a removed option or value."""
    if is_removed:
        raise ValueError(
            f"{name} is {value}, a removed option; commit {LAST_COMMIT_WITH_THEM} is the last that can load it"
        )


def plain(value: Any) -> Any:
    """Return NumPy and PyTorch scalars as Python numbers and 1-D arrays as lists, in lists and dicts too.

    Other values, such as a batch of images, are returned unchanged.
    """
    if isinstance(value, (np.generic, np.ndarray, Tensor)) and value.ndim <= 1:
        return value.tolist()
    if isinstance(value, dict):
        return {plain(name): plain(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def plain_arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function to accept NumPy and PyTorch numbers wherever it takes Python ones."""

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return call


def settle_fields(config: Any) -> None:
    """Convert the NumPy and PyTorch numbers and the paths in a frozen dataclass to Python numbers and strings."""
    for entry in fields(config):
        value = plain(getattr(config, entry.name))
        object.__setattr__(config, entry.name, os.fspath(value) if isinstance(value, os.PathLike) else value)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and the width of a size, which may be one number for both."""
    size = plain(size)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"size is {size}; give one number, or a height and a width")
    return sides[0], sides[1]


def check_positive(**counts: int) -> None:
    """Raise `ValueError` for the first count that is not a whole number from 1 to `LARGEST`."""
    for name, count in plain(counts).items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} is {count}; it must be a whole number of at least 1")
        if count > LARGEST:
            raise ValueError(f"{name} is {count}; it must be at most {LARGEST}")


def check_between(least: float, most: float, **numbers: float) -> None:
    """Raise `ValueError` for the first number that is not from `least` to `most`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not least <= number <= most:
            raise ValueError(f"{name} is {number}; it must be from {least} to {most}")


def check_seed(seed: int) -> None:
    """Raise `ValueError` if a seed is not from 0 to below 2^64."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be a whole number from 0 to below 2^64")


def check_divisible(name: str, value: int, divisor: int, reason: str) -> None:
    """Raise `ValueError`, with the nearest values, if `divisor` does not divide `value`."""
    if value % divisor or value < 1:
        below = max(value // divisor, 1) * divisor
        nearest = f"{below} or {below + divisor}"
        raise ValueError(f"{name} {value} is not divisible by {divisor} ({reason}); use {nearest}")


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra; `denoiser` on PyPI is another project."""
    return f"pip install -e '.[{extra}]' in the checkout"


def did_you_mean(word: str, possible: Iterable[str]) -> str:
    """Return ` (did you mean …?)` with the nearest possible word, or an empty string."""
    by_lower = {name.lower(): name for name in possible}
    nearest = get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[nearest[0]]}'?)" if nearest else ""


def check_kinds(config: Any) -> None:
    """Raise `ValueError` for the first field of a frozen dataclass whose value is not of its type.

    NumPy and PyTorch numbers become Python's, paths become strings.
    """
    settle_fields(config)
    for entry in fields(config):
        _check_kind(entry.name, getattr(config, entry.name), entry.type)


_KINDS = (
    (int, int, "a whole number"),
    (str, str, "a string"),
    (float, Real, "a number"),
    (bool, bool, "True or False"),
)


def _check_kind(name: str, value: Any, kind: Any) -> None:
    options = get_args(kind)
    if get_origin(kind) is Literal and value not in options:
        raise ValueError(f"{name} is {value!r}; it is one of {', '.join(map(str, options))}")
    if get_origin(kind) in (Union, UnionType):
        _check_kinds_of_union(name, value, options)
    if get_origin(kind) is tuple and not (isinstance(value, (tuple, list)) and len(value) == len(options)):
        raise ValueError(f"{name} is {value!r}; give {len(options)} numbers")
    if get_origin(kind) is tuple:
        for part, option in zip(value, options, strict=True):
            _check_kind(name, part, option)
    for plain_kind, ours, what in _KINDS:
        if kind is plain_kind and (not isinstance(value, ours) or (isinstance(value, bool) and kind is not bool)):
            raise ValueError(f"{name} is {value!r}; it must be {what}")
    if is_dataclass(kind) and not isinstance(value, cast("type", kind)):
        raise ValueError(f"{name} is {value!r}; it must be a {cast('type', kind).__name__}")


def _check_kinds_of_union(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise the first option's `ValueError` if a value is of none of them."""
    errors = []
    for option in options:
        try:
            if option is not NoneType:
                _check_kind(name, value, option)
            elif value is not None:
                continue
        except ValueError as error:
            errors.append(error)
        else:
            return
    raise errors[0]
