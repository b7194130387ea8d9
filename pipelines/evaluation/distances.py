"""How far a set of samples is from a set of real images, measured between their features."""

import warnings
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from ot import sliced_wasserstein_distance
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from denoiser.randomness import EVALUATION, seeded_generator
from pipelines.evaluation.neighbours import overlap, radii

NEIGHBOURS = 5  # of precision, recall, density and coverage (Naeem et al. 2020, section 4)
KERNEL_BLOCK = 1000  # images in each independent estimate of the kernel distance
PROJECTIONS = 128
BLOCKS = 4  # what these `EVALUATION` draws are for: see `comparison` for the others
MIN_IMAGES = 2 * KERNEL_BLOCK  # that `compare` needs on both sides
FEWEST_FOR_FRECHET = 100  # images, where only the Fréchet distance is asked for

DISTANCES = ("frechet", "kernel", "sliced_wasserstein")  # 0 is best; the other figures of `compare` are shares


@dataclass(frozen=True)
class Moments:
    """The Gaussian that fits a set of features: all that the Fréchet distance asks of it.

    Attributes:
        mean: `(features,)` in float64.
        covariance: `(features, features)` in float64.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Fit features `(count, features)`."""
        return cls(features.double().mean(dim=0), features.double().T.cov())


class Cloud:
    """The features of a set of images, and what is computed of them once for all comparisons.

    Args:
        features: `(count, features)`.
    """

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


@dataclass(frozen=True)
class Fidelity:
    """Shares of two sets that lie near each other (Kynkäänniemi et al. 2019; Naeem et al. 2020).

    Attributes:
        precision: Samples that lie within the real images' neighbourhoods: are they real enough?
        recall: Real images that lie within the samples' neighbourhoods: is all of the data there?
        density: Real neighbourhoods that a sample lies in, over those expected; above 1 where samples crowd.
        coverage: Real images whose neighbourhood holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class _Features(nn.Identity):
    """Lets a torchmetrics distance take features in the place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet_distance(real: Moments, samples: Moments) -> float:
    """Return the Fréchet distance between two Gaussians (Heusel et al. 2017, eq. 6), by torchmetrics."""
    metric = FrechetInceptionDistance(_Features(len(real.mean)), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(_points_with(real), real=True)
    metric.update(_points_with(samples), real=False)
    return metric.compute().item()


def _points_with(moments: Moments) -> Tensor:
    """Return the fewest points, two on each principal axis, that have just these moments: what torchmetrics takes."""
    variances, axes = torch.linalg.eigh(moments.covariance)
    offsets = (axes * (variances.clamp(min=0) * (len(variances) - 0.5)).sqrt()).T
    return torch.cat([moments.mean + offsets, moments.mean - offsets])


def kernel_distance(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Return the kernel distance (Bińkowski et al. 2018, section 4) and its standard error, by torchmetrics.

    The cubic kernel's unbiased estimate, over disjoint random blocks of 1,000 images of each set: the blocks are
    independent, so the spread of their values over the root of their number is the error of the mean.

    Args:
        real: `(count, features)`, at least 2,000.
        samples: `(others, features)`, at least 2,000.

    Raises:
        ValueError: If there are too few for two blocks.
    """
    num_blocks = min(len(real), len(samples)) // KERNEL_BLOCK
    if num_blocks < 2:
        raise ValueError(
            f"{min(len(real), len(samples))} images are too few for the kernel distance; give {MIN_IMAGES}"
        )
    estimates = []
    blocks = (_blocks(features, num_blocks, which) for which, features in enumerate((real, samples)))
    for real_block, sample_block in zip(*blocks, strict=True):
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # that it keeps the block in memory
            metric = KernelInceptionDistance(
                _Features(real.shape[1]), subsets=1, subset_size=KERNEL_BLOCK, sync_on_compute=False
            )
        metric = metric.set_dtype(torch.float64)
        metric.update(real_block.double(), real=True)
        metric.update(sample_block.double(), real=False)
        with torch.random.fork_rng():  # it shuffles each block, which changes but the order of the sum
            torch.manual_seed(0)
            estimates.append(metric.compute()[0])
    values = torch.stack(estimates)
    return values.mean().item(), (values.std() / num_blocks**0.5).item()


def _blocks(features: Tensor, num_blocks: int, which: int) -> tuple[Tensor, ...]:
    """Return disjoint random blocks: a set may come class by class, and a block has to be like the whole."""
    order = torch.randperm(len(features), generator=seeded_generator(EVALUATION, 0, BLOCKS, which))
    return features[order[: num_blocks * KERNEL_BLOCK]].split(KERNEL_BLOCK)


def fidelity(real: Cloud, samples: Cloud) -> Fidelity:
    """Return precision, recall, density and coverage with neighbourhoods that reach to the fifth nearest.

    Both need more than five images; equally many make the shares comparable.
    """
    balls, held, within = overlap(samples.features, real.features, samples.radii, real.radii)
    return Fidelity(
        precision=(balls > 0).double().mean().item(),
        recall=(within > 0).double().mean().item(),
        density=balls.double().mean().item() / NEIGHBOURS,
        coverage=(held > 0).double().mean().item(),
    )


def sliced_wasserstein(real: Tensor, samples: Tensor, seed: int = 0) -> float:
    """Return the squared sliced Wasserstein distance of order 2 (Bonneel et al. 2015), by POT.

    Squared, as the Fréchet distance is: in units of variance.

    Args:
        real: `(count, features)`.
        samples: `(others, features)`.
        seed: Of the random directions.
    """
    distance = sliced_wasserstein_distance(real.double(), samples.double(), n_projections=PROJECTIONS, seed=seed)
    return float(distance) ** 2


def compare(split: Moments, real: Cloud, samples: Cloud) -> dict[str, float]:
    """Return every figure of the samples by name.

    Args:
        split: Of the whole split, for the Fréchet distance: its bias falls with the images on both sides.
        real: As many of the split's images as there are samples, for all other figures.
        samples: What is judged.

    Raises:
        ValueError: If there are fewer than 2,000 images.
    """
    kernel, error = kernel_distance(real.features, samples.features)
    return {
        "frechet": frechet_distance(split, samples.moments),
        "kernel": kernel,
        "kernel_error": error,
        "sliced_wasserstein": sliced_wasserstein(real.features, samples.features),
        **asdict(fidelity(real, samples)),
    }
