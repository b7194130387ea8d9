"""Samples against both splits of the data in a feature space, with a floor and a ceiling."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from denoiser.data import ImageSet
from denoiser.randomness import EVALUATION, seeded_generator
from pipelines.evaluation.distances import (
    FEWEST_FOR_FRECHET,
    MIN_IMAGES,
    Cloud,
    Moments,
    compare,
    fidelity,
    frechet_distance,
    nearest,
)
from pipelines.evaluation.spaces import BATCH_SIZE, FeatureSpace, pixel_statistics, rows_like

CEILING, TRAIN_SUBSET, TEST_SUBSET = 1, 2, 3  # purposes of `EVALUATION` generators
ROUNDING = 1e-9
Figures = dict[str, float]


def check_count(num_images: int, held_out: int) -> None:
    """Raise `ValueError` unless this number of images can stand beside this number of held-out ones.

    With fewer held-out images than the kernel distance needs, any number can.
    """
    if held_out >= MIN_IMAGES and not MIN_IMAGES <= num_images <= held_out:
        raise ValueError(
            f"{num_images} images cannot be judged; give at least {MIN_IMAGES}, which the kernel distance needs, "
            f"and at most {held_out}, as many as the held-out images that stand beside them"
        )


def noise_images(train: ImageSet, count: int, seed: int) -> Tensor:
    """Return the ceiling: Gaussian noise with each pixel's moments, uint8 `(count, channels, height, width)`."""
    mean, deviation = pixel_statistics(train.images)
    generator = seeded_generator(EVALUATION, seed, CEILING)
    sizes = [len(part) for part in torch.arange(count).split(BATCH_SIZE)]
    noise = (torch.randn(size, *mean.shape, generator=generator) for size in sizes)
    return torch.cat([(mean + deviation * part).round().clamp(0, 255).byte() for part in noise])


class Comparison:
    """Comparison with both splits in a feature space, or with the training images alone."""

    def __init__(self, space: FeatureSpace, train: ImageSet, test: ImageSet | None) -> None:
        self.space = space
        self.sets = {"train": train} if test is None else {"train": train, "test": test}
        self.features = {split: space.features(images.images) for split, images in self.sets.items()}
        known = space.moments or {}
        self.moments = {split: known.get(split) or Moments.of(features) for split, features in self.features.items()}

    def figures(self, features: Tensor, seed: int, labels: Tensor | None = None) -> dict[str, dict[str, Figures]]:
        """Return the figures of samples, `(count, features)`, by split, beside a floor and a ceiling.

        The floor has as many real images of the other split instead of the samples, with the class counts
        of the samples' labels if there are any. The seed chooses among the splits' images, and makes the
        ceiling's noise.
        """
        count, judged = len(features), Cloud(features)
        ceiling = Cloud(self.space.features(noise_images(self.sets["train"], count, seed)))
        real = {split: Cloud(self._subset(split, count, seed)) for split in self.sets}
        floors = real if labels is None else {split: Cloud(self._like(split, labels, seed)) for split in self.sets}
        rows = {}
        for split, other in (("train", "test"), ("test", "train")):
            columns = {"samples": judged, "floor": floors[other], "ceiling": ceiling}
            rows[split] = {name: compare(self.moments[split], real[split], cloud) for name, cloud in columns.items()}
        return rows

    def in_short(self, features: Tensor, seed: int) -> Figures:
        """Return the Fréchet distance and the recall against the training split."""
        cloud, real = Cloud(features), Cloud(self._subset("train", len(features), seed))
        recall = fidelity(real, cloud)["recall"]
        return {"frechet": frechet_distance(self.moments["train"], cloud.moments), "recall": recall}

    def by_class(self, features: Tensor, labels: Tensor) -> list[Figures]:
        """Return each class's Fréchet distance to its training images, and that of as many held-out images.

        Samples of a class beyond its number of held-out images are ignored. Classes with fewer than a
        hundred of one of the three have an empty row.
        """
        train, test = self.sets["train"], self.sets["test"]
        assert train.labels is not None
        assert test.labels is not None
        rows: list[Figures] = []
        for label in range(len(train.class_names)):
            known = self.features["train"][train.labels == label]
            samples, held_out = features[labels == label], self.features["test"][test.labels == label]
            count = min(len(samples), len(held_out))
            if min(count, len(known)) < FEWEST_FOR_FRECHET:
                rows.append({})
                continue
            real = Moments.of(known)
            distances = (frechet_distance(real, Moments.of(some[:count])) for some in (samples, held_out))
            rows.append(dict(zip(("frechet", "floor"), distances, strict=True)))
        return rows

    def nearest_training_images(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return distances and indices of the two nearest training images of each image, `(count, 2)` both."""
        return nearest(features, self.features["train"], 2)

    def _subset(self, split: str, count: int, seed: int) -> Tensor:
        return self.features[split][self._order(split, seed)[:count]]

    def _like(self, split: str, labels: Tensor, seed: int) -> Tensor:
        return self.features[split][rows_like(self.sets[split], labels, self._order(split, seed))]

    def _order(self, split: str, seed: int) -> Tensor:
        which = TRAIN_SUBSET if split == "train" else TEST_SUBSET
        return torch.randperm(len(self.sets[split]), generator=seeded_generator(EVALUATION, seed, which))


def mean_and_spread(rows: Sequence[Any]) -> Any:
    """Return mean and standard deviation over seeds of nested dicts of figures.

    The spread is None with one seed, and for figures that do not depend on the seed.
    """
    if isinstance(rows[0], dict):
        return {name: mean_and_spread([row[name] for row in rows]) for name in rows[0]}
    values = torch.tensor(rows, dtype=torch.float64)
    varies = len(rows) > 1 and values.max() - values.min() > ROUNDING * values.abs().max()
    return {"mean": values.mean().item(), "spread": values.std().item() if varies else None}
