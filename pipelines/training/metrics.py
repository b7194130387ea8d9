"""Metrics of the training steps, and evaluation during training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor

from denoiser.checks import LARGEST, check_between
from denoiser.data import ImageSet
from denoiser.processes import tell
from denoiser.randomness import HELD_OUT, seeded_generator
from pipelines import DenoisingPipeline, SamplingConfig
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET, Moments, frechet_distance
from pipelines.evaluation.spaces import FeatureSpace, beside, best_spaces, rows_like, some_rows
from pipelines.sampling import sample_shared, spread_labels
from pipelines.training.loss import denoising_loss

VALIDATION_BATCH_SIZE = 256
QUARTERS = 4


class Window:
    """Sums over a window of steps: losses by quarter of the timesteps, gradient norms, seconds."""

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self.num_timesteps = num_timesteps
        self.loss_sums = torch.zeros(QUARTERS, device=device)
        self.counts = torch.zeros(QUARTERS, device=device)
        self.gradient_norms: list[Tensor] = []  # one a step, before clipping
        self.steps = self.skipped = self.images = 0
        self.seconds = {"step": 0.0, "data": 0.0}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the duration of the block to `seconds[what]`."""
        started = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - started

    def count_step(self, images: int, skipped: bool) -> None:
        """Count a step of `images` images, of all processes together."""
        self.steps += 1
        self.skipped += skipped
        self.images += images

    @property
    def images_per_second(self) -> float:
        """Training speed."""
        return self.images / self.seconds["step"]

    def count(self, losses: Tensor, timesteps: Tensor) -> None:
        """Add losses, `(batch,)`, at their timesteps, `(batch,)`. Non-finite losses are ignored."""
        finite = losses.isfinite()
        sums, counts = _sums_by_quarter(losses[finite], timesteps[finite], self.num_timesteps)
        self.loss_sums += sums
        self.counts += counts

    def summary(self, accelerator: Accelerator) -> dict[str, float]:
        """Return means over all processes, without the quarters that no timestep fell into."""
        sums, counts = accelerator.reduce(torch.stack([self.loss_sums, self.counts]), reduction="sum").cpu()
        return {
            **_means(sums, counts),
            **({"gradient_norm": torch.stack(self.gradient_norms).mean().item()} if self.gradient_norms else {}),
            "skipped_steps": self.skipped,
            "images_per_second": self.images_per_second,
            "step_milliseconds": 1000 * self.seconds["step"] / self.steps,
            "data_milliseconds": 1000 * self.seconds["data"] / self.steps,
        }


def _sums_by_quarter(losses: Tensor, timesteps: Tensor, num_timesteps: int) -> tuple[Tensor, Tensor]:
    quarter = timesteps * QUARTERS // num_timesteps
    zeros = torch.zeros(QUARTERS, device=losses.device)
    return zeros.index_add(0, quarter, losses), zeros.index_add(0, quarter, torch.ones_like(losses))


def _means(sums: Tensor, counts: Tensor) -> dict[str, float]:
    by_quarter = {
        f"loss_quarter_{quarter + 1}": (sums[quarter] / counts[quarter]).item()
        for quarter in range(QUARTERS)
        if counts[quarter]
    }
    return {**({"loss": (sums.sum() / counts.sum()).item()} if counts.any() else {}), **by_quarter}


class Validation:
    """Evaluation during training: held-out loss, and Fréchet distance to the training images.

    The distance is measured in the features of each of the set's judges, or without any of fixed
    convolutions; the figures of the second judge begin with "second_". With fewer held-out images than
    `count`, all are used; with fewer than a hundred, there is no distance. The noise is the same each time.

    Args:
        held_out: Images that are never trained on.
        sampling: Settings of the samples.
        count: Number of samples, and of held-out images.
        train: Training images.
        num_classes: Number of classes of the network, whose samples are of each class equally often, and the
            images of the floor too; None without classes.

    Raises:
        ValueError: If the count is below a hundred, or a judge's file altered.
        FileNotFoundError: If a judge's file is missing.
    """

    def __init__(
        self, held_out: ImageSet, sampling: SamplingConfig, count: int, train: ImageSet, num_classes: int | None = None
    ) -> None:
        check_between(FEWEST_FOR_FRECHET, LARGEST, evaluation_images=count)
        rows = some_rows(held_out, count).to(held_out.images.device)
        labels = None if held_out.labels is None else held_out.labels[rows]
        self.held_out = replace(held_out, images=held_out.images[rows], labels=labels)
        self.sampling = replace(sampling, num_images=len(rows), batch_size=VALIDATION_BATCH_SIZE)
        self.spaces: list[FeatureSpace] = []
        if few := _too_few(len(rows), len(train), count):
            tell([few])
        if min(len(rows), len(train)) >= FEWEST_FOR_FRECHET:
            if num_classes is not None:
                rows = rows_like(held_out, torch.tensor(spread_labels(len(rows), num_classes)))
            real = held_out.images[rows.to(held_out.images.device)].cpu()
            self.spaces = best_spaces(train)
            self.floors = [_distance(space, real) for space in self.spaces]

    def frechet_distance(self, pipeline: DenoisingPipeline) -> dict[str, Any]:
        """Return the distances of samples with space and floor, if there are any; all processes share the work."""
        figures: dict[str, Any] = {"evaluation_images": len(self.held_out)}
        if self.spaces:
            images = sample_shared(pipeline, self.sampling)
            figures |= beside(
                [
                    {"frechet": _distance(space, images), "frechet_floor": floor, "frechet_space": space.name}
                    for space, floor in zip(self.spaces, self.floors, strict=True)
                ]
            )
        return figures

    @torch.no_grad()
    def held_out_loss(self, pipeline: DenoisingPipeline, noise_schedule: DDPMScheduler) -> dict[str, float]:
        """Return the loss on the held-out images, over all timesteps and by quarter."""
        num_timesteps, count = noise_schedule.config.num_train_timesteps, len(self.held_out)
        device = pipeline.device
        generator = seeded_generator(HELD_OUT, 0)
        timesteps = (torch.arange(count) * num_timesteps // count).to(device)
        losses = []
        for rows in torch.arange(count).split(VALIDATION_BATCH_SIZE):
            images, labels = self.held_out.batch(rows, device)
            noise = torch.randn(images.shape, generator=generator).to(device)
            classes = labels if pipeline.num_classes is not None else None
            part = timesteps[rows.to(device)]
            losses.append(denoising_loss(pipeline.unet, noise_schedule, images, noise, part, classes))
        by_quarter = _means(*_sums_by_quarter(torch.cat(losses), timesteps, num_timesteps))
        return {f"held_out_{name}": value for name, value in by_quarter.items()}


def _distance(space: FeatureSpace, images: Tensor) -> float:
    assert space.moments is not None
    return frechet_distance(space.moments["train"], Moments.of(space.features(images)))


def _too_few(held_out: int, train: int, wanted: int) -> str | None:
    """Return what too few images leave of an evaluation, or None."""
    if min(held_out, train) < FEWEST_FOR_FRECHET:
        return (
            f"evaluations have no Fréchet distance: it needs {FEWEST_FOR_FRECHET} images held out and as many to train "
            f"on, and there are {held_out} and {train}"
        )
    if held_out < wanted:
        return f"evaluations are of {held_out} images, all that are held out, and not of evaluation_images {wanted}"
    return None
