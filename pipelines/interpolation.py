"""The forward process as images, and interpolation between two seeds."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_positive, plain_arguments
from denoiser.randomness import LOOKING, seeded_generator
from pipelines.denoising import DenoisingPipeline, image_generators
from pipelines.sampling import sample_images
from pipelines.schedulers import build_scheduler
from pipelines.stepping import adds_noise


@plain_arguments
def noising_stages(images: Tensor, noise_schedule: SchedulerMixin, stages: int = 10, seed: int = 0) -> list[Tensor]:
    """Return images at evenly spaced timesteps of the forward process (Ho et al. 2020, eq. 4).

    Args:
        images: `(count, channels, height, width)` in [0, 1].
        noise_schedule: The noise schedule, or a sampler for it.
        stages: Number of stages, from the clean image to the last timestep.
        seed: Seed of the noise, which is the same at each stage.

    Returns:
        `stages` tensors shaped as the images; the clean images are in [-1, 1].
    """
    check_positive(stages=stages)
    noise_schedule = build_scheduler(DDPMScheduler, noise_schedule.config)
    clean = 2 * images - 1
    noise = torch.randn(images.shape, generator=seeded_generator(LOOKING, seed))
    last = noise_schedule.config.num_train_timesteps - 1
    timesteps = torch.linspace(0, last, stages)[1:].round().long()
    return [clean, *(noise_schedule.add_noise(clean, noise, timestep.expand(len(images))) for timestep in timesteps)]


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Interpolate noise on the sphere, `share` of the other (Shoemake 1985; Song et al. 2021, 5.3).

    Raises:
        ValueError: If they are opposite, where no path is the shortest.
    """
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle > math.pi - 1e-3:
        raise ValueError("the one noise is the other's opposite; there is no shortest way between them")
    if share in (0, 1) or angle < 1e-4:
        return torch.lerp(one, other, share)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


@plain_arguments
def interpolated(pipeline: DenoisingPipeline, seeds: Sequence[int], num_images: int, **arguments: Any) -> Tensor:
    """Generate images between two seeds, both included.

    Args:
        pipeline: A pipeline with a sampler that adds no noise in its steps.
        seeds: Seeds of the first and of the last image.
        num_images: Number of images, at least 2.
        arguments: Further arguments of `sample_images`.

    Returns:
        `(num_images, channels, height, width)` in [0, 1], on the CPU.
    """
    if len(seeds) != 2:
        raise ValueError(f"{len(seeds)} seeds for an interpolation; give the first and the last, such as 3,17")
    if num_images < 2:
        raise ValueError(f"num_images is {num_images}; an interpolation has at least 2, its ends")
    if adds_noise(pipeline.scheduler) or arguments.get("eta"):
        raise ValueError("this scheduler adds noise in each step; choose ddim, dpmsolver++, unipc, deis, euler or heun")
    first, last = (torch.randn(pipeline.image_shape, generator=each) for each in image_generators(seeds, range(2)))
    noise = torch.stack([slerp(first, last, index / (num_images - 1)) for index in range(num_images)])
    return sample_images(pipeline, num_images, noise=noise, **arguments)
