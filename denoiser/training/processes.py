"""Work that several processes share."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

Result = TypeVar("Result")


def share_out(items: Sequence[int], compute: Callable[[Sequence[int]], Result]) -> list[Result]:
    """Let each process compute a contiguous part of the items, and return the parts' results, in order, on all.

    Every process has to call it, with the same items.
    """
    with PartialState().split_between_processes(list(items)) as part:
        return gather_object([compute(part)])
