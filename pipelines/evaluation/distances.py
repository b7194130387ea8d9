"""Distances between the features of two image sets, nearest neighbours and memorisation."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from denoiser.randomness import EVALUATION, seeded_generator

NEIGHBOURS = 5  # of precision, recall, density and coverage (Naeem et al. 2020, section 4)
KERNEL_BLOCK = 1000  # images in each independent estimate of the kernel distance
DIRECTIONS = 128  # of the sliced Wasserstein distance
BLOCKS, PROJECTIONS = 4, 5  # purposes of `EVALUATION` generators: see `comparison` for the others
MIN_IMAGES = 2 * KERNEL_BLOCK  # of the kernel distance, in both sets
FEWEST_FOR_FRECHET = 100  # images, for all other figures: a share of 100 has a standard error of up to 0.05
ROWS = 500  # of a block of pairwise distances: 500 x 60,000 are 120 MB
MOST_PAIRS = ROWS * 60_000
NEAR_RATIO = 0.5
PANEL_PAIRS = 12

DISTANCES = ("frechet", "kernel", "sliced_wasserstein")  # 0 is best; the other figures of `compare` are fractions


@dataclass(frozen=True)
class Moments:
    """Mean `(features,)` and covariance `(features, features)` of a set of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of `(count, features)`."""
        return cls(features.double().mean(dim=0), features.double().T.cov())

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor]) -> "Moments":
        """Return the moments of batches of float64 features, `(batch, features)` each, which need not fit memory."""
        total, products, count = torch.zeros(()), torch.zeros(()), 0
        for batch in batches:
            total, products, count = total + batch.sum(dim=0), products + batch.T @ batch, count + len(batch)
        mean = total / count
        return cls(mean, (products - count * mean.outer(mean)) / max(count - 1, 1))


class Cloud:
    """Features of an image set, `(count, features)`, with cached statistics."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance."""
        return Moments.of(self.features)

    @cached_property
    def radii(self) -> Tensor:
        """Distance of each point to its fifth nearest neighbour, `(count,)`."""
        return radii(self.features, NEIGHBOURS)


def frechet_distance(real: Moments, samples: Moments) -> float:
    """Return the Fréchet distance between two Gaussians (Heusel et al. 2017, eq. 6)."""
    variances, axes = torch.linalg.eigh(real.covariance)
    root = (axes * variances.clamp(min=0).sqrt()) @ axes.T
    overlap = torch.linalg.eigvalsh(root @ samples.covariance @ root).clamp(min=0).sqrt().sum()
    traces = real.covariance.trace() + samples.covariance.trace() - 2 * overlap
    return ((real.mean - samples.mean).square().sum() + traces).item()


