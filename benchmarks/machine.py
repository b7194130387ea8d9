"""Peak speed of the machine, and operations of a network."""

import platform
import time
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch.utils.flop_counter import FlopCounterMode

from denoiser.checks import pair
from denoiser.device import multiplies_bf16_natively, must_use_cpu, num_cores

SIDE, PRODUCTS = 1024, 10
TILES = 8  # in a row and in a column of a matrix that fills a GPU
FORWARDS_IN_A_STEP = 3  # the backward pass has two products for each of the forward pass


def matmul_speed() -> float:
    """Return the FLOP/s of a matrix product on the CPU or GPU, the fastest of a few.

    In bfloat16, or in float32 where there are no bfloat16 instructions.
    """
    device = torch.device("cuda" if _on_gpu() else "cpu")
    dtype = torch.bfloat16 if multiplies_bf16_natively(device) else torch.float32
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(SIDE, SIDE, generator=generator).to(device, dtype)
    if _on_gpu():
        matrix = matrix.tile(TILES, TILES)
    seconds = []
    for _ in range(PRODUCTS):
        started = time.perf_counter()
        matrix @ matrix
        if _on_gpu():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * len(matrix) ** 3 / min(seconds)


def _on_gpu() -> bool:
    return torch.cuda.is_available() and not must_use_cpu()


@torch.no_grad()
def operations_per_image(model: ModelMixin) -> int:
    """Return the FLOP of matrix products and convolutions in a forward pass of one image."""
    zero = torch.zeros(1, dtype=torch.long, device=model.device)
    image = torch.zeros(1, model.config.in_channels, *pair(model.config.sample_size), device=model.device)
    labels = {"class_labels": zero} if model.config.get("num_class_embeds") else {}
    with FlopCounterMode(display=False) as counter:
        model(image, zero, **labels)
    return counter.get_total_flops()


def processor() -> str:
    """Return the names of GPU and processor, and the number of usable cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    gpu = f"{torch.cuda.get_device_name()}, " if _on_gpu() else ""
    return f"{gpu}{name or platform.processor() or platform.machine()}, {num_cores()} cores"
