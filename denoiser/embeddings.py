"""What tells a backbone the noise level and the class: timestep and label embeddings."""

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(timesteps: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps as cosines and sines of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: `(batch,)`, whole or fractional.
        channels: Even number of embedding channels.
        max_period: Period, in timesteps, of the slowest wave over 2 pi.

    Returns:
        `(batch, channels)` in float32, values in [-1, 1].
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies  # (batch, channels / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def batched_timestep(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """Give every image of `sample` its timestep, shape `(batch,)`; a scalar, or a single one, stands for all.

    Raises:
        ValueError: If there is neither one timestep nor one for each image.
    """
    timesteps = torch.as_tensor(timestep, device=sample.device).flatten()
    num_timesteps, num_images = timesteps.shape[0], sample.shape[0]
    if num_timesteps not in (1, num_images):
        raise ValueError(f"{num_timesteps} timesteps for {num_images} images; give one, or one for each image")
    return timesteps.expand(num_images)


class LabelEmbedding(nn.Module):
    """A vector for each class, and one more, the null label, for "no class given" (Ho & Salimans 2022).

    Args:
        num_classes: Number of classes; labels are 0 to `num_classes - 1`, the null label is `num_classes`.
        channels: Embedding channels.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.null_label = num_classes
        self.table = nn.Embedding(num_classes + 1, channels)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Embed `(batch,)` labels as `(batch, channels)`; no labels at all means the null label for every image."""
        if class_labels is None:
            class_labels = torch.full((batch_size,), self.null_label, device=self.table.weight.device)
        return self.table(class_labels)


def drop_labels(class_labels: Tensor, null_label: int, dropped: Tensor) -> Tensor:
    """Put the null label where `dropped` is true, so that one network learns both with and without a class.

    Args:
        class_labels: `(batch,)` class indices.
        null_label: Index that stands for "no class given".
        dropped: `(batch,)` booleans, true with the dropout probability.
    """
    return class_labels.masked_fill(dropped, null_label)
