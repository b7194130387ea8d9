"""Drawing at equal quality: our few steps beside the 1,000 of diffusers' stock `DDPMPipeline`."""

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
        num_images: Images that each distance is of, at least `FEWEST`.

    Returns:
        A row for the baseline, with the distance of as many test images, then rows for the others; the last row of
        each is the first that is as close, if any is.
    """
    if num_images < FEWEST:
        raise ValueError(f"images is {num_images}; a distance is of at least {FEWEST}")
    pipeline = load_pipeline(baseline.folder / PIPELINE)
    stock = DDPMPipeline(pipeline.unet, pipeline.scheduler)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def draw_stock() -> Tensor:
        sizes = [len(part) for part in torch.arange(num_images).split(BATCH_SIZE)]
        images = np.concatenate([stock(size, generator, output_type="np").images for size in sizes])
        return rearrange(torch.from_numpy(images), "b h w c -> b c h w")

    config, _, _ = baseline.entry.build(baseline.seconds, baseline.seed)
    floor = _frechet(load_fashion_mnist(config.data.root, "test", 16).images[:num_images])
    target = _row(baseline, stock.scheduler.config.num_train_timesteps, draw_stock) | {"frechet_floor": floor}
    return [target, *(row for training in others for row in _until_as_close(training, target["frechet"], num_images))]


def _until_as_close(training: Training, distance: float, num_images: int) -> Iterator[dict[str, Any]]:
    assert training.result is not None
    pipeline, settings = load_pipeline(training.folder / PIPELINE), training.facts["settings"]
    if settings["training"]["channels_last"]:
        in_best_layout(pipeline.unet)
    name = settings["sampling"]["scheduler"]
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
    with as_trained(training.result["precision"], pipeline.device):
        draw_samples(pipeline, SamplingConfig(num_images=1, steps=min(STEPS), scheduler=name))  # the first call is slow
        for steps in STEPS:
            config = SamplingConfig(num_images=num_images, steps=steps, scheduler=name, batch_size=BATCH_SIZE)
            row = _row(training, steps, partial(draw_samples, pipeline, config))
            yield row
            if row["frechet"] <= distance:
                break


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
