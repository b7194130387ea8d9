"""An image set as one tensor, and its random training batches.

The randomness of a batch is a function of (seed, step, position in the global batch). Each process
generates it for the whole batch and keeps its part, so N processes take the steps of one, and a
resumed run continues exactly, with no random state to restore.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from denoiser.randomness import DATA_ORDER, TRAINING_STEP, seeded_generator


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: `(count, channels, height, width)`, uint8, 0 to 255.
        labels: `(count,)`, int64, 0 to `len(class_names) - 1`.
        class_names: Name of each class, by label.

    Raises:
        ValueError: If a type, shape or range is another, or the set is empty.
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
    """Describe a value for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)}"
    return f"of type {type(value).__name__}"


@dataclass(frozen=True)
class RandomBatch:
    """The randomness of a training batch.

    Attributes:
        indices: `(batch,)` indices into the training set.
        timesteps: `(batch,)`, stratified: one in each of `batch` equal parts of the range, in random
            order.
        noise: `(batch, channels, height, width)`, standard normal.
        label_dropped: `(batch,)` booleans: whether the null label replaces the label.
    """

    indices: Tensor
    timesteps: Tensor
    noise: Tensor
    label_dropped: Tensor

    def part(self, start: int, length: int) -> "RandomBatch":
        """Return the rows `start` to `start + length`."""
        rows = slice(start, start + length)
        return RandomBatch(*(getattr(self, entry.name)[rows] for entry in fields(self)))

    def to(self, device: torch.device) -> "RandomBatch":
        """Return the batch on `device`."""
        return RandomBatch(*(getattr(self, entry.name).to(device) for entry in fields(self)))


def random_batch(
    seed: int,
    step: int,
    batch_size: int,
    image_shape: tuple[int, int, int],
    num_images: int,
    num_timesteps: int,
    label_dropout: float = 0.0,
) -> RandomBatch:
    """Generate the randomness of the global batch of an optimizer step.

    Args:
        seed: Seed of the run.
        step: Optimizer steps before this one.
        batch_size: Images in the global batch: of all processes and all accumulated passes.
        image_shape: `(channels, height, width)`.
        num_images: Size of the training set; each epoch visits every image once, in its own order.
        num_timesteps: Timesteps are 0 to `num_timesteps - 1`.
        label_dropout: Probability that a label is dropped.
    """
    generator = seeded_generator(TRAINING_STEP, seed, step)
    strata = torch.randperm(batch_size, generator=generator)
    offsets = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    timesteps = ((strata + offsets) / batch_size * num_timesteps).long()
    return RandomBatch(
        indices=_data_order(seed, step * batch_size, batch_size, num_images),
        timesteps=timesteps.clamp(max=num_timesteps - 1),  # against rounding up at the very end
        noise=torch.randn(batch_size, *image_shape, generator=generator),
        label_dropped=torch.rand(batch_size, generator=generator) < label_dropout,
    )


def drop_labels(class_labels: Tensor, null_label: int, dropped: Tensor) -> Tensor:
    """Replace labels, `(batch,)`, by the null label where `dropped`, `(batch,)`, is true."""
    return class_labels.masked_fill(dropped, null_label)


def _data_order(seed: int, start: int, length: int, num_images: int) -> Tensor:
    """Return positions `start` to `start + length` of the endless sequence of shuffled epochs."""
    parts = []
    while length:
        epoch, offset = divmod(start, num_images)
        part = _epoch_order(seed, epoch, num_images)[offset : offset + length]
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return torch.cat(parts)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    return torch.randperm(num_images, generator=seeded_generator(DATA_ORDER, seed, epoch))
