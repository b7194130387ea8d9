"""Speed of sampling, and of the input path of training."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.entries import Entry
from benchmarks.machine import matmul_speed, operations_per_image
from denoiser.data import ImageSet, load_fashion_mnist, random_batch
from denoiser.device import as_trained, choose_mixed_precision, compile_for_sampling, in_best_layout
from pipelines import DenoisingPipeline, make_scheduler
from pipelines.stepping import check_steps


def alternate(jobs: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Time jobs in turns. The first round compiles and sets up, and does not count."""
    firsts: dict[str, float] = {}
    speeds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            started = time.perf_counter()
            images = job()
            seconds = time.perf_counter() - started
            if round_:
                speeds[name].append(images / seconds)
            else:
                firsts[name] = seconds
    return {
        name: {
            "first_round_seconds": firsts[name],
            "images_per_second": median(values),
            "slowest_round": min(values),
            "fastest_round": max(values),
        }
        for name, values in speeds.items()
    }


def sampling_speeds(
    entries: Sequence[Entry], batch_sizes: Sequence[int], steps: Sequence[int], rounds: int, compiled: bool = False
) -> list[dict[str, Any]]:
    """Measure the sampling speed of entries in turns, each in its training precision.

    The networks have their initial weights, which take as long as trained ones.
    """
    device = PartialState().device
    rows = []
    sampling, precisions, operations = {}, {}, {}
    for entry in entries:
        config, model, noise_schedule = entry.build(entry.seconds[0], seed=0)
        precisions[entry.name] = choose_mixed_precision(config.training.mixed_precision, device)
        model = model.to(device).eval()
        operations[entry.name] = operations_per_image(model)
        if config.training.channels_last:
            in_best_layout(model)
        sampler = make_scheduler(config.sampling.scheduler, noise_schedule.config)
        for count in steps:
            check_steps(count, sampler)
        sampling[entry.name] = DenoisingPipeline(model, sampler)
        if compiled:
            name = f"{entry.name}, compiled"
            twin = copy.deepcopy(model)
            compile_for_sampling(twin, device)
            precisions[name] = "bf16" if twin.dtype == torch.bfloat16 else "no"
            operations[name] = operations[entry.name]
            sampling[name] = DenoisingPipeline(twin, sampler)
    for pipeline in sampling.values():
        pipeline.set_progress_bar_config(disable=True)

    def job(name: str, batch_size: int, steps: int) -> Callable[[], int]:
        pipeline = sampling[name]
        labels, generator = 0 if pipeline.num_classes else None, torch.Generator().manual_seed(0)

        def sample_batch() -> int:
            with as_trained(precisions[name] if pipeline.unet.dtype == torch.float32 else "no", device):
                images = pipeline(batch_size, labels, num_inference_steps=steps, generator=generator, output_type="pt")[
                    0
                ]
            return len(images.cpu())  # which waits for the device

        return sample_batch

    for batch_size, count in product(batch_sizes, steps):
        peaks = [matmul_speed()]
        speeds = alternate({name: job(name, batch_size, count) for name in sampling}, rounds)
        peak = fmean([*peaks, matmul_speed()])
        for name in sampling:
            share = speeds[name]["images_per_second"] * count * operations[name] / peak
            facts = {"name": name, "batch_size": batch_size, "steps": count, "precision": precisions[name]}
            rows.append({**facts, **speeds[name], "share_of_peak": share})
    return rows


TORCHVISION = "torchvision, DataLoader"
OUR_SHARE = 20  # times the loaders' batches, so that a round of ours lasts too


class PerImage(Dataset[tuple[Tensor, int]]):
    """The usual input path: torchvision transforms of each image as a PIL image."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [transforms.Resize(16), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, `(1, 16, 16)` in [-1, 1], and its label."""
        picture = Image.fromarray(self.images.images[index, 0].numpy())
        assert self.images.labels is not None
        return self.transform(picture), int(self.images.labels[index])


def feeding_speeds(root: str, batch_size: int, batches: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the input path of training beside torchvision transforms in a DataLoader.

    Both end in a batch of 16x16 images in [-1, 1] with labels; ours has timesteps and noise too.
    """
    images, full_size = load_fashion_mnist(root, "train", 16), load_fashion_mnist(root, "train", 28)
    loaders = {
        name: DataLoader(
            PerImage(full_size), batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        for name, workers in ((TORCHVISION, 0), (f"{TORCHVISION}, 2 workers", 2))
    }

    def ours() -> int:
        count = OUR_SHARE * batches
        for step in range(count):
            images.batch(random_batch(0, step, batch_size, (1, 16, 16), len(images), 1000, 0.1).indices)
        return count * batch_size

    def theirs(loader: DataLoader) -> Callable[[], int]:
        def load() -> int:
            batch = iter(loader)
            for _ in range(batches):
                next(batch)
            return batches * batch_size

        return load

    speeds = alternate({"denoiser": ours, **{name: theirs(loader) for name, loader in loaders.items()}}, rounds)
    return [{"name": name, **figures} for name, figures in speeds.items()]
