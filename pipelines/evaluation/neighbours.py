"""Nearest neighbours between large sets of features, block by block, so that memory stays small."""

import torch
from torch import Tensor

BLOCK = 500  # rows at a time: 500 x 60,000 distances are 120 MB


def nearest(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the distances to, and the indices of, the `k` nearest references of each query, nearest first.

    Args:
        queries: `(count, features)`.
        references: `(others, features)`.
        k: At most `others`.

    Returns:
        Two of `(count, k)`.
    """
    found = []
    for block in queries.split(BLOCK):
        indices = torch.cdist(block, references).topk(k, largest=False).indices
        # The product form that makes blocks fast loses small distances to rounding: measure those that count again.
        exact = (block[:, None] - references[indices]).norm(dim=2)
        exact, order = exact.sort(dim=1)
        found.append((exact, indices.gather(1, order)))
    distances, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, indices


def radii(features: Tensor, k: int) -> Tensor:
    """Return each point's distance to its `k`-th nearest other point of the same set, `(count,)`."""
    distances, _ = nearest(features, features, k + 1)  # the nearest of all is the point itself
    return distances[:, k]


def overlap(samples: Tensor, real: Tensor, sample_radii: Tensor, real_radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count how the neighbourhoods of two sets overlap.

    Args:
        samples: `(count, features)`.
        real: `(others, features)`.
        sample_radii: `(count,)`, of the balls around the samples.
        real_radii: `(others,)`, of the balls around the real images.

    Returns:
        How many real balls each sample lies in, `(count,)`; how many samples each real ball holds, and how many sample
        balls each real image lies in, `(others,)` both.
    """
    balls, held, within = [], torch.zeros(len(real)), torch.zeros(len(real))
    for block, radius in zip(samples.split(BLOCK), sample_radii.split(BLOCK), strict=True):
        distances = torch.cdist(block, real)
        in_real = (distances < real_radii).float()  # whose sums are many times faster than those of booleans
        balls.append(in_real.sum(dim=1))
        held += in_real.sum(dim=0)
        within += (distances < radius[:, None]).float().sum(dim=0)
    return torch.cat(balls), held, within
