"""Feature spaces: of a classifier, of a fixed network, and of the pixels."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, conv2d

from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.data.image_set import evenly
from denoiser.randomness import EVALUATION, seeded_generator
from pipelines.evaluation.distances import Moments
from pipelines.evaluation.judge import BATCH_SIZE, find_judges, in_batches, judge_images
from pipelines.evaluation.judge_networks import SPLITS, Judge

PREFIXES = ("", "second_")  # of the names of figures, by space
RANDOM_NETWORK = 6  # purpose of an `EVALUATION` generator: see `comparison` and `distances` for the others
STAGE_CHANNELS = (16, 16, 32)
NUM_COMPONENTS = 64
MOST_FOR_STATISTICS, MOST_FOR_SCALE = 60_000, 10_000  # training images, evenly picked
LARGEST_SIDE = 16  # of the images whose principal components are taken: larger ones are averaged down


@dataclass(frozen=True)
class FeatureSpace:
    """Feature space: its name, its map from uint8 images to `(count, features)`, and known moments."""

    name: str
    features: Callable[[Tensor], Tensor]
    moments: Mapping[str, Moments] | None = None


def best_spaces(train: ImageSet) -> list[FeatureSpace]:
    """Return the spaces of the set's judges, or without any that of the fixed convolutions."""
    return network_spaces(find_judges(train), train)


def network_spaces(judges: Sequence[Judge], train: ImageSet) -> list[FeatureSpace]:
    """Return the spaces of the judges, or without any that of the fixed convolutions."""
    return [judge_space(judge) for judge in judges] or [fixed_space(train)]


def judge_space(judge: Judge) -> FeatureSpace:
    """Return the feature space of a judge."""
    moments = {split: judge.moments(split) for split in SPLITS}
    return FeatureSpace(judge.kind, lambda images: judge_images(judge, images)[0], moments)


def beside(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the figures of one or two spaces: the names of the second's begin with "second_"."""
    in_turn = zip(PREFIXES, figures, strict=False)
    return {prefix + name: value for prefix, own in in_turn for name, value in own.items()}


class RandomNetwork(nn.Module):
    """Fixed convolutions: three stages of a 3x3 convolution with random weights, ReLU and averaging by two.

    The features are mean and standard deviation of each channel over the image, at every stage. Random
    networks suit images unlike Inception's photographs (Naeem et al. 2020). The weights are uniform with
    the variance of He et al. 2015: uniform numbers are the same on every machine, to the bit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = seeded_generator(EVALUATION, 0, RANDOM_NETWORK)
        for stage, width in enumerate(STAGE_CHANNELS):
            weights = 2 * torch.rand(width, channels, 3, 3, generator=generator) - 1
            self.register_buffer(f"weights_{stage}", weights * math.sqrt(6 / (9 * channels)))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], of 8x8 pixels or more, to features `(batch, 128)`."""
        statistics = []
        for weights in self.buffers():
            x = conv2d(x, weights, padding=1).relu()
            statistics += [x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)]
            x = avg_pool2d(x, 2)
        return torch.cat(statistics, dim=1)


def fixed_space(train: ImageSet) -> FeatureSpace:
    """Return the space of the fixed convolutions, of mean 0 and variance 1 on average over training images.

    Its moments of the training images are those of up to 10,000, evenly picked.
    """
    network = RandomNetwork(train.images.shape[1])

    @torch.no_grad()
    def respond(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            return in_batches(lambda batch: network(batch.cpu().float() / 127.5 - 1), images)

    known = torch.cat([respond(batch) for batch in some_batches(train.images, MOST_FOR_SCALE)])
    mean, scale = known.mean(dim=0), known.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-3)  # above rounding
    moments = {"train": Moments.of((known - mean) / scale)}
    return FeatureSpace("convolutions", lambda images: (respond(images) - mean) / scale, moments)


def pixel_space(train: ImageSet) -> FeatureSpace:
    """Return the space of the training images' first 64 principal components, of variance 1 on average.

    Nothing here is invariant, as a network's features can be to a shift by one pixel. Images of more
    than 16 pixels a side are averaged down to that.
    """
    moments = Moments.of_batches(map(_levels, some_batches(train.images, MOST_FOR_STATISTICS)))
    mean = moments.mean
    variances, directions = torch.linalg.eigh(moments.covariance / 255**2)  # in the order of rising variance
    kept = min(NUM_COMPONENTS, max(min(len(train), MOST_FOR_STATISTICS) - 1, 1))
    components = directions[:, -kept:] / variances[-kept:].mean().clamp(min=1e-12).sqrt()

    def project(images: Tensor) -> Tensor:
        return in_batches(lambda batch: (((_levels(batch) - mean) / 255) @ components).float(), images)

    return FeatureSpace("pixels", project)


def _levels(images: Tensor) -> Tensor:
    """Return the grey levels of uint8 images, `(count, values)` in float64, in which sums of them are exact."""
    height, width = images.shape[2:]
    if max(height, width) > LARGEST_SIDE:
        images = adaptive_avg_pool2d(images.float(), (min(height, LARGEST_SIDE), min(width, LARGEST_SIDE)))
    return images.cpu().flatten(1).double()


def some_batches(images: Tensor, most: int) -> Iterator[Tensor]:
    """Yield batches of up to `most` images, evenly picked."""
    for rows in evenly(len(images), most).split(BATCH_SIZE):
        yield images[rows.to(images.device)]


def some_rows(images: ImageSet, count: int) -> Tensor:
    """Return the indices of up to `count` images: evenly picked, but for FashionMNIST the first, since it is mixed."""
    if images.class_names == CLASS_NAMES:
        return torch.arange(min(count, len(images)))
    return evenly(len(images), count)


def rows_like(images: ImageSet, labels: Tensor, order: Tensor | None = None) -> Tensor:
    """Return the indices of images with the class counts of samples: the floor of class-conditional samples.

    A floor of images taken at random is higher by the chance of their class counts, which samples with
    given labels do not have. Where a class has too few images, those of other classes fill the place.

    Args:
        images: Images with labels.
        labels: Labels of the samples, `(count,)`.
        order: Permutation of the images, of which each class is evenly picked; None for their own order.
    """
    assert images.labels is not None
    order = torch.arange(len(images)) if order is None else order
    own = images.labels.cpu()[order]
    picked = torch.zeros(len(images), dtype=torch.bool)
    for label, wanted in enumerate(torch.bincount(labels.cpu()).tolist()):
        of_class = (own == label).nonzero()[:, 0]
        picked[of_class[evenly(len(of_class), wanted)]] = True
    left = (~picked).nonzero()[:, 0]
    picked[left[evenly(len(left), len(labels) - int(picked.sum()))]] = True
    return order[picked]


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each pixel of uint8 images, `(channels, height, width)` both."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for batch in some_batches(images, MOST_FOR_STATISTICS):
        levels = batch.cpu().double()
        total, squares, count = total + levels.sum(dim=0), squares + levels.square().sum(dim=0), count + len(levels)
    mean = total / count
    return mean.float(), ((squares - count * mean.square()).clamp(min=0) / max(count - 1, 1)).sqrt().float()
