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


def count_within(queries: Tensor, centres: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Count how many balls each query lies in, `(queries,)`, and how many queries each ball holds, `(centres,)`.

    Args:
        queries: `(count, features)`.
        centres: `(others, features)`, the middles of the balls.
        radius: `(others,)`, their radii.
    """
    balls, held = [], torch.zeros(len(centres), dtype=torch.long)
    for block in queries.split(BLOCK):
        inside = torch.cdist(block, centres) < radius
        balls.append(inside.sum(dim=1))
        held += inside.sum(dim=0)
    return torch.cat(balls), held
