"""Several processes: whether they work together, and how they share work."""

import os
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


def check_launch(num_processes: int) -> None:
    """Raise `ValueError` if the launcher was asked for more processes than work together.

    Without mpirun, `accelerate launch --cpu --num_processes 2` starts one and says nothing. The only trace is that it
    sets `MASTER_PORT`, which it does for several processes only, without a `WORLD_SIZE`.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    asked_of_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    alone = num_processes == 1 and asked_of_accelerate and "WORLD_SIZE" not in os.environ
    if alone or started > num_processes:
        raise ValueError(
            f"the launcher was asked for several processes, and {num_processes} is at work; on CPUs use "
            "accelerate launch --config_file configs/accelerate/two_cpu_processes.yaml, or torchrun --nproc_per_node 2"
        )
