"""Many images from a pipeline, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_between, check_kinds, check_positive, check_seed, plain_arguments
from denoiser.processes import share_out
from pipelines.classes import Label
from pipelines.denoising import DenoisingPipeline, image_generators
from pipelines.images import quantised
from pipelines.predictor import Guidance
from pipelines.schedulers import check_scheduler_name
from pipelines.spacing import Spacing, check_spacing
from pipelines.stepping import check_eta, check_steps, distilled_calls, sampler_of_student


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings.

    Attributes:
        num_images: Number of images.
        steps: Steps of the sampler.
        scheduler: Sampler: ddpm, ddim, dpmsolver++, sde-dpmsolver++, unipc, deis, euler,
            euler-ancestral, heun or lcm.
        guidance_scale: Scale of classifier-free guidance for images with labels; 1 is none.
        guidance_rescale: Fraction of the contrast added by guidance that is removed, 0 to 1.
        guidance_interval: Lowest and highest noise level sigma with guidance; None is everywhere.
        autoguidance_scale: Scale of autoguidance for pipelines with a guide; 1 is none, None the pipeline's.
        autoguidance_interval: Lowest and highest noise level sigma with autoguidance; None is everywhere.
        spacing: Steps even in "timesteps" or in "log-snr"; None is the pipeline's own spacing.
        eta: Noise of a DDIM step, from none at 0 to DDPM's at 1.
        seed: Image i depends on (seed, i), to the last bit.
        batch_size: Images in a batch; it changes none of them.
    """

    num_images: int = 100
    steps: int = 20
    scheduler: str = "sde-dpmsolver++"
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    autoguidance_scale: float | None = None
    autoguidance_interval: tuple[float, float] | None = None
    spacing: Spacing | None = None
    eta: float = 0.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(num_images=self.num_images, steps=self.steps, batch_size=self.batch_size)
        check_scheduler_name(self.scheduler)
        check_seed(self.seed)
        check_between(0, 1, eta=self.eta)
        self.guidance  # noqa: B018 - it checks its settings

    @property
    def guidance(self) -> Guidance:
        """Guidance settings."""
        return Guidance(
            self.guidance_scale,
            self.guidance_rescale,
            self.guidance_interval,
            self.autoguidance_scale,
            self.autoguidance_interval,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `sample_images`."""
        same = (
            *("num_images", "batch_size", "seed", "guidance_scale", "guidance_rescale", "guidance_interval"),
            *("autoguidance_scale", "autoguidance_interval", "spacing", "eta"),
        )
        return {"num_inference_steps": self.steps, **{name: getattr(self, name) for name in same}}


def default_sampler(noise_schedule: SchedulerMixin) -> dict[str, Any]:
    """Return the default sampler and its steps for a network of this noise schedule."""
    if calls := distilled_calls(noise_schedule.config):
        return {"scheduler": sampler_of_student(noise_schedule.config), "steps": calls}
    return {"scheduler": SamplingConfig.scheduler, "steps": SamplingConfig.steps}


def check_sampling(
    config: SamplingConfig, unet: ModelMixin, sampler: SchedulerMixin, autoguidance_scale: float | None = None
) -> None:
    """Raise `ValueError` if the network or the sampler does not support the settings.

    `autoguidance_scale` is the pipeline's own; None without a guide.
    """
    check_steps(config.steps, sampler)
    check_spacing(config.spacing, sampler)
    guidance = config.guidance.with_own(autoguidance_scale)
    guidance.check_network(unet)
    guidance.check_effect()
    check_eta(config.eta, sampler)


@plain_arguments
def spread_labels(num_images: int, num_classes: int) -> list[int]:
    """Return labels in ascending order, each class about equally often."""
    return [index * num_classes // num_images for index in range(num_images)]


def image_labels(pipeline: DenoisingPipeline, labels: Sequence[Label] | None, num_images: int) -> list[Label] | None:
    """Return the label of each image: `labels` repeated, by default all classes; None without classes."""
    if labels is None:
        return None if pipeline.num_classes is None else [*spread_labels(num_images, pipeline.num_classes)]
    if not labels:
        raise ValueError("labels is empty; name at least one class, or leave it out")
    return [labels[index % len(labels)] for index in range(num_images)]


@plain_arguments
def sample_images(
    pipeline: DenoisingPipeline,
    num_images: int,
    class_labels: Sequence[Label] | None = None,
    seed: int | Sequence[int] = 0,
    noise: Tensor | None = None,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
    **arguments: Any,
) -> Tensor:
    """Generate images batch by batch; the batch size changes none of them.

    Args:
        pipeline: A pipeline.
        num_images: Number of images.
        class_labels: Classes by index or name, or mixtures, repeated over the images; None for all
            classes of a class-conditional network, about equally often and in order.
        seed: Seed, or a seed for each image, as `DenoisingPipeline` takes it.
        noise: Standard normal noise to start from, `(num_images, channels, height, width)`.
        batch_size: Images in a batch.
        indices: Indices of the images to generate, such as a process's part; None for all.
        on_batch: Called with the number of images after each batch.
        arguments: Further arguments of `DenoisingPipeline`.

    Returns:
        `(num_images, channels, height, width)` in [0, 1], on the CPU; or as many as indices.
    """
    check_positive(num_images=num_images, batch_size=batch_size)
    if isinstance(seed, Sequence) and len(seed) != num_images:
        raise ValueError(f"{len(seed)} seeds for {num_images} images; give one, or one for each image")
    labels = image_labels(pipeline, class_labels, num_images)
    indices = range(num_images) if indices is None else indices
    batches = []
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        (images,) = pipeline(
            batch_size=len(batch),
            class_labels=None if labels is None else [labels[index] for index in batch],
            generator=image_generators(seed, batch),
            noise=None if noise is None else noise[list(batch)],
            output_type="pt",
            return_dict=False,
            **arguments,
        )
        batches.append(images.cpu())
        on_batch(len(batch))
    return torch.cat(batches)


def sample_shared(
    pipeline: DenoisingPipeline, config: SamplingConfig, on_batch: Callable[[int], object] = lambda count: None
) -> Tensor:
    """Generate images with all processes, each of which gets all: uint8 `(num_images, channels, height, width)`."""

    def compute(indices: Sequence[int]) -> Tensor:
        return quantised(sample_images(pipeline, **config.arguments(), indices=indices, on_batch=on_batch))

    return torch.cat(share_out(range(config.num_images), compute))
