"""A cheap evaluation of a network while it trains."""

import math
from dataclasses import replace
from functools import partial

import torch
from diffusers import DDPMScheduler

from denoiser.checks import check_between
from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.processes import share_out
from denoiser.randomness import HELD_OUT, seeded_generator
from pipelines import DenoisingPipeline, SamplingConfig, draw_samples, quantised
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.judge import IMAGE_SHAPE, frechet_to_train, load_judge
from pipelines.training.metrics import loss_by_quarter
from pipelines.training.objective import denoising_loss

BATCH_SIZE = 256


class Probe:
    """Held-out loss by quarter of the timesteps and, for FashionMNIST at 16x16, the Fréchet distance of some samples.

    Both are of the same noise each time.

    Args:
        held_out: Images that the network is not trained on.
        sampling: How to draw; the number of images and the batch size are the probe's own.
        count: Images to draw; the floor is measured with as many held-out images.

    Raises:
        FileNotFoundError: If the judge's file is missing.
        ValueError: If it was altered, or the number of images cannot be judged.
    """

    def __init__(self, held_out: ImageSet, sampling: SamplingConfig, count: int) -> None:
        if len(held_out) < FEWEST_FOR_FRECHET:
            raise ValueError(f"{len(held_out)} held-out images cannot be judged; give at least {FEWEST_FOR_FRECHET}")
        check_between(FEWEST_FOR_FRECHET, len(held_out), evaluation_images=count)
        self.held_out = ImageSet(held_out.images[:count], held_out.labels[:count], held_out.class_names)
        self.sampling = replace(sampling, num_images=count, batch_size=BATCH_SIZE)
        known = held_out.class_names == CLASS_NAMES and tuple(held_out.images.shape[1:]) == IMAGE_SHAPE
        self.frechet = partial(frechet_to_train, load_judge()) if known else None
        self.floor = self.frechet(self.held_out.images.cpu()) if self.frechet else math.nan

    def figures(self, pipeline: DenoisingPipeline, scheduler: DDPMScheduler | None) -> dict[str, float]:
        """Evaluate on all processes.

        Args:
            pipeline: The averaged weights and the sampler to draw with.
            scheduler: Noise schedule and prediction type of the training; None leaves the held-out loss out.
        """
        figures: dict[str, float] = {"evaluation_images": len(self.held_out)}
        if scheduler is not None:
            figures |= self._held_out_loss(pipeline, scheduler)
        if self.frechet is not None:
            indices = range(self.sampling.num_images)
            parts = share_out(indices, lambda part: quantised(draw_samples(pipeline, self.sampling, indices=part)))
            figures |= {"frechet": self.frechet(torch.cat(parts)), "frechet_floor": self.floor}
        return figures

    @torch.no_grad()
    def _held_out_loss(self, pipeline: DenoisingPipeline, scheduler: DDPMScheduler) -> dict[str, float]:
        num_timesteps, count = scheduler.config.num_train_timesteps, len(self.held_out)
        device = self.held_out.images.device
        generator = seeded_generator(HELD_OUT, 0)
        noise = torch.randn(self.held_out.images.shape, generator=generator).to(device)
        timesteps = (torch.arange(count) * num_timesteps // count).to(device)
        losses = []
        for rows in torch.arange(count, device=device).split(self.sampling.batch_size):
            images, labels = self.held_out.batch(rows)
            classes = labels if pipeline.num_classes is not None else None
            losses.append(denoising_loss(pipeline.unet, scheduler, images, noise[rows], timesteps[rows], classes))
        by_quarter = loss_by_quarter(torch.cat(losses), timesteps, num_timesteps)
        return {f"held_out_{name}": value for name, value in by_quarter.items()}
