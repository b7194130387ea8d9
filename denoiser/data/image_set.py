"""A whole image set as one tensor, so that a batch is one index operation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, all in memory.

    Attributes:
        images: `(count, channels, height, width)`, uint8, 0 to 255.
        labels: `(count,)`, int64, 0 to the number of class names less one.
        class_names: Name of each class, by label.

    Raises:
        ValueError: If one of them is of another type, shape or range, or there is no image.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels, names = self.images, self.labels, self.class_names
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise ValueError(f"images are {_kind(images)}; give uint8, 0 to 255, (count, channels, height, width)")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels are {_kind(labels)}; give int64, ({len(images)},), one for each image")
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names are {names!r}; give a tuple of strings, one for each class")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"labels go from {labels.min()} to {labels.max()}; with {len(names)} class names they go "
                f"from 0 to {len(names) - 1}"
            )
        object.__setattr__(self, "class_names", tuple(names))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "ImageSet":
        """Return the set on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.class_names)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images in [-1, 1], `(batch, channels, height, width)` in float32, and labels, `(batch,)`."""
        return self.images[indices].float() / 127.5 - 1, self.labels[indices]


def _kind(value: object) -> str:
    """Return what a value is, for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)}"
    return f"of type {type(value).__name__}"
