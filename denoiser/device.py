"""Device-dependent choices: precision, compilation, memory layout, threads."""

import ctypes
import os
import platform
import shutil
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import TorchDynamoPlugin, parse_flag_from_env
from torch import nn

from denoiser.environment import THREADS, exported

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as <malloc.h> numbers them


def must_use_cpu() -> bool:
    """Return whether there is no accelerator, or the environment excludes it.

    Without being told, Accelerate runs several CPU processes independently of each other.
    """
    told = parse_flag_from_env("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"
    return told or not torch.accelerator.is_available()


def fits(tensor: torch.Tensor, device: torch.device) -> bool:
    """Return whether a tensor can live on a device: on a GPU, in half of the free memory."""
    if device.type != "cuda" or tensor.device == device:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.nbytes <= free // 2


def multiplies_bf16_natively(device: torch.device) -> bool:
    """Return whether the device has native bfloat16 products; elsewhere they are emulated and slow."""
    if device.type == "cpu":
        if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.8
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return False


def choose_mixed_precision(wanted: str, device: torch.device) -> str:
    """Return the precision for Accelerate: `wanted`, with "auto" resolved for the device."""
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("mixed_precision fp16 needs a GPU; on a CPU use auto, bf16 or no")
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16_natively(device) else "no"


def compilation(wanted: bool, device: torch.device) -> TorchDynamoPlugin | None:
    """Return Accelerate's plugin for compiled training, or None to leave it to the launcher."""
    if not wanted:
        return None
    if device.type != "cpu":
        return TorchDynamoPlugin(backend="inductor")
    _check_compiler()
    return TorchDynamoPlugin(backend="inductor", options={"force_layout_optimization": True})


def compile_for_sampling(model: nn.Module, device: torch.device) -> None:
    """Compile a trained network in place, in bf16 where that is native.

    On a CPU its weights are frozen; on a GPU a call is one CUDA graph, whose output the next call overwrites. Each
    batch size is compiled at its first call, which takes half a minute.
    """
    _check_compiler()
    if multiplies_bf16_natively(device):
        nn.Module.to(model, torch.bfloat16)  # diffusers' `to` warns of parts to keep in float32
    if device.type == "cpu":
        model.compile(dynamic=False, options={"freezing": True, "cpp_wrapper": True})
    else:
        model.compile(dynamic=False, mode="reduce-overhead")


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(f"compile needs a C++ compiler, and there is no '{compiler}'; install g++, or leave it off")


def as_trained(mixed_precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a training precision, without an `Accelerator`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that this process may still take, of the machine and of its control group (version 2).

    `root` is the folder of `proc` and `sys`.
    """
    free = psutil.virtual_memory().available
    try:
        group = (root / "proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::/")[2]
        folder = root / "sys/fs/cgroup" / group
        most, taken = ((folder / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        return min(free, int(most) - int(taken))
    except (OSError, ValueError):  # there is no such group, or no limit ("max")
        return free


def prepare_cpu(state: PartialState) -> None:
    """Let a CPU process use its share of the cores, and keep freed memory.

    `accelerate launch` gives each process one thread, and glibc returns megabytes to the system after
    each layer, which has to clear their pages again. A number of threads exported by the user is kept.
    """
    if state.device.type == "cpu":
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        if not any(exported().get(name) for name in THREADS):
            torch.set_num_threads(max(1, num_cores() // local_processes))
        if platform.libc_ver()[0] == "glibc":
            _keep_freed_memory()


def prepare_gpu() -> None:
    """Let a GPU repeat its results to the bit, and compute float32 as a CPU does.

    The fastest backward convolutions add in an order that changes from run to run. And by default the
    convolutions round float32 to TF32's 10 bits, with which one image of a seed in thirty is visibly another.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def _keep_freed_memory() -> None:
    """Allocate from the heap only, and shrink it only at 2 GiB of free memory (mallopt(3))."""
    allocator = ctypes.CDLL(None)
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        allocator.mallopt(parameter, value)


def in_best_layout(model: nn.Module) -> nn.Module:
    """Convert weights to channels_last, the faster layout for mixed precision on CPUs and GPUs."""
    return model.to(memory_format=torch.channels_last)
