"""What finished trainings draw: at the quality of diffusers' stock `DDPMPipeline`, and with one sampler or another."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline
from einops import rearrange
from torch import Tensor

from denoiser.benchmark.race import PIPELINE, Training
from denoiser.data import load_fashion_mnist
from denoiser.device import as_trained, in_best_layout
from denoiser.evaluation.distances import Moments, frechet_distance
from denoiser.evaluation.judge import judge_images, load_judge
from denoiser.training.probe import FEWEST
from pipelines import SamplingConfig, draw_samples, load_pipeline, make_scheduler, quantised
from pipelines.schedulers import check_scheduler_name, check_steps

BATCH_SIZE = 64
STEPS = (4, 5, 6, 8, 10, 14, 20, 30, 50)


def longest_of(baseline: str, finished: Sequence[Training]) -> Training:
    """Return the longest training of the network that the stock pipeline shall draw with.

    Raises:
        ValueError: If there is none, or it takes labels, which the stock pipeline has none for.
    """
    own = [training for training in finished if training.entry.name == baseline]
    if not own:
        raise ValueError(f"no training of '{baseline}' is here; make them first, with the same options and train")
    longest = max(own, key=lambda training: training.seconds)
    if longest.facts["settings"]["model"]["init_args"].get("num_class_embeds"):
        raise ValueError(f"'{baseline}' takes labels, and the stock DDPMPipeline gives none; compare without labels")
    return longest


def stock_comparison(baseline: Training, others: Sequence[Training], num_images: int) -> list[dict[str, Any]]:
    """Draw with the baseline's network through the stock pipeline, and with the others in ever more steps.

    Args:
        baseline: A finished training of an unconditional network.
        others: Finished trainings; each draws with the sampler of its settings until it is as close as the baseline.
        num_images: Images that each distance is of, from `FEWEST` to as many as are in the test split.

    Returns:
        A row for the baseline, with the distance of as many test images, then rows for the others; the last row of
        each is the first that is as close, if any is.
    """
    floor = _floor(baseline, num_images)
    pipeline = load_pipeline(baseline.folder / PIPELINE)
    stock = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def draw_stock() -> Tensor:
        sizes = [len(part) for part in torch.arange(num_images).split(BATCH_SIZE)]
        images = np.concatenate([stock(size, generator, output_type="np").images for size in sizes])
        return rearrange(torch.from_numpy(images), "b h w c -> b c h w")

    target = _row(baseline, stock.scheduler.config.num_train_timesteps, draw_stock) | {"frechet_floor": floor}
    return [target, *(row for training in others for row in _until_as_close(training, target["frechet"], num_images))]


def _until_as_close(training: Training, distance: float, num_images: int) -> Iterator[dict[str, Any]]:
    name = training.facts["settings"]["sampling"]["scheduler"]
    for row in _drawn(training, [(name, steps) for steps in STEPS], num_images):
        yield row
        if row["frechet"] <= distance:
            break


def sampler_comparison(
    trainings: Sequence[Training], samplers: Sequence[str], steps: Sequence[int], num_images: int
) -> list[dict[str, Any]]:
    """Draw with every sampler and number of steps from each of some finished trainings.

    Args:
        trainings: Finished trainings.
        samplers: Names from `pipelines.SCHEDULERS`.
        steps: Steps of the samplers, one number after the other.
        num_images: Images that each distance is of, from `FEWEST` to as many as are in the test split.

    Returns:
        A row for each training, sampler and number of steps, with the distance of as many test images.

    Raises:
        ValueError: If a sampler is unknown or cannot take so many steps, or the images cannot be judged.
    """
    floor = _floor(trainings[0], num_images)
    ways = [(name, count) for name in samplers for count in steps]
    for training in trainings:
        _, _, scheduler = training.entry.build(training.seconds, training.seed)
        for name, count in ways:
            check_scheduler_name(name)
            check_steps(count, make_scheduler(name, scheduler.config))
    rows = [row for training in trainings for row in _drawn(training, ways, num_images)]
    return [row | {"frechet_floor": floor} for row in rows]


def _floor(training: Training, num_images: int) -> float:
    """Return the distance of as many test images; `ValueError` if there are not so many, or too few to tell."""
    config, _, _ = training.entry.build(training.seconds, training.seed)
    images = load_fashion_mnist(config.data.root, "test", 16).images
    if not FEWEST <= num_images <= len(images):
        raise ValueError(f"images is {num_images}; a distance is of at least {FEWEST} and at most {len(images)}")
    return _frechet(images[:num_images])


def _drawn(training: Training, ways: Sequence[tuple[str, int]], num_images: int) -> Iterator[dict[str, Any]]:
    """Draw from a training in the precision and layout that it has, in one way after the other: sampler and steps."""
    assert training.result is not None
    pipeline, trained_with = load_pipeline(training.folder / PIPELINE), training.facts["settings"]["training"]
    if trained_with["channels_last"]:
        in_best_layout(pipeline.unet)
    noise_schedule = pipeline.scheduler.config
    with as_trained(training.result["precision"], pipeline.device):
        draw_samples(pipeline, SamplingConfig(num_images=1, steps=min(STEPS)))  # the first call is slow
        for name, steps in ways:
            pipeline.scheduler = make_scheduler(name, noise_schedule)
            config = SamplingConfig(num_images=num_images, steps=steps, scheduler=name, batch_size=BATCH_SIZE)
            yield _row(training, steps, partial(draw_samples, pipeline, config)) | {"sampler": name}


def _row(training: Training, steps: int, draw: Callable[[], Tensor]) -> dict[str, Any]:
    started = time.perf_counter()
    images = draw()
    seconds = time.perf_counter() - started
    return {
        "name": training.entry.name,
        "trained_seconds": training.seconds,
        "steps": steps,
        "images": len(images),
        "images_per_second": len(images) / seconds,
        "frechet": _frechet(quantised(images)),
    }


def _frechet(images: Tensor) -> float:
    judge = load_judge()
    features, _ = judge_images(judge, images)
    return frechet_distance(judge.moments("train"), Moments.of(features))
