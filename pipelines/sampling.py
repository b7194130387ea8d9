"""Many images from a pipeline, batch by batch, each a function of (seed, its index) alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_positive, check_seed
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines.denoising import DenoisingPipeline, StepCallback
from pipelines.schedulers import check_scheduler_name, check_steps


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn. Raises `ValueError` for what cannot be.

    Attributes:
        num_images: Images to draw.
        steps: Steps of the scheduler.
        scheduler: Its name: ddpm, ddim, dpmsolver++, sde-dpmsolver++, unipc, deis, euler, euler-ancestral or heun.
        guidance_scale: Classifier-free guidance for images with labels; 1 is none.
        seed: Image i is a function of (seed, i).
        batch_size: Images that are drawn at once.
    """

    num_images: int = 64
    steps: int = 20
    scheduler: str = "sde-dpmsolver++"
    guidance_scale: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_positive(num_images=self.num_images, steps=self.steps, batch_size=self.batch_size)
        check_scheduler_name(self.scheduler)
        check_seed(self.seed)
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be a finite number")


def check_sampling(config: SamplingConfig, unet: ModelMixin, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` if the network or the scheduler cannot draw as the config says."""
    check_steps(config.steps, scheduler)
    if config.guidance_scale != 1 and unet.config.get("num_class_embeds") is None:
        raise ValueError(f"guidance_scale is {config.guidance_scale} and the network has no classes; leave it at 1")


def spread_labels(num_images: int, num_classes: int) -> list[int]:
    """Return labels that show every class about equally often, in order."""
    return [index * num_classes // num_images for index in range(num_images)]


def draw_samples(
    pipeline: DenoisingPipeline,
    config: SamplingConfig,
    labels: Sequence[int | str] | None = None,
    callback_on_step_end: StepCallback | None = None,
    indices: Sequence[int] | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Draw images with the pipeline's scheduler.

    Args:
        pipeline: What draws them.
        config: How many, and how.
        labels: Classes, by index or by name, repeated over the images; None spreads the images over all the classes of
            a class-conditional network.
        callback_on_step_end: Handed to the pipeline.
        indices: Which of the images to draw, such as one process's share; None means all.
        on_batch: Called with the number of images after each batch.

    Returns:
        `(num_images, channels, height, width)` in [0, 1], on the CPU; or as many as there are indices.
    """
    if labels is None and pipeline.num_classes is not None:
        labels = spread_labels(config.num_images, pipeline.num_classes)
    check_sampling(config, pipeline.unet, pipeline.scheduler)
    if labels is not None and not labels:
        raise ValueError("labels is empty; name at least one class, or leave it out")
    indices = range(config.num_images) if indices is None else indices
    batches = []
    for start in range(0, len(indices), config.batch_size):
        batch = indices[start : start + config.batch_size]
        (images,) = pipeline(
            batch_size=len(batch),
            class_labels=None if labels is None else [labels[index % len(labels)] for index in batch],
            guidance_scale=config.guidance_scale,
            num_inference_steps=config.steps,
            generator=[seeded_generator(SAMPLING, config.seed, index) for index in batch],
            output_type="pt",
            return_dict=False,
            callback_on_step_end=callback_on_step_end,
        )
        batches.append(images.cpu())
        on_batch(len(batch))
    return torch.cat(batches)
