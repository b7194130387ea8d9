"""The random draws of training: functions of (seed, step, position in the global batch), and of nothing else.

Each process draws for the whole batch and keeps its slice. So N processes take the steps that one would, and a
resumed run goes on exactly, with no random state to restore.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from denoiser.randomness import DATA_ORDER, TRAINING_STEP, seeded_generator


@dataclass(frozen=True)
class Draws:
    """What chance decides for a batch.

    Attributes:
        indices: `(batch,)` positions of the images in the training set.
        timesteps: `(batch,)`. Stratified: one in each of `batch` equal parts of the range, in random order; else
            independent and uniform.
        noise: `(batch, channels, height, width)`, standard normal.
        label_dropped: `(batch,)` booleans: where the label is replaced by the null label.
    """

    indices: Tensor
    timesteps: Tensor
    noise: Tensor
    label_dropped: Tensor

    def part(self, start: int, length: int) -> "Draws":
        """Return the draws of `length` images from `start` on."""
        rows = slice(start, start + length)
        return Draws(*(getattr(self, entry.name)[rows] for entry in fields(self)))

    def to(self, device: torch.device) -> "Draws":
        """Return the draws on `device`."""
        return Draws(*(getattr(self, entry.name).to(device) for entry in fields(self)))


def draw(
    seed: int,
    step: int,
    batch_size: int,
    image_shape: tuple[int, int, int],
    num_images: int,
    num_timesteps: int,
    label_dropout: float,
    stratified_timesteps: bool = True,
) -> Draws:
    """Draw for the global batch of one optimizer step.

    Args:
        seed: The run's seed.
        step: Optimizer steps before this one.
        batch_size: Images in the global batch: of all processes and all accumulated passes.
        image_shape: `(channels, height, width)`.
        num_images: Size of the training set; each epoch visits every image once, in its own order.
        num_timesteps: Timesteps are 0 to `num_timesteps - 1`.
        label_dropout: Probability that a label is dropped.
        stratified_timesteps: Whether the timesteps are stratified, or drawn independently.
    """
    generator = seeded_generator(TRAINING_STEP, seed, step)
    strata = torch.randperm(batch_size, generator=generator)
    offsets = torch.rand(batch_size, generator=generator, dtype=torch.float64)
    places = (strata + offsets) / batch_size if stratified_timesteps else offsets  # in [0, 1)
    timesteps = (places * num_timesteps).long()
    return Draws(
        indices=_data_order(seed, step * batch_size, batch_size, num_images),
        timesteps=timesteps.clamp(max=num_timesteps - 1),  # against rounding up at the very end
        noise=torch.randn(batch_size, *image_shape, generator=generator),
        label_dropped=torch.rand(batch_size, generator=generator) < label_dropout,
    )


def _data_order(seed: int, start: int, length: int, num_images: int) -> Tensor:
    """Return the images at positions `start` to `start + length` of the endless sequence of shuffled epochs."""
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
