"""What differs from device to device: chosen here and nowhere else."""

import ctypes
import os
import platform
import shutil

import torch
from accelerate import PartialState
from accelerate.utils import TorchDynamoPlugin, parse_flag_from_env
from torch import nn

from denoiser.environment import THREADS, exported

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as <malloc.h> numbers them


def must_use_cpu() -> bool:
    """Return whether there is no accelerator, or the environment says to leave it alone.

    Accelerate wants to be told: launched as several processes without a GPU, it would run each of them by itself.
    """
    told = parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"
    return told or not torch.accelerator.is_available()


def multiplies_bf16_natively(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16 products, so that bf16 is faster and not emulated."""
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # which PyTorch 2.8 has not
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def choose_mixed_precision(wanted: str, device: torch.device) -> str:
    """Return the precision for Accelerate: `wanted`, with "auto" resolved for the device.

    Raises:
        ValueError: If the device cannot train in the precision asked for.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU use auto, bf16 or no")
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16_natively(device) else "no"


def compilation(wanted: bool, device: torch.device) -> TorchDynamoPlugin | None:
    """Return how Accelerate shall compile a network for training, or None to leave that to its launcher.

    Raises:
        ValueError: If there is no compiler of the code that comes out.
    """
    if not wanted:
        return None
    if device.type != "cpu":
        return TorchDynamoPlugin(backend="inductor")
    _check_compiler()
    return TorchDynamoPlugin(backend="inductor", options={"force_layout_optimization": True})


def compile_to_draw(model: nn.Module, device: torch.device) -> None:
    """Compile a trained network in place, with its weights frozen, in bf16 where the device multiplies that natively.

    Each size of batch is compiled by itself, at its first call, which takes half a minute.

    Raises:
        ValueError: If there is no compiler of the code that comes out.
    """
    _check_compiler()
    if multiplies_bf16_natively(device):
        nn.Module.to(model, torch.bfloat16)  # not diffusers' `to`, which warns of parts to keep in float32, of none
    model.compile(dynamic=False, options={"freezing": True, "cpp_wrapper": True})


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"compile needs a C++ compiler, and there is no '{compiler}'; install g++, or leave it off")


def as_trained(mixed_precision: str, device: torch.device) -> torch.autocast:
    """Return the context that runs a network in the precision it was trained in, where no `Accelerator` is at hand."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def num_cores() -> int:
    """Return how many of the machine's cores this process may use, or how many there are where no system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_cpu(state: PartialState) -> None:
    """Where a process computes on the CPU, let it use its share of the cores and keep the memory that it frees.

    `accelerate launch` alone would give each process one thread, and glibc alone would give megabytes back to the
    system after each layer, for the system to clear them page by page before the next. A number of threads that the
    user exports is left as it is.
    """
    if state.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        if not any(exported().get(name) for name in THREADS):
            torch.set_num_threads(max(1, num_cores() // local_processes))
        if platform.libc_ver()[0] == "glibc":
            _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Take all memory from the heap, and shrink that only when 2 GiB at its end are free (mallopt(3))."""
    allocator = ctypes.CDLL(None)
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        allocator.mallopt(parameter, value)


def in_best_layout(model: nn.Module) -> nn.Module:
    """Lay the convolutions' weights out channels last, the faster order for mixed precision on CPUs and GPUs alike."""
    return model.to(memory_format=torch.channels_last)
