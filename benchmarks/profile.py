"""Profiles of a training step and of forward passes."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from operator import itemgetter
from statistics import fmean, median
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from benchmarks.entries import Entry
from benchmarks.machine import FORWARDS_IN_A_STEP, matmul_speed, operations_per_image
from denoiser.data import load_fashion_mnist
from pipelines.training import Learner, start_accelerator

WARM_UP, PASSES = 5, 20
# Kinds of operation by parts of their lower-case names; the first match counts.
KINDS = {
    "convolution": ("convolution", "conv2d", "conv_transpose2d"),
    "normalisation": ("group_norm", "groupnorm", "batch_norm", "batchnorm"),
    "optimizer and average": ("_foreach", "_fused", "optimizer"),
    "attention": ("scaled_dot_product", "softmax"),
    "activation": ("silu", "relu", "threshold", "gelu"),
    "matrix product": ("mm", "linear"),
    "copies and casts": ("copy", "clone", "aten::cat"),
    "other operations": ("",),
}
OUTSIDE = "outside of operations"


def profiles(entry: Entry, batch_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Profile a training step and forward passes of a network on the CPU."""
    config, model, noise_schedule = entry.build(entry.seconds[0], seed=0)
    if config.training.compile:
        raise ValueError(f"'{entry.name}' is compiled, and its operations are no longer PyTorch's; profile it as it is")
    accelerator = start_accelerator(config)
    if accelerator.device.type != "cpu":
        raise ValueError(f"profile is of a CPU, the network is on {accelerator.device}; set ACCELERATE_USE_CPU=1")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says on a machine without a GPU that there is none
    operations = operations_per_image(model)
    images = load_fashion_mnist(config.data.root, "train", model.config.sample_size)
    learner = Learner(config.training, model, noise_schedule, accelerator, images)
    step = _profile(lambda: learner.take_step(0.5), learner.images_per_step, FORWARDS_IN_A_STEP * operations)
    rows = [{"pass": "training step", **step}]
    network = learner.raw_model.eval()
    for size in batch_sizes:
        labels = {} if learner.num_classes is None else {"class_labels": torch.zeros(size, dtype=torch.long)}
        forward = partial(network, torch.zeros(size, *learner.image_shape), torch.zeros(size), **labels)
        with torch.no_grad(), accelerator.autocast():
            rows.append({"pass": "forward pass", **_profile(forward, size, operations)})
    return [{"name": entry.name, "precision": accelerator.mixed_precision, **row} for row in rows]


def _profile(run: Callable[[], object], batch_size: int, operations_per_image: int) -> dict[str, Any]:
    for _ in range(WARM_UP):
        run()
    peaks = [matmul_speed()]
    seconds = median(_seconds(run) for _ in range(PASSES))
    profiled_seconds, profiler = min((_profiled(run) for _ in range(PASSES)), key=itemgetter(0))
    peaks.append(matmul_speed())
    kinds = dict.fromkeys(KINDS, 0.0)
    for operation in profiler.key_averages():
        name = operation.key.lower()
        kind = next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        kinds[kind] += operation.self_cpu_time_total / 1e6
    kinds[OUTSIDE] = profiled_seconds - sum(kinds.values())
    return {
        "batch_size": batch_size,
        "seconds": seconds,
        "profiled_seconds": profiled_seconds,
        "kinds": kinds,
        "convolutions": _convolutions(profiler.events()),
        "bf16_matmul_peak": fmean(peaks),
        "share_of_peak": batch_size * operations_per_image / seconds / fmean(peaks),
    }


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _profiled(run: Callable[[], object]) -> tuple[float, torch.profiler.profile]:
    """Profile one pass; the records of several would move the maps in memory."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        seconds = _seconds(run)
    return seconds, profiler


def _convolutions(events: Sequence[FunctionEvent]) -> list[dict[str, Any]]:
    """Return the convolutions by shape and direction: calls, seconds of all, FLOP of one."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event.name in ("aten::convolution", "aten::convolution_backward"):
            direction = "backward" if event.name.endswith("backward") else "forward"
            words, operations = _described(event, direction == "backward")
            row = rows.setdefault((words, direction), {"calls": 0, "seconds": 0.0, "operations": operations})
            row["calls"] += 1
            row["seconds"] += event.cpu_time_total / 1e6
    described = [{"convolution": words, "direction": direction, **row} for (words, direction), row in rows.items()]
    return sorted(described, key=lambda row: -row["seconds"])


def _described(event: Any, backward: bool) -> tuple[str, int]:
    """Return the shape of a convolution in words, and its FLOP."""
    (batch, in_channels, *size), weight = event.input_shapes[backward:][:2]  # the first is a gradient if backward
    stride, padding, dilation, transposed, _, groups, *output_mask = event.concrete_inputs[3 + backward :]
    sizes = zip(size, weight[2:], stride, padding, dilation, strict=True)
    out_size = [(side + 2 * pad - step * (kernel - 1) - 1) // hop + 1 for side, kernel, hop, pad, step in sizes]
    # Backward there are two, by the input and by the weight; but the first layer's input needs no gradient.
    products = sum(output_mask[0][:2]) if backward else 1
    operations = 2 * products * batch * prod(weight) * prod(size if transposed else out_size)
    out_channels = weight[1] * groups if transposed else weight[0]
    words = [f"{'x'.join(map(str, weight[2:]))}, {in_channels} to {out_channels} channels, {'x'.join(map(str, size))}"]
    words += [f"stride {stride[0]}"] * (stride[0] != 1) + ["transposed"] * transposed
    return ", ".join(words), operations
