"""All that a pipeline has to do for its evaluation: the part that several processes share."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from denoiser.data import ImageSet
from denoiser.evaluation.config import EvaluationConfig
from denoiser.evaluation.likelihood import Bound, bound_of_batch, num_batches
from pipelines import DenoisingPipeline, SamplingConfig, check_sampling, draw_samples, make_scheduler, quantised
from pipelines.sampling import spread_labels

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
SAMPLERS = [
    (name, steps) for name in ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc") for steps in (5, 10, 20, 50)
]
SAMPLERS.append(("ddpm", 1000))

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
        share_out: `training.processes.share_out`, or what does the same.
        on_work: Called with a number of network calls on single images after they were made.
    """

    def __init__(
        self,
        pipeline: DenoisingPipeline,
        config: EvaluationConfig,
        share_out: ShareOut,
        on_work: Callable[[int], object] = lambda calls: None,
    ) -> None:
        self.pipeline, self.config, self.share_out, self.on_work = pipeline, config, share_out, on_work
        self.trained_scheduler = pipeline.scheduler
        self.sampling = SamplingConfig(**{entry.name: getattr(config, entry.name) for entry in fields(SamplingConfig)})
        check_sampling(self.sampling, pipeline.unet, make_scheduler(config.scheduler, pipeline.scheduler.config))

    def work(self, sections: Sequence[str], num_test_images: int) -> int:
        """Return how many network calls on single images `draw` makes in all processes together."""
        config, sweep = self.config, self.config.sweep_images
        guided = 1 if config.guidance_scale == 1 else 2
        return (
            config.seeds * config.num_images * config.steps * guided
            + ("guidance" in sections) * sum(1 if scale == 1 else 2 for scale in GUIDANCE_SCALES) * sweep * config.steps
            + ("samplers" in sections) * sum(calls(*sampler) for sampler in SAMPLERS) * sweep
            + ("likelihood" in sections) * num_test_images * (config.likelihood_draws + 1)
        )

    def draw(self, sections: Sequence[str], test: ImageSet) -> Drawn:
        """Draw all that the sections need."""
        config, sweep = self.config, replace(self.sampling, num_images=self.config.sweep_images)
        samples = [self.images(replace(self.sampling, seed=config.seed + index)) for index in range(config.seeds)]
        drawn = Drawn(samples, class_labels(self.pipeline, config.num_images))
        if "guidance" in sections:
            drawn.by_guidance = {scale: self.images(replace(sweep, guidance_scale=scale)) for scale in GUIDANCE_SCALES}
        if "likelihood" in sections:
            drawn.bound = self.bound(test)
        if "samplers" in sections:
            for name, steps in SAMPLERS:
                started = time.perf_counter()
                drawn.by_sampler[name, steps] = self.images(replace(sweep, scheduler=name, steps=steps))
                drawn.seconds_by_sampler[name, steps] = time.perf_counter() - started
        return drawn

    def images(self, sampling: SamplingConfig) -> Tensor:
        """Draw images as uint8 `(num_images, 1, 16, 16)`."""
        self.pipeline.scheduler = make_scheduler(sampling.scheduler, self.trained_scheduler.config)
        per_image = calls(sampling.scheduler, sampling.steps) * (1 if sampling.guidance_scale == 1 else 2)

        def compute(indices: Sequence[int]) -> Tensor:
            done = lambda count: self.on_work(count * per_image)  # noqa: E731
            return quantised(draw_samples(self.pipeline, sampling, indices=indices, on_batch=done))

        return torch.cat(self.share_out(range(sampling.num_images), compute))

    def bound(self, test: ImageSet) -> Bound:
        """Bound the likelihood of the test images."""
        unet, config = self.pipeline.unet, self.config

        def compute(batches: Sequence[int]) -> list[Bound]:
            parts = []
            for batch in batches:
                parts.append(
                    bound_of_batch(unet, self.trained_scheduler, test, batch, config.likelihood_draws, config.seed)
                )
                self.on_work(parts[-1].terms.numel() + len(parts[-1].prior))
            return parts

        return Bound.join([part for parts in self.share_out(range(num_batches(test)), compute) for part in parts])


def calls(sampler: str, steps: int) -> int:
    """Return the network calls that a sampler makes in so many steps: Heun's method makes two in all but the last."""
    return 2 * steps - 1 if sampler == "heun" else steps


def class_labels(pipeline: DenoisingPipeline, num_images: int) -> Tensor | None:
    """Return the classes that `draw_samples` asks for, `(num_images,)`, or None."""
    return None if pipeline.num_classes is None else torch.tensor(spread_labels(num_images, pipeline.num_classes))
