"""Sampling from finished trainings: beside diffusers' stock `DDPMPipeline`, and with each sampler."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import tqdm
from diffusers import DDPMPipeline
from einops import rearrange
from torch import Tensor

from benchmarks.race import PIPELINE, Training
from denoiser.checks import check_between
from denoiser.data import load_fashion_mnist
from denoiser.device import as_trained, in_best_layout
from pipelines import SamplingConfig, load_pipeline, make_scheduler, quantised, sample_images
from pipelines.evaluation.distances import FEWEST_FOR_FRECHET
from pipelines.evaluation.judge import frechet_to_train, load_judges
from pipelines.evaluation.judge_networks import Judge
from pipelines.evaluation.spaces import beside, rows_like
from pipelines.sampling import spread_labels
from pipelines.stepping import check_steps

BATCH_SIZE = 64
STEPS = (4, 5, 6, 8, 10, 14, 20, 30, 50)


def longest_of(baseline: str, finished: Sequence[Training]) -> Training:
    """Return the longest training of the baseline, for the stock pipeline."""
    own = [training for training in finished if training.entry.name == baseline]
    if not own:
        raise ValueError(f"no training of '{baseline}' is here; make them first, with the same options and train")
    longest = max(own, key=lambda training: training.seconds)
    if longest.facts["settings"]["model"]["init_args"].get("num_class_embeds"):
        raise ValueError(f"'{baseline}' takes labels, and the stock DDPMPipeline gives none; compare without labels")
    return longest


def stock_comparison(baseline: Training, others: Sequence[Training], num_images: int) -> Iterator[dict[str, Any]]:
    """Sample from the baseline in the stock pipeline, and from the others in more and more steps."""
    judges = load_judges()
    floor = floors_of(judges, baseline, num_images)
    ways = [_ways(training, [training.facts["settings"]["sampling"]["scheduler"]], STEPS) for training in others]
    pipeline = load_pipeline(baseline.folder / PIPELINE)
    stock = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def sample_stock() -> Tensor:
        sizes = [len(part) for part in torch.arange(num_images).split(BATCH_SIZE)]
        batches = tqdm(sizes, desc="DDPMPipeline", unit="batch", position=0, leave=False)  # a minute or two each
        images = np.concatenate([stock(size, generator, output_type="np").images for size in batches])
        return rearrange(torch.from_numpy(images), "b h w c -> b c h w")

    target = _row(judges, baseline, stock.scheduler.config.num_train_timesteps, sample_stock)
    yield target | floor
    for training, own in zip(others, ways, strict=True):
        for row in _rows(judges, training, own, num_images):
            yield row
            if row["frechet"] <= target["frechet"]:
                break


def sampler_comparison(
    trainings: Sequence[Training], samplers: Sequence[str], steps: Sequence[int], num_images: int
) -> Iterator[dict[str, Any]]:
    """Sample from finished trainings with each sampler and number of steps."""
    judges = load_judges()
    floor = floors_of(judges, trainings[0], num_images)
    ways = [_ways(training, samplers, steps) for training in trainings]
    for training, own in zip(trainings, ways, strict=True):
        for row in _rows(judges, training, own, num_images):
            yield row | floor


def _ways(training: Training, samplers: Sequence[str], steps: Sequence[int]) -> list[tuple[str, int]]:
    """Return each sampler with each number of steps, or raise `ValueError` for an unsupported one."""
    _, _, noise_schedule = training.entry.build(training.seconds, training.seed)
    ways = [(name, count) for name in samplers for count in steps]
    for name, count in ways:
        check_steps(count, make_scheduler(name, noise_schedule.config))
    return ways


def floors_of(judges: Sequence[Judge], training: Training, num_images: int) -> dict[str, float]:
    """Return the distance of as many test images by each judge, or raise `ValueError` for an invalid number.

    For a network with classes, they have the class counts of its samples.
    """
    config, model, _ = training.entry.build(training.seconds, training.seed)
    test = load_fashion_mnist(config.data.root, "test", 16)
    check_between(FEWEST_FOR_FRECHET, len(test), images=num_images)
    num_classes = model.config.get("num_class_embeds")
    rows = torch.arange(num_images)
    if num_classes is not None:
        rows = rows_like(test, torch.tensor(spread_labels(num_images, num_classes)))
    return beside([{"frechet_floor": frechet_to_train(judge, test.images[rows])} for judge in judges])


def _rows(
    judges: Sequence[Judge], training: Training, ways: Sequence[tuple[str, int]], num_images: int
) -> Iterator[dict[str, Any]]:
    """Sample from a training in its precision and layout, with each sampler and number of steps."""
    assert training.result is not None
    pipeline = load_pipeline(training.folder / PIPELINE)
    if training.facts["settings"]["training"]["channels_last"]:
        in_best_layout(pipeline.unet)
    noise_schedule = pipeline.scheduler.config
    precision = training.result["precision"]

    def sample(config: SamplingConfig) -> Tensor:
        with as_trained(precision, pipeline.device):
            return sample_images(pipeline, **config.arguments())

    sample(SamplingConfig(num_images=1, steps=min(STEPS)))  # the first call is slow
    for name, steps in ways:
        pipeline.scheduler = make_scheduler(name, noise_schedule)
        config = SamplingConfig(num_images=num_images, steps=steps, scheduler=name, batch_size=BATCH_SIZE)
        yield _row(judges, training, steps, partial(sample, config)) | {"sampler": name}


def _row(judges: Sequence[Judge], training: Training, steps: int, sample: Callable[[], Tensor]) -> dict[str, Any]:
    started = time.perf_counter()
    images = sample()
    seconds = time.perf_counter() - started
    levels = quantised(images)
    return {
        "name": training.entry.name,
        "trained_seconds": training.seconds,
        "steps": steps,
        "images": len(images),
        "images_per_second": len(images) / seconds,
        **beside([{"frechet": frechet_to_train(judge, levels)} for judge in judges]),
    }
