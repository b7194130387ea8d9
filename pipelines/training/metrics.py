"""Metrics of the training steps, and evaluation during training."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import Tensor

from denoiser.checks import check_between
from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.randomness import HELD_OUT, seeded_generator
from pipelines import DenoisingPipeline, SamplingConfig
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.judge import IMAGE_SHAPE, frechet_to_train, load_judge
from pipelines.sampling import sample_shared
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
    """Evaluation during training: held-out loss and, for FashionMNIST at 16x16, Fréchet distance.

    The noise is the same each time. `count` is the number of samples, and of held-out images for the
    floor. Raises an error if the count is out of range, or the judge's file missing or altered.
    """

    def __init__(self, held_out: ImageSet, sampling: SamplingConfig, count: int) -> None:
        if len(held_out) < FEWEST_FOR_FRECHET:
            raise ValueError(f"{len(held_out)} held-out images cannot be judged; give at least {FEWEST_FOR_FRECHET}")
        check_between(FEWEST_FOR_FRECHET, len(held_out), evaluation_images=count)
        self.held_out = ImageSet(held_out.images[:count], held_out.labels[:count], held_out.class_names)
        self.sampling = replace(sampling, num_images=count, batch_size=VALIDATION_BATCH_SIZE)
        known = held_out.class_names == CLASS_NAMES and tuple(held_out.images.shape[1:]) == IMAGE_SHAPE
        self.frechet = partial(frechet_to_train, load_judge()) if known else None
        self.floor = self.frechet(self.held_out.images.cpu()) if self.frechet else math.nan

    def frechet_distance(self, pipeline: DenoisingPipeline) -> dict[str, float]:
        """Return the distance of samples with its floor, if the data has a judge; all processes share the work."""
        figures: dict[str, float] = {"evaluation_images": len(self.held_out)}
        if self.frechet is not None:
            images = sample_shared(pipeline, self.sampling)
            figures |= {"frechet": self.frechet(images), "frechet_floor": self.floor}
        return figures

    @torch.no_grad()
    def held_out_loss(self, pipeline: DenoisingPipeline, noise_schedule: DDPMScheduler) -> dict[str, float]:
        """Return the loss on the held-out images, over all timesteps and by quarter."""
        num_timesteps, count = noise_schedule.config.num_train_timesteps, len(self.held_out)
        device = self.held_out.images.device
        generator = seeded_generator(HELD_OUT, 0)
        noise = torch.randn(self.held_out.images.shape, generator=generator).to(device)
        timesteps = (torch.arange(count) * num_timesteps // count).to(device)
        losses = []
        for rows in torch.arange(count, device=device).split(VALIDATION_BATCH_SIZE):
            images, labels = self.held_out.batch(rows)
            classes = labels if pipeline.num_classes is not None else None
            losses.append(denoising_loss(pipeline.unet, noise_schedule, images, noise[rows], timesteps[rows], classes))
        by_quarter = _means(*_sums_by_quarter(torch.cat(losses), timesteps, num_timesteps))
        return {f"held_out_{name}": value for name, value in by_quarter.items()}
