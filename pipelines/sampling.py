"""Many images from a pipeline, batch by batch, each a function of (seed, its index) alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from denoiser.checks import check_between, check_kinds, check_positive, check_seed
from denoiser.plain import plain_arguments
from pipelines.classes import Label
from pipelines.denoising import DenoisingPipeline, StepCallback, image_generators
from pipelines.guidance import Guidance
from pipelines.schedulers import accepted_by_step, check_scheduler_name, check_steps, distilled_calls

MOST_SEEDS = 1_000_000


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn. Raises `ValueError` for what cannot be.

    Attributes:
        num_images: Images to draw.
        steps: Steps of the scheduler.
        scheduler: Its name: ddpm, ddim, dpmsolver++, sde-dpmsolver++, unipc, deis, euler, euler-ancestral, heun or
            lcm.
        guidance_scale: Classifier-free guidance for images with labels; 1 is none.
        guidance_rescale: Share, 0 to 1, of guidance's change of contrast that is taken back.
        guidance_interval: Lowest and highest noise level sigma at which guidance acts; None is everywhere.
        eta: How much noise a step of DDIM adds, from none at 0 to DDPM's at 1.
        seed: Image i is a function of (seed, i), to the last bit.
        batch_size: Images that are drawn at once; it changes none of them.
    """

    num_images: int = 100
    steps: int = 20
    scheduler: str = "sde-dpmsolver++"
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(num_images=self.num_images, steps=self.steps, batch_size=self.batch_size)
        check_scheduler_name(self.scheduler)
        check_seed(self.seed)
        check_between(0, 1, eta=self.eta)
        Guidance(self.guidance_scale, self.guidance_rescale, self.guidance_interval)


def own_sampler(scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return the sampler and its steps for a network that comes with this scheduler."""
    if calls := distilled_calls(scheduler.config):
        return {"scheduler": "lcm", "steps": calls}
    return {"scheduler": SamplingConfig.scheduler, "steps": SamplingConfig.steps}


def check_sampling(config: SamplingConfig, unet: ModelMixin, scheduler: SchedulerMixin) -> None:
    """Raise `ValueError` if the network or the scheduler cannot draw as the config says."""
    check_steps(config.steps, scheduler)
    if config.guidance_scale != 1 and unet.config.get("num_class_embeds") is None:
        raise ValueError(f"guidance_scale is {config.guidance_scale} and the network has no classes; leave it at 1")
    if config.guidance_scale != 1 and not hasattr(unet, "null_label"):
        raise ValueError(
            f"guidance_scale is {config.guidance_scale}, and {type(unet).__name__} has no null label; leave it at 1"
        )
    Guidance(config.guidance_scale, config.guidance_rescale, config.guidance_interval).check_effect()
    if config.eta and "eta" not in accepted_by_step(scheduler, eta=config.eta):
        raise ValueError(f"eta is {config.eta}, and {type(scheduler).__name__} takes none; use ddim, or leave it at 0")


@plain_arguments
def spread_labels(num_images: int, num_classes: int) -> list[int]:
    """Return labels that show every class about equally often, in order."""
    return [index * num_classes // num_images for index in range(num_images)]


def image_labels(pipeline: DenoisingPipeline, labels: Sequence[Label] | None, num_images: int) -> list[Label] | None:
    """Return the label of each image: those given, repeated, or every class alike; None for no classes."""
    if labels is None:
        return None if pipeline.num_classes is None else [*spread_labels(num_images, pipeline.num_classes)]
    if not labels:
        raise ValueError("labels is empty; name at least one class, or leave it out")
    return [labels[index % len(labels)] for index in range(num_images)]


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that a text such as `3,17,100-120` names, the ends of a range included.

    Raises:
        ValueError: If it names none, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds '{text}' cannot be read at '{part}'; write them such as 3,17,100-120")
        lowest, highest = int(first), int(last or first)
        if lowest > highest:
            raise ValueError(f"seeds '{text}': the range '{part}' is empty; give the lower number first")
        check_seed(highest)
        if len(seeds) + highest - lowest >= MOST_SEEDS:
            raise ValueError(f"seeds '{text}' names more than {MOST_SEEDS:,}; draw them in parts")
        seeds += range(lowest, highest + 1)
    return seeds


def parse_labels(text: str) -> list[Label] | None:
    """Return the classes that a text such as `sneaker,8,sneaker:2+bag` names, mixtures with weights; None for `all`.

    Raises:
        ValueError: If a weight is no number.
    """
    if text == "all":
        return None
    return [_parse_label(part.strip()) for part in text.split(",")]


def _parse_label(text: str) -> Label:
    if not {"+", ":"} & set(text):
        return text
    mixture: dict[int | str, float] = {}
    for part in text.split("+"):
        name, _, weight = part.partition(":")
        try:
            mixture[name.strip()] = mixture.get(name.strip(), 0) + float(weight or 1)
        except ValueError:
            raise ValueError(
                f"label '{text}': the weight '{weight}' is no number; write it such as sneaker:2+bag:1"
            ) from None
    return mixture


@plain_arguments
def draw_samples(
    pipeline: DenoisingPipeline,
    config: SamplingConfig,
    labels: Sequence[Label] | None = None,
    callback_on_step_end: StepCallback | None = None,
    indices: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    noise: Tensor | None = None,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Draw images with the pipeline's scheduler.

    Args:
        pipeline: What draws them.
        config: How many, and how.
        labels: Classes (by index, by name, or mixtures), repeated over the images; None spreads the images over all the
            classes of a class-conditional network.
        callback_on_step_end: Handed to the pipeline.
        indices: Which of the images to draw, such as one process's share; None means all.
        seeds: A seed for each image, in the place of the config's number of images and seed.
        noise: Standard normal to start from, `(num_images, channels, height, width)`, in the place of the seeds'.
        on_batch: Called with the number of images after each batch.

    Returns:
        `(num_images, channels, height, width)` in [0, 1], on the CPU; or as many as there are indices.
    """
    num_images = config.num_images if seeds is None else len(seeds)
    labels_of_all = image_labels(pipeline, labels, num_images)
    check_sampling(config, pipeline.unet, pipeline.scheduler)
    indices = range(num_images) if indices is None else indices
    batches = []
    for start in range(0, len(indices), config.batch_size):
        batch = indices[start : start + config.batch_size]
        (images,) = pipeline(
            batch_size=len(batch),
            class_labels=None if labels_of_all is None else [labels_of_all[index] for index in batch],
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            guidance_interval=config.guidance_interval,
            eta=config.eta,
            num_inference_steps=config.steps,
            generator=image_generators(config.seed if seeds is None else seeds, batch),
            output_type="pt",
            noise=None if noise is None else noise[list(batch)],
            return_dict=False,
            callback_on_step_end=callback_on_step_end,
        )
        batches.append(images.cpu())
        on_batch(len(batch))
    return torch.cat(batches)
