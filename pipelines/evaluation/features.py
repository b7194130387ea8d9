"""Two independent ways of looking at images, so that neither one's blind spots decide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from denoiser.data import ImageSet
from pipelines.evaluation.distances import Moments
from pipelines.evaluation.judge import SPLITS, Judge, judge_images

NUM_COMPONENTS = 64


@dataclass(frozen=True)
class FeatureSpace:
    """A way of looking at images.

    Attributes:
        name: What the report calls it.
        features: Turns uint8 images `(count, 1, 16, 16)` into features `(count, features)` in float32.
        moments: Reference statistics of the splits, where they are known beforehand.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    moments: Mapping[str, Moments] | None = None


def judge_space(judge: Judge) -> FeatureSpace:
    """Return the space of the judge's features: what the images show."""
    moments = {split: judge.moments(split) for split in SPLITS}
    return FeatureSpace("judge", lambda images: judge_images(judge, images)[0], moments)


def pixel_space(train: ImageSet) -> FeatureSpace:
    """Return the space of the training images' first 64 principal components: where their light is.

    All are scaled by one number, so that their variance is 1 on average.

    No network has learned to overlook anything here, such as a shift by one pixel.
    """
    pixels = train.images.flatten(1).double() / 255
    mean = pixels.mean(dim=0)
    variances, directions = torch.linalg.eigh(pixels.T.cov())  # in the order of rising variance
    components = directions[:, -NUM_COMPONENTS:]
    components = components / variances[-NUM_COMPONENTS:].mean().sqrt()

    def project(images: Tensor) -> Tensor:
        return ((images.flatten(1).double() / 255 - mean) @ components).float()

    return FeatureSpace("pixels", project)
