"""A whole image set as one tensor, so that a batch is one index operation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, all in memory.

    Attributes:
        images: `(count, channels, height, width)`, uint8.
        labels: `(count,)`, int64.
        class_names: Name of each class, by label.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "ImageSet":
        """Return the set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.class_names)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images in [-1, 1], `(batch, channels, height, width)` in float32, and labels, `(batch,)`."""
        return self.images[indices].float() / 127.5 - 1, self.labels[indices]
