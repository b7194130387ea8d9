"""What the machine could do at best, and what a network asks of it."""

import platform
import time
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch.utils.flop_counter import FlopCounterMode

from denoiser.checks import pair

SIDE, PRODUCTS = 1024, 10


def matmul_speed(dtype: torch.dtype = torch.bfloat16) -> float:
    """Measure products of two square matrices, in floating-point operations per second; about 0.05 s."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SIDE, SIDE, generator=generator).to(dtype)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        matrix @ matrix
    return PRODUCTS * 2 * SIDE**3 / (time.perf_counter() - started)


@torch.no_grad()
def operations_per_image(model: ModelMixin) -> int:
    """Count the floating-point operations of matrix products and convolutions in a forward pass of one image."""
    image = torch.zeros(1, model.config.in_channels, *pair(model.config.sample_size))
    with FlopCounterMode(display=False) as counter:
        model(image, torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()


def processor() -> str:
    """Return the processor's name, as the system gives it, and how many threads PyTorch uses."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{name or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
