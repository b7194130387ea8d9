"""Samples against both splits of the data in a feature space, with a floor and a ceiling."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from denoiser.data import ImageSet
from denoiser.randomness import EVALUATION, seeded_generator
from pipelines.evaluation.distances import MIN_IMAGES, Cloud, Moments, compare, fidelity, frechet_distance, nearest
from pipelines.evaluation.judge import IMAGE_SHAPE, SPLITS, Judge, judge_images

CEILING, TRAIN_SUBSET, TEST_SUBSET = 1, 2, 3  # purposes of `EVALUATION` generators
ROUNDING = 1e-9
Figures = dict[str, float]
NUM_COMPONENTS = 64


@dataclass(frozen=True)
class FeatureSpace:
    """Feature space: its name, its map from uint8 images to `(count, features)`, and known moments."""

    name: str
    features: Callable[[Tensor], Tensor]
    moments: Mapping[str, Moments] | None = None


def judge_space(judge: Judge) -> FeatureSpace:
    """Return the feature space of the judge."""
    moments = {split: judge.moments(split) for split in SPLITS}
    return FeatureSpace("judge", lambda images: judge_images(judge, images)[0], moments)


def pixel_space(train: ImageSet) -> FeatureSpace:
    """Return the space of the training images' first 64 principal components, of variance 1 on average.

    Nothing here is invariant, as a network's features can be to a shift by one pixel.
    """
    pixels = train.images.flatten(1).double() / 255
    mean = pixels.mean(dim=0)
    variances, directions = torch.linalg.eigh(pixels.T.cov())  # in the order of rising variance
    components = directions[:, -NUM_COMPONENTS:]
    components = components / variances[-NUM_COMPONENTS:].mean().sqrt()

    def project(images: Tensor) -> Tensor:
        return ((images.flatten(1).double() / 255 - mean) @ components).float()

    return FeatureSpace("pixels", project)


def check_images(images: Tensor, most: int) -> None:
    """Raise `ValueError` unless the judge supports the images and their number."""
    if tuple(images.shape[1:]) != IMAGE_SHAPE:
        raise ValueError(
            f"the images are {tuple(images.shape[1:])} (channels, height, width); the judge sees (1, 16, 16)"
        )
    if images.dtype != torch.uint8:
        raise ValueError(f"the images are {images.dtype}; give uint8, 0 to 255")
    check_count(len(images), most)


def check_count(num_images: int, most: int) -> None:
    """Raise `ValueError` unless the distances can be measured with this number of images."""
    if not MIN_IMAGES <= num_images <= most:
        raise ValueError(
            f"{num_images} images cannot be judged; give at least {MIN_IMAGES}, which the kernel distance needs, "
            f"and at most {most}, as many as the test split has to stand beside them"
        )


def noise_images(train: ImageSet, count: int, seed: int) -> Tensor:
    """Return the ceiling: Gaussian noise with each pixel's moments, uint8 `(count, 1, 16, 16)`."""
    pixels = train.images.float()
    generator = seeded_generator(EVALUATION, seed, CEILING)
    noise = torch.randn(count, *IMAGE_SHAPE, generator=generator)
    return (pixels.mean(dim=0) + pixels.std(dim=0) * noise).round().clamp(0, 255).byte()


class Comparison:
    """Comparison with both splits in a feature space."""

    def __init__(self, space: FeatureSpace, train: ImageSet, test: ImageSet) -> None:
        self.space = space
        self.sets = {"train": train, "test": test}
        self.features = {split: space.features(images.images) for split, images in self.sets.items()}
        self.moments = space.moments or {split: Moments.of(features) for split, features in self.features.items()}

    def figures(self, features: Tensor, seed: int) -> dict[str, dict[str, Figures]]:
        """Return the figures of samples, `(count, features)`, by split, beside a floor and a ceiling.

        The floor has as many real images of the other split instead of the samples. The seed chooses among
        the splits' images, and makes the ceiling's noise.
        """
        count, judged = len(features), Cloud(features)
        ceiling = Cloud(self.space.features(noise_images(self.sets["train"], count, seed)))
        real = {split: Cloud(self._subset(split, count, seed)) for split in self.sets}
        rows = {}
        for split, other in (("train", "test"), ("test", "train")):
            columns = {"samples": judged, "floor": real[other], "ceiling": ceiling}
            rows[split] = {name: compare(self.moments[split], real[split], cloud) for name, cloud in columns.items()}
        return rows

    def in_short(self, features: Tensor, seed: int) -> Figures:
        """Return the Fréchet distance and the recall against the training split."""
        cloud, real = Cloud(features), Cloud(self._subset("train", len(features), seed))
        recall = fidelity(real, cloud)["recall"]
        return {"frechet": frechet_distance(self.moments["train"], cloud.moments), "recall": recall}

    def by_class(self, features: Tensor, labels: Tensor) -> list[Figures]:
        """Return each class's Fréchet distance to its training images, and that of as many test images.

        Samples of a class beyond its number of test images are ignored.
        """
        train = self.sets["train"]
        rows = []
        for label in range(len(train.class_names)):
            real = Moments.of(self.features["train"][train.labels == label])
            samples, held_out = features[labels == label], self.features["test"][self.sets["test"].labels == label]
            count = min(len(samples), len(held_out))
            distances = (frechet_distance(real, Moments.of(some[:count])) for some in (samples, held_out))
            rows.append(dict(zip(("frechet", "floor"), distances, strict=True)))
        return rows

    def nearest_training_images(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and indices of the two nearest training images of each image, `(count, 2)` both."""
        return nearest(features, self.features["train"], 2)

    def _subset(self, split: str, count: int, seed: int) -> Tensor:
        features = self.features[split]
        which = TRAIN_SUBSET if split == "train" else TEST_SUBSET
        order = torch.randperm(len(features), generator=seeded_generator(EVALUATION, seed, which))
        return features[order[:count]]


def mean_and_spread(rows: Sequence[Any]) -> Any:
    """Return mean and standard deviation over seeds of nested dicts of figures.

    The spread is None with one seed, and for figures that do not depend on the seed.
    """
    if isinstance(rows[0], dict):
        return {name: mean_and_spread([row[name] for row in rows]) for name in rows[0]}
    values = torch.tensor(rows, dtype=torch.float64)
    varies = len(rows) > 1 and values.max() - values.min() > ROUNDING * values.abs().max()
    return {"mean": values.mean().item(), "spread": values.std().item() if varies else None}
