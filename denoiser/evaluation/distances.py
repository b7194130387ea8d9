"""How far a set of samples is from a set of real images, measured between their features."""

from dataclasses import dataclass

import torch
from ot import sliced_wasserstein_distance
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from denoiser.evaluation.neighbours import count_within, radii

NEIGHBOURS = 5  # of precision, recall, density and coverage (Naeem et al. 2020, section 4)
KERNEL_BLOCK = 1000  # images in each independent estimate of the kernel distance
PROJECTIONS = 500


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


def frechet_distance(real: Tensor, samples: Tensor) -> float:
    """Return the Fréchet distance between Gaussians fitted to both (Heusel et al. 2017, eq. 6), by torchmetrics.

    Args:
        real: `(count, features)`.
        samples: `(others, features)`.
    """
    metric = FrechetInceptionDistance(_Features(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(samples.double(), real=False)
    return metric.compute().item()


def kernel_distance(real: Tensor, samples: Tensor) -> tuple[float, float]:
    """Return the kernel distance (Bińkowski et al. 2018, section 4) and its standard error, by torchmetrics.

    The cubic kernel's unbiased estimate, over disjoint blocks of 1,000 images of each set: the blocks are independent,
    so the spread of their values over the root of their number is the error of the mean.

    Args:
        real: `(count, features)`, at least 2,000.
        samples: `(others, features)`, at least 2,000.

    Raises:
        ValueError: If there are too few for two blocks.
    """
    num_blocks = min(len(real), len(samples)) // KERNEL_BLOCK
    if num_blocks < 2:
        raise ValueError(f"{min(len(real), len(samples))} images are too few for the kernel distance; give 2,000")
    estimates = []
    for block in range(num_blocks):
        rows = slice(block * KERNEL_BLOCK, (block + 1) * KERNEL_BLOCK)
        metric = KernelInceptionDistance(_Features(real.shape[1]), subsets=1, subset_size=KERNEL_BLOCK)
        metric = metric.set_dtype(torch.float64)
        metric.update(real[rows].double(), real=True)
        metric.update(samples[rows].double(), real=False)
        with torch.random.fork_rng():  # it shuffles each block, which changes but the order of the sum
            torch.manual_seed(block)
            estimates.append(metric.compute()[0])
    values = torch.stack(estimates)
    return values.mean().item(), (values.std() / num_blocks**0.5).item()


def fidelity(real: Tensor, samples: Tensor) -> Fidelity:
    """Return precision, recall, density and coverage with neighbourhoods that reach to the fifth nearest.

    Args:
        real: `(count, features)`, more than five.
        samples: `(others, features)`, more than five.
    """
    balls, held = count_within(samples, real, radii(real, NEIGHBOURS))
    recalled, _ = count_within(real, samples, radii(samples, NEIGHBOURS))
    return Fidelity(
        precision=(balls > 0).double().mean().item(),
        recall=(recalled > 0).double().mean().item(),
        density=balls.double().mean().item() / NEIGHBOURS,
        coverage=(held > 0).double().mean().item(),
    )


def sliced_wasserstein(real: Tensor, samples: Tensor, seed: int = 0) -> float:
    """Return the sliced Wasserstein distance of order 2 (Bonneel et al. 2015), by POT.

    Args:
        real: `(count, features)`.
        samples: `(others, features)`.
        seed: Of the random directions.
    """
    return float(sliced_wasserstein_distance(real.double(), samples.double(), n_projections=PROJECTIONS, seed=seed))
