"""The sides of a set: images to train on, and images held out."""

import numpy as np

TRAINED, HELD_OUT, LEFT_OUT = range(3)


def lowest_hashes(digests: np.ndarray, labels: np.ndarray | None, share: float) -> np.ndarray:
    """Return which images are held out: those with the lowest hashes.

    Equal images are on one side. Of the numbers that this allows, that nearest to the share is held out,
    and an image is left to train on. A class that would have none is trained on.

    Args:
        digests: `(count,)`, hashes of the images.
        labels: `(count,)`, their classes; None without classes.
        share: Share to hold out, from 0 to below 1.
    """
    hashes, counts = np.unique(digests, return_counts=True)
    lower = np.cumsum(counts) - counts  # images below each hash
    held_out: np.ndarray = digests < hashes[np.abs(lower - share * len(digests)).argmin()]
    if labels is not None:
        lost = ~np.isin(labels, labels[~held_out])
        held_out &= ~np.isin(digests, digests[lost])
    return held_out


def sides_of(held_out: np.ndarray, digests: np.ndarray, distinct: bool) -> np.ndarray:
    """Return the side of each image; if `distinct`, training images that equal a held-out one are left out."""
    sides = np.where(held_out, HELD_OUT, TRAINED)
    if distinct:
        sides[~held_out & np.isin(digests, digests[held_out])] = LEFT_OUT
    return sides
