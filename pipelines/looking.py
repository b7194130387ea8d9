"""Ways to look at what a diffusion model does: noise that comes, and images between two others."""

import math
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.plain import plain_arguments
from denoiser.randomness import LOOKING, seeded_generator
from pipelines.classes import Label
from pipelines.denoising import DenoisingPipeline, StepCallback, image_generators
from pipelines.sampling import SamplingConfig, draw_samples
from pipelines.schedulers import adds_noise, build_scheduler


@plain_arguments
def noising_stages(images: Tensor, scheduler: SchedulerMixin, stages: int = 10, seed: int = 0) -> list[Tensor]:
    """Return images as the forward process leaves them, from the image itself to the last timestep, evenly spaced.

    Args:
        images: `(count, channels, height, width)` in [0, 1].
        scheduler: Its noise schedule (Ho et al. 2020, eq. 4), that of a DDPM.
        stages: How many.
        seed: Of the noise, which is the same at each stage.

    Returns:
        `stages` tensors shaped as the images, in [-1, 1] but for the noise.

    Raises:
        ValueError: If a count is wrong, or the scheduler's noise levels are not a DDPM's.
    """
    check_positive(stages=stages)
    noise_schedule = build_scheduler(DDPMScheduler, scheduler.config)
    clean = 2 * images - 1
    noise = torch.randn(images.shape, generator=seeded_generator(LOOKING, seed))
    last = noise_schedule.config.num_train_timesteps - 1
    timesteps = torch.linspace(0, last, stages)[1:].round().long()
    return [clean, *(noise_schedule.add_noise(clean, noise, timestep.expand(len(images))) for timestep in timesteps)]


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Interpolate on the sphere, where Gaussian noise is (Shoemake 1985; Song et al. 2021, section 5.3).

    Args:
        one: Noise, of any shape.
        other: Of the same shape.
        share: Of the other, 0 to 1.

    Raises:
        ValueError: If they are opposite, where no way is the shortest.
    """
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if angle > math.pi - 1e-3:
        raise ValueError("the one noise is the other's opposite; there is no shortest way between them")
    if share in (0, 1) or angle < 1e-4:
        return torch.lerp(one, other, share)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


@plain_arguments
def interpolated(
    pipeline: DenoisingPipeline,
    config: SamplingConfig,
    seeds: Sequence[int],
    labels: Sequence[Label] | None = None,
    callback_on_step_end: StepCallback | None = None,
) -> Tensor:
    """Draw the images on the way from one seed to another, both ends included.

    Args:
        pipeline: Its scheduler must add no noise of its own, or each image would be another's neighbour in name only.
        config: How many, and how.
        seeds: Of the first and of the last image.
        labels: As in `draw_samples`.
        callback_on_step_end: Handed to the pipeline.

    Returns:
        `(num_images, channels, height, width)` in [0, 1], on the CPU.

    Raises:
        ValueError: If there are not two seeds and at least two images, or the scheduler adds noise.
    """
    count = config.num_images
    if len(seeds) != 2:
        raise ValueError(f"{len(seeds)} seeds for an interpolation; give the first and the last, such as 3,17")
    if count < 2:
        raise ValueError(f"num_images is {count}; an interpolation has at least 2, its ends")
    if adds_noise(pipeline.scheduler) or config.eta:
        raise ValueError("this scheduler adds noise in each step; choose ddim, dpmsolver++, unipc, deis, euler or heun")
    first, last = (torch.randn(pipeline.image_shape, generator=each) for each in image_generators(seeds, range(2)))
    noise = torch.stack([slerp(first, last, index / (count - 1)) for index in range(count)])
    return draw_samples(pipeline, config, labels, callback_on_step_end, noise=noise)
