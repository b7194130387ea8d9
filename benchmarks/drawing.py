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
from tqdm import tqdm

from benchmarks.race import PIPELINE, Training
from denoiser.checks import check_between
from denoiser.data import load_fashion_mnist
from denoiser.device import as_trained, in_best_layout
from pipelines import SamplingConfig, draw_samples, load_pipeline, make_scheduler, quantised
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.judge import Judge, frechet_to_train, load_judge
from pipelines.schedulers import check_steps

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


def stock_comparison(baseline: Training, others: Sequence[Training], num_images: int) -> Iterator[dict[str, Any]]:
    """Draw with the baseline's network through the stock pipeline, and with the others in ever more steps.

    Args:
        baseline: A finished training of an unconditional network.
        others: Finished trainings; each draws with the sampler of its settings until it is as close as the baseline.
        num_images: Images that each distance is of, from `FEWEST_FOR_FRECHET` to as many as are in the test split.

    Yields:
        A row for the baseline, with the distance of as many test images, then rows for the others; the last row of
        each is the first that is as close, if any is.

    Raises:
        ValueError: Before the first row, if so many images cannot be judged, or one of the others cannot draw in the
            steps.
    """
    judge = load_judge()
    floor = _floor(judge, baseline, num_images)
    ways = [_ways(training, [training.facts["settings"]["sampling"]["scheduler"]], STEPS) for training in others]
    pipeline = load_pipeline(baseline.folder / PIPELINE)
    stock = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def draw_stock() -> Tensor:
        sizes = [len(part) for part in torch.arange(num_images).split(BATCH_SIZE)]
        batches = tqdm(sizes, desc="DDPMPipeline", unit="batch", position=0, leave=False)  # a minute or two each
        images = np.concatenate([stock(size, generator, output_type="np").images for size in batches])
        return rearrange(torch.from_numpy(images), "b h w c -> b c h w")

    target = _row(judge, baseline, stock.scheduler.config.num_train_timesteps, draw_stock)
    yield target | {"frechet_floor": floor}
    for training, own in zip(others, ways, strict=True):
        for row in _drawn(judge, training, own, num_images):
            yield row
            if row["frechet"] <= target["frechet"]:
                break


def sampler_comparison(
    trainings: Sequence[Training], samplers: Sequence[str], steps: Sequence[int], num_images: int
) -> Iterator[dict[str, Any]]:
    """Draw with every sampler and number of steps from each of some finished trainings.

    Args:
        trainings: Finished trainings.
        samplers: Names from `pipelines.SCHEDULERS`.
        steps: Steps of the samplers, one number after the other.
        num_images: Images that each distance is of, from `FEWEST_FOR_FRECHET` to as many as are in the test split.

    Yields:
        A row for each training, sampler and number of steps, with the distance of as many test images.

    Raises:
        ValueError: Before the first row, if a sampler is unknown or cannot take so many steps, or the images cannot be
            judged.
    """
    judge = load_judge()
    floor = _floor(judge, trainings[0], num_images)
    ways = [_ways(training, samplers, steps) for training in trainings]
    for training, own in zip(trainings, ways, strict=True):
        for row in _drawn(judge, training, own, num_images):
            yield row | {"frechet_floor": floor}


def _ways(training: Training, samplers: Sequence[str], steps: Sequence[int]) -> list[tuple[str, int]]:
    """Return each sampler with each number of steps; `ValueError` if the training's network cannot draw so."""
    _, _, scheduler = training.entry.build(training.seconds, training.seed)
    ways = [(name, count) for name in samplers for count in steps]
    for name, count in ways:
        check_steps(count, make_scheduler(name, scheduler.config))
    return ways


def _floor(judge: Judge, training: Training, num_images: int) -> float:
    """Return the distance of as many test images; `ValueError` if there are not so many, or too few to tell."""
    config, _, _ = training.entry.build(training.seconds, training.seed)
    images = load_fashion_mnist(config.data.root, "test", 16).images
    check_between(FEWEST_FOR_FRECHET, len(images), images=num_images)
    return frechet_to_train(judge, images[:num_images])


def _drawn(
    judge: Judge, training: Training, ways: Sequence[tuple[str, int]], num_images: int
) -> Iterator[dict[str, Any]]:
    """Draw from a training in the precision and layout that it has, in one way after the other: sampler and steps."""
    assert training.result is not None
    pipeline, trained_with = load_pipeline(training.folder / PIPELINE), training.facts["settings"]["training"]
    if trained_with["channels_last"]:
        in_best_layout(pipeline.unet)
    noise_schedule = pipeline.scheduler.config
    precision = training.result["precision"]

    def draw(config: SamplingConfig) -> Tensor:
        with as_trained(precision, pipeline.device):
            return draw_samples(pipeline, config)

    draw(SamplingConfig(num_images=1, steps=min(STEPS)))  # the first call is slow
    for name, steps in ways:
        pipeline.scheduler = make_scheduler(name, noise_schedule)
        config = SamplingConfig(num_images=num_images, steps=steps, scheduler=name, batch_size=BATCH_SIZE)
        yield _row(judge, training, steps, partial(draw, config)) | {"sampler": name}


def _row(judge: Judge, training: Training, steps: int, draw: Callable[[], Tensor]) -> dict[str, Any]:
    started = time.perf_counter()
    images = draw()
    seconds = time.perf_counter() - started
    return {
        "name": training.entry.name,
        "trained_seconds": training.seconds,
        "steps": steps,
        "images": len(images),
        "images_per_second": len(images) / seconds,
        "frechet": frechet_to_train(judge, quantised(images)),
    }