def kernel_distance(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Return the kernel distance (Bińkowski et al. 2018, section 4) and its standard error.

    The unbiased estimate with the cubic kernel, over disjoint random blocks of 1,000 images, whose
    independence makes the standard error of their mean honest. Both sets are `(count, features)`.

    Raises:
        ValueError: If there are fewer than two blocks.
    """
    num_blocks = min(len(real), len(samples)) // KERNEL_BLOCK
    if num_blocks < 2:
        raise ValueError(
            f"{min(len(real), len(samples))} images are too few for the kernel distance; give {MIN_IMAGES}"
        )
    blocks = (_blocks(features.double(), num_blocks, which) for which, features in enumerate((real, samples)))
    values = torch.stack([_block_distance(*pair) for pair in zip(*blocks, strict=True)])
    return values.mean().item(), (values.std() / num_blocks**0.5).item()


def _block_distance(real: Tensor, samples: Tensor) -> Tensor:
    """Return the unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, eq. 3)."""
    count, width = real.shape
    of_real, of_samples, of_both = (
        (one @ other.T / width + 1) ** 3 for one, other in ((real, real), (samples, samples), (real, samples))
    )
    within = sum(products.sum() - products.trace() for products in (of_real, of_samples))
    return within / (count * (count - 1)) - 2 * of_both.mean()


def _blocks(features: Tensor, num_blocks: int, which: int) -> tuple[Tensor, ...]:
    """Return disjoint random blocks; the set itself may be sorted by class."""
    order = torch.randperm(len(features), generator=seeded_generator(EVALUATION, 0, BLOCKS, which))
    return features[order[: num_blocks * KERNEL_BLOCK]].split(KERNEL_BLOCK)


def sliced_wasserstein(real: Tensor, samples: Tensor, seed: int = 0) -> float:
    """Return the squared sliced Wasserstein distance of order 2 (Bonneel et al. 2015).

    Both sets are `(count, features)`; the random directions depend on the seed.
    """
    generator = seeded_generator(EVALUATION, seed, PROJECTIONS)
    directions = torch.randn(real.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    ours, theirs = ((features.double() @ directions).sort(dim=0).values for features in (samples, real))
    return (ours - theirs).square().mean().item()


def compare(split: Moments, real: Cloud, samples: Cloud) -> dict[str, float]:
    """Return all figures of the samples by name; that of the kernel distance from 2,000 images on.

    The Fréchet distance is to the moments of the whole split, since its bias falls with the images; the
    other figures compare as many real images as samples.
    """
    figures = {"frechet": frechet_distance(split, samples.moments)}
    if min(len(real.features), len(samples.features)) >= MIN_IMAGES:
        figures["kernel"], figures["kernel_error"] = kernel_distance(real.features, samples.features)
    return {
        **figures,
        "sliced_wasserstein": sliced_wasserstein(real.features, samples.features),
        **fidelity(real, samples),
    }


def fidelity(real: Cloud, samples: Cloud) -> dict[str, float]:
    """Return precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Neighbourhoods reach to the fifth nearest image. Precision is the fraction of the samples within the
    neighbourhoods of real images, recall that of the real images within the samples'; density is the
    number of real neighbourhoods of a sample over that expected, coverage the fraction of the real
    images with a sample in their neighbourhood. For comparable figures both sets are of equal size.
    """
    balls, held, within = overlap(samples.features, real.features, samples.radii, real.radii)
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": (within > 0).double().mean().item(),
        "density": balls.double().mean().item() / NEIGHBOURS,
        "coverage": (held > 0).double().mean().item(),
    }


def nearest(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return distances and indices of the `k` nearest references of each query, nearest first.

    Both sets are `(count, features)`, both results `(count, k)`.
    """
    found = []
    for block in queries.split(max(1, min(ROWS, MOST_PAIRS // len(references)))):
        indices = torch.cdist(block, references).topk(k, largest=False).indices
        # The product form of large blocks rounds small distances away: measure the nearest again.
        exact = (block[:, None] - references[indices]).norm(dim=2)
        exact, order = exact.sort(dim=1)
        found.append((exact, indices.gather(1, order)))
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, indices


def radii(features: Tensor, k: int) -> Tensor:
    """Return each point's distance to its `k`-th nearest other point, `(count,)`."""
    distances, _ = nearest(features, features, k + 1)  # the nearest of all is the point itself
    return distances[:, k]


def overlap(samples: Tensor, real: Tensor, sample_radii: Tensor, real_radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count the overlaps between two sets, `(count, features)`, and each other's neighbourhoods.

    Returns:
        Real neighbourhoods of each sample; samples in each real neighbourhood; sample neighbourhoods of
        each real image.
    """
    balls, held, within = [], torch.zeros(len(real)), torch.zeros(len(real))
    for block, radius in zip(samples.split(ROWS), sample_radii.split(ROWS), strict=True):
        distances = torch.cdist(block, real)
        in_real = (distances < real_radii).float()  # sums of floats are many times faster than of booleans
        balls.append(in_real.sum(dim=1))
        held += in_real.sum(dim=0)
        within += (distances < radius[:, None]).float().sum(dim=0)
    return torch.cat(balls), held, within


def nearness(distances: Tensor) -> dict[str, float]:
    """Summarise distances to the two nearest training images, `(count, 2)`.

    The ratio of the first to the second is near 0 for a copy and near 1 for a new image.
    """
    ratios = distances[:, 0] / distances[:, 1].clamp(min=1e-12)
    return {
        "median_distance": distances[:, 0].double().quantile(0.5).item(),
        "first_percentile_distance": distances[:, 0].double().quantile(0.01).item(),
        "median_ratio": ratios.double().quantile(0.5).item(),
        "share_of_ratios_below_half": (ratios < NEAR_RATIO).double().mean().item(),
    }


def closest_pairs(distances: Tensor, indices: Tensor) -> list[dict[str, Any]]:
    """Return the twelve samples nearest to a training image, nearest first."""
    order = distances[:, 0].argsort(stable=True)[:PANEL_PAIRS]
    return [
        {
            "image": int(image),
            "training_image": int(indices[image, 0]),
            "distance": distances[image, 0].item(),
            "ratio": (distances[image, 0] / distances[image, 1].clamp(min=1e-12)).item(),
        }
        for image in order
    ]
