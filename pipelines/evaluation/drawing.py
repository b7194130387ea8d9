"""All that a pipeline has to do for its evaluation: the part that several processes share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from denoiser.data import ImageSet
from pipelines import DenoisingPipeline, SamplingConfig, check_sampling, draw_samples, make_scheduler, quantised
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.likelihood import Bound, bound_of_batch, num_batches
from pipelines.sampling import spread_labels
from pipelines.schedulers import build_scheduler

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SAMPLERS = [
    (name, steps) for name in ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc") for steps in (5, 10, 20, 50)
]
SAMPLERS.append(("ddpm", 1000))

OF_SETS = {"distances", "classes", "memorisation"}  # the sections that look at the sets of images of every seed

ShareOut = Callable[[Sequence[int], Callable[[Sequence[int]], Any]], list[Any]]


@dataclass
class Drawn:
    """What was drawn.

    Attributes:
        samples: For each seed, uint8 `(num_images, 1, 16, 16)`.
        labels: The class asked of each image, `(num_images,)`, or None.
        by_guidance: Images by guidance scale.
        by_sampler: Images by sampler and steps.
        seconds_by_sampler: Time that each of them took.
        bound: Of the test split's likelihood, or None.
    """

    samples: list[Tensor]
    labels: Tensor | None = None
    by_guidance: dict[float, Tensor] = field(default_factory=dict)
    by_sampler: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    seconds_by_sampler: dict[tuple[str, int], float] = field(default_factory=dict)
    bound: Bound | None = None


class Drawing:
    """Draws from a pipeline, with all processes.

    Args:
        pipeline: What is evaluated.
        config: What to draw.
        sections: What the report shall have.
        test: Test split, whose likelihood is bounded.
        share_out: `training.processes.share_out`, or what does the same.

    Attributes:
        on_work: Called with a number of network calls on single images after they were made.

    Raises:
        ValueError: If the pipeline cannot draw as the config says, or its network has other classes than the data.
    """

    def __init__(
        self,
        pipeline: DenoisingPipeline,
        config: EvaluationConfig,
        sections: Sequence[str],
        test: ImageSet,
        share_out: ShareOut,
    ) -> None:
        self.pipeline, self.config, self.sections, self.test = pipeline, config, sections, test
        self.share_out = share_out
        self.on_work: Callable[[int], object] = lambda calls: None
        trained = self.trained_scheduler = pipeline.scheduler
        known = isinstance(trained, DDPMScheduler)
        self.noise_schedule = trained if known else build_scheduler(DDPMScheduler, trained.config)
        if pipeline.num_classes not in (None, len(test.class_names)):
            raise ValueError(f"the network has {pipeline.num_classes} classes, and the data {len(test.class_names)}")
        plain = SamplingConfig(**{entry.name: getattr(config, entry.name) for entry in fields(SamplingConfig)})
        swept = replace(plain, num_images=config.sweep_images)
        self.sets = [replace(plain, seed=config.seed + index) for index in range(config.seeds)]
        self.by_guidance = {scale: replace(swept, guidance_scale=scale) for scale in GUIDANCE_SCALES}
        self.by_guidance[1.0] = replace(swept, guidance_scale=1.0, guidance_rescale=0.0, guidance_interval=None)
        self.by_sampler = {
            (name, steps): replace(swept, scheduler=name, steps=steps)
            for name, steps in SAMPLERS
            if steps <= trained.config.num_train_timesteps
        }
        if not set(sections) & OF_SETS:
            self.sets = []
        if "guidance" not in sections:
            self.by_guidance = {}
        if "samplers" not in sections:
            self.by_sampler = {}
        for sampling in self._samplings():  # better to learn it now than after half an hour
            check_sampling(sampling, pipeline.unet, make_scheduler(sampling.scheduler, trained.config))

    @property
    def work(self) -> int:
        """How many network calls on single images `draw` makes in all processes together."""
        images = sum(sampling.num_images * calls(sampling) for sampling in self._samplings())
        return images + ("likelihood" in self.sections) * len(self.test) * (self.config.likelihood_draws + 1)

    def draw(self) -> Drawn:
        """Draw all that the sections need."""
        drawn = Drawn([self.images(sampling) for sampling in self.sets], labels_asked_for(self.pipeline, self.config))
        drawn.by_guidance = {scale: self.images(sampling) for scale, sampling in self.by_guidance.items()}
        if "likelihood" in self.sections:
            drawn.bound = self.bound()
        for sampler, sampling in self.by_sampler.items():
            started = time.perf_counter()
            drawn.by_sampler[sampler] = self.images(sampling)
            drawn.seconds_by_sampler[sampler] = time.perf_counter() - started
        return drawn

    def images(self, sampling: SamplingConfig) -> Tensor:
        """Draw images as uint8 `(num_images, 1, 16, 16)`."""

        def compute(indices: Sequence[int]) -> Tensor:
            batches = draw_samples(
                self.pipeline, sampling, indices=indices, on_batch=lambda count: self.on_work(count * calls(sampling))
            )
            return quantised(batches)

        self.pipeline.scheduler = make_scheduler(sampling.scheduler, self.trained_scheduler.config)
        parts = self.share_out(range(sampling.num_images), compute)
        self.pipeline.scheduler = self.trained_scheduler
        return torch.cat(parts)

    def bound(self) -> Bound:
        """Bound the likelihood of the test images."""
        config = self.config

        def compute(batches: Sequence[int]) -> list[Bound]:
            parts = []
            for batch in batches:
                part = bound_of_batch(
                    self.pipeline.unet, self.noise_schedule, self.test, batch, config.likelihood_draws, config.seed
                )
                self.on_work(part.terms.numel() + len(part.prior))
                parts.append(part)
            return parts

        return Bound.join([part for parts in self.share_out(range(num_batches(self.test)), compute) for part in parts])

    def _samplings(self) -> list[SamplingConfig]:
        return [*self.sets, *self.by_guidance.values(), *self.by_sampler.values()]


def calls(sampling: SamplingConfig) -> int:
    """Return the network calls for each image: Heun's method makes two in every step but the last, guidance doubles."""
    steps = 2 * sampling.steps - 1 if sampling.scheduler == "heun" else sampling.steps
    return steps if sampling.guidance_scale == 1 else 2 * steps


def sampler_key(name: str, steps: int) -> str:
    """Return a sampler's name in flat tables."""
    return f"{name} {steps}"


def labels_asked_for(pipeline: DenoisingPipeline, config: SamplingConfig) -> Tensor | None:
    """Return the classes that `draw_samples` asks for by default, `(num_images,)`, or None."""
    if pipeline.num_classes is None:
        return None
    return torch.tensor(spread_labels(config.num_images, pipeline.num_classes))
