"""Whether samples repeat training images: how much nearer one of them is than the next."""

from typing import Any

import torch
from torch import Tensor

NEAR_RATIO = 0.5
PANEL_PAIRS = 12


def nearness(distances: Tensor) -> dict[str, float]:
    """Sum up the distances to the two nearest training images, `(count, 2)`.

    A copy has a ratio of the first to the second near 0, a new image one near 1.
    """
    ratios = distances[:, 0] / distances[:, 1].clamp(min=1e-12)
    return {
        "median_distance": distances[:, 0].double().quantile(0.5).item(),
        "first_percentile_distance": distances[:, 0].double().quantile(0.01).item(),
        "median_ratio": ratios.double().quantile(0.5).item(),
        "share_of_ratios_below_half": (ratios < NEAR_RATIO).double().mean().item(),
    }


def closest_pairs(distances: Tensor, indices: Tensor) -> list[dict[str, Any]]:
    """Return the twelve images nearest to a training image, nearest first: their positions, its index, the figures."""
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


def pairs_side_by_side(samples: Tensor, training_images: Tensor, pairs: list[dict[str, Any]]) -> Tensor:
    """Return each pair's sample and training image in turn, uint8 `(2 * pairs, channels, height, width)`."""
    both = [(samples[pair["image"]], training_images[pair["training_image"]]) for pair in pairs]
    return torch.stack([image for pair in both for image in pair])
