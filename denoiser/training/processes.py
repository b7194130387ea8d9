"""Several processes: whether they work together, and how they share work."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

Result = TypeVar("Result")


def share_out(items: Sequence[int], compute: Callable[[Sequence[int]], Result]) -> list[Result]:
    """Let each process compute a contiguous part of the items, and return the parts' results, in order, on all.

    Every process has to call it, with the same items.
    """
    with PartialState().split_between_processes(list(items)) as part:
        return gather_object([compute(part)])


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that FSDP has split among the processes, each of which has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_as(split: Tensor, tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, if FSDP has split another of its shape; every process has to call it."""
    return distribute_tensor(tensor, split.device_mesh, split.placements) if isinstance(split, DTensor) else tensor


def check_splitting(accelerator: Accelerator, channels_last: bool) -> None:
    """Raise `ValueError` if FSDP shall split the weights in a way that a run cannot be saved from, or safely read."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if not accelerator.is_fsdp2 or plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ValueError(
            "FSDP needs fsdp_version 2 and fsdp_state_dict_type FULL_STATE_DICT, whose checkpoints are read without "
            "unpickling; use configs/accelerate/several_gpus_fsdp.yaml"
        )
    if channels_last:
        raise ValueError("FSDP splits weights in their plain order only; give --training.channels_last false")


def launched() -> bool:
    """Return whether a launcher started this process: accelerate launch or torchrun."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


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
