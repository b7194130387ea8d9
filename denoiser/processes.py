"""Processes of a run: start, shared work, FSDP, optional side effects."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather_object, is_torch_version
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from denoiser.device import must_use_cpu, prepare_cpu, prepare_gpu
from denoiser.environment import ignore_splitting, processes_launched, settle_processes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def share_out(items: Sequence[int], compute: Callable[[Sequence[int]], Result]) -> list[Result]:
    """Compute contiguous parts of the items, one a process, and return all results, in order, on all.

    Every process has to call this with the same items. A process without items gives no result. If one
    process fails, all do.
    """
    state = PartialState()
    if state.num_processes == 1:
        return [compute(items)]
    results: list[Result] = []
    own: Exception | None = None
    with state.split_between_processes(list(items)) as part:
        try:
            results = [compute(part)] if part else []
        except Exception as error:  # the others wait for this process
            own = error
    gathered = gather_object([(results, own and f"{type(own).__name__}: {own}")])
    if own:
        raise own
    if failures := [failure for _, failure in gathered if failure]:
        raise ValueError(failures[0])
    return [result for results, _ in gathered for result in results]


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Turn an error of something optional into a one-line warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s failed (%s); going on", what, one_line(error))
        logger.debug("where it happened", exc_info=True)


def one_line(error: Exception) -> str:
    """Return an error's text, or its type without one, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that FSDP has split; every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_as(split: Tensor, tensor: Tensor) -> Tensor:
    """Split a tensor as FSDP has split another one; every process has to call this."""
    return distribute_tensor(tensor, split.device_mesh, split.placements) if isinstance(split, DTensor) else tensor


def check_splitting(accelerator: Accelerator, channels_last: bool) -> None:
    """Raise `ValueError` for FSDP settings whose checkpoints cannot be saved or safely read."""
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
    if accelerator.device.type == "cpu" and is_torch_version("<", "2.11"):
        raise ValueError(
            "FSDP on CPUs needs PyTorch 2.11: before, the processes' gradients can be summed, not averaged"
        )


def start_process() -> PartialState:
    """Check the environment, initialise the processes and prepare CPU and GPU.

    Each command calls this, or `start_accelerator`, before it computes.
    """
    lines = settle_processes()
    state = PartialState(cpu=must_use_cpu(), **_own_store())
    prepare_cpu(state)
    prepare_gpu()
    if (asked := processes_launched()) > state.num_processes:
        raise ValueError(
            f"{asked} processes were launched, and they do not work together, as Accelerate has it on this device; use "
            "accelerate launch --config_file configs/accelerate/several_gpus.yaml, or torchrun"
        )
    if state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        lines += ignore_splitting()
    tell(lines)
    return state


def _own_store() -> dict[str, Any]:
    """Return the key-value store of a restarted process, as arguments of `init_process_group`.

    `torchrun --max-restarts` shares one store among all starts. It still has the addresses of the
    processes that died, and PyTorch may wait for them (pytorch/pytorch#135712).
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if processes_launched() == 1 or start == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store, rank, size = next(rendezvous("env://"))
    return {"store": PrefixStore(f"start {start}", store), "rank": rank, "world_size": size}


def tell(lines: Sequence[str]) -> None:
    """Log warnings on the main process."""
    if PartialState().is_main_process:
        for line in lines:
            logger.warning(line)
