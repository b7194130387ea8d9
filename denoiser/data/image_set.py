"""An image set as one tensor, and its random training batches.

The randomness of a batch is a function of (seed, step, position in the global batch). Each process
generates its own rows, so N processes take the steps of one, and a resumed run continues exactly,
with no random state to restore.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from denoiser.device import fits
from denoiser.randomness import DATA_ORDER, TRAINING_STEP, seeded_generator

NOISE_BLOCK = 128  # rows of a batch whose noise comes from one generator


@dataclass(frozen=True)
class ImageSet:
    """Images, in memory or mapped from a file, with labels if there are any.

    Attributes:
        images: `(count, channels, height, width)`, uint8, 0 to 255.
        labels: `(count,)`, int64, 0 to `len(class_names) - 1`; None without classes.
        class_names: Name of each class, by label.
        folder: Folder of the prepared set that the images are from.

    Raises:
        ValueError: If a type, shape or range is another, or the set is empty.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    folder: Path | None = None

    def __post_init__(self) -> None:
        images, labels, names = self.images, self.labels, self.class_names
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not images.numel():
            raise ValueError(f"images are {_kind(images)}; give uint8, 0 to 255, (count, channels, height, width)")
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names are {names!r}; give a tuple of strings, one for each class")
        if labels is None and names:
            raise ValueError(f"the images have {len(names)} class names and no labels; give both or neither")
        if labels is None:
            return
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"labels are {_kind(labels)}; give int64, ({len(images)},), one for each image")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"labels go from {labels.min()} to {labels.max()}; with {len(names)} class names they go "
                f"from 0 to {len(names) - 1}"
            )
        object.__setattr__(self, "class_names", tuple(names))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the images' bytes, followed by those of the labels."""
        digest = hashlib.sha256(self.images.contiguous().cpu().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().cpu().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device) -> "ImageSet":
        """Return the set on `device`, or unchanged if it does not fit there."""
        if not fits(self.images, device):
            return self
        return replace(self, images=self.images.to(device), labels=_moved(self.labels, device))

    def batch(self, indices: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the images at `indices`, `(batch,)`, on `device`; by default the set's.

        Returns:
            Images in [-1, 1], `(batch, channels, height, width)` in float32; labels, `(batch,)`, or None.
        """
        rows = torch.as_tensor(indices, device=self.images.device)
        images, labels = self.images[rows], None if self.labels is None else self.labels[rows]
        device = device or images.device
        return images.to(device).float() / 127.5 - 1, _moved(labels, device)

    def first(self, count: int) -> "ImageSet":
        """Return the first `count` images."""
        return replace(self, images=self.images[:count], labels=None if self.labels is None else self.labels[:count])


def evenly(count: int, most: int) -> Tensor:
    """Return up to `most` of the indices 0 to `count - 1`, evenly picked, since a set may be sorted by class."""
    picked = min(count, most)
    return torch.arange(picked) * count // max(1, picked)


def _moved(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)


def _kind(value: object) -> str:
    """Describe a value for an error."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}, {tuple(value.shape)}"
    return f"of type {type(value).__name__}"


@dataclass(frozen=True)
class RandomBatch:
    """The randomness of a training batch, or of some of its rows.

    Attributes:
        indices: `(batch,)` indices into the training set.
        timesteps: `(batch,)`, stratified: one in each of `batch` equal parts of the range, in random
            order.
        noise: `(batch, channels, height, width)`, standard normal.
        label_dropped: `(batch,)` booleans: whether the null label replaces the label.
        flipped: `(batch,)` booleans: whether the image is flipped horizontally, if the training flips.
    """

    indices: Tensor
    timesteps: Tensor
    noise: Tensor
    label_dropped: Tensor
    flipped: Tensor

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
    rows: range | None = None,
) -> RandomBatch:
    """Generate the randomness of the global batch of an optimizer step, or of some of its rows.

    Noise is generated in blocks of rows, so that its cost does not grow with the number of processes.

    Args:
        seed: Seed of the run.
        step: Optimizer steps before this one.
        batch_size: Images in the global batch: of all processes and all accumulated passes.
        image_shape: `(channels, height, width)`.
        num_images: Size of the training set; each epoch visits every image once, in its own order.
        num_timesteps: Timesteps are 0 to `num_timesteps - 1`.
        label_dropout: Probability that a label is dropped.
        rows: Rows of the batch that are returned; None for all.
    """
    rows = range(batch_size) if rows is None else rows
    generator = seeded_generator(TRAINING_STEP, seed, step)
    strata = torch.randperm(batch_size, generator=generator)
    offsets = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    timesteps = ((strata + offsets) / batch_size * num_timesteps).long()
    first_block = torch.randn(min(batch_size, NOISE_BLOCK), *image_shape, generator=generator)
    own = slice(rows.start, rows.stop)
    return RandomBatch(
        indices=_data_order(seed, step * batch_size, batch_size, num_images)[own],
        timesteps=timesteps.clamp(max=num_timesteps - 1)[own],  # against rounding up at the very end
        noise=_noise(seed, step, rows, first_block),
        label_dropped=torch.rand(batch_size, generator=generator)[own] < label_dropout,
        flipped=torch.rand(batch_size, generator=generator)[own] < 0.5,
    )


def _noise(seed: int, step: int, rows: range, first_block: Tensor) -> Tensor:
    """Return the noise of some rows of a batch, from the blocks that hold them."""
    first, last = rows.start // NOISE_BLOCK, (rows.stop - 1) // NOISE_BLOCK
    blocks = [
        torch.randn(NOISE_BLOCK, *first_block.shape[1:], generator=seeded_generator(TRAINING_STEP, seed, step, block))
        if block
        else first_block
        for block in range(first, last + 1)
    ]
    start = first * NOISE_BLOCK
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[rows.start - start : rows.stop - start]


def drop_labels(class_labels: Tensor | None, null_label: int | None, dropped: Tensor) -> Tensor | None:
    """Replace labels, `(batch,)`, by the null label where `dropped`, `(batch,)`, is true.

    The result is None without labels, and for an unconditional network, which has no null label.
    """
    return None if class_labels is None or null_label is None else class_labels.masked_fill(dropped, null_label)


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
